"""Encode arrays as text for the page: small integers in base64, pictures as data URIs."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image

MIN_SPAN = 1e-12  # a smaller difference between maximum and minimum counts as none


def packed(array, bits: int = 8, per: int = 0) -> dict:
    """Encode an array for `tensor()` of page.js.

    Args:
        array: any array.
        bits: 8 or 16 quantise to that many bits between the minimum and the maximum; 32 keeps float32.
        per: number of leading axes. Each slice along them is quantised with its own minimum and maximum, so that slices
            of small values keep their contrast.

    Returns:
        {"shape", "bits", "data"}, and "low" and "high" unless bits is 32.
    """
    values = np.asarray(array, np.float32)
    shape = list(values.shape)
    if bits == 32:
        return {"shape": shape, "bits": bits, "data": _base64(values.astype("<f4").tobytes())}
    rows = values.reshape(math.prod(shape[:per]), -1).astype(np.float64)
    low, high = rows.min(axis=1), rows.max(axis=1)
    span = np.where(high - low > MIN_SPAN, high - low, 1)
    steps = np.round((rows - low[:, None]) / span[:, None] * (2**bits - 1)).astype(f"<u{bits // 8}")
    return {"shape": shape, "bits": bits, "low": _short(low), "high": _short(high), "data": _base64(steps.tobytes())}


def picture(image: Image.Image | np.ndarray, lossless: bool = False) -> str:
    """Encode an image as a data URI.

    Args:
        image: a PIL image, or uint8 [H, W] or [H, W, 3].
        lossless: PNG if True, else JPEG.

    Returns:
        The data URI.
    """
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    data = io.BytesIO()
    if lossless:
        image.save(data, "PNG", optimize=True)
    else:
        image.save(data, "JPEG", quality=88)
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{_base64(data.getvalue())}"


def stretched(x):
    """Scale an array to shades of grey, the 2nd percentile to black and the 98th to white: x [...] -> uint8 [...]"""
    low, high = np.percentile(x, (2, 98))
    return (np.clip((x - low) / max(high - low, MIN_SPAN), 0, 1) * 255 + 0.5).astype(np.uint8)


def principal_colours(x):
    """Show the first three principal components of a map as red, green and blue.

    Args:
        x [H, W, C]: feature map.

    Returns:
        uint8 [H, W, 3]: colours; 0 is mid-grey.
    """
    H, W, C = x.shape
    rows = x.reshape(-1, C).astype(np.float64)
    centred = rows - rows.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)  # [C, C], smallest variance first
    components = directions[:, : -min(3, C) - 1 : -1]  # [C, 3]
    # the sign of a component is arbitrary; make its largest entry positive
    components = components * np.sign(components[abs(components).argmax(axis=0), np.arange(components.shape[1])])
    parts = centred @ components  # [H*W, 3]
    span = np.percentile(abs(parts), 98)  # one span for all components, so that those of small variance look pale
    shades = 0.5 + parts / (2 * max(span, MIN_SPAN))
    return (np.clip(shades, 0, 1) * 255 + 0.5).astype(np.uint8).reshape(H, W, 3)


def pooled(x, max_cells: int):
    """Average a map over square blocks, the smallest that give about `max_cells` cells or fewer.

    Args:
        x [H, W, ...]: map.
        max_cells: limit for h * w.

    Returns:
        [h, w, ...]: means of the blocks.
    """
    H, W = x.shape[:2]
    side = max(1, math.ceil(math.sqrt(H * W / max(max_cells, 1))))
    rows, cols = np.arange(0, H, side), np.arange(0, W, side)
    sums = np.add.reduceat(np.add.reduceat(x, rows, axis=0), cols, axis=1)
    counts = np.diff([*rows, H])[:, None] * np.diff([*cols, W])
    return sums / counts.reshape(*counts.shape, *[1] * (x.ndim - 2)).astype(x.dtype)


def spread(n: int, limit: int) -> np.ndarray:
    """Choose evenly spaced indices of 0..n-1, at most `limit`: -> [min(n, limit)] ints"""
    return np.unique(np.linspace(0, n - 1, max(1, min(n, limit))).round().astype(int))


def _base64(data):
    return base64.b64encode(data).decode()


def _short(values):
    return [float(f"{value:.7g}") for value in values]
