"""Figures of the end: probabilities become boxes with names."""

from __future__ import annotations

import inspect

import numpy as np

from ...detector import Model
from ...network.boxes import cxcywh_to_xyxy, sigmoid
from .deciding import BOXES, LOGITS
from .encode import packed


def token_scores(seen):
    """Every query's probability for every token, in full precision: the page decides by them as `post_process` does."""
    defaults = inspect.signature(Model.detect).parameters
    return {"probabilities": packed(sigmoid(seen.one(LOGITS)), 32), "threshold": defaults["threshold"].default,
            "text_threshold": defaults["text_threshold"].default}


def result(seen):
    """Every query's box in pixels of the original image: left, top, right, bottom."""
    return {"boxes": packed(cxcywh_to_xyxy(seen.one(BOXES)) * np.float32(seen.image.size * 2), 32)}
