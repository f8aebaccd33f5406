"""Actors on Ray that count the threads of a loop.

`python ray_actors.py run ...` is `minigdino run ...`, and each line has the counts. `python ray_actors.py CPUS GPUS`
prints those of a `DetectBatch` in an actor with so many CPUs and GPUs. The environment names the cluster.
"""

import json
import os
import sys
import threading
import time

import ray
from minigdino._ext import pool

from minigdino import cli
from minigdino.runs import on_ray
from minigdino.runs.batches import DetectBatch


def counts() -> dict[str, int]:
    """Return the number of threads that take part in a loop, and the one that the environment has."""
    threads = set()

    def rows(start, stop):
        threads.add(threading.get_ident())
        time.sleep(0.02)

    pool.for_rows(rows, 64)
    return {"threads": len(threads), "OMP_NUM_THREADS": int(os.environ["OMP_NUM_THREADS"])}


class Actor(on_ray.Actor):
    """An actor of the command."""

    def line(self, item):
        """Add the counts to a line."""
        return {**super().line(item), **counts()}


class Batch(DetectBatch):
    """An actor of an engine."""

    def counts(self):
        """Return the counts."""
        return counts()


def main() -> None:
    """Run the command, or one actor."""
    if sys.argv[1] == "run":
        on_ray.Actor = Actor
        sys.exit(cli.main(sys.argv[1:]))
    cpus, gpus = map(int, sys.argv[1:])
    ray.init(log_to_driver=False)
    actor = ray.remote(num_cpus=cpus, num_gpus=gpus)(Batch).remote("a star.", model="shapes")
    print(json.dumps(ray.get(actor.counts.remote())))


if __name__ == "__main__":
    main()
