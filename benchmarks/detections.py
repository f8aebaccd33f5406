"""Measure the time of the first detection beside later ones, and the resident memory after many detections.

    python -m benchmarks.detections [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--detections N] [--rounds N]

Every detection of a process has another image and another prompt, of the same length, so cached features are never
reused. The weights are in the page cache, as on a server that restarts a worker.
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
LATER = 5  # detections after the first one; their median is the time of a later detection


def prompt(i: int) -> str:
    """Return one of 80 different prompts of nine tokens."""
    thing = THINGS[i % len(THINGS)]
    return f"a {thing}. a {COLOURS[i // len(THINGS) % len(COLOURS)]} {thing}."


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(checkpoint, size, detections: int, threads: int) -> dict:
    """Load a model and run detections, in this process.

    Returns:
        {"load": seconds, "seconds": [of each detection], "resident": [bytes after each detection]}.
    """
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
    """Run `measure` in a new process."""
    return json.loads(call("detections", "--inside", "--model", case.checkpoint, "--size", *options.size, "--threads",
                           options.threads, "--detections", detections, threads=options.threads))


def first_and_later(rounds) -> list[str]:
    """Make the table of start-up times, as lines of Markdown."""
    first = [r["seconds"][0] for r in rounds]
    later = [statistics.median(r["seconds"][1:]) for r in rounds]
    load = statistics.median(r["load"] for r in rounds)
    ratio = statistics.median(a / b for a, b in zip(first, later))
    return ["| load | first detection | later detection, other image | first ÷ later |", "|---|---|---|---|",
            f"| {load:.3f} s | {statistics.median(first):.3g} s | {statistics.median(later):.3g} s | {ratio:.2f} |"]


def memory(resident) -> list[str]:
    """Make the table of resident memory, as lines of Markdown."""
    after = [n for n in (1, 2, 5, 10, 20, 50, 100) if n < len(resident)] + [len(resident)]
    return ["| after N detections | " + " | ".join(map(str, after)) + " |", "|---" * (len(after) + 1) + "|",
            "| resident memory, MB | " + " | ".join(f"{resident[n - 1] / 1e6:.1f}" for n in after) + " |"]


def report(options) -> None:
    """Measure, and print both tables."""
    with prepared(options) as case:
        rounds = [run(options, case, 1 + LATER) for _ in range(options.rounds)]
        print(*first_and_later(rounds), sep="\n", end="\n\n", flush=True)
        print(*memory(run(options, case, options.detections)["resident"]), sep="\n", end="\n\n")


def add_detections(options: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    options.add_argument("--detections", type=int, default=50, help="number of detections of the memory measurement")


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
