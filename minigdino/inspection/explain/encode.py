"""Arrays as text a page can hold: base64 of small integers, and pictures as data URIs."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image

BLANK = 1e-12  # a span below it is no span


def packed(array, bits: int = 8, per: int = 0) -> dict:
    """An array for the page's `tensor()`: {"shape", "bits", "data"}, and unless bits is 32 "low" and "high".

    bits: 8 or 16 round to that many steps between the least and the largest value, 32 keeps float32.
    per: leading axes whose every slice has its own least and largest value, so that faint slices keep their shades.
    """
    numbers = np.asarray(array, np.float32)
    shape = list(numbers.shape)
    if bits == 32:
        return {"shape": shape, "bits": bits, "data": _base64(numbers.astype("<f4").tobytes())}
    rows = numbers.reshape(math.prod(shape[:per]), -1).astype(np.float64)
    low, high = rows.min(axis=1), rows.max(axis=1)
    span = np.where(high - low > BLANK, high - low, 1)
    steps = np.round((rows - low[:, None]) / span[:, None] * (2**bits - 1)).astype(f"<u{bits // 8}")
    return {"shape": shape, "bits": bits, "low": _short(low), "high": _short(high), "data": _base64(steps.tobytes())}


def picture(image: Image.Image | np.ndarray, lossless: bool = False) -> str:
    """An image, or uint8 [H, W] or [H, W, 3], as a data URI: PNG if lossless, else JPEG."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
    data = io.BytesIO()
    if lossless:
        image.save(data, "PNG", optimize=True)
    else:
        image.save(data, "JPEG", quality=88)
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{_base64(data.getvalue())}"


def stretched(x):
    """Any numbers [...] -> uint8 [...], the 2nd percentile black and the 98th white."""
    low, high = np.percentile(x, (2, 98))
    return np.uint8(np.clip((x - low) / max(high - low, BLANK), 0, 1) * 255 + 0.5)


def principal_colours(x):
    """The three directions in which a map varies most, as red, green and blue: x [H, W, C] -> uint8 [H, W, 3]"""
    H, W, C = x.shape
    rows = x.reshape(-1, C).astype(np.float64)
    centred = rows - rows.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)  # [C, C], least variance first
    most = directions[:, : -min(3, C) - 1 : -1]  # [C, 3]
    # a direction and its opposite are as good: the one whose largest part is positive is taken
    most = most * np.sign(most[abs(most).argmax(axis=0), np.arange(most.shape[1])])
    parts = centred @ most  # [H*W, 3]
    span = np.percentile(abs(parts), 98)  # one for all, so that a direction of little variance is pale
    shades = 0.5 + parts / (2 * max(span, BLANK))
    return np.uint8(np.clip(shades, 0, 1) * 255 + 0.5).reshape(H, W, 3)


def pooled(x, most: int):
    """Means of square blocks of a map, as small as leave at most about `most` of them: x [H, W, ...] -> [h, w, ...]"""
    H, W = x.shape[:2]
    side = max(1, math.ceil(math.sqrt(H * W / max(most, 1))))
    rows, cols = np.arange(0, H, side), np.arange(0, W, side)
    sums = np.add.reduceat(np.add.reduceat(x, rows, axis=0), cols, axis=1)
    counts = np.diff([*rows, H])[:, None] * np.diff([*cols, W])
    return sums / counts.reshape(*counts.shape, *[1] * (x.ndim - 2)).astype(x.dtype)


def spread(n: int, most: int) -> np.ndarray:
    """At most `most` of the indices 0..n-1, evenly spread: -> [min(n, most)] ints"""
    return np.unique(np.linspace(0, n - 1, max(1, min(n, most))).round().astype(int))


def _base64(data):
    return base64.b64encode(data).decode()


def _short(numbers):
    return [float(f"{n:.7g}") for n in numbers]
