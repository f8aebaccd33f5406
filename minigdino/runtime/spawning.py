"""Child processes, which are spawned and never forked, and which end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import threading

SPAWN = multiprocessing.get_context("spawn")  # a fork would copy sockets, and locks that other threads hold


def end_with_parent() -> None:
    """End this process when its parent is gone, also in the middle of a computation. Returns at once."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent():
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
