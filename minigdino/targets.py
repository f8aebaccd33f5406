"""Annotations of an image as targets of the losses: boxes in fractions of the image, and tokens of their phrases.

N annotated boxes, T text tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from .errors import ArgumentError, brief
from .network.losses import Targets
from .prompt import Prompt

SMALLEST = 1e-6  # side of a box, as a fraction of the image; between smaller ones, corners in float32 can be equal


def image_targets(boxes: Sequence[Sequence[float]] | np.ndarray, labels: Sequence[str | int] | np.ndarray,
                  prompt: Prompt, size: tuple[int, int], phrases: str | Sequence[str] = ()) -> Targets:
    """Convert the annotations of an image.

    Boxes are clipped to the image, as by the image processor of transformers. That one drops boxes without an area
    inside the image; here they are an error.

    Args:
        boxes: [N, 4] (left, top, right, bottom) in pixels of the image.
        labels: N phrases of the prompt, or their indices.
        prompt: the prompt.
        size: width and height of the image.
        phrases: the list from which the prompt was made. Labels may have its wording too.

    Returns:
        Targets with boxes in float32.

    Raises:
        ArgumentError: if the boxes have another shape, are not finite, or have no area inside the image; if the labels
            are no phrases of the prompt; or if their numbers differ.
    """
    inside = checked_boxes(boxes, labels, size)
    names = [] if isinstance(phrases, str) else list(phrases)
    tokens = np.zeros((len(inside), len(prompt.ids)), bool)
    for row, label in zip(tokens, labels):
        row[slice(*prompt.spans[_index(label, prompt.phrases, names)])] = True
    low, high = np.split(inside / np.array([*size, *size], np.float64), 2, axis=1)
    fractions = np.concatenate([(low + high) / 2, high - low], axis=1).astype(np.float32)
    return Targets(fractions, tokens)


def checked_boxes(boxes: Sequence[Sequence[float]] | np.ndarray, labels: Sequence[str | int] | np.ndarray,
                  size: tuple[int, int]) -> np.ndarray:
    """Check the annotated boxes of an image, and clip them to it.

    Args:
        boxes: [N, 4] (left, top, right, bottom) in pixels of the image.
        labels: a label for each box.
        size: width and height of the image.

    Returns:
        [N, 4] float64 boxes, each with an area.

    Raises:
        ArgumentError: if the boxes have another shape, are not finite, or have no area inside the image, or if the
            number of labels differs.
    """
    corners, (width, height) = _corners(boxes), size
    if not (isinstance(labels, (list, tuple)) or (isinstance(labels, np.ndarray) and labels.ndim == 1)):
        raise ArgumentError(f"labels must be a list with a phrase of the prompt, or its index, for each box; got "
                            f"{brief(labels)}")
    if len(labels) != len(corners):
        raise ArgumentError(f"labels must have one entry for each box; got {len(labels)} for {len(corners)} "
                            f"box{'es' * (len(corners) != 1)}")
    inside = clipped(corners, size)
    if len(bad := np.flatnonzero(~has_area(inside, size))):
        raise ArgumentError("boxes must be (left, top, right, bottom) in pixels, with an area inside the image of "
                            f"{width} x {height}; boxes[{bad[0]}] is {brief(corners[bad[0]].tolist())}. Remove it, or "
                            "convert the boxes: those of COCO files are (left, top, width, height)")
    return inside


def one_per_object(targets: Targets) -> Targets:
    """Join annotations with the same box: they are one object with several labels, such as "red star" and "star".

    One query can then detect the object for each of its labels. As several targets, they would need a query each, and
    the query for one label would learn that the others are wrong.

    Args:
        targets: targets with a phrase each.

    Returns:
        Targets with different boxes, in the order of their first ones, and the tokens of all their phrases.
    """
    joined: dict[tuple[float, ...], np.ndarray] = {}
    for box, tokens in zip(map(tuple, targets.boxes.tolist()), targets.tokens):
        joined[box] = joined[box] | tokens if box in joined else tokens
    return Targets(np.array(list(joined), targets.boxes.dtype).reshape(-1, 4),
                   np.array(list(joined.values()), bool).reshape(-1, targets.tokens.shape[1]))


def clipped(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Clip boxes to the image.

    Args:
        boxes: [N, 4] (left, top, right, bottom) in pixels.
        size: width and height of the image.

    Returns:
        [N, 4] boxes of the same dtype.
    """
    return np.clip(boxes, 0, np.array([*size, *size], boxes.dtype))


def has_area(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return which boxes have an area: each side is at least `SMALLEST` of that of the image.

    Args:
        boxes: [N, 4] (left, top, right, bottom) in pixels, clipped to the image.
        size: width and height of the image.

    Returns:
        [N] bool.
    """
    fractions = boxes / np.array([*size, *size], np.float64)
    return (fractions[:, 2:] - fractions[:, :2]).min(axis=1, initial=1) >= SMALLEST


def _corners(boxes):
    """Boxes as an array [N, 4] of float64."""
    expected = "boxes must be an array [N, 4] of finite numbers: (left, top, right, bottom) in pixels"
    try:
        array = np.asarray(boxes)
    except Exception as error:  # the conversion runs methods of the caller's type
        raise ArgumentError(f"{expected}; got {brief(boxes)} ({brief(error)})") from None
    if not array.size and array.ndim in (1, 2):
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4 or array.dtype.kind not in "iuf":
        raise ArgumentError(f"{expected}; got {array.dtype} {list(array.shape)}")
    if len(bad := np.flatnonzero(~np.isfinite(array).all(axis=1))):
        raise ArgumentError(f"{expected}; boxes[{bad[0]}] is {brief(array[bad[0]].tolist())}")
    return array.astype(np.float64)


def _index(label, phrases, names):
    """Index of the phrase that a label names, by its text or by its index."""
    if isinstance(label, str):
        for known in (phrases, names):
            if label in known:
                return known.index(label)
    elif (hasattr(label, "__index__") and not isinstance(label, (bool, np.bool_))
          and 0 <= operator.index(label) < len(phrases)):
        return operator.index(label)
    raise ArgumentError(f"labels must be phrases of the prompt or their indices, 0 to {len(phrases) - 1}; got "
                        f"{brief(label)}. The phrases are {brief(phrases)}")
