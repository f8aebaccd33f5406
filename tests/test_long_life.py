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
        a.labels == b.labels and a.phrases == b.phrases
    )


def live(n: int) -> dict:
    """n detections from 8 threads, a third of them to warm up -> {"different", "before", "after"}: answers that differ
    from one thread's, and bytes held."""
    model = minigdino.Model.random(fuzz.config(), tokenizer=tiny.tokenizer(), settings=fuzz.SETTINGS)
    asked = [(tiny.photo(30 + i, 40, seed=i), text) for i in range(5) for text in TEXTS]
    alone = [model.detect(*question, threshold=0.1) for question in asked]

    def run(share):
        return sum(
            not same(model.detect(*question, threshold=0.1), answer)
            for question, answer in islice(cycle(zip(asked, alone)), share)
        )

    with ThreadPoolExecutor(THREADS) as threads:
        different = sum(threads.map(run, [n // THREADS // 3] * THREADS))
        before = resident()
        different += sum(threads.map(run, [n // THREADS - n // THREADS // 3] * THREADS))
        return {"different": different, "before": before, "after": resident()}


@linux
def test_a_thousand_detections_from_eight_threads_answer_alike_and_leave_nothing():
    output = subprocess.run([sys.executable, __file__, "1000"], check=True, capture_output=True, text=True).stdout
    found = json.loads(output)
    assert found["different"] == 0
    # threads' arenas settle by 0.4 to 1.1 MB, in 300 or 30,000 detections; one lost array of pixels each would be 24 MB
    assert found["after"] - found["before"] < 4 * 2**20


def test_a_detection_leaves_no_object_behind():
    model = minigdino.Model.random(fuzz.config(), tokenizer=tiny.tokenizer(), settings=fuzz.SETTINGS)
    photo = tiny.photo(30, 40)

    def held(n):
        for _ in range(n):
            model.detect(photo, TEXTS[0], threshold=0.1)
        gc.collect()
        sys._clear_type_cache()  # it holds on to names of attributes that were made for one call
        return tracemalloc.get_traced_memory()[0]  # Python's objects and NumPy's arrays

    tracemalloc.start()
    try:
        before = held(20)
        assert held(100) - before < 10_000
    finally:
        tracemalloc.stop()


NEIGHBOUR = """
import sys, numpy as np, minigdino
model = minigdino.load(sys.argv[1])
total = sum(float(np.sum(tensor)) for tensor in model.tensors.values())  # every page is read
print(total, flush=True)
sys.stdin.read()
"""


def mapping(pid, path):
    """What a process holds of a mapped file: {"Size", "Rss", "Shared_Clean", "Private_Dirty", ...} in bytes"""
    total, ours = {}, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if " " in name:  # the head of a mapping: address, rights, ..., path
            ours = line.endswith(str(path))
        elif ours and rest.endswith(" kB"):
            total[name] = total.get(name, 0) + 1024 * int(rest.split()[0])
    return total


@linux
def test_two_processes_hold_one_copy_of_the_weights(tmp_path):
    minigdino.Model.random(tiny.config()).save(tmp_path)
    weights = tmp_path / "model.safetensors"
    with open(weights, "rb") as file:
        os.fsync(file)  # pages not yet on disk would count as dirty
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    both = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR, tmp_path], **pipes) for _ in range(2)]
    try:
        assert len({process.stdout.readline() for process in both}) == 1
        for process in both:
            held = mapping(process.pid, weights)
            assert held["Rss"] > 0.9 * weights.stat().st_size
            assert held["Shared_Clean"] + held["Shared_Dirty"] == held["Rss"]  # dirty: where /tmp is memory
            assert held["Pss"] < 0.51 * held["Rss"]  # each counts for half
            assert held["Private_Dirty"] == held["Private_Clean"] == held["Anonymous"] == 0
    finally:
        for process in both:
            process.communicate()


if __name__ == "__main__":
    print(json.dumps(live(int(sys.argv[1]))))
