"""LVIS's fixed AP ("Evaluating Large-Vocabulary Object Detectors", arXiv 2102.01066): 10,000 detections per category.

Unlike in COCO, the number of detections of an image is not limited. That of a category in the whole set is.

The annotations of LVIS are federated: in an image, a detection counts only if its category is annotated there, or known
to be absent. Where a category is known to be annotated in part only, a detection without an object is ignored.

A area ranges, D detections, G annotated objects, T IoU thresholds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from ..errors import ArgumentError
from ..learning.average_precision import average_precision
from .candidates import Candidates, checked, iou
from .ground_truth import FREQUENCIES, GroundTruth

LIMIT = 10_000  # detections of a category in the whole set
SPARE = LIMIT // 4  # detections of a category that are collected before the worst are dropped
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # [T] of the IoU
AREAS = np.array([[0, 1e5], [0, 32], [32, 96], [96, 1e5]]) ** 2  # [A, 2] all, small, medium, large; bounds included


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
    objects, ranked = _Objects(truth), defaultdict(_Best)
    for image_id, found in checked(truth, detections):
        for category_id, boxes, scores in _by_category(found):
            best = ranked[category_id]
            n = int(np.searchsorted(-scores, -best.floor))  # those with a higher score; the others cannot be kept
            if n:
                best.add(image_id, scores[:n], objects.judge(image_id, category_id, boxes[:n]))
    precisions = np.array([ranked[category.id].precisions(objects.totals[category.id])
                           for category in truth.categories])  # [C, A, T]
    frequencies = np.array([category.frequency for category in truth.categories])
    every = precisions[:, 0]
    columns = {"AP": every, "AP50": every[:, 0], "AP75": every[:, 5]}
    columns |= {f"AP{size}": precisions[:, a] for a, size in enumerate("sml", start=1)}
    columns |= {f"AP{frequency}": every[frequencies == frequency] for frequency in FREQUENCIES}
    return {name: _mean(values) for name, values in columns.items()}


def _by_category(found):
    """Yield category id, boxes and scores of each category that has detections, by descending score."""
    order = np.lexsort([-found.scores, found.category_ids])
    ids = found.category_ids[order]
    for rows in np.split(order, np.flatnonzero(np.diff(ids)) + 1) if len(order) else []:
        yield int(found.category_ids[rows[0]]), found.boxes[rows], found.scores[rows]


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
        self._absent = {picture.id: picture.absent for picture in truth.pictures}
        self._partial = {picture.id: picture.not_exhaustive for picture in truth.pictures}
        self.totals = defaultdict(lambda: np.zeros(len(AREAS), np.int64))  # objects of a category in each area range
        for (_, category_id), outside in self._outside.items():
            self.totals[category_id] += (~outside).sum(axis=1)

    def judge(self, image_id, category_id, boxes):
        """[2, A, T, D] bool: whether detections, by descending score, are right, and whether they are wrong.

        One that is neither is ignored.
        """
        key = image_id, category_id
        if key not in self._boxes and category_id not in self._absent[image_id]:
            return np.zeros((2, len(AREAS), len(THRESHOLDS), len(boxes)), bool)
        areas = boxes[:, 2] * boxes[:, 3]
        excused = _outside(areas) | (areas == 0) | (category_id in self._partial[image_id])  # [A, D]
        matched = np.zeros((len(AREAS), len(THRESHOLDS), len(boxes)), bool)
        ignored = np.repeat(excused[:, None], len(THRESHOLDS), axis=1)  # [A, T, D]
        if key in self._boxes:
            _match(iou(boxes, self._boxes[key]), self._outside[key], matched, ignored)
        return np.stack([matched & ~ignored, ~matched & ~ignored])


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


class _Best:
    """The best detections of a category, at most LIMIT, with their verdicts as bits.

    Attributes:
        floor: score that a detection must exceed to be one of them.
    """

    def __init__(self):
        self.floor = -np.inf
        self._parts, self._n = [], 0  # (scores [D], image ids [D], verdicts [D, 10] uint8), and their total number

    def add(self, image_id, scores, verdicts):
        """Add the detections of an image, with verdicts [2, A, T, D]."""
        bits = np.packbits(verdicts.reshape(-1, len(scores)), axis=0).T
        self._parts.append((scores, np.full(len(scores), image_id), bits))
        self._n += len(scores)
        if self._n > LIMIT + SPARE:
            self._cut()

    def _cut(self):
        """Keep the best. Of equal scores, the first ones stay."""
        scores, images, bits = (np.concatenate(arrays) for arrays in zip(*self._parts))
        kept = np.sort(np.argsort(-scores, kind="stable")[:LIMIT])
        self._parts, self._n = [(scores[kept], images[kept], bits[kept])], len(kept)
        if len(kept) == LIMIT:
            self.floor = scores[kept].min()

    def precisions(self, totals):
        """[A, T]: average precision for numbers of objects [A]. NaN where there are none."""
        result = np.zeros((len(AREAS), len(THRESHOLDS)))
        result[totals == 0] = np.nan
        if not self._parts:
            return result
        self._cut()
        scores, images, bits = self._parts[0]
        order = np.lexsort([images, -scores])  # by descending score, then by image id
        scores, bits = scores[order], np.unpackbits(bits[order].T, axis=0).astype(bool)
        right, wrong = bits.reshape(2, len(AREAS), len(THRESHOLDS), len(scores))
        for a, t in zip(*np.nonzero(~np.isnan(result))):
            counts = right[a, t] | wrong[a, t]
            result[a, t] = average_precision(scores[counts], right[a, t, counts], int(totals[a]))
        return result
