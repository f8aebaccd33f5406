"""Figures of the post-processing: token scores and labelled boxes."""

from __future__ import annotations

import inspect

import numpy as np

from ...detector import Model
from ...network.boxes import cxcywh_to_xyxy, sigmoid
from .deciding import BOXES, LOGITS
from .encode import packed


def token_scores(recorded):
    """The score of every query for every token, in float32, for the same decisions as in `post_process`."""
    defaults = inspect.signature(Model.detect).parameters
    return {"probabilities": packed(sigmoid(recorded.one(LOGITS)), 32), "threshold": defaults["threshold"].default,
            "text_threshold": defaults["text_threshold"].default}


def result(recorded):
    """The box of every query in pixels of the original image: left, top, right, bottom."""
    return {"boxes": packed(cxcywh_to_xyxy(recorded.one(BOXES)) * np.float32(recorded.image.size * 2), 32)}
