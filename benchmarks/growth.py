"""How minigdino's seconds grow with the image, the prompt, the number of images and the threads.

    python -m benchmarks.growth [--tables sides tokens images threads] [--model random|shapes|DIR] [--rounds N] ...

Beside every growth stands that of the arithmetic (`flops.py`), so 1.00 in the last column says that nothing but
the amount of work has grown. Each measurement is a process; all of a table are taken in turn, several times over.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigdino.runtime import flops

from .processes import add_options, add_rounds, alternate, measure, prepared, steady

CLS, SEP, DOT = 101, 102, 1012
PHRASE = 3  # words
PASSES = 2  # the first is not counted


class Point(NamedTuple):
    """One row of a table, to be measured."""

    name: str
    inputs: Path
    threads: int
    passes: int
    flop: float  # of what is timed, each thread's share


def words(n: int):
    """A prompt of n >= 3 tokens, phrase after phrase: -> ids [n]"""
    ids = np.arange(200, 200 + n)
    ids[PHRASE + 1 :: PHRASE + 1] = DOT
    ids[0], ids[-2:] = CLS, (DOT, SEP)
    return ids


def noise(case, height: int, width: int, tokens: int) -> Path:
    """Inputs of that size, written when first asked for."""
    path = case.folder / f"noise-{height}x{width}-{tokens}.npz"
    if not path.exists():
        pixels = np.random.default_rng(0).standard_normal((3, height, width), np.float32)
        np.savez(path, pixels=pixels, ids=words(tokens))
    return path


def sides(case, config, options) -> list[Point]:
    """Square images."""
    return [Point(f"{side} x {side}", noise(case, side, side, 9), options.threads, PASSES,
                  flops.total(config, side, side, 9)) for side in options.sides]


def tokens(case, config, options) -> list[Point]:
    """Longer and longer prompts."""
    return [Point(f"{n} tokens", noise(case, *options.size, n), options.threads, PASSES,
                  flops.total(config, *options.size, n)) for n in options.tokens]


def images(case, config, options) -> list[Point]:
    """One image after the other, none like another, the slower first pass included."""
    one = flops.total(config, *options.size, 9)
    return [Point(f"{n} image{'s' * (n > 1)}", noise(case, *options.size, 9), options.threads, n, n * one)
            for n in (1, 2, 4, 8)]


def threads(case, config, options) -> list[Point]:
    """The same pass, shared among threads."""
    one = flops.total(config, *options.size, 9)
    return [Point(f"{n} thread{'s' * (n > 1)}", noise(case, *options.size, 9), n, PASSES, one / n)
            for n in (1, 2, 4, 8, 16, 32) if n <= options.threads]


TABLES = {"sides": sides, "tokens": tokens, "images": images, "threads": threads}


def run(checkpoint, points, rounds: int, duration) -> dict[Point, float]:
    """Median seconds of every point. duration: what counts of the seconds of its passes"""
    found = {point: [] for point in points}
    for point in alternate(tuple(points), rounds):
        measured = measure("minigdino", checkpoint, point.inputs, point.threads, point.passes)
        found[point].append(duration(measured["seconds"]))
    return {point: statistics.median(seconds) for point, seconds in found.items()}


def table(seconds: dict[Point, float], per: str) -> list[str]:
    """Lines of Markdown; growth is counted from the first row."""
    lines = [f"| | GFLOP{per} | seconds | arithmetic grows to | seconds grow to | seconds, of arithmetic |",
             "|---|---|---|---|---|---|"]
    first = next(iter(seconds))
    for point, took in seconds.items():
        expected, found = point.flop / first.flop, took / seconds[first]
        lines.append(f"| {point.name} | {point.flop / 1e9:.3g} | {took:.3g} | {expected:.2f} | {found:.2f} | "
                     f"{found / expected:.2f} |")
    return lines


def report(options) -> None:
    """Measure and print the tables asked for."""
    from minigdino.checkpoints.config import Config

    with prepared(options) as case:
        config = Config.from_file(case.checkpoint / "config.json")
        for name in options.tables:
            duration = sum if name == "images" else steady
            seconds = run(case.checkpoint, TABLES[name](case, config, options), options.rounds, duration)
            print(*table(seconds, " a thread" if name == "threads" else ""), sep="\n", end="\n\n", flush=True)


def add_sizes(options: argparse.ArgumentParser) -> None:
    """What this command asks."""
    options.add_argument("--sides", type=int, nargs="+", default=(320, 480, 640, 800, 1066, 1333))
    options.add_argument("--tokens", type=int, nargs="+", default=(4, 16, 64, 256))
    options.add_argument("--tables", nargs="+", choices=TABLES, default=tuple(TABLES))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for add in (add_options, add_rounds, add_sizes):
        add(options)
    report(options.parse_args())
