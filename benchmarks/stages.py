"""Measure the time of each stage of a forward pass of minigdino, in every precision side by side.

    python -m benchmarks.stages [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--text TEXT] [--threads N]
                                [--rounds N] [--passes N]

`minigdino bench` measures one precision. Each precision runs in its own process, one at a time. In each round every
precision runs once, and the table shows medians over all rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics

from .case import case as case_of
from .peers import add_passes, machine
from .processes import MINIGDINO, add_options, add_rounds, alternate, call, prepared


def measure(checkpoint, inputs, threads: int, passes: int, precision: str) -> dict:
    """Measure the stages in this process. Returns {"flop": {stage: FLOPs}, "seconds": {stage: seconds}}."""
    import numpy as np

    import minigdino
    from minigdino.runtime.bench import bench

    minigdino.set_threads(threads)
    with np.load(inputs) as given:
        size, tokens = given["pixels"].shape[1:], len(given["ids"])
    found = bench(str(checkpoint), size, tokens, passes, precision)
    flop, seconds = ({stage: values[i] for stage, values in found.stages.items()} for i in (0, 1))
    other = max(0, found.total - sum(seconds.values()))
    return {"flop": {**flop, "other": 0, "forward pass": sum(flop.values())},
            "seconds": {**seconds, "other": other, "forward pass": found.total}}


def run(options, case) -> dict[str, list[dict]]:
    """Run `measure` in new processes. Returns {precision: results, one per round}."""
    found = {precision: [] for precision in MINIGDINO}
    for precision in alternate(tuple(found), options.rounds):
        output = call("stages", "--inside", precision, "--folder", case.folder, "--model", case.checkpoint, "--threads",
                      options.threads, "--passes", options.passes, threads=options.threads)
        found[precision].append(json.loads(output))
    return found


def table(found) -> list[str]:
    """Make the table of stages, as lines of Markdown.

    Args:
        found: {precision: results of `measure`, one per round}.
    """
    lines = [f"| | GFLOP | {' | '.join(f'{precision}, s | GFLOP/s' for precision in found)} |",
             "|---" * (2 + 2 * len(found)) + "|"]
    for stage, flop in next(iter(found.values()))[0]["flop"].items():
        seconds = [statistics.median(one["seconds"][stage] for one in runs) for runs in found.values()]
        cells = " | ".join(f"{s:.3f} | {flop / max(s, 1e-9) / 1e9:.1f}" for s in seconds)
        lines.append(f"| {stage} | {flop / 1e9:.2f} | {cells} |")
    return lines


def report(options) -> None:
    """Measure, and print the table."""
    with prepared(options) as case:
        found = run(options, case)
    print(f"{machine(options.threads)}; image {options.size[0]} x {options.size[1]}; {options.rounds} rounds of "
          f"{options.passes} forward passes", end="\n\n")
    print(*table(found), sep="\n", end="\n\n", flush=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for add in (add_options, add_rounds, add_passes):
        add(options)
    options.add_argument("--inside", choices=MINIGDINO, help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.inside:
        case = case_of(options.folder, options.model)
        print(json.dumps(measure(case.checkpoint, case.inputs, options.threads, options.passes, options.inside)))
    else:
        report(options)
