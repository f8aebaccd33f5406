"""Thread pool for the rows of a loop. Compiled loops release the interpreter lock, so threads run them in parallel.

OpenMP is not used: its idle threads spin, which slows down the matrix products between the loops.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from functools import cache

from threadpoolctl import ThreadpoolController

from .quota import quota

PIECES = 4  # ranges of rows per thread, so that other threads can process those of a delayed thread

_count: int | None = None  # None: the CPUs that this process may use
_pool: ThreadPoolExecutor | None = None
turn = threading.Lock()  # a loop uses all threads, so the loops of several callers run one at a time
_local = threading.local()  # busy: whether this thread is inside a loop


def count() -> int:
    """Number of threads per loop: as set by `limit`, else the smaller of CPU affinity and quota. 1 inside a loop."""
    return 1 if getattr(_local, "busy", False) else _count or max(1, min(_affinity(), quota()))


def quota_binds() -> bool:
    """Return whether the quota is below the CPU affinity. Other libraries then start too many threads."""
    return quota() < _affinity()


def limit(n: int | None) -> None:
    """Set the number of threads; None restores the default."""
    global _count, _pool
    _count, _pool = n, None


def for_rows(loop: Callable[[int, int], None], n: int, minimum: int = 1, products: bool = False) -> None:
    """Run a loop over n rows in several threads, and return when all rows are done.

    An exception in the loop is raised in the caller.

    Args:
        loop: called as loop(first, last) for ranges of rows; the ranges cover 0..n once.
        n: number of rows.
        minimum: minimum number of rows per range; a smaller range is not worth a call, or does not fill a vector.
        products: whether the loop computes matrix products. BLAS then uses one thread per product.
    """
    threads = count()
    pieces = min(threads * PIECES, n // minimum)
    if threads == 1 or pieces < 2:
        return loop(0, n)
    pieces -= pieces % threads if pieces > threads else 0  # a multiple, so that no thread waits in the last round
    edges = [n * i // pieces for i in range(pieces + 1)]
    ranges = iter(list(zip(edges, edges[1:])))

    def work():
        _local.busy = True
        try:
            for first, last in ranges:  # shared by the threads: each takes the next range when it is free
                loop(first, last)
        finally:
            _local.busy = False

    with turn, _single_threaded_blas() if products else nullcontext():
        # helpers run in a copy of the caller's context, with its settings, such as NumPy's allocator
        helpers = [_helpers(threads - 1).submit(copy_context().run, work) for _ in range(threads - 1)]
        try:
            work()
        finally:
            for helper in helpers:
                if not helper.cancel():  # a helper that has not started is cancelled
                    helper.result()


@contextmanager
def _single_threaded_blas():
    """Context manager in which BLAS computes each product in the calling thread."""
    before = [(library, library.get_num_threads()) for library in _blas()]
    try:
        for library, _ in before:
            library.set_num_threads(1)
        yield
    finally:
        for library, n in before:
            library.set_num_threads(n)


@cache
def _blas():
    return ThreadpoolController().select(user_api="blas").lib_controllers


def _helpers(n):
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(n, thread_name_prefix="minigdino")
    return _pool


def _affinity():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reset():
    """Replace the pool and the lock in a forked child, where the pool has no threads and the lock may be held."""
    global _pool, turn
    _pool, turn = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)
