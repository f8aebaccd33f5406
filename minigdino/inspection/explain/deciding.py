"""Figures of the queries: which pixels become queries, and what the decoder makes of them."""

from __future__ import annotations

import numpy as np

from ...network.boxes import sigmoid
from .encode import packed

BEST = 12  # queries that the page follows through the decoder


def best(seen) -> np.ndarray:
    """Ranks of the queries with the highest final scores, best first: -> [n]"""
    scores = seen.one(LOGITS).max(axis=1)
    return np.argsort(-scores, kind="stable")[:BEST]


LOGITS = "forward.0/head.0/similarity.0/return"
BOXES = "forward.0/head.0/refine.0/return"
REFERENCES = "forward.0/decoder.0/return.1"
ATTENTION = "forward.0/decoder.0/decoder_layer.*/attention.%d/attend.0/weights"  # 0 among queries, 1 to the text


def selection(seen):
    """The score of every image token, the chosen ones, their first boxes, and which tokens may not propose."""
    scores, selected, references = (seen.one(f"*/select_queries.0/return.{name}")
                                    for name in ("scores", "selected", "references"))
    anchors = sigmoid(seen.one("*/proposals.0/return.0")[selected])  # [Q, 4]
    return {"scores": packed(scores, 16), "inside": packed(seen.one("*/select_queries.0/inside")),
            "selected": selected.tolist(), "anchors": packed(anchors, 16), "references": packed(references, 16)}


def refinement(seen):
    """The boxes that enter layer 0, 1, ... and leave the last, and at the end what the head makes of them."""
    boxes = np.concatenate([seen.one(REFERENCES), seen.one(BOXES)[None]])  # [N+2, Q, 4]
    return {"boxes": packed(boxes, 16), "queries": best(seen).tolist()}


def query_queries(seen):
    """Mean over heads of the weights of the best queries over all queries: [N, n, Q]"""
    return _attention(seen, 0)


def query_text(seen):
    """Mean over heads of the weights of the best queries over the tokens: [N, n, T]"""
    return _attention(seen, 1)


def _attention(seen, which):
    chosen = best(seen)
    weights = np.stack([w.mean(axis=0)[chosen] for w in seen.all(ATTENTION % which)])
    return {"queries": chosen.tolist(), "weights": packed(weights, per=2)}
