"""Tiles: overlapping parts of a large image, in which small objects are larger for the model.

The idea is slicing-aided inference (arXiv 2202.06934): detect in each tile and in the whole image, and merge the boxes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .results import Detections, joined

STEP = 3 / 4  # largest distance of two neighbours, in sides of a tile; they share the rest
MARGIN = 1 / 32  # of the side: a box that ends nearer to an inner edge of a tile counts as cut


class View(NamedTuple):
    """A part of an image, in pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.right - self.left, self.bottom - self.top


def views(size: tuple[int, int], tile: int | None) -> list[View]:
    """Return the parts of an image in which to detect: the whole, then overlapping tiles, row by row.

    Tiles have equal sizes and cover the image. Neighbours share at least a quarter of their side.

    Args:
        size: (width, height) of the image.
        tile: side of a tile, which is shorter where the image is; None for the whole image only.

    Returns:
        The views. An image that fits into one tile has only the whole.
    """
    width, height = size
    whole = View(0, 0, width, height)
    if tile is None or tile >= max(size):
        return [whole]
    return [whole, *(View(left, top, left + min(tile, width), top + min(tile, height))
                     for top in _starts(height, tile) for left in _starts(width, tile))]


def _starts(length, tile):
    """First pixels of the tiles along one side, at nearly equal distances."""
    if length <= tile:
        return [0]
    steps = math.ceil((length - tile) / int(STEP * tile))
    return [i * (length - tile) // steps for i in range(steps + 1)]


def merged(found: Iterable[tuple[View, Detections]], size: tuple[int, int]) -> Detections:
    """Join the detections in the views of an image, without boxes that an inner edge of a tile cuts.

    An object of up to 3/16 of the side of a tile is complete in at least one tile, with the margin. A larger one is
    complete in the whole image.

    Args:
        found: each view with its detections, in pixels of the view.
        size: (width, height) of the image.

    Returns:
        Detections in pixels of the image, by descending score. An object that several views contain has several boxes.
    """
    return joined([(_moved(_complete(part, view, size), view, size), 0) for view, part in found])


def _complete(found, view, size):
    """The detections that no inner edge of their view cuts."""
    inner = np.array([view.left > 0, view.top > 0, view.right < size[0], view.bottom < size[1]])
    width, height = found.image_size
    margin = MARGIN * max(width, height)
    at_edge = np.concatenate([found.boxes[:, :2] < margin, found.boxes[:, 2:] > np.array([width, height]) - margin],
                             axis=1)  # [N, 4]
    return found[~(at_edge & inner).any(axis=1)]


def _moved(found, view, size):
    """Detections of a view in pixels of the image."""
    offset = np.array([view.left, view.top, view.left, view.top], np.float32)
    return replace(found, boxes=found.boxes + offset, image_size=size)
