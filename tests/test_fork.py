"""A forked child can detect, whichever lock of the package another thread of its parent held at the fork."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from minigdino.cache import Cache

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

START = """
import os, signal, sys, threading, warnings
warnings.simplefilter("ignore")  # newer Pythons warn of a fork with threads, which is what happens here
sys.path.insert(0, sys.argv[1])
import numpy as np, tiny, minigdino
from minigdino import detector

model, photo = tiny.model(), tiny.photo(40, 60)
expected = model.detect(photo, "a cat", threshold=0)

def same(found):
    return np.array_equal(found.boxes, expected.boxes) and np.array_equal(found.scores, expected.scores)

def elsewhere(block):
    \"\"\"Run `block(done)` in a thread. Return when it has called `done`; the thread never ends.\"\"\"
    reached = threading.Event()
    def done():
        reached.set()
        threading.Event().wait()
    threading.Thread(target=block, args=(done,), daemon=True).start()
    assert reached.wait(20)

def fork(check):
    \"\"\"Run a check in a forked child.\"\"\"
    if (child := os.fork()) == 0:
        signal.alarm(20)  # ends a child that hangs
        status = 1
        try:
            status = 0 if check() else 2
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, status
"""


def run(code):
    """Run code in a process. A hang fails the test."""
    command = [sys.executable, "-c", START + code, Path(__file__).parent]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_cache_can_be_locked_at_the_fork():
    run("""
def block(done):
    with model._image_cache._lock, model._text_cache._lock:
        done()
elsewhere(block)
fork(lambda: same(model.detect(photo, "a cat", threshold=0)))
""")


def test_a_cache_that_was_locked_at_the_fork_is_empty_in_the_child_and_any_other_is_kept():
    run("""
def block(done):
    with model._image_cache._lock:
        done()
elsewhere(block)
fork(lambda: (len(model._image_cache._results), len(model._text_cache._results)) == (0, 1))
assert model._text_cache._results
""")


def test_a_model_can_be_loading_at_the_fork():
    """The child loads it itself, and so does a child of the child."""
    run("""
load = detector.load
def block(done):
    detector.load = lambda *args, **more: done()
    minigdino.detect(photo, "a cat", model="shapes")
elsewhere(block)
detector.load = load
def check():
    found = minigdino.detect(photo, "a cat", model="shapes")
    fork(lambda: len(minigdino.detect(photo, "a cat", model="shapes")) == len(found))
    return True
fork(check)
""")


def test_a_fork_inside_a_trace_can_detect_and_goes_on_tracing():
    run("""
def paths(block):
    with minigdino.trace("*/fusion_layer.*/*/to_text") as recorded:
        found = block()
    return found, set(recorded)

def inner():
    return same(model.detect(photo, "a cat", threshold=0))

_, expected_paths = paths(lambda: model.detect(photo, "a cat", threshold=0))
assert len(expected_paths) == 2
with minigdino.trace("*/fusion_layer.*/*/to_text") as recorded:
    model.detect(photo, "a cat")
    def check():
        recorded.clear()
        model.detect(photo, "a cat")
        seen = set(recorded)
        return len(seen) == 2 and paths(lambda: model.detect(photo, "a cat"))[1] == expected_paths
    fork(check)
assert sys.getprofile() is None
fork(inner)
assert inner()
""")


def test_caches_that_nobody_uses_are_not_kept_for_forks():
    from minigdino import cache

    before = len(cache._caches)
    caches = [Cache(1) for _ in range(5)]
    assert len(cache._caches) == before + 5
    del caches
    assert len(cache._caches) == before


def test_an_exception_leaves_the_lock_of_a_cache_free():
    cache = Cache(1)
    with pytest.raises(TypeError):
        cache.put([], 1)
    thread = threading.Thread(target=cache.get, args=("a",), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_a_fork_waits_for_a_reference_which_blas_could_be_computing():
    """A fork stops the threads of OpenBLAS, and can hang while another thread multiplies."""
    run("""
from minigdino.network.ops import softmax
from minigdino.runtime import kernels
started, ended = threading.Event(), []

class Slow(np.ndarray):
    def max(self, *args, **more):
        started.set()
        threading.Event().wait(0.5)
        ended.append(True)
        return np.asarray(self).max(*args, **more)

def reference():
    with minigdino.use("reference"):
        softmax(np.zeros(3, np.float32).view(Slow))

thread = threading.Thread(target=reference)
thread.start()
assert started.wait(20)
def check():
    with minigdino.use("reference"):
        return bool(ended) and len(model.detect(photo, "a cat", threshold=0)) == len(expected)
fork(check)
assert ended
thread.join()
fork(lambda: same(model.detect(photo, "a cat", threshold=0)))
""")
