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
        The same pairs, with arrays as from `as_arrays`.

    Raises:
        ArgumentError: if an image is unknown or occurs twice, a category is unknown, or `as_arrays` refuses the
            candidates.
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
        found = as_arrays(found, f"image id {image_id}")
        if len(unknown := found.category_ids[~np.isin(found.category_ids, categories)]):
            raise ArgumentError(f"image id {image_id}: expected detections of the {len(categories)} categories of the "
                                f"annotations; got some with the category id {unknown[0]}. Use the annotation file "
                                "that the detections were made with")
        yield image_id, found


def as_arrays(found: Candidates, place: str) -> Candidates:
    """Return candidates as arrays in float64 and int64, after a check of their shapes and numbers.

    Args:
        found: the candidates; lists are converted.
        place: the image or caption, for error messages.

    Returns:
        The same candidates.

    Raises:
        ArgumentError: if the arrays have different lengths, a number is not finite, a category id is no int, or a width
            or height is negative.
    """
    try:
        boxes, scores = (np.asarray(values, np.float64) for values in (found.boxes, found.scores))
        category_ids = np.asarray(found.category_ids)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"{place}: expected boxes [K, 4], and K scores and category ids; got values that are no "
                            f"such arrays ({brief(error)}). Repeat its detection") from None
    if not (scores.ndim == 1 and boxes.shape == (*scores.shape, 4) and category_ids.shape == scores.shape):
        raise ArgumentError(f"{place}: expected boxes [K, 4], and K scores and category ids; got {list(boxes.shape)}, "
                            f"{list(scores.shape)} and {list(category_ids.shape)}. Repeat its detection")
    if len(scores) and category_ids.dtype.kind not in "iu":
        raise ArgumentError(f"{place}: expected ints as category ids; got {brief(category_ids.tolist())}. Repeat its "
                            "detection")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all() and (boxes[:, 2:] >= 0).all()):
        raise ArgumentError(f"{place}: expected finite scores and boxes, and no negative width or height; got others. "
                            "Repeat its detection")
    return Candidates(boxes, scores, category_ids.astype(np.int64))


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
