"""Checks of the input arrays of compiled loops, which check no bounds themselves."""

from __future__ import annotations

import functools
import math
import re
from operator import index
from typing import Any

import numpy as np

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
LONGEST_SIDE = 2**24  # of a map: beyond it, float32 coordinates skip pixels
MOST_PIXELS = 2**31 - 1  # of all maps of one call: loops index them with 32 bits


def check_arrays(op: str, spec: str, /, *arrays: Any, **given: int) -> list:
    """Check the dtypes and shapes of an op's arrays, and return the sizes that the names in the shapes stand for.

    `M, Q, D, T = check_arrays("attend", "q [M, Q, D], k [M, T, D], v [M, T, D]", q, k, v)`

    Args:
        op: name of the op, for the errors.
        spec: name and shape of each array, as in a docstring. An axis is a number, a name, or a product such as 3*C of
            earlier names. A leading "..." stands for any number of axes. An argument marked as `mask?` may be None.
        arrays: NumPy or CuPy arrays, in the order of spec.
        given: sizes of names that are known before.

    Returns:
        The sizes of the other names, in the order of spec. The size of "..." is a tuple.

    Raises:
        TypeError: unless all arrays are float32 or all are float64.
        ValueError: if an array has another shape.
    """
    arguments, numbers = _parsed(spec)
    sizes = numbers | given
    n_known, dtype = len(sizes), getattr(arrays[0], "dtype", object)  # not None: NumPy's float64 equals None
    for (name, optional, text, axes), array in zip(arguments, arrays, strict=True):
        if optional and array is None:
            continue
        if getattr(array, "dtype", object) != dtype or dtype not in FLOATS:
            kinds = _listed(arguments, arrays, "dtype")
            raise TypeError(f"{op}: arrays must all be float32 or all float64; got {kinds}. Convert them with `astype`")
        shape = array.shape
        if axes and axes[0] == "...":
            n = max(0, len(shape) + 1 - len(axes))
            shape = shape[:n], *shape[n:]
        fits = len(shape) == len(axes)
        for axis, size in zip(axes, shape) if fits else ():
            if size != (sizes.setdefault(axis, size) if type(axis) is str else math.prod([sizes[f] for f in axis])):
                fits = False
        if not fits:
            known = ", ".join(f"{key} = {sizes[key]}" for key in sizes if key not in numbers and key in text)
            raise ValueError(f"{op}: arrays do not fit together: expected {name} [{text}]{known and ' with '}{known}; "
                             f"got {_listed(arguments, arrays, 'shape')}")
    return list(sizes.values())[n_known:]


def check_levels(op: str, sizes, L: int, S: int) -> list[tuple[int, int]]:
    """Check the rows and columns of the levels of a feature pyramid, and return them as ints.

    Args:
        op: name of the op, for the errors.
        sizes: ((H, W), ...) of the levels.
        L: number of levels.
        S: number of pixels of all levels.

    Raises:
        TypeError: unless sizes are pairs of integers.
        ValueError: if their number, a side or the number of pixels is wrong.
    """
    try:
        levels = [(index(H), index(W)) for H, W in sizes]
    except (TypeError, ValueError):
        raise TypeError(f"{op}: sizes must be pairs of integers ((H, W), ...); got {sizes}") from None
    if (len(levels) != L or any(not 0 < side <= LONGEST_SIDE for level in levels for side in level)
            or sum(H * W for H, W in levels) != S or S > MOST_PIXELS):
        raise ValueError(f"{op}: arrays do not fit together: expected {L} sizes (H, W) up to {LONGEST_SIDE}, of {S} "
                         f"pixels in total, at most {MOST_PIXELS}; got {sizes}")
    return levels


def check_activation(op: str, activation: str) -> None:
    """Raise ValueError for a name other than "relu" and "gelu"."""
    if activation not in ("relu", "gelu"):
        raise ValueError(f'{op}: activation must be "relu" or "gelu"; got {activation!r}')


def _listed(arguments, arrays, attribute):
    """Name and attribute of each array, or its type if it is no array, for an error"""
    return ", ".join(f"{name} {getattr(array, attribute, type(array).__name__)}"
                     for (name, optional, _, _), array in zip(arguments, arrays) if array is not None or not optional)


@functools.cache
def _parsed(spec):
    """"x? [N, 3*C]" -> [("x", True, "N, 3*C", ("N", ("3", "C")))], {"3": 3}

    Name, whether it is optional, shape and axes of each array; numbers in the shapes.
    """
    arguments, numbers = [], {}
    for name, optional, text in re.findall(r"(\w+)(\??) \[([^\]]*)\]", spec):
        products = [tuple(axis.split("*")) for axis in text.replace(" ", "").split(",") if axis]
        numbers |= {factor: int(factor) for factors in products for factor in factors if factor.isdigit()}
        axes = tuple(factors[0] if len(factors) == 1 else factors for factors in products)
        arguments.append((name, bool(optional), text, axes))
    return arguments, numbers


def check_groups(op: str, groups: int, C: int) -> None:
    """Raise ValueError unless `groups` divides C channels."""
    if groups not in range(1, C + 1) or C % groups:
        raise ValueError(f"{op}: expected a number of groups that divides {C} channels; got {groups}")


def check_shift(op: str, shift: int, k: int) -> None:
    """Raise ValueError unless windows of k by k can be shifted by `shift` pixels."""
    if shift not in range(k):
        raise ValueError(f"{op}: expected a shift of 0 to {k - 1} for windows of {k} by {k}; got {shift}")


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array itself if it is C-contiguous and aligned, else a copy that is."""
    return np.require(array, requirements=["C", "A"])
