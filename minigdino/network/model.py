"""Grounding DINO (arXiv 2303.05499) on one page: every stage once, in order.

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


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class Output:
    """Result of `forward`. A box is (cx, cy, w, h) as fractions of the image; logits are before the sigmoid.

    Attributes:
        logits: [Q, T] similarity of each query to each text token.
        boxes: [Q, 4] box of each query.
        image_features: feature maps of the image backbone, [H, W, channels] each, fine to coarse.
        text_features: [T, C] projected features of BERT, before the enhancer.
        text: [T, C] text tokens after the enhancer.
        vision: [S, C] image tokens after the enhancer.
        sizes: (rows, columns) of each level; S is the sum of their products.
        selection_scores: [S] highest logit of each image token over the text tokens.
        selected: [Q] indices of the selected image tokens, best first.
        hidden_states: [N, Q, C] decoder states after each layer and the decoder's layer norm.
        references: [N+1, Q, 4] boxes that enter each decoder layer, then the boxes that leave the last one.
        layer_logits: [N, Q, T] logits of each decoder layer. Without details=True, this and the next fields are None.
        layer_boxes: [N, Q, 4] boxes of each decoder layer.
        encoder_logits: [S, T] logits of each image token.
        encoder_boxes: [S, 4] box of each image token, before the sigmoid; +inf for tokens without a proposal.
        query_logits: [Q, T] logits of the learned queries and text_features. They do not depend on the image.
    """

    logits: np.ndarray
    boxes: np.ndarray
    image_features: tuple[np.ndarray, ...]
    text_features: np.ndarray
    text: np.ndarray
    vision: np.ndarray
    sizes: tuple[tuple[int, int], ...]
    selection_scores: np.ndarray
    selected: np.ndarray
    hidden_states: np.ndarray
    references: np.ndarray
    layer_logits: np.ndarray | None = None
    layer_boxes: np.ndarray | None = None
    encoder_logits: np.ndarray | None = None
    encoder_boxes: np.ndarray | None = None
    query_logits: np.ndarray | None = None


def forward(pixels, token_ids, delimiters, weights, config, selected=None, details=False, image_features=None,
            text_features=None, bert_features=None):
    """Forward pass of the network (§3, Figure 3), on the device that holds the weights.

    Args:
        pixels [3, H, W]: normalised image, on the host.
        token_ids [T]: on the host.
        delimiters: token ids that end a phrase.
        weights: the tree of parameters, from `checkpoints.weights.build`.
        config: `Config`.
        selected [Q]: image tokens to use instead of the model's own selection, on the host.
        details: whether to compute the optional fields of `Output` too.
        image_features, text_features: features from a forward pass with the same image or text; computed if None.
        bert_features [T, channels]: features of BERT for this text, before their projection; computed if None.

    Returns:
        `Output`.
    """
    like = weights["level_embed"]  # its type and device select NumPy or CuPy
    # §3.4 sub-sentence level text features: a token attends only to tokens of its own phrase
    mask, positions = phrase_mask(token_ids, delimiters, like=like)
    # §3.1 feature extraction: the text backbone and the image backbone
    if text_features is None:
        if bert_features is None:
            ids = np.asarray(token_ids, like=like)
            bert_features = bert(ids, mask, positions, **weights["text_backbone"], config=config.text_config)
        text_features = linear(bert_features, **weights["text_projection"])  # [T, C]
    if image_features is None:
        image_features = tuple(swin(np.asarray(pixels, like=like), **weights["backbone"],
                                    config=config.backbone_config))
    # §3.1 feature enhancer
    maps = neck(image_features, weights["input_proj_vision"])
    sizes = tuple(m.shape[:2] for m in maps)
    vision, text = enhancer(maps, text_features, mask, positions, weights["encoder"]["layers"],
                            weights["level_embed"], config)  # [S, C], [T, C]
    del maps  # as large as vision, and no longer needed
    # §3.2 language-guided query selection: boxes depend on the image and the text, contents are learned
    choice = None if selected is None else np.asarray(selected, like=like)
    chosen = select_queries(vision, text, sizes, **weights["query_selection"], n_queries=config.num_queries,
                            eps=config.layer_norm_eps, selected=choice)
    # despite its name, query_position_embeddings holds contents
    contents = weights["query_position_embeddings"]["weight"]  # [Q, C]
    # §3.3 cross-modality decoder
    states, references = decoder(contents, chosen["references"], vision, text, sizes, **weights["decoder"],
                                 bbox_embed=weights["bbox_embed"], config=config)  # [N, Q, C], [N+1, Q, 4]

    def head(i):
        # boxes are refined with the layer-normalised state, so they differ from references[i + 1]
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
            "query_logits": similarity(contents, text_features, **selection["encoder_output_class_embed"]),
        }
    return Output(logits, boxes, image_features, text_features, text, vision, sizes, chosen["scores"],
                  chosen["selected"], states, references, **more)
