"""Rows of a loop, shared among a few threads. The loops release the interpreter, so plain threads run side by side.

No OpenMP: its idle threads spin, and starve the matrix products that run between our loops.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

PIECES = 4  # per thread, so that a thread held up elsewhere leaves its share to the others

_count: int | None = None  # None: as many as this process may use
_pool: ThreadPoolExecutor | None = None


def count() -> int:
    """Threads a loop uses: what `limit` set, else the processors this process may run on and has a quota for."""
    return _count or max(1, min(_affinity(), _quota()))


def limit(n: int | None) -> None:
    """Use n threads from now on; None is the default again."""
    global _count, _pool
    _count, _pool = n, None


def for_rows(loop: Callable[[int, int], None], n: int) -> None:
    """Call loop(first, last) for ranges that cover 0..n once each, and return when all are done."""
    threads = count()
    pieces = min(threads * PIECES, n)
    if threads == 1 or pieces < 2:
        return loop(0, n)
    edges = [n * i // pieces for i in range(pieces + 1)]
    for done in [_threads(threads).submit(loop, *edge) for edge in zip(edges, edges[1:])]:
        done.result()


def _threads(n):
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(n, thread_name_prefix="minigdino")
    return _pool


def _affinity():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _quota():
    """Whole processors that the control group of this process grants: containers limit time, not processors."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or no limit ("max")
        return 1 << 20


def _forget():
    global _pool
    _pool = None  # a forked process has the object but not its threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
