"""Number of threads for the compiled loops of this process."""

from __future__ import annotations

import os

from .quota import quota

_limit: int | None = None


def count() -> int:
    """Number of threads: as set by `limit`, else the smallest of CPU affinity, CPU quota and OMP_NUM_THREADS."""
    return _limit or max(1, min(affinity(), quota(), _openmp()))


def limit(n: int | None) -> None:
    """Set the number of threads; None restores the default."""
    global _limit
    _limit = n


def affinity() -> int:
    """Number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _openmp():
    """OMP_NUM_THREADS, which job schedulers and worker processes set; a list has one number per level of nesting."""
    outermost = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    n = int(outermost) if outermost.isdecimal() and len(outermost) < 9 else 0
    return n or os.cpu_count() or 1
