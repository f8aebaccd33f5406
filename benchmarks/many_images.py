"""Measure images per core-hour by geometry, size and precision, from JPEG files to JSON.

    python -m benchmarks.many_images [--models tiny base large] [--sizes SHORTEST,LONGEST ...] [--precisions ...]
                                     [--pictures N] [--rounds N] [--processes N] [--text TEXT] [--folder FOLDER]

As many processes as there are CPUs run at once, with one thread each: the arrangement that computes the most images.
Each decodes, detects and writes JSON in a loop. The pictures have six aspect ratios, because the time of an image
depends on it: the shortest edge is resized, unless the longest one would be too long. In each round every row is
measured once, and the table shows the ratio to its first row within a round.

Core-seconds are the time of the processor, which other programs on the machine affect less than they affect the elapsed
time. A column compares the two: 1.00 means that nothing else was running. The last line has quantiles of the
core-seconds of single images in the first row, for `benchmarks.simulation`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from .case import PICTURE, SHAPES
from .peers import machine, median_ratio
from .processes import MINIGDINO, add_rounds, alternate, call, start

ASPECTS = ((640, 480), (480, 640), (640, 427), (427, 640), (640, 640), (640, 360))  # width, height of the pictures
MODELS = {"tiny": "grounding-dino", "base": "mm-grounding-dino", "large": "mm-grounding-dino"}  # size -> family
SIZES = ((800, 1333), (480, 800))  # the checkpoints' shortest and longest edge, and a smaller one
QUANTILES = 20


class Row(NamedTuple):
    """What is measured."""

    model: str
    size: tuple[int, int]
    precision: str


def write_pictures(folder: Path) -> None:
    """Write two JPEG files of each aspect ratio, if there is none: more than the cached images of a model."""
    from PIL import Image, ImageOps

    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.jpg")):
        return
    with Image.open(PICTURE) as opened:
        picture = opened.convert("RGB")
    for i, size in enumerate(2 * ASPECTS):
        (picture if i < len(ASPECTS) else ImageOps.mirror(picture)).resize(size).save(folder / f"{i:02}.jpg")


def write_model(folder: Path, size: str) -> None:
    """Write a checkpoint of a published geometry with random weights, if it does not exist."""
    import minigdino
    from minigdino.prompt import Tokenizer

    if (folder / size).exists():
        return
    config = minigdino.Config.published(MODELS[size], size)
    minigdino.Model.random(config, tokenizer=Tokenizer.from_directory(SHAPES)).save(folder / size)


def measure(checkpoint: Path, pictures: list[Path], size, precision: str, text: str, count: int) -> dict:
    """Detect in this process. Waits for the other processes after the first picture.

    Returns:
        {"elapsed": seconds, "seconds": [of the processor for each picture], "peak": bytes}.
    """
    import resource

    import minigdino

    from .worker import wait_for_others

    minigdino.set_threads(1)
    model = minigdino.load(checkpoint, precision=precision)
    seconds = []

    def one(path):
        before = time.process_time()
        model.detect(path, text, size=size).to_json()
        seconds.append(time.process_time() - before)

    one(pictures[-1])
    wait_for_others()
    began = time.perf_counter()
    for i in range(count):
        one(pictures[i % len(pictures)])
    return {"elapsed": time.perf_counter() - began, "seconds": seconds[1:],
            "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def together(folder: Path, row: Row, text: str, count: int, processes: int) -> dict:
    """Run `measure` in several processes at once. Returns what they find: their sums, and the highest peak."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(start(
            "many_images", "--inside", folder, "--models", row.model, "--sizes", "{},{}".format(*row.size),
            "--precisions", row.precision, "--text", text, "--pictures", count, threads=1, stdin=subprocess.PIPE))
            for _ in range(processes)]
        for process in running:
            if "ready\n" not in iter(process.stdout.readline, ""):
                raise SystemExit(f"{row.model} failed")
        for process in running:
            process.stdin.write("\n")
            process.stdin.flush()
        found = [json.loads(process.stdout.read()) for process in running]
    return {"elapsed": sum(one["elapsed"] for one in found), "seconds": sum((one["seconds"] for one in found), []),
            "peak": max(one["peak"] for one in found)}


def run(folder: Path, rows: list[Row], text: str, count: int, rounds: int, processes: int) -> dict[Row, list[dict]]:
    """Measure all rows. Returns {row: results of `together`, one per round}."""
    found = {row: [] for row in rows}
    for row in alternate(tuple(rows), rounds):
        found[row].append(together(folder, row, text, count, processes))
    return found


def table(found: dict[Row, list[dict]]) -> list[str]:
    """Make the table, as lines of Markdown.

    Args:
        found: result of `run`.
    """
    lines = ["| geometry | size | precision | core-seconds per image | images per core-hour | core-hours per million | "
             "÷ the first row | peak of a process, GB | elapsed ÷ core-seconds |", "|---" * 9 + "|"]
    first = [statistics.fmean(one["seconds"]) for one in next(iter(found.values()))]
    for row, runs in found.items():
        took = [statistics.fmean(one["seconds"]) for one in runs]
        middle = statistics.median(took)
        share = statistics.median(one["elapsed"] / sum(one["seconds"]) for one in runs)
        lines.append(f"| {row.model} | {row.size[0]}, {row.size[1]} | {row.precision} | {middle:.3g} | "
                     f"{3600 / middle:.0f} | {1e6 * middle / 3600:.0f} | {median_ratio(took, first):.2f} | "
                     f"{max(one['peak'] for one in runs) / 1e9:.2f} | {share:.2f} |")
    return lines


def quantiles(seconds) -> list[float]:
    """Return the minimum, the quantiles of 1 / `QUANTILES` and so on, and the maximum."""
    import numpy as np

    return [round(float(value), 3) for value in np.quantile(seconds, np.linspace(0, 1, QUANTILES + 1))]


def report(options) -> None:
    """Measure, and print the table."""
    rows = [Row(model, size, precision)
            for model in options.models for size in options.sizes for precision in options.precisions]
    with contextlib.ExitStack() as stack:
        folder = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        for model in options.models:
            call("many_images", "--write", folder, "--models", model)  # in a process of its own, as in processes.py
        found = run(folder, rows, options.text, options.pictures, options.rounds, options.processes)
    print(f"{machine(1)}; {options.rounds} rounds of {options.pictures} pictures in each of {options.processes} "
          "processes", end="\n\n")
    print(*table(found), sep="\n", end="\n\n")
    seconds = [second for one in found[rows[0]] for second in one["seconds"]]
    print(f"{', '.join(rows[0]._replace(size='{},{}'.format(*rows[0].size)))}: mean {statistics.mean(seconds):.3f} s; "
          f"quantiles {quantiles(seconds)}", flush=True)


def edges(text: str) -> tuple[int, int]:
    """Parse "800,1333"."""
    shortest, longest = map(int, text.split(","))
    return shortest, longest


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_rounds(options)
    options.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    options.add_argument("--sizes", nargs="+", type=edges, default=SIZES, metavar="SHORTEST,LONGEST")
    options.add_argument("--precisions", nargs="+", choices=MINIGDINO, default=[*MINIGDINO])
    options.add_argument("--pictures", type=int, default=len(ASPECTS), help="pictures of each process in a round")
    options.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="one per CPU by default")
    options.add_argument("--text", default="a star. a green heart.", help="the prompt; by default one of nine tokens")
    options.add_argument("--folder", help="folder to store checkpoints for later runs (temporary)")
    options.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.write:
        write_pictures(options.write)
        write_model(options.write, options.models[0])
    elif options.inside:
        print(json.dumps(measure(options.inside / options.models[0], sorted(options.inside.glob("*.jpg")),
                                 options.sizes[0], options.precisions[0], options.text, options.pictures)))
    else:
        report(options)
