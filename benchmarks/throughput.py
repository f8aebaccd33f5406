"""Measure images per core-hour: of one process with several threads, and of several processes with one thread each.

    python -m benchmarks.throughput [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--text TEXT] [--threads N]
                                    [--rounds N] [--passes N] [--only PEER ...] [--folder FOLDER]

Every program runs in three arrangements. With two threads these are one process with two threads, two processes with
one thread each, and one process with eight threads, which is four times as many as there are cores.

The processes of an arrangement load the model and run one forward pass. When all of them have done that, they start the
timed forward passes at the same moment. Time is from this moment to the end of the last process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess

from .peers import add_passes, machine, median_ratio
from .processes import add_options, add_peers, add_rounds, alternate, model_of, prepared, start


def arrangements(threads: int) -> tuple[tuple[int, int], ...]:
    """Return the arrangements: (number of processes, threads of each)."""
    return (1, threads), (threads, 1), (1, 4 * threads)


def together(peer: str, model, inputs, processes: int, threads: int, passes: int) -> float:
    """Run a program in several processes at once. Returns the seconds of all timed forward passes."""
    arguments = "worker", peer, model, inputs, "--threads", threads, "--passes", 1 + passes, "--together"
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(start(*arguments, threads=threads, stdin=subprocess.PIPE))
                   for _ in range(processes)]
        for process in running:
            if "ready\n" not in iter(process.stdout.readline, ""):  # reads until this line; libraries may print before
                raise SystemExit(f"{peer} failed")
        for process in running:
            process.stdin.write("\n")
            process.stdin.flush()
        found = [json.loads(process.stdout.read().splitlines()[-1]) for process in running]
    return max(one["ends"][-1] for one in found) - min(one["ends"][1] - one["seconds"][1] for one in found)


def run(case, peers, threads: int, rounds: int, passes: int) -> dict[tuple, list[float]]:
    """Measure all programs. Returns {(peer, processes, threads of each): seconds per image, one per round}."""
    models = {peer: model_of(case, peer, threads) for peer in peers}
    found = {(peer, *arrangement): [] for peer in peers for arrangement in arrangements(threads)}
    for peer, processes, each in alternate(tuple(found), rounds):
        seconds = together(peer, models[peer], case.inputs, processes, each, passes)
        found[peer, processes, each].append(seconds / (processes * passes))
    return found


def table(found, cpus: int) -> list[str]:
    """Make the table, as lines of Markdown.

    Args:
        found: result of `run`.
        cpus: number of CPUs that this process may use.
    """
    lines = ["| | processes × threads | seconds per image | images per core-hour | ÷ the program's first row |",
             "|---|---|---|---|---|"]
    first = {}  # {peer: core-seconds per image of its first row, one per round}
    for (peer, processes, threads), seconds in found.items():
        cores = min(processes * threads, cpus)
        took = [s * cores for s in seconds]
        ratio = median_ratio(first.setdefault(peer, took), took)
        lines.append(f"| {peer} | {processes} × {threads} | {statistics.median(seconds):.3g} | "
                     f"{3600 / statistics.median(took):.0f} | {ratio:.2f} |")
    return lines


def report(options) -> None:
    """Measure, and print the table."""
    with prepared(options) as case:
        found = run(case, options.only, options.threads, options.rounds, options.passes)
    print(f"{machine(options.threads)}; image {options.size[0]} x {options.size[1]}; {options.rounds} rounds of "
          f"{options.passes} forward passes in each process", end="\n\n")
    print(*table(found, len(os.sched_getaffinity(0))), sep="\n", end="\n\n", flush=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for add in (add_options, add_peers, add_rounds, add_passes):
        add(options)
    report(options.parse_args())
