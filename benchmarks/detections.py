"""What a first detection costs beyond a later one, and what many detections leave behind in memory.

    python -m benchmarks.detections [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--detections N] [--rounds N]

All of one process's detections have different images and different prompts of one length, so nothing that is kept of
one is of use to the next. The weights are in the page cache, as they are on a server that restarts a worker.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

from .case import case as case_of
from .case import edges, pictures
from .processes import add_options, add_rounds, call, prepared

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white")
THINGS = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
LATER = 5  # detections after the first whose median is "a later one"


def prompt(i: int) -> str:
    """One of 80 prompts of nine tokens."""
    thing = THINGS[i % len(THINGS)]
    return f"a {thing}. a {COLOURS[i // len(THINGS) % len(COLOURS)]} {thing}."


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(checkpoint, size, detections: int, threads: int) -> dict:
    """Load and detect, in this process -> {"load", "seconds": [...], "resident": [after each, ...]}"""
    import minigdino

    minigdino.set_threads(threads)
    start = time.perf_counter()
    model = minigdino.load(checkpoint)
    found = {"load": time.perf_counter() - start, "seconds": [], "resident": []}
    for i, image in enumerate(pictures(size, detections)):
        start = time.perf_counter()
        model.detect(image, prompt(i), size=edges(size))
        found["seconds"].append(time.perf_counter() - start)
        found["resident"].append(resident())
    return found


def run(options, case, detections: int) -> dict:
    """`measure` in a process of its own."""
    return json.loads(call("detections", "--inside", "--model", case.checkpoint, "--size", *options.size, "--threads",
                           options.threads, "--detections", detections, threads=options.threads))


def first_and_later(rounds) -> list[str]:
    """Lines of Markdown."""
    first = [r["seconds"][0] for r in rounds]
    later = [statistics.median(r["seconds"][1:]) for r in rounds]
    load = statistics.median(r["load"] for r in rounds)
    ratio = statistics.median(a / b for a, b in zip(first, later))
    return ["| load | first detection | a later one, on another image | first, of later |", "|---|---|---|---|",
            f"| {load:.3f} s | {statistics.median(first):.3g} s | {statistics.median(later):.3g} s | {ratio:.2f} |"]


def memory(resident) -> list[str]:
    """Lines of Markdown: MB held after some of the detections."""
    after = [n for n in (1, 2, 5, 10, 20, 50, 100) if n < len(resident)] + [len(resident)]
    return ["| after detections | " + " | ".join(map(str, after)) + " |", "|---" * (len(after) + 1) + "|",
            "| MB held | " + " | ".join(f"{resident[n - 1] / 1e6:.1f}" for n in after) + " |"]


def report(options) -> None:
    """Measure and print."""
    with prepared(options) as case:
        rounds = [run(options, case, 1 + LATER) for _ in range(options.rounds)]
        print(*first_and_later(rounds), sep="\n", end="\n\n", flush=True)
        print(*memory(run(options, case, options.detections)["resident"]), sep="\n", end="\n\n")


def add_detections(options: argparse.ArgumentParser) -> None:
    """What this command asks."""
    options.add_argument("--detections", type=int, default=50, help="after which memory is looked at")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for add in (add_options, add_rounds, add_detections):
        add(options)
    options.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.inside:
        checkpoint = case_of(".", options.model).checkpoint
        print(json.dumps(measure(checkpoint, options.size, options.detections, options.threads)))
    else:
        report(options)
