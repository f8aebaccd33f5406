"""The scored boxes of an image, their checks against the ground truth, and their overlap.

K boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import ArgumentError, brief
from .ground_truth import GroundTruth


@dataclass(frozen=True, eq=False)
class Candidates:
    """The boxes that a protocol keeps for an image. A box can occur several times, with different categories.

    Attributes:
        boxes: [K, 4] (left, top, width, height) in pixels of the upright image.
        scores: [K].
        category_ids: [K] ints.
    """

    boxes: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray


def checked(truth: GroundTruth, detections: Iterable[tuple[int, Candidates]]) -> Iterator[tuple[int, Candidates]]:
    """Yield detections, after a check that they belong to the images and categories of a set.

    Args:
        truth: the set.
        detections: pairs (image id, candidates).

    Yields:
        The same pairs, with arrays in float64 and int64.

    Raises:
        ArgumentError: if an image is unknown or occurs twice, a category is unknown, the arrays have different lengths,
            a number is not finite, or a width or height is negative.
    """
    images = {picture.id for picture in truth.pictures}
    categories = np.array([category.id for category in truth.categories], np.int64)
    seen: set[int] = set()
    for image_id, found in detections:
        if image_id not in images:
            raise ArgumentError(f"expected detections in the {len(images)} images of the annotations; got some for the "
                                f"image id {brief(image_id)}. Use the annotation file that the detections were made "
                                "with")
        if image_id in seen:
            raise ArgumentError(f"expected the detections of each image once; got those of the image id {image_id} "
                                "twice. Remove one of the two")
        seen.add(image_id)
        boxes, scores = (np.asarray(values, np.float64) for values in (found.boxes, found.scores))
        category_ids = np.asarray(found.category_ids, np.int64)
        if not (boxes.shape == (len(scores), 4) and scores.shape == category_ids.shape == (len(scores),)):
            raise ArgumentError(f"image id {image_id}: expected boxes [K, 4], and K scores and category ids; got "
                                f"{list(boxes.shape)}, {list(scores.shape)} and {list(category_ids.shape)}. Repeat its "
                                "detection")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all() and (boxes[:, 2:] >= 0).all()):
            raise ArgumentError(f"image id {image_id}: expected finite scores and boxes, and no negative width or "
                                "height; got others. Repeat its detection")
        if len(unknown := category_ids[~np.isin(category_ids, categories)]):
            raise ArgumentError(f"image id {image_id}: expected detections of the {len(categories)} categories of the "
                                f"annotations; got some with the category id {unknown[0]}. Use the annotation file "
                                "that the detections were made with")
        yield image_id, Candidates(boxes, scores, category_ids)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (left, top, width, height), rounded as in the API of COCO.

    Args:
        a: [N, 4].
        b: [M, 4].

    Returns:
        [N, M]; 0 for boxes without an intersection.
    """
    a, b = a[:, None], b[None]
    sides = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.where((sides > 0).all(axis=2), sides.prod(axis=2), 0)
    union = a[..., 2] * a[..., 3] + b[..., 2] * b[..., 3] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
