"""§3.2  Language-guided query selection: the image tokens most similar to the text give the decoder's first boxes.

S image tokens, T text tokens, C channels, Q queries. In the paper these are N_I, N_T, d and N_q.
"""

from __future__ import annotations

import numpy as np

from .boxes import pixel_centres, sigmoid
from .ops import detach, layer_norm, linear, mlp


def similarity(x, text, bias=None):
    """Logits: dot products of all rows with all text tokens (X_I X_T^T of Eq. 1).

    MM Grounding DINO (arXiv 2401.02361) divides them by sqrt(C) and adds a learned bias; Grounding DINO does neither.

    Args:
        x [N, C]: image tokens or decoder states.
        text [T, C]: text tokens.
        bias []: class bias of MM Grounding DINO.

    Returns:
        [N, T]: logits.
    """
    scores = linear(x, text)  # [N, T]
    return scores if bias is None else scores * x.shape[-1] ** -0.5 + bias


def proposals(sizes, like):
    """One box proposal per image token, larger on coarser levels (two-stage Deformable DETR, arXiv 2010.04159, A.4).

    Args:
        sizes: ((H, W), ...) of the levels.
        like: an array of the wanted dtype and device.

    Returns:
        [S, 4], [S]: logits of the boxes, +inf for boxes outside; True if all coordinates are within 0.01 to 0.99.
    """
    boxes = []
    for level, (H, W) in enumerate(sizes):
        side = np.zeros((H * W, 2), like.dtype, like=like) + 0.05 * 2**level  # CuPy has no np.full(like=)
        boxes.append(np.concatenate([pixel_centres(H, W, like), side], axis=1))
    boxes = np.concatenate(boxes)  # [S, 4]
    inside = np.all((boxes > 0.01) & (boxes < 0.99), axis=1)  # [S]
    safe = np.where(inside[:, None], boxes, 0.5)
    return np.where(inside[:, None], np.log(safe / (1 - safe)), np.inf), inside


def top(scores, n):
    """Top_N of Eq. 1: indices of the n largest scores, largest first, ties by index. scores [S] -> [n]"""
    return np.argsort(-scores, kind="stable")[:n]


def select_queries(vision, text, sizes, enc_output, enc_output_norm, encoder_output_bbox_embed,
                   encoder_output_class_embed, n_queries, eps, selected=None):
    """Language-guided query selection (§3.2, Eq. 1, Algorithm 1), and the first box of each query.

    Args:
        vision [S, C], text [T, C]: enhanced image and text tokens.
        sizes: ((H, W), ...) of the levels.
        n_queries: Q.
        selected [Q]: image tokens to use instead of those with the highest scores.

    Returns:
        dict of scores [S], selected [Q], references [Q, 4], output [S, C], anchors [S, 4]: highest logit of each image
        token; selected tokens, best first; their boxes; projected image tokens; logits of the proposals.
    """
    anchors, inside = proposals(sizes, like=vision)
    # != paper: Eq. 1 scores every image token; the released models first set the tokens near the border to zero. These
    # remain candidates with one common score, and their first box is (1, 1, 1, 1)
    zeroed = vision * inside[:, None]  # [S, C]
    # != paper: Eq. 1 compares the image features themselves; the released models first project and layer-normalise them
    output = layer_norm(linear(zeroed, **enc_output), **enc_output_norm, eps=eps)  # [S, C]
    scores = similarity(output, text, **encoder_output_class_embed).max(axis=-1)  # [S]
    if selected is None:
        selected = top(scores, n_queries)
    boxes = sigmoid(mlp(output[selected], **encoder_output_bbox_embed) + anchors[selected])  # [Q, 4]
    references = detach(boxes)  # [Q, 4]; as in two-stage Deformable DETR, the decoder's losses do not train this head
    return {"scores": scores, "selected": selected, "references": references, "output": output, "anchors": anchors}
