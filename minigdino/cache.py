"""A few newest results of an expensive step, found again by the content they were computed from."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np


class Cache:
    """At most `most` results; the one that was not asked for longest makes room. Threads may share it."""

    def __init__(self, most: int):
        self.most = most
        self._results: OrderedDict[Hashable, object] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> object | None:
        """The result kept under a key, or None."""
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
            return self._results.get(key)

    def put(self, key: Hashable, result: object) -> None:
        """Keep a result."""
        with self._lock:
            self._results[key] = result
            self._results.move_to_end(key)
            while len(self._results) > self.most:
                self._results.popitem(last=False)

    def clear(self) -> None:
        """Forget them all."""
        with self._lock:
            self._results.clear()


def content_key(array: np.ndarray) -> Hashable:
    """A key that equal arrays share and others do not: its shape and a digest of its bytes."""
    return array.shape, array.dtype.str, hashlib.blake2b(np.ascontiguousarray(array)).digest()
