"""minigdino beside transformers, ONNX Runtime and OpenVINO: seconds, memory, import and load, on the same inputs.

    python -m benchmarks.peers [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--text TEXT] [--threads N]
                               [--rounds N] [--passes N] [--only PEER ...] [--folder FOLDER]

Every program runs alone in a process, in turn, several times over. Ratios are taken within a round, in which the
machine was equally busy with other things, and only then is their median taken: on a shared machine only ratios travel.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np

from minigdino.runtime import flops

from .processes import (
    GRAPHS,
    add_options,
    add_peers,
    add_rounds,
    alternate,
    fastest,
    measure,
    model_of,
    prepared,
    steady,
)

YARDSTICK = 480e9  # FLOP: a round figure for the tiny geometry, 800 x 1066 and 9 tokens, in the cheaper orders


def run(case, peers, threads: int, rounds: int, passes: int) -> dict[str, list[dict]]:
    """All measurements, round by round: {peer: [what worker.py said, ...]}"""
    models = {peer: model_of(case, peer, threads) for peer in peers}
    found = {peer: [] for peer in peers}
    for peer in alternate(tuple(peers), rounds):
        more = ["--product"] if peer == "minigdino" else []
        found[peer].append(measure(peer, models[peer], case.inputs, threads, passes, *more))
    return found


def median_ratio(ours, theirs) -> float:
    """Median over the rounds of ours to theirs, each with the other of its round."""
    return statistics.median(a / b for a, b in zip(ours, theirs))


def row(peer, found, ours, graph) -> str:
    """One program's line of the table."""
    seconds = [steady(f["seconds"]) for f in found]

    def median(name):
        return statistics.median(f[name] for f in found)

    first = statistics.median(f["seconds"][0] for f in found)
    ratio = f"{median_ratio(ours, seconds):.2f}" if ours else ""
    return (f"| {peer} {found[0]['version']}{graph} | {statistics.median(seconds):.3g} | "
            f"{min(seconds):.3g} to {max(seconds):.3g} | {ratio} | {first:.3g} | {median('peak') / 1e9:.2f} | "
            f"{median('import'):.2f} | {median('load'):.2f} |")


def table(found, graphs) -> list[str]:
    """Lines of Markdown, one a program. graphs {peer: the attention its graph was written with}"""
    ours = [steady(f["seconds"]) for f in found.get("minigdino", [])]
    lines = ["| | seconds | least to most | minigdino takes, of it | first pass | peak GB | import s | load s |",
             "|---|---|---|---|---|---|---|---|"]
    for peer, runs in found.items():
        lines.append(row(peer, runs, ours, f", {graphs[peer]} graph" if peer in graphs else ""))
    return lines


def against_products(runs, flop: dict[str, float]) -> list[str]:
    """minigdino's seconds beside its arithmetic at the rate of one large product, measured in the same processes.

    flop {what it is the arithmetic of: FLOP}
    """
    seconds, rates = [steady(r["seconds"]) for r in runs], [r["rate"] for r in runs]
    lines = [f"One NumPy product [17821, 256] @ [256, 2048]: {statistics.median(rates) / 1e9:.0f} GFLOP/s, the best of "
             "five in each of minigdino's processes.", "",
             "| | GFLOP | seconds at that rate | minigdino takes, of it |", "|---|---|---|---|"]
    for name, amount in flop.items():
        ideal = [amount / rate for rate in rates]
        lines.append(f"| {name} | {amount / 1e9:.3g} | {statistics.median(ideal):.3g} | "
                     f"{median_ratio(seconds, ideal):.2f} |")
    return lines


def amounts(config, height, width, tokens) -> dict[str, float]:
    """FLOP of one pass, by the order in which it is computed."""
    found = {name: flops.total(config, height, width, tokens, orders) for name, orders in (
        ("as the papers write it", flops.PAPER), ("as minigdino orders it", flops.OURS),
        ("every cheaper order", flops.EVERY))}
    if config == type(config)() and (height, width, tokens) == (800, 1066, 9):
        found["yardstick"] = YARDSTICK
    return found


def machine(threads: int) -> str:
    """What all of it ran on."""
    from minigdino import info

    found = info()
    return f"{found['cpu']}, {threads} thread{'s' * (threads != 1)}, Python {found['python']}"


def report(options) -> None:
    """Measure and print."""
    from minigdino.checkpoints.config import Config

    with prepared(options) as case:
        config = Config.from_file(case.checkpoint / "config.json")
        found = run(case, options.only, options.threads, options.rounds, options.passes)
        graphs = {peer: fastest(case, peer, options.threads) for peer in options.only if peer in GRAPHS}
        tokens = len(np.load(case.inputs)["ids"])
    print(f"{machine(options.threads)}; image {options.size[0]} x {options.size[1]}, {tokens} tokens; "
          f"{options.rounds} rounds of {options.passes} passes, medians without the first pass", end="\n\n")
    print(*table(found, graphs), sep="\n", end="\n\n")
    if "minigdino" in found:
        print(*against_products(found["minigdino"], amounts(config, *options.size, tokens)), sep="\n", end="\n\n")


def add_passes(options: argparse.ArgumentParser) -> None:
    """What this command asks."""
    options.add_argument("--passes", type=int, default=3, help="in each process")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for add in (add_options, add_peers, add_rounds, add_passes):
        add(options)
    report(options.parse_args())
