"""Every figure of the page, in the paper's order: what it is called, what it shows, what to look at."""

from __future__ import annotations

from . import backbone, deciding, fusing, naming, neck, sampling, words
from .figure import Chapter, Figure

CHAPTERS = (
    Chapter("Image", "swin", "A picture becomes numbers, and the numbers become patches.", (
        Figure("pixels", "The image as the model sees it", ("image.preprocess", "image.resized", "model.forward"),
               ("forward.0/pixels",), backbone.pixels,
               "The image is resized until its shorter edge fits, and each channel is shifted and scaled so that its "
               "values lie around zero. Whatever is too small to be seen here is not there for the model either."),
        Figure("patches", "Patches", ("swin.patch_embedding",),
               ("*/patch_embedding.0/kernel", "*/patch_embedding.0/return"), backbone.patches,
               "Squares of 4 by 4 pixels are the model's first tokens. Each is multiplied by learned filters, one for "
               "every channel. Pick a patch to see its pixels. The coloured map shows the three directions in which "
               "the resulting vectors vary most: like colours, like vectors."),
    )),
    Chapter("Image backbone", "swin", "Swin Transformer: attention in small windows, so that its cost grows with the "
            "image and not with its square.", (
        Figure("windows", "Windows, and windows shifted", ("swin.windows", "swin.attend_in_windows", "swin.swin_block"),
               ("*/attend_in_windows.0/return",), backbone.windows,
               "A pixel of the map attends to its own window alone. In every other block the windows are shifted by "
               "half their side, so what a border separated meets in one window. Coarser stages have fewer windows, "
               "and each covers more of the image. Hatching is padding: the map must be a multiple of the window."),
        Figure("shift-mask", "What the shift must keep apart", ("swin.shift_mask",),
               ("*/shift_mask.0/pieces", "*/shift_mask.0/return"), backbone.shift_mask,
               "The shift is cyclic: what leaves at the top comes back at the bottom. A window at the border then "
               "holds pieces that are far apart in the image. The mask adds -100 to the scores between two pieces, "
               "dark in the matrix. Pick a window to see which of its pixels see each other."),
        Figure("window-attention", "Attention inside a window", ("swin.attend_in_windows", "swin.window_attention"),
               ("*/attend_in_windows.0/weights",), backbone.window_attention,
               "Pick a pixel: the squares are the pixels of its window, the brighter the more it reads of them. In a "
               "shifted block a window at the border may lie in several pieces; the mask lets it read one of them."),
        Figure("position-bias", "Relative position bias", ("swin.relative_position_bias",),
               ("*/relative_position_bias.0/table",), backbone.position_bias,
               "One learned number for every offset between two pixels of a window, and for every head, is added to "
               "the scores before the softmax. The middle of a square is the pixel itself. A bright middle is a head "
               "that looks close by, a bright side one that looks that way."),
        Figure("stages", "Four stages", ("swin.swin", "swin.swin_block", "swin.patch_merging"),
               tuple(f"forward.0/swin.0/swin_block.{n}/return" for n in ("?", "??", "???")), backbone.stages,
               "Between stages 2 by 2 neighbours are merged into one, and the channels double. The colours are the "
               "three directions in which a map varies most. Early maps show edges and colour, late ones regions."),
    )),
    Chapter("Pyramid", "enhancer", "Maps of every size get the same number of channels, so that one transformer "
            "can read them all.", (
        Figure("pyramid", "Levels, fine to coarse",
               ("enhancer.neck", "enhancer.conv_1x1", "enhancer.conv_3x3_stride_2"),
               ("forward.0/neck.0/return.*",), neck.pyramid,
               "The backbone's maps, projected to one width, and coarser maps made from the last of them. All their "
               "pixels together are the S image tokens of everything that follows."),
        Figure("image-positions", "Where a pixel is",
               ("enhancer.vision_positions", "boxes.image_positions", "boxes.sine_embedding"),
               ("*/vision_positions.0/return", "*/vision_positions.0/image_positions.0/return"),
               neck.image_positions,
               "Attention does not know order, so each pixel carries sines and cosines of its row and its column, "
               "in waves of many lengths. These are channels of the finest level: the first row of pictures tells "
               "rows apart, the second columns."),
    )),
    Chapter("Text", "phrases", "The phrases are read together but must not disturb each other.", (
        Figure("phrase-mask", "Who sees whom", ("phrases.phrase_mask",),
               ("forward.0/phrase_mask.0/return.0", "forward.0/phrase_mask.0/return.1"), words.phrase_mask,
               "A row is a token, a column one that it may see. Every phrase is a block of its own, closed by its "
               "delimiter, so what it means does not depend on what else is asked for. Positions are counted from 0 "
               "in every phrase."),
        Figure("text-attention", "Words reading words",
               ("bert.bert", "bert.bert_layer", "enhancer.text_enhancer_layer", "ops.attend"),
               ("*/bert_layer.*/attention.0/attend.0/weights", "*/text_enhancer_layer.*/attention.0/attend.0/weights"),
               words.text_attention,
               "How much a token (row) reads of another (column), the mean of all heads. The mask leaves the blocks "
               "of the figure above. The last layers are the enhancer's: there the words have already met the image."),
    )),
    Chapter("Feature enhancer", "enhancer", "Image and text tell each other what they hold, then each looks at itself "
            "again.", (
        Figure("token-looks", "Where each token looks", ("fusion.attend_both_ways", "fusion.bi_attention"),
               ("*/attend_both_ways.0/to_vision",), fusing.token_looks,
               "Text to image: the weights of one token over all pixels of all levels sum to 1. Pick a word and move "
               "through the layers to see which pixels it takes from. Nothing obliges it to look at what it names: a "
               "few pixels may hold much of the weight. The percentages say how much of it each level holds."),
        Figure("pixel-reads", "What each pixel reads", ("fusion.attend_both_ways", "fusion.bi_attention"),
               ("*/attend_both_ways.0/to_text",), fusing.pixel_reads,
               "Image to text, from the same scores: the weights of one pixel over all tokens sum to 1. The map shows "
               "the chosen token's weight at every pixel; the bars show all tokens' weights at the picked pixel. "
               "Special tokens and delimiters can serve as a place to look when no word fits."),
        Figure("sampling", "Where a pixel samples",
               ("deformable.deformable_attention", "deformable.deform_attn", "deformable.sampling_locations",
                "deformable.bilinear", "enhancer.deformable_layer"),
               ("forward.0/enhancer.0/*/deform_attn.0/weights", "forward.0/enhancer.0/*/deform_attn.0/locations"),
               sampling.sampling,
               "Instead of all pixels, a pixel reads a few points: for each head and level some offsets from itself, "
               "predicted from its own vector. Area is weight, colour is level. All weights of a head sum to 1. "
               "Coarse levels reach far, because an offset counts pixels of its level."),
    )),
    Chapter("Query selection", "queries", "The pixels most like any word become the decoder's queries.", (
        Figure("selection", "The chosen queries",
               ("queries.select_queries", "queries.proposals", "queries.similarity", "queries.top"),
               ("*/select_queries.0/return.scores", "*/select_queries.0/return.selected",
                "*/select_queries.0/return.references", "*/select_queries.0/inside", "*/proposals.0/return.0"),
               deciding.selection,
               "Every pixel of every level is scored by its best token; the rings are the chosen ones, the dashed "
               "frame the box proposed around a pixel, the solid one the box that enters the decoder. Hatched pixels "
               "lie too close to the border to propose: they all share one score, and are chosen only when others run "
               "out."),
    )),
    Chapter("Cross-modality decoder", "decoder", "Each query asks the others, the text and the image, and moves its "
            "box, layer by layer.", (
        Figure("query-queries", "Queries reading queries", ("decoder.decoder_layer", "ops.attend"),
               ("forward.0/decoder.0/decoder_layer.*/attention.0/attend.0/weights",), deciding.query_queries,
               "The boxes of the queries that the chosen one reads, the more the stronger. This is how two queries on "
               "one object can agree who keeps it: there is no non-maximum suppression afterwards."),
        Figure("query-text", "Queries reading words", ("decoder.decoder_layer", "ops.attend"),
               ("forward.0/decoder.0/decoder_layer.*/attention.1/attend.0/weights",), deciding.query_text,
               "What the chosen query reads of the text, the mean of all heads, in the chosen layer. The text comes "
               "before the image here, where the paper's Figure 3 draws it after."),
        Figure("query-sampling", "Where a query samples",
               ("decoder.decoder_layer", "deformable.deformable_attention", "deformable.deform_attn",
                "deformable.sampling_locations"),
               ("forward.0/decoder.0/*/deform_attn.0/weights", "forward.0/decoder.0/*/deform_attn.0/locations"),
               sampling.query_sampling,
               "The same deformable attention, but around a box: offsets count halves of its size, so the points "
               "grow and shrink with the box that enters the layer. Edges and corners are what tells a box's size."),
        Figure("refinement", "Boxes from layer to layer",
               ("decoder.decoder", "decoder.refine", "boxes.box_positions"),
               ("forward.0/decoder.0/return.1", "forward.0/head.0/refine.0/return"), deciding.refinement,
               "Every layer corrects the box it was given. Step 0 is what the selection proposed, the last is what "
               "the model answers. The kept boxes are drawn in the colour of their phrase, the others faintly."),
    )),
    Chapter("Boxes with names", "results", "A box is like each token to some degree. Two thresholds make of that a "
            "list of names.", (
        Figure("token-scores", "Each token's score for each box",
               ("queries.similarity", "boxes.sigmoid", "results.post_process"),
               ("forward.0/head.0/similarity.0/return",), naming.token_scores,
               "A row is a box, best first, a column a token. A box is kept if its best token passes the box "
               "threshold. Its label is the phrase that holds the best score among its own words, outlined. Tokens "
               "that pass the text threshold are marked with a dot."),
        Figure("result", "What was found", ("results.post_process", "boxes.cxcywh_to_xyxy", "model.forward"),
               ("forward.0/head.0/refine.0/return",), naming.result,
               "The boxes that the two thresholds keep, in the original image. The sliders are those of the table "
               "above."),
    )),
)

FIGURES = tuple(figure for chapter in CHAPTERS for figure in chapter.figures)
