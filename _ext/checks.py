"""Checks of the input arrays of compiled loops, which check no bounds themselves."""

from __future__ import annotations

import numpy as np


def same_dtype(*arrays: np.ndarray) -> np.dtype:
    """The one dtype of all arrays. Raises TypeError unless it is float32 or float64 throughout."""
    dtypes = {a.dtype for a in arrays}
    if len(dtypes) != 1 or dtypes - {np.dtype(np.float32), np.dtype(np.float64)}:
        raise TypeError(f"arrays must all be float32 or all float64; got {', '.join(sorted(map(str, dtypes)))}")
    return dtypes.pop()


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array itself if it is C-contiguous and aligned, else a copy that is."""
    return np.require(array, requirements=["C", "A"])
