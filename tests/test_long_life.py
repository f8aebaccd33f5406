"""A model that lives long, and has neighbours: nothing grows, nothing changes, and the weights are held once.

    python tests/test_long_life.py 100000     so many detections from 8 threads, and what they leave behind
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import fuzz
import numpy as np
import pytest
import tiny

import minigdino

THREADS = 8
TEXTS = (["a cat", "remote control"], "a dog. the red hat.", "person")
linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks /proc about memory")


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("boxes", "scores", "label_ids")) and (
        a.labels == b.labels and a.phrases == b.phrases)


def live(n: int) -> dict:
    """n detections from 8 threads, a third of them to warm up -> {"different", "before", "after"}: answers that differ
    from one thread's, and bytes held."""
    model = minigdino.Model.random(fuzz.config(), tokenizer=tiny.tokenizer(), settings=fuzz.SETTINGS)
    asked = [(tiny.photo(30 + i, 40, seed=i), text) for i in range(5) for text in TEXTS]
    alone = [model.detect(*question, threshold=0.1) for question in asked]

    def differs(i):
        return not same(model.detect(*asked[i], threshold=0.1), alone[i])

    with ThreadPoolExecutor(THREADS) as threads:
        def run(n):
            return sum(threads.map(differs, islice(cycle(range(len(asked))), n)))

        different = run(n // 3)
        before = resident()
        different += run(n - n // 3)
        return {"different": different, "before": before, "after": resident()}


if __name__ == "__main__":
    print(json.dumps(live(int(sys.argv[1]))))
