"""Augmentation of training images, as in DETR (arXiv 2005.12872, §4): a flip, a crop and a choice of the size.

H x W image, B boxes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from PIL.Image import Image

from ..image import MAX_EDGE, ImageSettings
from ..targets import clipped, has_area

SIDE = re.compile(r"\b(left|right)", re.IGNORECASE)  # "right-hand" and "leftmost", too, but not "bright"
SCALES = [i / 25 for i in range(15, 26)]  # of the shortest edge: 480, 512, ... 800 for 800 pixels
# A crop is 384 to 600 pixels wide and high in an image whose shortest edge is one of these. The image is not resized
# for it; the crop has the same relative size in the original pixels.
EDGES = (400, 500, 600)
SMALLEST_CROP, LARGEST_CROP = 384, 600


def sizes_of(settings: ImageSettings) -> list[tuple[int, int]]:
    """Return the sizes from which `scaled` chooses: 0.6 to 1 times the shortest edge in steps of 0.04.

    Args:
        settings: image settings of the checkpoint.

    Returns:
        (shortest, longest) edges in pixels, as in `Model.preprocess`; none if the checkpoint does not resize images.
        The longest edge is that of the checkpoint.
    """
    if not settings.do_resize:
        return []
    edges = dict(settings.size)
    shortest, longest = min(edges.values()), max(edges.values())
    if edges.keys() == {"shortest_edge"}:
        longest = MAX_EDGE
    return [(max(round(shortest * scale), 1), longest) for scale in SCALES]


def augmented(image: np.ndarray | Image, boxes: np.ndarray, rng: np.random.Generator, sizes: Sequence[tuple[int, int]],
              labels: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int] | None]:
    """Augment an annotated image: flip half of all images, crop half of them, and choose a size.

    An image whose labels contain the word "left" or "right" is not flipped.

    Args:
        image: [H, W, 3] uint8, or a PIL image in RGB.
        boxes: [B, 4] float32 (left, top, right, bottom) in pixels, inside the image.
        rng: random generator. The number of values drawn from it does not depend on labels.
        sizes: as in `scaled`.
        labels: labels of the boxes.

    Returns:
        image: [H', W', 3] uint8, not resized.
        boxes: [B', 4] float32 in pixels of it; those without an area in it are left out.
        kept: [B'] indices of the remaining boxes.
        size: (shortest, longest) edge for `Model.preprocess`.
    """
    pixels, kept = np.asarray(image), np.arange(len(boxes))
    flip, crop = rng.random(2) < 0.5
    if flip and not any(map(SIDE.search, labels)):
        pixels, boxes = flipped(pixels, boxes)
    if crop:
        pixels, boxes, kept = cropped(pixels, boxes, rng)
    return pixels, boxes, kept, scaled(rng, sizes)


def flipped(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror an image from left to right.

    Args:
        image: [H, W, 3].
        boxes: [B, 4] float32 (left, top, right, bottom) in pixels, inside the image.

    Returns:
        The mirrored image and its boxes.
    """
    left, top, right, bottom = boxes.T
    width = np.float32(image.shape[1])
    return image[:, ::-1], np.stack([width - right, top, width - left, bottom], axis=1)


def cropped(image: np.ndarray, boxes: np.ndarray,
            rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut out a random part of an image.

    Args:
        image: [H, W, 3].
        boxes: [B, 4] float32 (left, top, right, bottom) in pixels.
        rng: random generator.

    Returns:
        image: [H', W', 3] the part. Each side has at least 0.64 times the shortest edge of the image.
        boxes: [B', 4] float32 in pixels of the part and clipped to it; those without an area in it are left out.
        kept: [B'] indices of the remaining boxes.
    """
    height, width = image.shape[:2]
    scale = min(height, width) / rng.choice(EDGES)
    (left, right), (top, bottom) = _interval(width, scale, rng), _interval(height, scale, rng)
    size = (right - left, bottom - top)
    moved = clipped(boxes - np.array([left, top, left, top], np.float32), size)
    kept = np.flatnonzero(has_area(moved, size))
    return image[top:bottom, left:right], moved[kept], kept


def _interval(length, scale, rng):
    """Start and end of a random part of an edge."""
    low, high = (min(max(round(edge * scale), 1), length) for edge in (SMALLEST_CROP, LARGEST_CROP))
    part = int(rng.integers(low, high + 1))
    start = int(rng.integers(0, length - part + 1))
    return start, start + part


def scaled(rng: np.random.Generator, sizes: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Choose the size to which an image is resized.

    Args:
        rng: random generator.
        sizes: (shortest, longest) edges in pixels, as from `sizes_of`.

    Returns:
        One of them; None, for the size in the checkpoint's settings, if there are none.
    """
    return sizes[int(rng.integers(len(sizes)))] if len(sizes) else None
