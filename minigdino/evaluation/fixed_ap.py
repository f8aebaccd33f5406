"""LVIS's fixed AP ("Evaluating Large-Vocabulary Object Detectors", arXiv 2102.01066): 10,000 detections per category.

Unlike in COCO, the number of detections of an image is not limited. That of a category in the whole set is.

The annotations of LVIS are federated: in an image, a detection counts only if its category is annotated there, or known
to be absent. Where a category is known to be annotated in part only, a detection without an object is ignored.

A area ranges, C categories, D detections, G annotated objects, T IoU thresholds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from ..errors import ArgumentError
from ..learning.average_precision import average_precision
from .candidates import Candidates, checked, iou
from .ground_truth import FREQUENCIES, GroundTruth

LIMIT = 10_000  # detections of a category in the whole set
SPARE = 2**21  # detections of all categories that are collected before the worst are dropped
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # [T] of the IoU
AREAS = np.array([[0, 1e5], [0, 32], [32, 96], [96, 1e5]]) ** 2  # [A, 2] all, small, medium, large; bounds included
VERDICT = 2, len(AREAS), len(THRESHOLDS)  # a detection is right, wrong or, if neither, ignored


def lvis_table(truth: GroundTruth, detections: Iterable[tuple[int, Candidates]]) -> dict[str, float]:
    """Compute the columns of LVIS's tables.

    Detections are read one image at a time. Memory grows with the number of categories, not with that of images.

    Args:
        truth: annotations of LVIS.
        detections: pairs (image id, candidates), each image once. An image that is missing has no detections. The order
            decides only between equal scores.

    Returns:
        {"AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"}, each from 0 to 1: all areas and thresholds;
        an IoU of at least 0.5 and of 0.75; small, medium and large objects; rare, common and frequent categories. NaN
        without an object of that kind.

    Raises:
        ArgumentError: if the annotations are not those of LVIS, or detections do not belong to them (see
            `candidates.checked`).
    """
    if not all(category.frequency for category in truth.categories):
        raise ArgumentError('expected categories with a "frequency", "r", "c" or "f", as LVIS has; at least one has '
                            "none. Use the protocol coco for this annotation file")
    objects, ranking = _Objects(truth), _Ranking(len(truth.categories))
    ids = np.array([category.id for category in truth.categories], np.int64)
    by_id = np.argsort(ids)
    for image_id, found in checked(truth, detections):
        categories = by_id[np.searchsorted(ids, found.category_ids, sorter=by_id)]  # [D] indices
        kept = found.scores > ranking.floors[categories]
        categories, boxes, scores = categories[kept], found.boxes[kept], found.scores[kept]
        ranking.add(image_id, categories, scores, objects.judge(image_id, ids[categories], boxes, scores))
    precisions = ranking.precisions(np.array([objects.totals[i] for i in ids.tolist()]))  # [C, A, T]
    frequencies = np.array([category.frequency for category in truth.categories])
    every = precisions[:, 0]
    columns = {"AP": every, "AP50": every[:, 0], "AP75": every[:, 5]}
    columns |= {f"AP{size}": precisions[:, a] for a, size in enumerate("sml", start=1)}
    columns |= {f"AP{frequency}": every[frequencies == frequency] for frequency in FREQUENCIES}
    return {name: _mean(values) for name, values in columns.items()}


def _mean(precisions):
    """The mean without NaN, which stands for a category without objects; NaN if there is nothing else."""
    known = precisions[~np.isnan(precisions)]
    return float(known.mean()) if len(known) else float("nan")


class _Objects:
    """The annotated objects, by image and category. Objects and detections without an area do not count."""

    def __init__(self, truth):
        rows = defaultdict(list)
        for row in np.flatnonzero(truth.areas > 0).tolist():
            rows[int(truth.image_ids[row]), int(truth.category_ids[row])].append(row)
        self._boxes = {key: truth.boxes[found] for key, found in rows.items()}
        self._outside = {key: _outside(truth.areas[found]) for key, found in rows.items()}
        self._partial = {picture.id: picture.not_exhaustive for picture in truth.pictures}
        self._known = {picture.id: set(picture.absent) for picture in truth.pictures}  # the categories that count
        self.totals = defaultdict(lambda: np.zeros(len(AREAS), np.int64))  # objects of a category in each area range
        for (image_id, category_id), outside in self._outside.items():
            self._known[image_id].add(category_id)
            self.totals[category_id] += (~outside).sum(axis=1)

    def judge(self, image_id, category_ids, boxes, scores):
        """The verdicts on the D detections of an image, as bits: [D, 10] uint8."""
        verdicts = np.zeros((len(scores), *VERDICT), bool)
        for category_id in self._known[image_id].intersection(category_ids.tolist()):
            rows = np.flatnonzero(category_ids == category_id)
            rows = rows[np.argsort(-scores[rows], kind="stable")]
            matched, ignored = self._matches(image_id, category_id, boxes[rows])
            verdicts[rows] = np.stack([matched & ~ignored, ~matched & ~ignored]).transpose(3, 0, 1, 2)
        return np.packbits(verdicts.reshape(len(scores), math.prod(VERDICT)), axis=1)

    def _matches(self, image_id, category_id, boxes):
        """Whether detections of a category, by descending score, are matched and ignored: [A, T, D] each."""
        areas = boxes[:, 2] * boxes[:, 3]
        excused = _outside(areas) | (areas == 0) | (category_id in self._partial[image_id])  # [A, D]
        matched = np.zeros((len(AREAS), len(THRESHOLDS), len(boxes)), bool)
        ignored = np.repeat(excused[:, None], len(THRESHOLDS), axis=1)
        if (key := (image_id, category_id)) in self._boxes:
            _match(iou(boxes, self._boxes[key]), self._outside[key], matched, ignored)
        return matched, ignored


def _outside(areas):
    """Whether areas [N] lie outside each range: [A, N]"""
    return (areas < AREAS[:, :1]) | (areas > AREAS[:, 1:])


def _match(overlap, outside, matched, ignored):
    """Match detections to objects, best score first. Each takes the free object with the highest IoU.

    An object inside the area range is preferred to any outside of it. A detection with an object outside is ignored. Of
    equal IoUs the last counts, as in the API of LVIS.

    Args:
        overlap: [D, G] IoU.
        outside: [A, G] whether an object is outside an area range.
        matched: [A, T, D], set to True for detections with an object.
        ignored: [A, T, D], set for these detections.
    """
    free = np.ones((len(AREAS), len(THRESHOLDS), overlap.shape[1]), bool)  # [A, T, G]
    inside = ~outside[:, None]
    enough = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    areas, thresholds = np.indices(free.shape[:2])
    for d in np.flatnonzero(overlap.max(axis=1) >= enough[0]):
        usable = free & (overlap[d] >= enough)
        preferred = usable & inside
        usable = np.where(preferred.any(axis=2, keepdims=True), preferred, usable)
        hit = usable.any(axis=2)  # [A, T]
        best = overlap.shape[1] - 1 - np.where(usable, overlap[d], -1)[..., ::-1].argmax(axis=2)
        matched[..., d] = hit
        ignored[..., d] = np.where(hit, outside[areas, best], ignored[..., d])
        free[areas[hit], thresholds[hit], best[hit]] = False


class _Ranking:
    """The best detections of each category, at most LIMIT. Equal scores stay in the order in which they were added.

    Args:
        n: number of categories.

    Attributes:
        floors: [C] score that a detection of a category must exceed to be one of them.
    """

    def __init__(self, n):
        self.floors = np.full(n, -np.inf)
        self._parts, self._spare = [], 0

    def add(self, image_id, categories, scores, verdicts):
        """Add the detections of an image: categories [D] are indices, verdicts [D, 10] bits."""
        self._parts.append((categories, scores, np.full(len(scores), image_id), verdicts))
        self._spare += len(scores)
        if self._spare > SPARE:
            self._cut()

    def _cut(self):
        """Drop detections beyond LIMIT. Of equal scores, the first ones stay."""
        categories, scores, images, verdicts = (np.concatenate(arrays) for arrays in zip(*self._parts))
        order = np.lexsort([-scores, categories])
        counts = np.bincount(categories, minlength=len(self.floors))
        ranks = np.arange(len(order)) - np.repeat(counts.cumsum() - counts, counts)
        last = order[ranks == LIMIT - 1]
        self.floors[categories[last]] = scores[last]
        kept = order[ranks < LIMIT]
        self._parts = [(categories[kept], scores[kept], images[kept], verdicts[kept])]
        self._spare = 0

    def precisions(self, totals):
        """[C, A, T]: average precision for numbers of objects [C, A]. NaN where there are none."""
        result = np.zeros((*totals.shape, len(THRESHOLDS)))
        result[totals == 0] = np.nan
        if self._parts:
            self._cut()
            categories, scores, images, verdicts = self._parts[0]
            order = np.lexsort([images, -scores, categories])  # by category, descending score, image id
            for rows in np.split(order, np.flatnonzero(np.diff(categories[order])) + 1) if len(order) else []:
                _integrate(scores[rows], verdicts[rows], totals[categories[rows[0]]], result[categories[rows[0]]])
        return result


def _integrate(scores, verdicts, totals, result):
    """Set result [A, T] to the average precision for detections of a category, where there are objects (totals [A])."""
    right, wrong = np.unpackbits(verdicts, axis=1).T.astype(bool).reshape(*VERDICT, len(scores))
    for a, t in zip(*np.nonzero(~np.isnan(result))):
        counts = right[a, t] | wrong[a, t]
        result[a, t] = average_precision(scores[counts], right[a, t, counts], int(totals[a]))
