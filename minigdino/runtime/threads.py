"""The number of threads of the compiled loops. The thread pool is in _ext/pool.pyx."""

from __future__ import annotations

import os
import warnings

from .._ext import cpus
from ..errors import ArgumentError, brief

MAX_THREADS = 1024  # more than the CPUs of most machines; every thread needs a stack


def set_threads(n: int) -> None:
    """Set the number of threads for the compiled loops and matrix products of this process.

    The environment variable MINIGDINO_THREADS sets it at import. The default is the smallest of the CPU affinity, the
    CPU quota and OMP_NUM_THREADS. Results do not depend on it. At most one thread per processor takes part in a loop.

    Other libraries are not affected: NumPy's own products, which only the reference mode uses, keep the threads of
    BLAS.

    Args:
        n: number of threads.

    Raises:
        ArgumentError: unless n is a positive int, at most 1024.
    """
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MAX_THREADS:
        raise ArgumentError(f"the number of threads must be a positive int, at most {MAX_THREADS}; got {brief(n)}")
    cpus.limit(n)


def default_threads() -> int:
    """Return the number of threads of this process: the CPUs that it may use, unless less was set."""
    return cpus.count()


def threads_each(processes: int) -> int:
    """Return the number of threads of each of several processes that compute at the same time: their part of the CPUs.

    Args:
        processes: number of processes.
    """
    return max(1, default_threads() // processes)


def follow_environment() -> None:
    """Apply MINIGDINO_THREADS at import. An invalid value gives a warning, so that the import does not fail."""
    wanted = os.environ.get("MINIGDINO_THREADS", "")
    if wanted.isdecimal() and len(wanted) < 9 and 1 <= int(wanted) <= MAX_THREADS:
        set_threads(int(wanted))
    elif wanted:
        warnings.warn(f"MINIGDINO_THREADS must be a positive number of threads, at most {MAX_THREADS}; {brief(wanted)} "
                      "is ignored", RuntimeWarning, stacklevel=3)
