"""Figures of the end: probabilities become boxes with names."""

from __future__ import annotations

from ..boxes import sigmoid
from .deciding import LOGITS
from .encode import packed


def token_scores(seen):
    """Every query's probability for every token, in full precision: the page decides by them as `post_process` does."""
    return {"probabilities": packed(sigmoid(seen.one(LOGITS)), 32)}


def result(seen):
    """What `detect` returned, for the page to agree with; its boxes are those of `refinement`."""
    return seen.found.to_dict()
