"""COCO's AP with its standard error, by bootstrap over images.

The AP of a part of a data set differs from that of the whole by chance. A bootstrap estimates by how much: it draws as
many images as there are, with repetition, and computes the AP again. The standard deviation of many such APs is the
standard error (B. Efron, "Bootstrap methods: another look at the jackknife", 1979).

Detections are matched once. A drawn set only changes how often each image counts.

D detections and G annotated objects of a category in an image, T IoU thresholds, I images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from ..learning.average_precision import RECALLS
from .candidates import Candidates, iou
from .ground_truth import GroundTruth

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # [T]
MOST = 100  # detections of a category in an image
SAMPLES = 200
NORMAL = 1.96  # standard errors on each side of a 95 % confidence interval


class Matches:
    """The detections of a set, each matched to an object or not.

    Args:
        truth: the annotations.
        detections: pairs (id of an image, its detections).
    """

    def __init__(self, truth: GroundTruth, detections: Iterable[tuple[int, Candidates]]):
        self._images = {picture.id: i for i, picture in enumerate(truth.pictures)}
        categories = [category.id for category in truth.categories]
        self._objects = {category: np.zeros(len(self._images)) for category in categories}  # [I] each
        parts = defaultdict(list)
        rows = defaultdict(list)
        for row, key in enumerate(zip(truth.image_ids.tolist(), truth.category_ids.tolist())):
            rows[key].append(row)
            self._objects[key[1]][self._images[key[0]]] += not truth.crowd[row]
        for image, found in detections:
            for category in np.unique(found.category_ids).tolist():
                own = np.flatnonzero(found.category_ids == category)
                own = own[np.argsort(-found.scores[own], kind="stable")[:MOST]]
                at = rows[image, category]
                right, wrong = matched(found.boxes[own], truth.boxes[at], truth.crowd[at])
                parts[category].append((found.scores[own], np.full(len(own), image), right, wrong))
        self._ranked = {category: self._rank(found) for category, found in parts.items()}

    def _rank(self, parts):
        """Index of the image [N], and verdicts right and wrong [N, T], by descending score, then by id of the image."""
        scores, ids, right, wrong = (np.concatenate(arrays) for arrays in zip(*parts))
        order = np.lexsort([ids, -scores])
        images = np.array([self._images[image] for image in ids[order].tolist()])
        return images, right[order], wrong[order]

    def average_precision(self, counts: np.ndarray | None = None) -> float:
        """Compute AP.

        Args:
            counts: [I] how often each image counts; None for once.

        Returns:
            The mean over thresholds and categories with an object, 0 to 1; NaN without an object.
        """
        counts = np.ones(len(self._images)) if counts is None else counts
        totals = {category: float(objects @ counts) for category, objects in self._objects.items()}
        values = [self._of(category, total, counts) for category, total in totals.items() if total]
        return float(np.mean(values)) if values else float("nan")

    def standard_error(self, samples: int = SAMPLES, seed: int = 0) -> float:
        """Estimate the standard error of AP by bootstrap over images.

        Args:
            samples: number of drawn sets.
            seed: seed of the random numbers.

        Returns:
            The standard deviation of their APs; 0 for a single image.
        """
        rng, n = np.random.default_rng(seed), len(self._images)
        values = [self.average_precision(np.bincount(rng.integers(0, n, n), minlength=n)) for _ in range(samples)]
        return float(np.nanstd(values))

    def _of(self, category, total, counts):
        if category not in self._ranked:
            return 0.0
        images, right, wrong = self._ranked[category]
        weights = counts[images][:, None]  # [N, 1]
        hits, misses = ((weights * verdict).cumsum(axis=0) for verdict in (right, wrong))  # [N, T]
        precision = hits / np.maximum(hits + misses, 1e-12)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.mean([np.append(envelope[:, t], 0)[np.searchsorted(hits[:, t] / total, RECALLS)]
                              for t in range(len(THRESHOLDS))]))


def matched(boxes: np.ndarray, objects: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match detections to objects, best score first. Each takes the free object with the highest IoU.

    A detection without an object, but inside a group, is neither right nor wrong.

    Args:
        boxes: [D, 4] (left, top, width, height), by descending score.
        objects: [G, 4].
        groups: [G] bool: whether a box surrounds a group.

    Returns:
        Whether each detection is right, and whether it is wrong: [D, T] each.
    """
    overlap = iou(np.asarray(boxes, np.float64), objects[~groups])  # [D, G]
    limits = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    right, free = np.zeros((len(boxes), len(THRESHOLDS)), bool), np.ones((len(THRESHOLDS), overlap.shape[1]), bool)
    for d in np.flatnonzero(overlap.max(axis=1, initial=0) >= limits[0]):
        usable = free & (overlap[d] >= limits)  # [T, G]
        right[d] = usable.any(axis=1)
        best = overlap.shape[1] - 1 - np.where(usable, overlap[d], -1)[:, ::-1].argmax(axis=1)  # the last of equal ones
        free[np.flatnonzero(right[d]), best[right[d]]] = False
    in_group = inside(corners_of(boxes), corners_of(objects[groups]))[:, None] >= limits.T
    return right, ~right & ~in_group


def inside(boxes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Largest part of each box that is inside one of some groups.

    Args:
        boxes: [K, 4] (left, top, right, bottom).
        groups: [G, 4].

    Returns:
        [K], 0 to 1.
    """
    edges = np.minimum(boxes[:, None, 2:], groups[:, 2:]) - np.maximum(boxes[:, None, :2], groups[:, :2])
    areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-12)
    return (np.maximum(edges, 0).prod(axis=2) / areas[:, None]).max(axis=1, initial=0)


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Convert boxes [N, 4] from (left, top, width, height) to (left, top, right, bottom)."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
