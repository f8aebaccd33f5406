"""Do the programs that are measured compute the same? At full width, and as detections of the embedded checkpoint.

    python -m benchmarks.agreement [--model random|shapes|DIR] [--size HEIGHT WIDTH] [--text TEXT] [--only PEER ...]

Compared at full width are the image after the enhancer and the scores by which queries are selected. What comes after
is not: with random weights the selection is unstable between any two programs, for one rounding can swap two ranks, and
a query's rank decides which learned embedding it meets. Exits with 1 if two programs of float32 disagree; what bfloat16
does to the numbers is only shown.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np

from .processes import add_options, add_peers, measure, model_of, prepared

TOLERANCE = {"vision": 1e-4, "scores": 1e-3}  # largest differences that tests/parity allows of the same results
SCORE, SIDE = 1e-3, 0.5  # of two detections that are the same: difference of scores, and of sides in pixels
THRESHOLD = 0.35
SCENE = {"model": "shapes", "size": (128, 160), "text": "a purple star. a green heart. an orange ring."}
PIXELS = (640, 512)  # width and height of that picture before it was made as small as that model wants it


def results(case, peers, threads: int) -> dict[str, dict[str, np.ndarray]]:
    """What every program computes of the case: {peer: {result: array}}"""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for peer in peers:
            file = Path(folder) / f"{peer}.npz"
            measure(peer, model_of(case, peer, threads), case.inputs, threads, 1, "--save", file)
            with np.load(file) as arrays:
                found[peer] = dict(arrays)
    return found


def apart(a, b) -> tuple[float, float]:
    """Largest difference, and its root mean square over that of a."""
    difference = np.float64(a) - b
    return float(abs(difference).max()), float(np.sqrt((difference**2).mean() / (np.float64(a) ** 2).mean()))


def exact(*peers) -> bool:
    """Whether all of them compute in float32."""
    return not any(peer.endswith("bf16") for peer in peers)


def compare(found) -> tuple[list[str], bool]:
    """Every pair of programs -> lines of Markdown, and whether those of float32 agree."""
    lines = ["| | | vision: largest | relative | scores: largest | relative | |", "|---|---|---|---|---|---|---|"]
    good = True
    for a, b in itertools.combinations(found, 2):
        differences = {name: apart(found[a][name], found[b][name]) for name in TOLERANCE}
        close = all(differences[name][0] <= TOLERANCE[name] for name in TOLERANCE)
        verdict = ("agree" if close else "DIFFER") if exact(a, b) else "bfloat16"
        good &= verdict != "DIFFER"
        numbers = " | ".join(f"{largest:.1e} | {relative:.1e}" for largest, relative in differences.values())
        lines.append(f"| {a} | {b} | {numbers} | {verdict} |")
    return lines, good


def detections(found, model, text: str) -> dict:
    """What `detect` makes of each program's logits and boxes: {peer: Detections}, best first"""
    from minigdino.results import post_process

    prompt = model.tokenize(text)
    return {peer: post_process(arrays["logits"], arrays["boxes"], prompt, model.tokenizer.decode, PIXELS,
                               THRESHOLD, THRESHOLD) for peer, arrays in found.items()}


def same(a, b) -> bool:
    """Whether two programs found the same, in any order."""
    def is_among(d, others):
        return any(d.label == o.label and abs(d.score - o.score) <= SCORE
                   and all(abs(x - y) <= SIDE for x, y in zip(d.box, o.box)) for o in others)

    return len(a) == len(b) and all(is_among(d, b) for d in a) and all(is_among(d, a) for d in b)


def compare_detections(found) -> tuple[list[str], bool]:
    """Every program beside the first -> lines of Markdown, and whether those of float32 agree."""
    first = next(iter(found))
    lines, good = ["| | found | |", "|---|---|---|"], True
    for peer, detected in found.items():
        what = ", ".join(f"{d.label} {d.score:.3f}" for d in detected)
        verdict = "the same" if same(found[first], detected) else "DIFFER" if exact(first, peer) else "bfloat16"
        good &= verdict != "DIFFER"
        lines.append(f"| {peer} | {what} | {'' if peer == first else verdict} |")
    return lines, good


def report(options) -> bool:
    """Compare and print; -> do all programs of float32 agree."""
    import minigdino

    with prepared(options) as case:
        lines, good = compare(results(case, options.only, options.threads))
    print(f"{options.model}, {options.size[0]} x {options.size[1]}", end="\n\n")
    print(*lines, sep="\n", end="\n\n")
    with prepared(options, **SCENE) as case:
        model = minigdino.load(case.checkpoint)
        found = detections(results(case, options.only, options.threads), model, SCENE["text"])
    lines, well = compare_detections(found)
    print(f"shapes, {SCENE['size'][0]} x {SCENE['size'][1]}, {SCENE['text']!r}", end="\n\n")
    print(*lines, sep="\n", end="\n\n")
    return good and well


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(options)
    add_peers(options)
    sys.exit(0 if report(options.parse_args()) else 1)
