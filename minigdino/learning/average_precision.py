"""Average precision at an IoU of 0.5 (AP50), as COCO defines it."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from ..overlap import iou

IOU = 0.5
RECALLS = np.linspace(0, 1, 101)  # at which COCO reads the precision


class AveragePrecision:
    """Detections and annotated boxes of a data set, image by image.

    A label with no annotated box in the whole data set does not count.
    """

    def __init__(self):
        self._scores, self._hits, self._total = defaultdict(list), defaultdict(list), defaultdict(int)

    def add(self, label: str, boxes: np.ndarray, scores: np.ndarray, truth: np.ndarray) -> None:
        """Add what was found for one label in one image.

        Args:
            label: the label.
            boxes: [N, 4] detected boxes (left, top, right, bottom).
            scores: [N] their scores.
            truth: [M, 4] annotated boxes.
        """
        order = np.argsort(-scores, kind="stable")
        self._scores[label].append(scores[order])
        self._hits[label].append(hits(boxes[order], truth))
        self._total[label] += len(truth)

    def by_label(self) -> dict[str, float]:
        """Return {label: AP50} for the labels with annotated boxes."""
        return {label: average_precision(np.concatenate(self._scores[label]), np.concatenate(self._hits[label]), total)
                for label, total in self._total.items() if total}

    def mean(self) -> float:
        """Return the mean over the labels; NaN without any annotated box."""
        values = list(self.by_label().values())
        return float(np.mean(values)) if values else float("nan")


def hits(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Match detections to annotated boxes, best score first: each takes the free box with the highest IoU.

    Args:
        boxes: [N, 4] detected boxes, by descending score.
        truth: [M, 4] annotated boxes. Each is matched once.

    Returns:
        [N] bool: whether a detection is matched, with an IoU of at least 0.5.
    """
    found, free = np.zeros(len(boxes), bool), np.ones(len(truth), bool)
    if len(truth):
        for i, row in enumerate(iou(np.asarray(boxes, np.float64), np.asarray(truth, np.float64))):
            best = np.where(free, row, -1).argmax()
            if free[best] and row[best] >= IOU:
                found[i], free[best] = True, False
    return found


def average_precision(scores: np.ndarray, found: np.ndarray, total: int) -> float:
    """Compute the mean precision over 101 recalls. At a recall, the best precision with this recall or more counts.

    Args:
        scores: [N] scores of the detections of a label in all images.
        found: [N] bool, from `hits`.
        total: number of annotated boxes, at least one.

    Returns:
        AP, 0 to 1.
    """
    right = found[np.argsort(-scores, kind="stable")].cumsum()  # [N]
    precision = right / np.arange(1, len(right) + 1)  # [N]
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # [N]
    return float(np.append(envelope, 0)[np.searchsorted(right / total, RECALLS)].mean())
