"""What a report on detections shows: precision and recall by score, confused labels, and the worst misses.

All counts are at an IoU of 0.5. Images are processed one by one, and only counts are kept.

C categories, S score levels; K detections and M annotated objects of an image.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..learning.average_precision import IOU, RECALLS, hits
from ..overlap import iou
from .candidates import Candidates
from .ground_truth import GroundTruth, Picture
from .interval import corners_of, inside

LEVELS = 2000  # scores are rounded down to a multiple of 1 / LEVELS
SHOWN = 12  # misses of each kind


@dataclass(frozen=True)
class Objects:
    """The annotated objects of an image.

    Attributes:
        boxes: [M, 4] (left, top, right, bottom) in pixels.
        category_ids: [M] ids of their categories.
        groups: [M] bool: whether a box surrounds a group of objects.
        annotated: ids of the categories for which the image is annotated; None for all.
    """

    boxes: np.ndarray
    category_ids: np.ndarray
    groups: np.ndarray
    annotated: frozenset[int] | None

    def known(self, category_ids: np.ndarray) -> np.ndarray:
        """Whether the image is annotated for each category [K]: bool [K]."""
        return np.ones(len(category_ids), bool) if self.annotated is None else np.isin(category_ids, [*self.annotated])


@dataclass(frozen=True)
class Miss:
    """An object that was not found, or a detection where no object of its category is annotated.

    Attributes:
        picture: the image.
        box: (left, top, right, bottom) of the object or the detection, in pixels.
        category: id of its category.
        score: score of the detection; None for an object.
        other: id of the category that was detected or annotated instead; None if there is none.
        other_box: its box; None likewise.
    """

    picture: Picture
    box: tuple[float, float, float, float]
    category: int
    score: float | None = None
    other: int | None = None
    other_box: tuple[float, float, float, float] | None = None


class ByScore:
    """Numbers of right and wrong detections of each category, by score.

    Args:
        truth: the annotations.
        detections: pairs (id of an image, its detections).

    Attributes:
        categories: ids of the categories, in the order of the file.
        right: [C, S] numbers of detections that match an object, by the level of their score, ascending.
        wrong: [C, S] numbers of all others.
        objects: [C] numbers of annotated objects. Groups do not count.
    """

    def __init__(self, truth: GroundTruth, detections: Iterable[tuple[int, Candidates]]):
        self.categories = [category.id for category in truth.categories]
        rows = {number: row for row, number in enumerate(self.categories)}
        self.right, self.wrong = np.zeros((2, len(rows), LEVELS), np.int64)
        self.objects = np.zeros(len(rows), np.int64)
        for picture, objects, found in _by_image(truth, detections):
            np.add.at(self.objects, [rows[number] for number in objects.category_ids[~objects.groups].tolist()], 1)
            right, ignored = _matched(picture, objects, found)
            row = np.array([rows[number] for number in found.category_ids.tolist()], np.int64)
            level = np.clip(found.scores * LEVELS, 0, LEVELS - 1).astype(np.int64)
            for counts, chosen in ((self.right, right), (self.wrong, ~right & ~ignored)):
                np.add.at(counts, (row[chosen], level[chosen]), 1)

    def curve(self, row: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return precision and recall for the detections of each level or a higher one.

        Args:
            row: index of a category; None for all of them together.

        Returns:
            precision [S], 1 without detections; recall [S], by ascending level.
        """
        rows = slice(None) if row is None else [row]
        right, wrong = (counts[rows].sum(axis=0)[::-1].cumsum()[::-1] for counts in (self.right, self.wrong))
        found, objects = right + wrong, max(self.objects[rows].sum(), 1)
        return np.where(found > 0, right / np.maximum(found, 1), 1.0), right / objects

    def best(self, row: int | None = None) -> tuple[float, float, float, float]:
        """Return the threshold with the highest F1, and precision, recall and F1 there; the arguments of `curve`."""
        precision, recall = self.curve(row)
        f1 = harmonic(precision, recall)
        level = int(f1.argmax())
        return level / LEVELS, float(precision[level]), float(recall[level]), float(f1[level])

    def average_precision(self, row: int) -> float:
        """Return the AP50 of a category, up to the rounding of scores; NaN without an object."""
        if not self.objects[row]:
            return float("nan")
        precision, recall = self.curve(row)
        envelope = np.maximum.accumulate(np.where(recall > 0, precision, 0))[::-1]  # by ascending recall
        return float(np.append(envelope, 0)[np.searchsorted(recall[::-1], RECALLS)].mean())


def harmonic(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """F1, the harmonic mean of precision and recall; 0 if both are 0."""
    return 2 * precision * recall / np.maximum(precision + recall, 1e-12)


class AtThreshold:
    """What is confused and what is missed, among detections whose score exceeds a threshold.

    The label of an object is that of the best detection at its place. A detection at no object is false.

    Args:
        truth: the annotations.
        detections: as for `ByScore`.
        threshold: the score.

    Attributes:
        confusions: {(annotated category or None, detected category or None): number of them}.
        missed: the largest objects that were not found with their label, one for each image.
        false: the false detections with the highest scores, one for each image. So are those at an object of another
            category.
    """

    def __init__(self, truth: GroundTruth, detections: Iterable[tuple[int, Candidates]], threshold: float):
        self.confusions: Counter[tuple[int | None, int | None]] = Counter()
        missed, false = _Worst(), _Worst()
        for picture, objects, found in _by_image(truth, detections):
            found = _chosen(found, found.scores > threshold)
            corners, actual = corners_of(found.boxes), ~objects.groups
            overlap = iou(objects.boxes, corners)  # [M, K]
            for m in np.flatnonzero(actual):
                at = np.flatnonzero(overlap[m] >= IOU)
                category = int(objects.category_ids[m])
                best = at[found.scores[at].argmax()] if len(at) else None
                label = None if best is None else int(found.category_ids[best])
                self.confusions[category, label] += 1
                if not (found.category_ids[at] == category).any():
                    area = np.prod(objects.boxes[m, 2:] - objects.boxes[m, :2])
                    other_box = None if best is None else tuple(corners[best].tolist())
                    missed.add(area, Miss(picture, tuple(objects.boxes[m].tolist()), category, None, label, other_box))
            for k in np.flatnonzero(objects.known(found.category_ids)):
                at = np.flatnonzero(overlap[:, k] >= IOU)
                category = int(found.category_ids[k])
                if (objects.category_ids[at] == category).any():
                    continue
                if not len(at):
                    self.confusions[None, category] += 1
                at = at[actual[at]]
                other = at[overlap[at, k].argmax()] if len(at) else None
                false.add(found.scores[k], Miss(
                    picture, tuple(corners[k].tolist()), category, float(found.scores[k]),
                    None if other is None else int(objects.category_ids[other]),
                    None if other is None else tuple(objects.boxes[other].tolist())))
        self.missed, self.false = missed.items(), false.items()


class _Worst:
    """The misses with the highest values, the worst one of each image."""

    def __init__(self):
        self._heap, self._ties = [], itertools.count()

    def add(self, value, miss):
        """Add a miss, if it is worse than one of those."""
        entry = float(value), -next(self._ties), miss  # of equal values, the first one
        if (same := next((e for e in self._heap if e[2].picture.id == miss.picture.id), None)) is not None:
            if entry > same:
                self._heap[self._heap.index(same)] = entry
                heapq.heapify(self._heap)
        elif len(self._heap) < SHOWN:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def items(self):
        """The misses, the worst one first."""
        return [miss for _, _, miss in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def _by_image(truth, detections) -> Iterator[tuple[Picture, Objects, Candidates]]:
    """Yield each image with its objects and its detections."""
    pictures = {picture.id: picture for picture in truth.pictures}
    is_lvis = any(category.frequency for category in truth.categories)
    rows: dict[int, list[int]] = defaultdict(list)
    for row, image in enumerate(truth.image_ids.tolist()):
        rows[image].append(row)
    for image, found in detections:
        chosen, picture = np.array(rows[image], np.int64), pictures[image]
        ids = truth.category_ids[chosen]
        annotated = picture.absent.union(ids.tolist()) if is_lvis else None
        yield picture, Objects(corners_of(truth.boxes[chosen]), ids, truth.crowd[chosen], annotated), found


def _chosen(found, mask):
    return Candidates(found.boxes[mask], found.scores[mask], found.category_ids[mask])


def _matched(picture, objects, found):
    """Whether each detection matches an object [K], and whether it is ignored if not: at a group, or not annotated."""
    right, ignored = np.zeros((2, len(found.scores)), bool)
    corners = corners_of(found.boxes)
    for category in np.unique(objects.category_ids):
        own, of = (np.flatnonzero(ids == category) for ids in (found.category_ids, objects.category_ids))
        own = own[np.argsort(-found.scores[own], kind="stable")]
        right[own] = hits(corners[own], objects.boxes[of][~objects.groups[of]])
        ignored[own] = inside(corners[own], objects.boxes[of][objects.groups[of]]) >= IOU
    unsure = np.isin(found.category_ids, [*picture.not_exhaustive]) | ~objects.known(found.category_ids)
    return right, ignored | unsure
