"""A bounded cache for backbone features, keyed by the content of the backbone's input."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import weakref
from collections import OrderedDict
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
        self._results: OrderedDict[Hashable, object] = OrderedDict()
        self._lock = threading.RLock()  # a signal handler may use the cache that it interrupts
        _caches.add(self)

    def get(self, key: Hashable) -> object | None:
        """Return the result stored under a key, or None. The entry becomes the most recently used one."""
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
            return self._results.get(key)

    def put(self, key: Hashable, result: object) -> None:
        """Store a result under a key, and evict the least recently used entries if the cache is full."""
        with self._lock:
            self._results[key] = result
            self._results.move_to_end(key)
            while self._total() > self.capacity:
                with contextlib.suppress(KeyError):  # a signal handler has emptied the cache since
                    self._results.popitem(last=False)

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._results.clear()

    def _total(self):
        return sum(map(self.size, list(self._results.values())))  # a copy, since a signal handler may change the dict

    def _renew(self):
        """Replace the lock in a forked child. Where another thread held it, an update may be incomplete."""
        if not self._lock.acquire(blocking=False):
            self._results = OrderedDict()
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
