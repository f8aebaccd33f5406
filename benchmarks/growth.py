"""Measure how minigdino's time grows with the image, the prompt, the number of images and the number of threads.

    python -m benchmarks.growth [--tables sides tokens images threads] [--programs minigdino minigdino-high ...]
                                [--model random|shapes|DIR] [--rounds N] ...

Each table also shows the growth in FLOPs (`minigdino/runtime/flops.py`). 1.00 in the last column means that time grows
like the amount of work. Each measurement runs in its own process. The rows of a table are measured in turn, in several
rounds.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigdino.runtime import flops

from .processes import MINIGDINO, add_options, add_rounds, alternate, measure, prepared, steady

CLS, SEP, DOT = 101, 102, 1012
PHRASE = 3  # words of a phrase
PASSES = 2  # forward passes of a process; the first is not counted


class Point(NamedTuple):
    """One row of a table."""

    name: str
    inputs: Path
    threads: int
    passes: int
    flop: float  # FLOPs of the timed work, per thread


def words(n: int):
    """Return the ids [n] of a prompt of n >= 3 tokens, made of phrases of three words."""
    ids = np.arange(200, 200 + n)
    ids[PHRASE + 1 :: PHRASE + 1] = DOT
    ids[0], ids[-2:] = CLS, (DOT, SEP)
    return ids


def noise(case, height: int, width: int, tokens: int) -> Path:
    """Return a file of random pixels and a prompt of this size. Writes the file if it does not exist."""
    path = case.folder / f"noise-{height}x{width}-{tokens}.npz"
    if not path.exists():
        pixels = np.random.default_rng(0).standard_normal((3, height, width), np.float32)
        np.savez(path, pixels=pixels, ids=words(tokens))
    return path


def sides(case, config, options) -> list[Point]:
    """Make the rows for square images of increasing size."""
    return [Point(f"{side} x {side}", noise(case, side, side, 9), options.threads, PASSES,
                  flops.total(config, side, side, 9)) for side in options.sides]


def tokens(case, config, options) -> list[Point]:
    """Make the rows for prompts of increasing length."""
    return [Point(f"{n} tokens", noise(case, *options.size, n), options.threads, PASSES,
                  flops.total(config, *options.size, n)) for n in options.tokens]


def images(case, config, options) -> list[Point]:
    """Make the rows for several different images in sequence, including the slower first forward pass."""
    one = flops.total(config, *options.size, 9)
    return [Point(f"{n} image{'s' * (n > 1)}", noise(case, *options.size, 9), options.threads, n, n * one)
            for n in (1, 2, 4, 8)]


def threads(case, config, options) -> list[Point]:
    """Make the rows for one forward pass with increasing numbers of threads."""
    one = flops.total(config, *options.size, 9)
    return [Point(f"{n} thread{'s' * (n > 1)}", noise(case, *options.size, 9), n, PASSES, one / n)
            for n in (1, 2, 4, 8, 16, 32) if n <= options.threads]


TABLES = {"sides": sides, "tokens": tokens, "images": images, "threads": threads}


def run(program, checkpoint, points, rounds: int, duration) -> dict[Point, float]:
    """Measure every row. Returns {row: median seconds}.

    Args:
        program: one of MINIGDINO's programs.
        checkpoint: directory of the model.
        points: rows to measure.
        rounds: number of measurements per row.
        duration: function from the seconds of all forward passes of a process to the seconds to report.
    """
    found = {point: [] for point in points}
    for point in alternate(tuple(points), rounds):
        measured = measure(program, checkpoint, point.inputs, point.threads, point.passes)
        found[point].append(duration(measured["seconds"]))
    return {point: statistics.median(seconds) for point, seconds in found.items()}


def table(seconds: dict[Point, float], per: str) -> list[str]:
    """Make a table, as lines of Markdown. Growth is relative to the first row.

    Args:
        seconds: {row: seconds}.
        per: unit after "GFLOP", such as " per thread".
    """
    lines = [f"| | GFLOP{per} | seconds | growth in FLOPs | growth in time | growth in time ÷ growth in FLOPs |",
             "|---|---|---|---|---|---|"]
    first = next(iter(seconds))
    for point, took in seconds.items():
        expected, found = point.flop / first.flop, took / seconds[first]
        lines.append(f"| {point.name} | {point.flop / 1e9:.3g} | {took:.3g} | {expected:.2f} | {found:.2f} | "
                     f"{found / expected:.2f} |")
    return lines


def report(options) -> None:
    """Measure and print the selected tables."""
    from minigdino.checkpoints.config import Config

    with prepared(options) as case:
        config = Config.from_file(case.checkpoint / "config.json")
        for name, program in itertools.product(options.tables, options.programs):
            duration = sum if name == "images" else steady
            seconds = run(program, case.checkpoint, TABLES[name](case, config, options), options.rounds, duration)
            print(program, end="\n\n")
            print(*table(seconds, " per thread" if name == "threads" else ""), sep="\n", end="\n\n", flush=True)


def add_sizes(options: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    options.add_argument("--sides", type=int, nargs="+", default=(320, 480, 640, 800, 1066, 1333))
    options.add_argument("--tokens", type=int, nargs="+", default=(4, 16, 64, 256))
    options.add_argument("--tables", nargs="+", choices=TABLES, default=tuple(TABLES))
    options.add_argument("--programs", nargs="+", choices=MINIGDINO.values(), default=("minigdino",), metavar="PROGRAM",
                         help=f"from {', '.join(MINIGDINO.values())}; minigdino by default")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for add in (add_options, add_rounds, add_sizes):
        add(options)
    report(options.parse_args())
