"""§3.2  Language-guided query selection: the image tokens most like any word become the decoder's first boxes.

S image tokens, T text tokens, C channels, Q queries.
"""

from __future__ import annotations

import numpy as np

from .boxes import pixel_centres, sigmoid
from .ops import layer_norm, linear, mlp


def similarity(x, text, bias=None):
    """How much each row of x is like each token: x [N, C], text [T, C] -> [N, T] logits

    Grounding DINO takes the dot product. MM Grounding DINO (arXiv 2401.02361) divides by sqrt(C) and adds a bias.
    """
    scores = linear(x, text)  # [N, T]
    return scores if bias is None else scores * x.shape[-1] ** -0.5 + bias


def proposals(sizes, like):
    """One box around every pixel centre, larger on coarser levels (Deformable DETR, arXiv 2010.04159, A.4).

    sizes ((H, W), ...) -> [S, 4] logits of boxes, +inf where the box is too close to the border, and [S] "is inside"
    """
    boxes = []
    for level, (H, W) in enumerate(sizes):
        side = np.zeros((H * W, 2), like.dtype, like=like) + 0.05 * 2**level  # np.full(like=) is not CuPy's
        boxes.append(np.concatenate([pixel_centres(H, W, like), side], axis=1))
    boxes = np.concatenate(boxes)  # [S, 4]
    inside = ((boxes > 0.01) & (boxes < 0.99)).all(axis=1)  # [S]
    safe = np.where(inside[:, None], boxes, 0.5)
    return np.where(inside[:, None], np.log(safe / (1 - safe)), np.inf), inside


def top(scores, n):
    """Indices of the n largest, largest first, ties in order: scores [S] -> [n]"""
    return np.argsort(-scores, kind="stable")[:n]


def select_queries(vision, text, sizes, enc_output, enc_output_norm, encoder_output_bbox_embed,
                   encoder_output_class_embed, n_queries, eps, selected=None):
    """vision [S, C], text [T, C] -> dict: scores [S], selected [Q], references [Q, 4], and for every image token
    output [S, C] and anchors [S, 4]. Given `selected`, that choice replaces the best-scored."""
    anchors, inside = proposals(sizes, like=vision)
    # zeroed before the linear map, so every token outside holds the same vector and the same score
    output = layer_norm(linear(vision * inside[:, None], **enc_output), **enc_output_norm, eps=eps)  # [S, C]
    # != paper: §3.2 compares the image features themselves; the released models map and norm them first
    scores = similarity(output, text, **encoder_output_class_embed).max(axis=-1)  # [S]
    if selected is None:
        selected = top(scores, n_queries)
    references = sigmoid(mlp(output[selected], **encoder_output_bbox_embed) + anchors[selected])  # [Q, 4]
    return {"scores": scores, "selected": selected, "references": references, "output": output, "anchors": anchors}
