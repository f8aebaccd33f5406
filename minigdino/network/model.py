"""The paper on one page: Grounding DINO (arXiv 2303.05499), every stage once, in order.

H, W rows and columns, S image tokens over all levels, T text tokens, C channels, Q queries, N decoder layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .bert import bert
from .decoder import decoder, refine
from .enhancer import enhancer, neck
from .ops import linear, mlp
from .phrases import phrase_mask
from .queries import select_queries, similarity
from .swin import swin


@dataclass(frozen=True)
class Output:
    """What `forward` computed. A box is (cx, cy, w, h) as fractions of the image; logits are before the sigmoid."""

    logits: np.ndarray  # [Q, T] how much each box is like each token
    boxes: np.ndarray  # [Q, 4]
    image_features: tuple[np.ndarray, ...]  # the backbone's maps [H, W, channels]
    text_features: np.ndarray  # [T, C] BERT's, projected; before the enhancer
    text: np.ndarray  # [T, C] after the enhancer
    vision: np.ndarray  # [S, C] after the enhancer
    sizes: tuple[tuple[int, int], ...]  # (rows, columns) of each level; S is the sum of their products
    selection_scores: np.ndarray  # [S] each image token's best logit
    selected: np.ndarray  # [Q] image tokens chosen, best first
    hidden_states: np.ndarray  # [N, Q, C] after each decoder layer, normed
    references: np.ndarray  # [N+1, Q, 4] the boxes that enter layer 0, 1, ... and that leave the last
    # with details=True only
    layer_logits: np.ndarray | None = None  # [N, Q, T] every decoder layer's
    layer_boxes: np.ndarray | None = None  # [N, Q, 4]
    encoder_logits: np.ndarray | None = None  # [S, T] every image token's
    encoder_boxes: np.ndarray | None = None  # [S, 4] in logits; +inf where a token proposes nothing
    query_logits: np.ndarray | None = None  # [Q, T] learned queries against text_features: the same for any image


def forward(pixels, token_ids, delimiters, weights, config, selected=None, details=False, image_features=None,
            text_features=None):
    """The network. pixels [3, H, W] normalised, token_ids [T], selected [Q] image tokens to use for its own choice.

    The features depend on the image alone and on the text alone; whoever has them from an earlier pass hands them in.
    Computes where the weights are: pixels, ids and `selected` come from the host and are sent there, once each.
    """
    here = weights["level_embed"]
    # §3.4 sub-sentence level text features: a token sees its own phrase alone
    mask, positions = phrase_mask(token_ids, delimiters, like=here)
    # §3.1 feature extraction: the text backbone and the image backbone
    if text_features is None:
        ids = np.asarray(token_ids, like=here)
        text_features = linear(bert(ids, mask, positions, **weights["text_backbone"], config=config.text_config),
                               **weights["text_projection"])  # [T, C]
    if image_features is None:
        image_features = tuple(swin(np.asarray(pixels, like=here), **weights["backbone"],
                                    config=config.backbone_config))
    # §3.1 feature enhancer
    maps = neck(image_features, weights["input_proj_vision"])
    sizes = tuple(m.shape[:2] for m in maps)
    vision, text = enhancer(maps, text_features, mask, positions, weights["encoder"]["layers"],
                            weights["level_embed"], config)  # [S, C], [T, C]
    del maps  # as large as vision, and not needed any more
    # §3.2 language-guided query selection; boxes come from the image, contents are learned
    choice = None if selected is None else np.asarray(selected, like=here)
    chosen = select_queries(vision, text, sizes, **weights["query_selection"], n_queries=config.num_queries,
                            eps=config.layer_norm_eps, selected=choice)
    queries = weights["query_position_embeddings"]["weight"]  # [Q, C]
    # §3.3 cross-modality decoder
    states, references = decoder(queries, chosen["references"], vision, text, sizes, **weights["decoder"],
                                 bbox_embed=weights["bbox_embed"], config=config)  # [N, Q, C], [N+1, Q, 4]

    def head(i):
        return (similarity(states[i], text, **weights["class_embed"][i]),
                refine(states[i], references[i], weights["bbox_embed"][i]))

    last = len(states) - 1
    logits, boxes = head(last)  # [Q, T], [Q, 4]
    more = {}
    if details:
        heads = [head(i) for i in range(last)] + [(logits, boxes)]
        selection = weights["query_selection"]
        more = {
            "layer_logits": np.stack([h[0] for h in heads]),
            "layer_boxes": np.stack([h[1] for h in heads]),
            "encoder_logits": similarity(chosen["output"], text, **selection["encoder_output_class_embed"]),
            "encoder_boxes": mlp(chosen["output"], **selection["encoder_output_bbox_embed"]) + chosen["anchors"],
            "query_logits": similarity(queries, text_features, **selection["encoder_output_class_embed"]),
        }
    return Output(logits, boxes, image_features, text_features, text, vision, sizes, chosen["scores"],
                  chosen["selected"], states, references, **more)
