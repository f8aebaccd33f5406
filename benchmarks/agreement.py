"""Check that the benchmarked programs compute the same results.

    python -m benchmarks.agreement [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--text TEXT] [--only PEER ...]

There are two comparisons:

- At full width: the image tokens after the enhancer, and the selection scores. Later results are not compared, because
  query selection with random weights is unstable. A rounding error can swap two ranks, and the rank of a query decides
  which learned content it gets.
- With the embedded checkpoint: the detections.

Exits with status 1 if two float32 programs disagree. Programs of a lower precision are compared with the first program
only. Their differences are shown, but are not failures.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np

from .processes import INEXACT, add_options, add_peers, measure, model_of, prepared

TOLERANCE = {"vision": 1e-4, "scores": 1e-3}  # largest allowed differences, as in tests/parity
SCORE, SIDE = 1e-3, 0.5  # largest differences between equal detections: of scores, and of sides in pixels
THRESHOLD = 0.35
SCENE = {"model": "shapes", "size": (128, 160), "text": "a purple star. a green heart. an orange ring."}
PIXELS = (640, 512)  # width and height of the original image, before resizing to the input size


def results(case, peers, threads: int) -> dict[str, dict[str, np.ndarray]]:
    """Run every program on the case. Returns {peer: {name of a result: array}}."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for peer in peers:
            file = Path(folder) / f"{peer}.npz"
            measure(peer, model_of(case, peer, threads), case.inputs, threads, 1, "--save", file)
            with np.load(file) as arrays:
                found[peer] = dict(arrays)
    return found


def differences(a, b) -> tuple[float, float]:
    """Return the largest difference, and the root mean square of all differences relative to that of `a`."""
    difference = np.float64(a) - b
    return float(abs(difference).max()), float(np.sqrt((difference**2).mean() / (np.float64(a) ** 2).mean()))


def exact(*peers) -> bool:
    """Return whether all these programs compute in float32."""
    return not set(peers) & set(INEXACT)


def compare(found) -> tuple[list[str], bool]:
    """Compare pairs of programs. Returns lines of Markdown, and whether the float32 programs agree."""
    lines = ["| | | vision: largest difference | relative | scores: largest difference | relative | |",
             "|---|---|---|---|---|---|---|"]
    all_agree, first = True, next(iter(found))
    for a, b in itertools.combinations(found, 2):
        if a != first and not exact(a, b):
            continue
        measured = {name: differences(found[a][name], found[b][name]) for name in TOLERANCE}
        close = all(measured[name][0] <= TOLERANCE[name] for name in TOLERANCE)
        verdict = ("agree" if close else "DIFFER") if exact(a, b) else "lower precision"
        all_agree &= verdict != "DIFFER"
        cells = " | ".join(f"{largest:.1e} | {relative:.1e}" for largest, relative in measured.values())
        lines.append(f"| {a} | {b} | {cells} | {verdict} |")
    return lines, all_agree


def detections(found, model, text: str) -> dict:
    """Post-process the logits and boxes of each program as `detect` does. Returns {peer: Detections}."""
    from minigdino.results import post_process

    prompt = model.tokenize(text)
    return {peer: post_process(arrays["logits"], arrays["boxes"], prompt, model.tokenizer.decode, PIXELS,
                               THRESHOLD, THRESHOLD) for peer, arrays in found.items()}


def same(a, b) -> bool:
    """Return whether two lists of detections are equal within tolerance, in any order."""
    def is_among(d, others):
        return any(d.label == o.label and abs(d.score - o.score) <= SCORE
                   and all(abs(x - y) <= SIDE for x, y in zip(d.box, o.box)) for o in others)

    return len(a) == len(b) and all(is_among(d, b) for d in a) and all(is_among(d, a) for d in b)


def compare_detections(found) -> tuple[list[str], bool]:
    """Compare every program with the first. Returns lines of Markdown, and whether the float32 programs agree."""
    first = next(iter(found))
    lines, all_agree = ["| | detections | |", "|---|---|---|"], True
    for peer, detected in found.items():
        listed = ", ".join(f"{d.label} {d.score:.3f}" for d in detected)
        verdict = "the same" if same(found[first], detected) else "DIFFER" if exact(first, peer) else "lower precision"
        all_agree &= verdict != "DIFFER"
        lines.append(f"| {peer} | {listed} | {'' if peer == first else verdict} |")
    return lines, all_agree


def report(options) -> bool:
    """Run both comparisons and print their tables. Returns whether all float32 programs agree."""
    import minigdino

    with prepared(options) as case:
        lines, results_agree = compare(results(case, options.only, options.threads))
    print(f"{options.model}, {options.size[0]} x {options.size[1]}", end="\n\n")
    print(*lines, sep="\n", end="\n\n")
    with prepared(options, **SCENE) as case:
        model = minigdino.load(case.checkpoint)
        found = detections(results(case, options.only, options.threads), model, SCENE["text"])
    lines, detections_agree = compare_detections(found)
    print(f"shapes, {SCENE['size'][0]} x {SCENE['size'][1]}, {SCENE['text']!r}", end="\n\n")
    print(*lines, sep="\n", end="\n\n")
    return results_agree and detections_agree


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(options)
    add_peers(options)
    sys.exit(0 if report(options.parse_args()) else 1)
