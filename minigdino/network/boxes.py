"""Boxes and positional encodings: sigmoid and its inverse, corners, sine embeddings.

A box is (cx, cy, w, h) as fractions of the image's width and height, unless a name says xyxy.

H, W rows and columns of a map, Q queries.
"""

from __future__ import annotations

import numpy as np


def sigmoid(x):
    """Logistic function 1 / (1 + exp(-x)), without overflow at either end: x [...] -> [...]"""
    e = np.exp(-abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def logit(p, eps=1e-5):
    """Inverse sigmoid (Deformable DETR, arXiv 2010.04159, A.3), clamped to [eps, 1 - eps]: p [...] -> [...]"""
    # != paper: Deformable DETR has no bound here. The authors' code bounds numerator and denominator at 1e-3;
    # transformers and this code clamp p at 1e-5
    inside = np.clip(p, eps, 1 - eps)
    return np.log(inside / (1 - inside))


def cxcywh_to_xyxy(boxes):
    """Convert centre and size to corners: boxes [..., 4] -> [..., 4] as left, top, right, bottom"""
    centre, half = boxes[..., :2], 0.5 * boxes[..., 2:]
    return np.concatenate([centre - half, centre + half], axis=-1)


def sine_embedding(x, width, temperature):
    """Sinusoidal positional encoding (arXiv 1706.03762, section 3.5), sines and cosines interleaved.

    Args:
        x [...]: positions.
        width: channels of the encoding.
        temperature: base of the geometric series of wavelengths, 10000 in the paper.

    Returns:
        [..., width]: encodings.
    """
    # != paper: section 3.5 of 1706.03762 has no factor 2 pi; DETR's code, and all models after it, have it
    pair = np.arange(width, like=x) // 2
    frequency = temperature ** (2 * pair / width).astype(x.dtype)  # [width]
    angle = (x * (2 * np.pi))[..., None] / frequency  # [..., width]
    return np.stack([np.sin(angle[..., 0::2]), np.cos(angle[..., 1::2])], axis=-1).reshape(angle.shape)


def image_positions(H, W, width, temperature, like):
    """Sine embedding of every pixel of a map (arXiv 1706.03762, section 3.5).

    Args:
        H, W: rows and columns.
        width: channels of the encoding.
        temperature: as in `sine_embedding`.
        like: an array of the wanted dtype and device.

    Returns:
        [H*W, width]: encodings, row by row. The first half of the channels encodes the row, the second the column.
    """

    # counted from 1 and divided by the last position plus 1e-6, as in DETR's code; `pixel_centres` differs
    def axis(n):
        return sine_embedding(np.arange(1, n + 1, dtype=like.dtype, like=like) / (n + 1e-6), width // 2, temperature)

    rows = np.broadcast_to(axis(H)[:, None], (H, W, width // 2))
    cols = np.broadcast_to(axis(W), (H, W, width // 2))
    return np.concatenate([rows, cols], axis=-1).reshape(H * W, width)


def box_positions(boxes, width, temperature=10000):
    """Sine embedding of boxes (DAB-DETR, arXiv 2201.12329, section 4.2), in the order cy, cx, w, h.

    Args:
        boxes [Q, 4]: (cx, cy, w, h).
        width: channels for each coordinate.
        temperature: as in `sine_embedding`.

    Returns:
        [Q, 4*width]: encodings.
    """
    cx, cy, w, h = boxes.T
    # != paper: DAB-DETR has x before y (Eq. 2) and temperature 20 (section 4.5); the released code has y before x, and
    # temperature 10,000
    return sine_embedding(np.stack([cy, cx, w, h], axis=-1), width, temperature).reshape(len(boxes), -1)


def pixel_centres(H, W, like):
    """Pixel centres of a map as fractions (x, y), row by row: -> [H*W, 2], with the dtype and device of `like`"""
    y = (np.arange(H, dtype=like.dtype, like=like) + 0.5) / H
    x = (np.arange(W, dtype=like.dtype, like=like) + 0.5) / W
    grid = np.stack([np.broadcast_to(x, (H, W)), np.broadcast_to(y[:, None], (H, W))], axis=-1)
    return grid.reshape(H * W, 2)
