"""How many threads compute: our loops and BLAS alike."""

from __future__ import annotations

import os
import warnings

from .._ext import threads
from ..errors import ArgumentError


def set_threads(n: int) -> None:
    """Compute with n threads from now on, in the whole process: NumPy's matrix products and our loops.

    MINIGDINO_THREADS does the same at import. Raises ArgumentError unless n is a positive int.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ArgumentError(f"the number of threads is a positive int; got {n!r}")
    from threadpoolctl import threadpool_limits

    with threads.turn:  # a loop that multiplies matrices returns to BLAS's threads as it found them
        threadpool_limits(limits=n)
        threads.limit(n)


def follow_environment() -> None:
    """Obey MINIGDINO_THREADS, at import: so a value that is no number of threads is a warning, not an error.

    Without it, hold BLAS too to the container's quota, which OpenBLAS does not read.
    """
    wanted = os.environ.get("MINIGDINO_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        set_threads(int(wanted))
        return
    if wanted:
        warnings.warn(f"MINIGDINO_THREADS must be a number of threads; {wanted!r} is ignored", RuntimeWarning,
                      stacklevel=3)
    if threads.quota_binds():
        set_threads(threads.count())
