"""Overlap of boxes: intersection over union, and non-maximum suppression.

The model needs neither at inference: one query learns to find one object. Callers may want them for the boxes of
several prompts or tiles.
"""

from __future__ import annotations

import numpy as np


def iou(a, b):
    """Intersection over union of boxes (left, top, right, bottom): a [N, 4], b [M, 4] -> [N, M]"""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])  # [N, M, 2]
    intersection = np.maximum(sides, 0).prod(axis=2)  # [N, M]
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b))  # [N], [M]
    union = area_a[:, None] + area_b[None] - intersection  # [N, M]
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float, groups: np.ndarray | None = None) -> np.ndarray:
    """Non-maximum suppression: keep a box unless a better one that is kept overlaps it by more than a threshold.

    Memory is linear in the number of boxes, time quadratic in that of a group.

    Args:
        boxes: [N, 4] (left, top, right, bottom).
        scores: [N]. Among equal scores, the earlier box is the better one.
        threshold: IoU up to which both boxes are kept.
        groups: [N] group of each box; a box suppresses those of its group only. None for one group.

    Returns:
        [M] indices of the kept boxes, increasing.
    """
    boxes = np.asarray(boxes, np.float64)
    if groups is not None:
        parts = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        return np.sort(np.concatenate([np.zeros(0, int), *(
            rows[suppress(boxes[rows], scores[rows], threshold)] for rows in parts)]))
    left, kept = np.argsort(-scores, kind="stable"), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        with np.errstate(invalid="ignore"):  # of infinite boxes, which overlap nothing
            covered = iou(boxes[best : best + 1], boxes[left])[0] > threshold
        left = left[~covered]
    return np.sort(np.array(kept, int))
