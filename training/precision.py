"""Average precision as in COCO: greedy matching at ten IoU thresholds, precision interpolated at 101 recalls.

A category is the meaning of a phrase: "a red star" and "the red star" are one category. An object belongs to every
category of the prompt that matches it. AP is the mean over the categories with objects, as in COCO.
"""

from collections import defaultdict
from collections.abc import Hashable

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of xyxy boxes: [Q, 4] and [N, 4] -> [Q, N]."""
    side = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(side, 0, None).prod(-1)
    area_a, area_b = ((c[:, 2:] - c[:, :2]).prod(-1) for c in (a, b))
    return shared / (area_a[:, None] + area_b[None] - shared + 1e-9)


def hits(boxes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Match boxes greedily, the best score first, to ground-truth boxes.

    Args:
        boxes: [Q, 4] xyxy, by descending score.
        truth: [N, 4] xyxy; each can be matched once.

    Returns:
        [Q, 10] bool: whether a box is matched, for each IoU threshold.
    """
    found = np.zeros((len(boxes), len(THRESHOLDS)), bool)
    overlap = iou(boxes, truth)
    for k, threshold in enumerate(THRESHOLDS):
        free = np.ones(len(truth), bool)
        for q, row in enumerate(overlap):
            best = np.where(free, row, -1).argmax() if free.any() else None
            if best is not None and row[best] >= threshold:
                found[q, k], free[best] = True, False
    return found


def interpolated(scores: np.ndarray, found: np.ndarray, total: int) -> np.ndarray:
    """Compute AP from interpolated precision.

    Args:
        scores: [D].
        found: [D, 10] bool, from `hits`.
        total: number of ground-truth boxes.

    Returns:
        [10]: AP at each IoU threshold.
    """
    found = found[np.argsort(-scores, kind="stable")]
    right = found.cumsum(0)
    recall = right / total
    precision = right / np.arange(1, len(found) + 1)[:, None]
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # highest precision at this recall or above
    result = np.zeros(len(THRESHOLDS))
    for k in range(len(THRESHOLDS)):
        first = np.searchsorted(recall[:, k], RECALLS)
        result[k] = np.append(envelope[:, k], 0)[first].mean()
    return result


class Precision:
    """Accumulates detections and ground truth, phrase by phrase."""

    def __init__(self) -> None:
        self.scores: dict[Hashable, list[np.ndarray]] = defaultdict(list)
        self.found: dict[Hashable, list[np.ndarray]] = defaultdict(list)
        self.total: dict[Hashable, int] = defaultdict(int)

    def add(self, category: Hashable, boxes: np.ndarray, scores: np.ndarray, truth: np.ndarray) -> None:
        """Add the result of one phrase on one image.

        Args:
            category: meaning of the phrase.
            boxes: [Q, 4] xyxy.
            scores: [Q].
            truth: [N, 4] xyxy, the objects that match the phrase.
        """
        order = np.argsort(-scores, kind="stable")
        self.scores[category].append(scores[order])
        self.found[category].append(hits(boxes[order], truth.reshape(-1, 4)))
        self.total[category] += len(truth)

    def summary(self) -> dict[str, float]:
        """Compute AP, AP50 and AP75."""
        rows = [
            interpolated(np.concatenate(self.scores[c]), np.concatenate(self.found[c]), total)
            for c, total in self.total.items()
            if total
        ]
        mean = np.mean(rows, axis=0)
        return {"AP": float(mean.mean()), "AP50": float(mean[0]), "AP75": float(mean[5])}
