"""Measure minigdino beside transformers, ONNX Runtime and OpenVINO: time, memory, import and load, on the same inputs.

    python -m benchmarks.peers [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--text TEXT] [--threads N]
                               [--rounds N] [--passes N] [--only PEER ...] [--folder FOLDER]

Each program runs in its own process, one at a time. In each round every program runs twice: for a single forward pass,
with its weights dropped from the page cache, then with them in the cache. All other columns are from the second run.
Ratios are computed within a round, and the tables show their median: on a shared machine, only ratios are comparable
between runs.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np

from minigdino.runtime import flops

from .processes import (
    GRAPHS,
    MINIGDINO,
    add_options,
    add_peers,
    add_rounds,
    alternate,
    fastest,
    measure,
    model_of,
    prepared,
    steady,
    uncache,
)

BASELINE = 480e9  # FLOPs, a round number near those of the tiny geometry, 800 x 1066 and 9 tokens, with reorderings


def run(case, peers, threads: int, rounds: int, passes: int) -> dict[str, list[dict]]:
    """Measure all programs.

    Returns:
        {peer: results of `measure`, one per round}. Each has also "first result, uncached": seconds, or None if the
        weights cannot be dropped from the page cache.
    """
    models = {peer: model_of(case, peer, threads) for peer in peers}
    found = {peer: [] for peer in peers}
    for peer in alternate(tuple(peers), rounds):
        model, more = models[peer], ["--product"] if peer == "minigdino" else []
        # first, because it reads the weights into the cache again
        uncached = measure(peer, model, case.inputs, threads, 1)["first result"] if uncache(model) else None
        found[peer].append({**measure(peer, model, case.inputs, threads, passes, *more),
                            "first result, uncached": uncached})
    return found


def median_ratio(numerators, denominators) -> float:
    """Return the median over all rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators))


def row(peer, found, minigdino_seconds, graph) -> str:
    """Make one row of the table.

    Args:
        peer: name of the program.
        found: its results, one per round.
        minigdino_seconds: seconds of minigdino, one per round; empty if it was not measured.
        graph: suffix of the program's name.
    """
    seconds = [steady(f["seconds"]) for f in found]

    def median(name):
        return statistics.median(f[name] for f in found)

    first = statistics.median(f["seconds"][0] for f in found)
    uncached = f"{median('first result, uncached'):.3g}" if all(f["first result, uncached"] for f in found) else ""
    ratio = f"{median_ratio(minigdino_seconds, seconds):.2f}" if minigdino_seconds else ""
    return (f"| {peer} {found[0]['version']}{graph} | {statistics.median(seconds):.3g} | "
            f"{min(seconds):.3g} to {max(seconds):.3g} | {ratio} | {first:.3g} | {median('peak') / 1e9:.2f} | "
            f"{median('import'):.2f} | {median('load'):.2f} | {median('first result'):.3g} | {uncached} |")


def table(found, graphs) -> list[str]:
    """Make the table of programs, as lines of Markdown.

    Args:
        found: {peer: results, one per round}.
        graphs: {peer: attention implementation of its graph}.
    """
    minigdino_seconds = [steady(f["seconds"]) for f in found.get("minigdino", [])]
    lines = ["| | seconds | minimum to maximum | minigdino's time ÷ this | first forward pass, s | peak GB | "
             "import s | load s | process start to first result, s | the same, weights not in the page cache, s |",
             "|---" * 10 + "|"]
    for peer, runs in found.items():
        lines.append(row(peer, runs, minigdino_seconds, f", {graphs[peer]} graph" if peer in graphs else ""))
    return lines


def matrix(found) -> list[str]:
    """Make the table of minigdino's time in each precision in proportion to every program, as lines of Markdown."""
    seconds = {peer: [steady(f["seconds"]) for f in runs] for peer, runs in found.items()}
    own = {precision: seconds[peer] for precision, peer in MINIGDINO.items() if peer in seconds}
    lines = [f"| minigdino's time ÷ this | {' | '.join(own)} |", "|---" * (1 + len(own)) + "|"]
    for peer, took in seconds.items():
        lines.append(f"| {peer} | {' | '.join(f'{median_ratio(s, took):.2f}' for s in own.values())} |")
    return lines


def against_products(runs, flop: dict[str, float]) -> list[str]:
    """Compare minigdino's time with the time of its FLOPs at the speed of one large matrix product.

    Args:
        runs: minigdino's results, one per round, with the speed measured in the same process.
        flop: {name of a row: FLOPs}.

    Returns:
        Lines of Markdown.
    """
    seconds, rates = [steady(r["seconds"]) for r in runs], [r["rate"] for r in runs]
    lines = [f"NumPy matrix product [17821, 256] @ [256, 2048]: {statistics.median(rates) / 1e9:.0f} GFLOP/s, the best "
             "of five in each of minigdino's processes.", "",
             "| | GFLOP | seconds at that rate | minigdino's time ÷ this |", "|---|---|---|---|"]
    for name, amount in flop.items():
        ideal = [amount / rate for rate in rates]
        lines.append(f"| {name} | {amount / 1e9:.3g} | {statistics.median(ideal):.3g} | "
                     f"{median_ratio(seconds, ideal):.2f} |")
    return lines


def amounts(config, height, width, tokens) -> dict[str, float]:
    """Return the FLOPs of a forward pass, without and with reorderings: {name of a row: FLOPs}."""
    found = {name: flops.total(config, height, width, tokens, reorderings) for name, reorderings in (
        ("in the papers' order", flops.NONE), ("in minigdino's order", flops.IMPLEMENTED),
        ("with all known reorderings", flops.ALL))}
    if config == type(config)() and (height, width, tokens) == (800, 1066, 9):
        found["round number"] = BASELINE
    return found


def machine(threads: int) -> str:
    """Describe the machine in one line."""
    from minigdino import info

    found = info()
    return f"{found['cpu']}, {threads} thread{'s' * (threads != 1)}, Python {found['python']}"


def report(options) -> None:
    """Measure, and print the tables."""
    from minigdino.checkpoints.config import Config

    with prepared(options) as case:
        config = Config.from_file(case.checkpoint / "config.json")
        found = run(case, options.only, options.threads, options.rounds, options.passes)
        graphs = {peer: fastest(case, peer, options.threads) for peer in options.only if peer in GRAPHS}
        tokens = len(np.load(case.inputs)["ids"])
    print(f"{machine(options.threads)}; image {options.size[0]} x {options.size[1]}, {tokens} tokens; "
          f"{options.rounds} rounds of {options.passes} forward passes; medians without the first one", end="\n\n")
    print(*table(found, graphs), sep="\n", end="\n\n")
    if not set(MINIGDINO.values()).isdisjoint(found):
        print(*matrix(found), sep="\n", end="\n\n")
    if "minigdino" in found:
        print(*against_products(found["minigdino"], amounts(config, *options.size, tokens)), sep="\n", end="\n\n")


def add_passes(options: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    options.add_argument("--passes", type=int, default=3, help="forward passes in each process")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for add in (add_options, add_peers, add_rounds, add_passes):
        add(options)
    report(options.parse_args())
