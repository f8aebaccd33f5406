"""Simulate a run over millions of images on nodes that fail: as shards of `minigdino run`, or as one queue (Ray).

    python -m benchmarks.simulation [--images N] [--nodes N] [--workers N] [--seconds S] [--runs N]

This is a simulation, not a measurement. It computes when each shard, or each batch of the queue, begins and ends:

- The seconds of an image are drawn from measured ones (`MEAN` and `FORM`), and divided by the speed of its node. Speeds
  are normal, with a spread that is assumed.
- A node fails at random, at a constant rate. All that it computes then stops, and another node of the same speed
  replaces it after a delay.
- An image belongs to a shard by a hash of its name, so the sizes of shards differ at random.
- A node works at one shard at a time, with one process per core. It takes the next one as soon as it is free.
- A shard that has failed continues with its file, and loses only the images in the making; or it starts over, if its
  file was on the node.
- Each start of a shard costs time: of its processes, and to read the whole manifest.
- The queue gives the next image to the next free process of any node. Its manifest is read once.
"""

from __future__ import annotations

import argparse
import bisect
import heapq
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# core-seconds of an image: the tiny geometry, "highest", 2 × 1 under Throughput in docs/performance.md
MEAN = 3600 / 1394
# Quantiles 0, 0.05, ... 1 of the core-seconds of an image, in proportion to their mean; printed by `many_images.py`
FORM = (0.72, 0.732, 0.759, 0.857, 0.959, 0.976, 0.983, 0.991,
        1.009, 1.014, 1.036, 1.057, 1.071, 1.075, 1.077, 1.093,
        1.097, 1.108, 1.116, 1.126, 1.133)
SPREAD = 0.05  # assumed: standard deviation of the speed of a node, in proportion to the mean
START = 2.0  # seconds from the start of a process to its first image
LISTING = 19.3  # seconds to read a manifest of 10 million rows and to hash its names, before a shard begins
PIECE = 32  # images of the queue that are simulated as one, except at its end
SHARDS = 100, 400, 1600, 6400


class Failures(NamedTuple):
    """How nodes fail."""

    name: str
    hours: float  # mean time to the failure of a node
    delay: float  # seconds until another node replaces it


SCENARIOS = (Failures("no failures", np.inf, 0), Failures("a failure per node in 1,000 h", 1000, 600),
             Failures("preempted once in 24 h", 24, 300), Failures("preempted once in 4 h", 4, 300))


class Result(NamedTuple):
    """Seconds of a unit, which is a node or a process. All sums are over all units."""

    finish: float  # time of the end of the last task
    useful: float  # spent on results that count
    lost: float  # spent on results that are gone
    starting: float  # spent on starts
    ends: list[float]  # time of the last end of a task, of each unit
    failures: int  # that stopped a task


def simulate(tasks: Sequence[float], speeds: Sequence[float], next_failure: Callable[[int, float], float],
             delay: float, *, start: float = 0, warm: float = 0, unfinished: float | None = None) -> Result:
    """Simulate units that take one task after the other.

    Args:
        tasks: seconds of each task on a unit of speed 1.
        speeds: speed of each unit.
        next_failure: function that returns the time of the first failure of a unit after a time.
        delay: seconds until a unit that has failed is replaced.
        start: seconds at the start of each task, also of one that continues.
        warm: seconds at the start of each unit, also of one that has been replaced.
        unfinished: seconds of work, on a unit of speed 1, that a failure destroys of a task that continues; None if the
            task starts over.

    Returns:
        The result.
    """
    ready = list(enumerate(tasks))  # (number, seconds left), in this order
    failed: list[tuple[float, int, float]] = []  # (from when, number, seconds left)
    free = [(warm, unit) for unit in range(len(speeds))]
    heapq.heapify(free)
    ends, useful, lost, starting, failures = [0.0] * len(speeds), 0.0, 0.0, len(speeds) * warm, 0
    while ready or failed:
        now, unit = heapq.heappop(free)
        while failed and failed[0][0] <= now:
            heapq.heappush(ready, heapq.heappop(failed)[1:])
        begins = now if ready else failed[0][0]
        fails = next_failure(unit, now)
        if fails <= begins:  # while it waits for a task
            starting += warm
            heapq.heappush(free, (fails + delay + warm, unit))
            continue
        number, left = heapq.heappop(ready) if ready else heapq.heappop(failed)[1:]
        end = begins + start + left / speeds[unit]
        if end <= fails:
            useful += left / speeds[unit]
            starting += start
            ends[unit] = end
            heapq.heappush(free, (end, unit))
            continue
        failures += 1
        worked = max(0.0, fails - begins - start)
        kept = 0.0 if unfinished is None else max(0.0, worked - unfinished / speeds[unit])
        useful += kept
        lost += worked - kept
        starting += min(start, fails - begins) + warm
        heapq.heappush(failed, (fails, number, left - kept * speeds[unit]))
        heapq.heappush(free, (fails + delay + warm, unit))
    return Result(max(ends), useful, lost, starting, ends, failures)


class Cluster(NamedTuple):
    """Nodes that fail. They are the same in all rows of a table, so that the rows differ by the shards only."""

    workers: int  # of each node, one per core
    speeds: list[float]
    next_failure: Callable[[int, float], float]
    delay: float


def cluster(seed: int, nodes: int, workers: int, failures: Failures) -> Cluster:
    """Draw the speeds and the failures of nodes."""
    first, *others = np.random.default_rng(seed).spawn(1 + nodes)
    return Cluster(workers, first.normal(1, SPREAD, nodes).tolist(), failing(others, failures), failures.delay)


def failing(generators: Sequence[np.random.Generator], failures: Failures) -> Callable[[int, float], float]:
    """Return a function that returns the time of the first failure of a node after a time.

    Args:
        generators: of random numbers, one per node.
        failures: rate and delay.
    """
    times: list[list[float]] = [[] for _ in generators]

    def next_failure(node: int, after: float) -> float:
        if np.isinf(failures.hours):
            return np.inf
        known = times[node]
        while not known or known[-1] <= after:
            gap = generators[node].exponential(3600 * failures.hours)
            known.append(known[-1] + failures.delay + gap if known else gap)
        return known[bisect.bisect_right(known, after)]

    return next_failure


def image_seconds(rng: np.random.Generator, count: int, mean: float = MEAN) -> np.ndarray:
    """Draw the seconds of images from the measured distribution.

    Args:
        rng: generator of random numbers.
        count: number of images.
        mean: mean seconds of an image. The form of the distribution is assumed to be the same for all models.

    Returns:
        [count] float32.
    """
    form = np.asarray(FORM)
    own_mean = np.mean((form[:-1] + form[1:]) / 2)  # uniform between the quantiles
    return (mean / own_mean * np.interp(rng.random(count, np.float32), np.linspace(0, 1, len(form)), form)
            ).astype(np.float32)


def shard_seconds(rng: np.random.Generator, seconds: np.ndarray, shards: int, workers: int) -> np.ndarray:
    """Compute the seconds of each shard on a node of speed 1.

    Args:
        rng: generator of random numbers, for the hash of the names.
        seconds: [count] of each image.
        shards: number of shards.
        workers: processes of a node. At the end of a shard they wait for the last one: on average, the longest of
            `workers` rests of an image is W / (W + 1) of an image, the mean rest a half.

    Returns:
        [shards] seconds.
    """
    sizes = rng.multinomial(len(seconds), np.full(shards, 1 / shards))
    ends = np.cumsum(seconds, dtype=np.float64)[np.cumsum(sizes) - 1]
    wait = (workers / (workers + 1) - 0.5) * float(seconds.mean())
    return np.diff(ends, prepend=0) / workers + wait


def in_shards(seconds: np.ndarray, shards: np.ndarray, nodes: Cluster, *, continues: bool) -> Result:
    """Simulate a run in shards. A unit is a node.

    Args:
        seconds: [count] of each image.
        shards: result of `shard_seconds`.
        nodes: the nodes.
        continues: whether a shard continues after a failure, or starts over.
    """
    return simulate(shards.tolist(), nodes.speeds, nodes.next_failure, nodes.delay,
                    start=START + LISTING * len(seconds) / 10**7, unfinished=spent(seconds) if continues else None)


def in_a_queue(seconds: np.ndarray, nodes: Cluster) -> Result:
    """Simulate one queue of images. A unit is a process; those of a node fail together.

    The manifest is read once, before the queue begins.
    """
    speeds = [speed for speed in nodes.speeds for _ in range(nodes.workers)]
    last = min(2 * PIECE * len(speeds), len(seconds))  # images of the end, one by one
    begin, end = np.split(seconds, [len(seconds) - last])
    pieces = np.add.reduceat(begin, np.arange(0, len(begin), PIECE), dtype=np.float64) if len(begin) else begin
    found = simulate([*pieces.tolist(), *end.tolist()], speeds,
                     lambda unit, after: nodes.next_failure(unit // nodes.workers, after), nodes.delay, warm=START,
                     unfinished=spent(seconds))
    listing = LISTING * len(seconds) / 10**7
    return found._replace(finish=found.finish + listing, starting=found.starting + listing * len(speeds),
                          ends=[end + listing for end in found.ends])


def spent(seconds: np.ndarray) -> float:
    """Return the expected time already spent on the image in the making, at a random moment."""
    return float(np.mean(np.square(seconds, dtype=np.float64)) / (2 * seconds.mean(dtype=np.float64)))


def run(images: int, nodes: int, workers: int, mean: float, runs: int) -> dict[tuple, list[Result]]:
    """Simulate all scenarios. Returns {(failures, name of a row, cores of a unit): results, one per run}."""
    found: dict[tuple, list[Result]] = {}
    for number in range(runs):
        rng = np.random.default_rng(number)
        seconds = image_seconds(rng, images, mean)
        tasks = {shards: shard_seconds(rng, seconds, shards, workers) for shards in SHARDS}
        for failures in SCENARIOS:
            drawn = cluster(number, nodes, workers, failures)
            for continues in (True, False)[: 1 if np.isinf(failures.hours) else 2]:
                for shards, each in tasks.items():
                    name = f"{shards:,} shards" + ("" if continues else ", which start over")
                    found.setdefault((failures, name, workers), []).append(
                        in_shards(seconds, each, drawn, continues=continues))
            found.setdefault((failures, "queue", 1), []).append(in_a_queue(seconds, drawn))
    return found


def table(found: dict[tuple, list[Result]], failures: Failures, workers: int) -> list[str]:
    """Make the table of a scenario, as lines of Markdown. Figures are means over all runs.

    Args:
        found: result of `run`.
        failures: the scenario.
        workers: cores of a node.
    """
    lines = ["| | finish, h | results, core-h | lost, core-h | starts, core-h | idle at the end, core-h | last node "
             "after the mean one, min | failures |", "|---" * 8 + "|"]
    for (scenario, name, cores), results in found.items():
        if scenario == failures:
            hours = [cores * statistics.fmean(of) / 3600 for of in (
                [r.useful for r in results], [r.lost for r in results], [r.starting for r in results],
                [sum(r.finish - end for end in r.ends) for r in results])]
            late = statistics.fmean(r.finish - statistics.fmean(r.ends) for r in results)
            lines.append(f"| {name} | {statistics.fmean(r.finish for r in results) / 3600:.2f} | "
                         f"{' | '.join(f'{value:.1f}' for value in hours)} | {late / 60:.1f} | "
                         f"{statistics.fmean(r.failures for r in results) * cores / workers:.1f} |")
    return lines


def report(options) -> None:
    """Simulate, and print a table per scenario."""
    found = run(options.images, options.nodes, options.workers, options.seconds, options.runs)
    print(f"A simulation: {options.images:,} images, {options.nodes} nodes of {options.workers} cores; means of "
          f"{options.runs} runs")
    for failures in SCENARIOS:
        print(f"\n### {failures.name.capitalize()}\n", *table(found, failures, options.workers), sep="\n", flush=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--images", type=int, default=10**7)
    options.add_argument("--nodes", type=int, default=100)
    options.add_argument("--workers", type=int, default=16, help="cores of a node, with one process each")
    options.add_argument("--seconds", type=float, default=MEAN, help="mean core-seconds of an image (tiny geometry)")
    options.add_argument("--runs", type=int, default=5, help="runs with other random numbers, whose mean is shown")
    report(options.parse_args())
