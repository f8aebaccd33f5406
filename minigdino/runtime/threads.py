"""The number of threads for compiled loops and BLAS. The thread pool is in _ext/pool.py."""

from __future__ import annotations

import os
import warnings

from .._ext import pool
from ..errors import ArgumentError


def set_threads(n: int) -> None:
    """Set the number of threads of this process, for NumPy's matrix products and for compiled loops.

    The environment variable MINIGDINO_THREADS sets it at import.

    Args:
        n: number of threads.

    Raises:
        ArgumentError: unless n is a positive int.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ArgumentError(f"the number of threads must be a positive int; got {n!r}")
    from threadpoolctl import threadpool_limits

    with pool.turn:  # wait for a running loop, which restores the thread count of BLAS at its end
        threadpool_limits(limits=n)
        pool.limit(n)


def follow_environment() -> None:
    """Apply MINIGDINO_THREADS at import. An invalid value gives a warning, so that the import does not fail.

    Without the variable, limit BLAS to the CPU quota of the process, which OpenBLAS ignores.
    """
    wanted = os.environ.get("MINIGDINO_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        set_threads(int(wanted))
        return
    if wanted:
        warnings.warn(f"MINIGDINO_THREADS must be a positive number of threads; {wanted!r} is ignored", RuntimeWarning,
                      stacklevel=3)
    if pool.quota_binds():
        set_threads(pool.count())
