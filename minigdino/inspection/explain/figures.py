"""Every figure of the page, in the paper's order: title, functions, recorded steps, data and caption."""

from __future__ import annotations

from . import assigning, backbone, deciding, fusing, naming, neck, sampling, words
from .figure import Chapter, Figure

CHAPTERS = (
    Chapter("Image", "swin", "The image is resized and normalised, then split into patches, which become tokens.", (
        Figure("pixels", "Model input", ("image.preprocess", "image.resized", "model.forward"),
               ("forward.0/pixels",), backbone.pixels,
               "The resized image, and its three channels after normalisation. Brighter means a larger value; the "
               "range is below each channel. Details that the resizing removed are not available to the model."),
        Figure("patches", "Patch embedding", ("swin.patch_embedding",),
               ("*/patch_embedding.0/kernel", "*/patch_embedding.0/return"), backbone.patches,
               "A linear map with one learned filter per channel embeds each patch of 4 × 4 pixels as one token. Pick "
               "a patch to enlarge it. In the map below, red, green and blue are the first three principal "
               "components of the tokens, so similar tokens have similar colours."),
    )),
    Chapter("Image backbone", "swin", "Swin Transformer: attention within small windows, whose cost is linear in the "
            "number of pixels.", (
        Figure("windows", "Windows and shifted windows", ("swin.windows", "swin.attend_in_windows", "swin.swin_block"),
               ("*/attend_in_windows.0/return",), backbone.windows,
               "The feature map of a stage, cut into windows; each token attends only to its own window. Yellow marks "
               "the picked window, hatching the padding to a multiple of the window size. Every other block shifts "
               "the windows by half their side, which connects neighbouring windows."),
        Figure("shift-mask", "Mask of shifted windows", ("swin.shift_mask",),
               ("*/shift_mask.0/regions", "*/shift_mask.0/return"), backbone.shift_mask,
               "The shift is cyclic: rows that leave at the top return at the bottom. Each colour marks one region of "
               "the map, and regions in one window are not neighbours in the image. In the matrix of the picked "
               "window, -100 is added to the scores of dark pairs of tokens; bright pairs are unchanged."),
        Figure("window-attention", "Attention within a window", ("swin.attend_in_windows", "swin.window_attention"),
               ("*/attend_in_windows.0/weights",), backbone.window_attention,
               "Attention weights of the picked token over the tokens of its window. Brighter means more attention. "
               "In a shifted block, a window at the border can hold several regions; the mask restricts attention to "
               "the token's own region."),
        Figure("position-bias", "Relative position bias", ("swin.relative_position_bias",),
               ("*/relative_position_bias.0/table",), backbone.position_bias,
               "The learned bias that each head adds to the attention scores, for every offset of the query from the "
               "key. Brighter is larger; the centre is offset 0. A bright centre favours near keys, a bright "
               "right side keys to the left of the query."),
        Figure("stages", "Stage outputs", ("swin.swin", "swin.swin_block", "swin.patch_merging"),
               tuple(f"forward.0/swin.0/swin_block.{n}/return" for n in ("?", "??", "???")), backbone.stages,
               "The feature map after each stage; red, green and blue are its first three principal components. Patch "
               "merging between stages joins 2 × 2 tokens and doubles the channels. Early maps show edges and colours, "
               "late maps larger areas."),
    )),
    Chapter("Feature levels", "enhancer", "Feature maps of several sizes are projected to one number of channels.", (
        Figure("pyramid", "Feature levels",
               ("enhancer.neck", "enhancer.conv_1x1", "enhancer.conv_3x3_stride_2"),
               ("forward.0/neck.0/return.*",), neck.pyramid,
               "The feature map of every level, from fine to coarse. Red, green and blue are its first three principal "
               "components. The pixels of all levels together are the S image tokens of the later stages."),
        Figure("image-positions", "Positional encoding of the image",
               ("enhancer.vision_positions", "boxes.image_positions", "boxes.sine_embedding"),
               ("*/vision_positions.0/return", "*/vision_positions.0/image_positions.0/return"),
               neck.image_positions,
               "Some channels of the sine embedding on the finest level. Brighter is larger. The first row of pictures "
               "encodes the row of each token, the second its column, with a different wavelength in each channel."),
    )),
    Chapter("Text", "phrases", "The text backbone processes all phrases in one forward pass, but each phrase attends "
            "only to itself.", (
        Figure("phrase-mask", "Phrase mask", ("phrases.phrase_mask",),
               ("forward.0/phrase_mask.0/return.0", "forward.0/phrase_mask.0/return.1"), words.phrase_mask,
               "Rows are tokens, columns the tokens that they may attend to. Bright pairs are allowed, the others "
               "masked. Each phrase and its delimiter form one block, so the text features of a phrase do not depend "
               "on the other phrases."),
        Figure("text-attention", "Text self-attention",
               ("bert.bert", "bert.bert_layer", "enhancer.text_enhancer_layer", "ops.attend"),
               ("*/bert_layer.*/attention.0/attend.0/weights", "*/text_enhancer_layer.*/attention.0/attend.0/weights"),
               words.text_attention,
               "Attention weights of each token (row) over all tokens (columns), the mean of all heads. Brighter means "
               "more attention; the phrase mask leaves one block per phrase. The layers of the enhancer come after "
               "BERT's, and their tokens already contain image information."),
    )),
    Chapter("Feature enhancer", "enhancer", "Each layer applies cross-attention between image and text in both "
            "directions, then self-attention to each.", (
        Figure("token-looks", "Text-to-image attention", ("fusion.attend_both_ways", "fusion.bi_attention"),
               ("*/attend_both_ways.0/to_vision",), fusing.token_looks,
               "Attention weights of one text token over the image tokens of all levels; they sum to 1. Brighter "
               "means more attention; the percentage is the share of a level. The largest weights need not lie on the "
               "named object, and a few image tokens can hold most of the weight."),
        Figure("pixel-reads", "Image-to-text attention", ("fusion.attend_both_ways", "fusion.bi_attention"),
               ("*/attend_both_ways.0/to_text",), fusing.pixel_reads,
               "Attention weights of the image tokens over the text, from the same scores as above. Brighter means "
               "more attention to the chosen text token; the bars show all text tokens for the picked image token, and "
               "sum to 100 %. Special tokens and delimiters can hold the weight where no phrase fits."),
        Figure("sampling", "Sampling points of an image token",
               ("deformable.deformable_attention", "deformable.deform_attn", "deformable.sampling_locations",
                "deformable.bilinear", "enhancer.deformable_layer"),
               ("forward.0/enhancer.0/*/deform_attn.0/weights", "forward.0/enhancer.0/*/deform_attn.0/locations"),
               sampling.sampling,
               "Deformable attention samples a few points per head and level: the picked token's position plus "
               "sampling offsets predicted from the token. The area of a dot is its attention weight, the colour its "
               "level; the weights of a head sum to 1. Offsets are in pixels of their level, so points on coarse "
               "levels lie farther away."),
    )),
    Chapter("Query selection", "queries", "The image tokens with the highest scores become the decoder's queries.", (
        Figure("selection", "Selected image tokens",
               ("queries.select_queries", "queries.proposals", "queries.similarity", "queries.top"),
               ("*/select_queries.0/return.scores", "*/select_queries.0/return.selected",
                "*/select_queries.0/return.references", "*/select_queries.0/inside", "*/proposals.0/return.0"),
               deciding.selection,
               "The score of every image token, its highest logit for any text token: brighter is higher. Rings mark "
               "the selected tokens; for the chosen rank, the dashed frame is the proposal and the solid frame the "
               "reference box that enters the decoder. Hatched tokens are too near the border for a proposal, and all "
               "have the same score."),
    )),
    Chapter("Cross-modality decoder", "decoder", "In each layer the queries attend to each other, to the text and to "
            "the image; then their reference boxes are refined.", (
        Figure("query-queries", "Query self-attention", ("decoder.decoder_layer", "ops.attend"),
               ("forward.0/decoder.0/decoder_layer.*/attention.0/attend.0/weights",), deciding.query_queries,
               "Attention weights of the chosen query (dashed) over the other queries, drawn as their boxes. Brighter "
               "and thicker means more attention, the mean of all heads. Queries for the same object can interact "
               "here; the model has no non-maximum suppression."),
        Figure("query-text", "Query-to-text attention", ("decoder.decoder_layer", "ops.attend"),
               ("forward.0/decoder.0/decoder_layer.*/attention.1/attend.0/weights",), deciding.query_text,
               "Attention weights of the chosen query over the text tokens, the mean of all heads. A longer bar means "
               "more attention. Each layer attends to the text before the image, in contrast to Figure 3 of the "
               "paper."),
        Figure("query-sampling", "Sampling points of a query",
               ("decoder.decoder_layer", "deformable.deformable_attention", "deformable.deform_attn",
                "deformable.sampling_locations"),
               ("forward.0/decoder.0/*/deform_attn.0/weights", "forward.0/decoder.0/*/deform_attn.0/locations"),
               sampling.query_sampling,
               "Deformable attention of the chosen query, around the reference box that enters the layer (white). The "
               "area of a dot is its attention weight, the colour its level. A sampling offset counts half the box's "
               "size divided by P, the points per head and level: one eighth of its width or height for P = 4."),
        Figure("refinement", "Box refinement",
               ("decoder.decoder", "decoder.refine", "boxes.box_positions"),
               ("forward.0/decoder.0/return.1", "forward.0/head.0/refine.0/return"), deciding.refinement,
               "The box of every query at each step, from the reference box of query selection to the model's output. "
               "Boxes above the box threshold have the colour of their phrase, the others are faint. Each layer adds a "
               "correction to the box that enters it."),
    )),
    Chapter("Post-processing", "results", "Each box has a score for every text token. Two thresholds turn the scores "
            "into labelled boxes.", (
        Figure("token-scores", "Token scores",
               ("queries.similarity", "boxes.sigmoid", "results.post_process"),
               ("forward.0/head.0/similarity.0/return",), naming.token_scores,
               "The score of every box (rows, best first) for every token (columns): brighter is higher. Boxes above "
               "the line are kept, because their highest score exceeds the box threshold. An outline marks the phrase "
               "with the highest score, which is the label; dots mark tokens above the text threshold."),
        Figure("result", "Detections", ("results.post_process", "boxes.cxcywh_to_xyxy", "model.forward"),
               ("forward.0/head.0/refine.0/return",), naming.result,
               "The kept boxes on the original image, with label and score. The colour is that of the phrase. The "
               "thresholds are shared with the figure above."),
    )),
)

# Only for annotated boxes.
TRAINING = Chapter("Training", "matching", "Matching gives each annotated box one query. The losses compare the two.", (
    Figure("matching", "Matching and losses",
           ("matching.cost_matrix", "matching.class_cost", "matching.assign", "losses.losses", "losses.total"),
           (deciding.LOGITS, deciding.BOXES), assigning.matching,
           "The cost of matching each query (row) with each annotated box (column), after the last decoder layer: "
           "brighter is lower, and an outline marks a match. On the image, a dashed frame is an annotated box, a solid "
           "one the box of its query. Several queries compete for an object; those without a match should have no "
           "score above 0.5."),
))

FIGURES = tuple(figure for chapter in CHAPTERS for figure in chapter.figures)
