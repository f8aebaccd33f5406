"""Rows of a loop, shared among a few threads. The loops release the interpreter, so plain threads run side by side.

No OpenMP: its idle threads spin, and starve the matrix products that run between our loops.
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

PIECES = 4  # per thread, so that a thread held up elsewhere leaves its share to the others

_count: int | None = None  # None: as many as this process may use
_pool: ThreadPoolExecutor | None = None
turn = threading.Lock()  # a loop uses all threads: callers from several threads go one after the other
_here = threading.local()  # busy: this thread has its share of a loop in hand


def count() -> int:
    """Threads a loop uses: what `limit` set, else the processors this process may run on and has a quota for. Within a
    loop all of them are busy, so that a loop within it has one."""
    return 1 if getattr(_here, "busy", False) else _count or max(1, min(_affinity(), quota()))


def quota_binds() -> bool:
    """Whether a quota leaves fewer processors than this process may run on: other libraries then start too many."""
    return quota() < _affinity()


def limit(n: int | None) -> None:
    """Use n threads from now on; None is the default again."""
    global _count, _pool
    _count, _pool = n, None


def for_rows(loop: Callable[[int, int], None], n: int, least: int = 1, products: bool = False) -> None:
    """Call loop(first, last) for ranges that cover 0..n once each, and return when all are done.

    least: numbers a range must have to be worth a call, or to fill a vector. products: the loop has BLAS multiply
    matrices, which meanwhile keeps to the thread that asks.
    """
    threads = count()
    pieces = min(threads * PIECES, n // least)
    if threads == 1 or pieces < 2:
        return loop(0, n)
    pieces -= pieces % threads if pieces > threads else 0  # or the last round keeps some threads waiting
    edges = [n * i // pieces for i in range(pieces + 1)]
    ranges = iter(list(zip(edges, edges[1:])))

    def work():
        _here.busy = True
        try:
            for first, last in ranges:  # whoever is free takes the next
                loop(first, last)
        finally:
            _here.busy = False

    with turn, _one_thread_each() if products else nullcontext():
        # helpers run in the caller's context: what it chose for its thread, such as NumPy's allocator, holds for them
        helpers = [_helpers(threads - 1).submit(copy_context().run, work) for _ in range(threads - 1)]
        try:
            work()
        finally:
            for helper in helpers:
                if not helper.cancel():  # else it had not even begun
                    helper.result()


@contextmanager
def _one_thread_each():
    """BLAS computes each product in the thread that asks for it."""
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


def _forget():
    """A forked process has these objects, but not the threads that work for the one and may hold the other."""
    global _pool, turn
    _pool, turn = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
