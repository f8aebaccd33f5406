"""Figures of the queries: query selection, and attention and box refinement in the decoder."""

from __future__ import annotations

import numpy as np

from ...network.boxes import sigmoid
from .encode import packed

BEST = 12  # number of queries shown in every decoder layer


def best(recorded) -> np.ndarray:
    """Indices of the queries with the highest final scores, best first: -> [n]"""
    scores = recorded.one(LOGITS).max(axis=1)
    return np.argsort(-scores, kind="stable")[:BEST]


LOGITS = "forward.0/head.0/similarity.0/return"
BOXES = "forward.0/head.0/refine.0/return"
REFERENCES = "forward.0/decoder.0/return.1"
ATTENTION = "forward.0/decoder.0/decoder_layer.*/attention.%d/attend.0/weights"  # 0 to queries, 1 to text tokens


def selection(recorded):
    """Score of each image token, the selected ones, their proposals and reference boxes, and the border mask."""
    scores, selected, references = (recorded.one(f"*/select_queries.0/return.{name}")
                                    for name in ("scores", "selected", "references"))
    anchors = sigmoid(recorded.one("*/proposals.0/return.0")[selected])  # [Q, 4]
    return {"scores": packed(scores, 16), "inside": packed(recorded.one("*/select_queries.0/inside")),
            "selected": selected.tolist(), "anchors": packed(anchors, 16), "references": packed(references, 16)}


def refinement(recorded):
    """Boxes that enter each decoder layer, boxes that leave the last layer, and the model's output boxes."""
    boxes = np.concatenate([recorded.one(REFERENCES), recorded.one(BOXES)[None]])  # [N+2, Q, 4]
    return {"boxes": packed(boxes, 16), "queries": best(recorded).tolist()}


def query_queries(recorded):
    """Attention weights of the best queries over all queries, the mean of the heads: [N, n, Q]"""
    return _attention(recorded, 0)


def query_text(recorded):
    """Attention weights of the best queries over the text tokens, the mean of the heads: [N, n, T]"""
    return _attention(recorded, 1)


def _attention(recorded, which):
    chosen = best(recorded)
    weights = np.stack([w.mean(axis=0)[chosen] for w in recorded.all(ATTENTION % which)])
    return {"queries": chosen.tolist(), "weights": packed(weights, per=2)}
