"""Rows of a loop, shared among a few threads. The loops release the interpreter, so plain threads run side by side.

No OpenMP: its idle threads spin, and starve the matrix products that run between our loops.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

PIECES = 4  # per thread, so that a thread held up elsewhere leaves its share to the others

_pool: ThreadPoolExecutor | None = None


def count() -> int:
    """Threads a loop uses: the processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_rows(loop: Callable[[int, int], None], n: int) -> None:
    """Call loop(first, last) for ranges that cover 0..n once each, and return when all are done."""
    pieces = min(count() * PIECES, n)
    if count() == 1 or pieces < 2:
        return loop(0, n)
    edges = [n * i // pieces for i in range(pieces + 1)]
    for done in [_threads().submit(loop, *edge) for edge in zip(edges, edges[1:])]:
        done.result()


def _threads():
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(count(), thread_name_prefix="minigdino")
    return _pool


def _forget():
    global _pool
    _pool = None  # a forked process has the object but not its threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
