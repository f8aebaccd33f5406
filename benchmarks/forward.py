"""Seconds, peak memory and start-up of the tiny model on an 800 x 1066 image and 9 tokens.

    python benchmarks/forward.py [--rounds 5] [--reference]

The checkpoint is random, in the published geometry, written once to a temporary folder. What is measured runs in a
process of its own, with the file in the page cache and nothing kept between passes. Beside the seconds stands the rate
of one large matrix product in the same process: on a shared machine only ratios travel.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile

MEASURE = """
import json, resource, sys, time
start = time.perf_counter()
import minigdino
imported = time.perf_counter() - start
start = time.perf_counter()
model = minigdino.load(sys.argv[1])
loaded = time.perf_counter() - start
import numpy as np
rng = np.random.default_rng(0)
pixels = rng.standard_normal((3, 800, 1066), np.float32)
ids = np.array([101, 1037, 4937, 1012, 1037, 6556, 2491, 1012, 102])
seconds = []
for _ in range(int(sys.argv[2])):
    start = time.perf_counter()
    model.forward(pixels, ids)
    seconds.append(time.perf_counter() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
a, b = rng.standard_normal((17821, 256), np.float32), rng.standard_normal((256, 2048), np.float32)
products = []
for _ in range(5):
    start = time.perf_counter()
    a @ b
    products.append(time.perf_counter() - start)
print(json.dumps({"import": imported, "load": loaded, "seconds": seconds, "peak": peak,
                  "rate": 2 * 17821 * 256 * 2048 / min(products) / 1e9, "cpu": minigdino.info()["cpu"],
                  "threads": minigdino.info()["threads"]}))
"""


def main():
    """Write the checkpoint, measure in a fresh process, print a table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--reference", action="store_true", help="run the NumPy formulas instead of their twins")
    options = options.parse_args()

    import os

    from minigdino import Model

    with tempfile.TemporaryDirectory() as directory:
        Model.random().save(directory)
        env = {**os.environ, "MINIGDINO_KERNELS": "reference" if options.reference else "fast"}
        run = subprocess.run([sys.executable, "-c", MEASURE, directory, str(options.rounds)], env=env, check=True,
                             capture_output=True, text=True)
    got = json.loads(run.stdout)
    first, ordered = got["seconds"][0], sorted(got["seconds"])
    print(f"{got['cpu']}, {got['threads']} threads; one product [17821, 256] @ [256, 2048]: {got['rate']:.0f} GFLOP/s")
    print(f"forward  median {ordered[len(ordered) // 2]:.2f} s, best {ordered[0]:.2f} s, first {first:.2f} s"
          f" ({656 / got['rate']:.2f} s would be the arithmetic at that rate)")
    print(f"peak     {got['peak']:.2f} GB")
    print(f"import   {got['import']:.2f} s")
    print(f"load     {got['load']:.2f} s")


if __name__ == "__main__":
    main()
