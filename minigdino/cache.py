"""A bounded cache for backbone features, keyed by the content of the backbone's input."""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np


class Cache:
    """Least-recently-used cache. Several threads may share one.

    Args:
        capacity: maximum sum of the sizes. A new entry beyond it evicts the least recently used ones.
        size: function that returns the size of a result, such as its bytes; None to count entries.
    """

    def __init__(self, capacity: int, size: Callable[[Any], int] | None = None):
        self.capacity, self.size = capacity, size or (lambda _: 1)
        # A signal handler may use the cache that it interrupts: no step below relies on the entries of an earlier one
        self._results: dict[Hashable, object] = {}  # the least recently used first
        self._lock = threading.RLock()
        _caches.add(self)

    def get(self, key: Hashable) -> object | None:
        """Return the result stored under a key, or None. The entry becomes the most recently used one."""
        with self._lock:
            result = self._results.pop(key, None)
            if result is not None:
                self._results[key] = result  # at the end
            return result

    def put(self, key: Hashable, result: object) -> None:
        """Store a result under a key, and evict the least recently used entries if the cache is full."""
        with self._lock:
            self._results.pop(key, None)
            self._results[key] = result
            while self._total() > self.capacity:
                for oldest in list(self._results)[:1]:
                    self._results.pop(oldest, None)

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._results.clear()

    def _total(self):
        return sum(map(self.size, list(self._results.values())))

    def _renew(self):
        """Replace the lock in a forked child. Where another thread held it, an update may be incomplete."""
        if not self._lock.acquire(blocking=False):
            self._results = {}
        self._lock = threading.RLock()


_caches: weakref.WeakSet[Cache] = weakref.WeakSet()


def _renew_all():
    for cache in _caches:
        cache._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


def content_key(array: np.ndarray) -> tuple[Hashable, ...]:
    """Return a key that two arrays share exactly if their shapes, dtypes and elements are equal.

    Args:
        array: a host array of any shape.

    Returns:
        The shape, the dtype, and a BLAKE2b digest of the elements.
    """
    return array.shape, array.dtype.str, hashlib.blake2b(np.ascontiguousarray(array).data).digest()
