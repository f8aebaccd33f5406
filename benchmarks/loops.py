"""The compiled twins at the sizes of the tiny model on 800 x 1066 pixels, each beside its NumPy reference; deformable
attention also beside plain.c, compiled here for this very processor.

    python -m benchmarks.loops [--threads N] [--rounds N]
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from minigdino._ext.threads import for_rows

import minigdino
from minigdino.network import deformable, fusion, ops, swin
from minigdino.network.boxes import pixel_centres
from minigdino.runtime.kernels import levels

LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))
S = sum(H * W for H, W in LEVELS)  # 17,821


def milliseconds(function, rounds: int) -> float:
    """Median over the rounds, after one that is not counted."""
    took = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        function()
        took.append(time.perf_counter() - start)
    return 1e3 * statistics.median(took[1:])


def problems() -> dict[str, tuple]:
    """{"op, at which size": (op, arguments)}"""
    rng = np.random.default_rng(0)

    def array(*shape):
        return rng.standard_normal(shape, np.float32)

    def linear(outputs, inputs):
        return {"weight": array(outputs, inputs) * inputs**-0.5, "bias": array(outputs)}

    def both_ways(M, T, C):
        return array(S, C), 0.1 * array(M, T, C), array(M, T), array(M, T, C), array(C), array(S, C)

    references = np.concatenate([pixel_centres(H, W, like=array(1)) for H, W in LEVELS])
    return {
        "layer_norm [53400, 96]": (ops.layer_norm, (array(53400, 96), array(96), array(96))),
        "add_norm [17821, 256]": (ops.add_norm, (array(S, 256), array(S, 256), array(256), array(256))),
        "gelu [2048, 384]": (ops.gelu, (array(2048, 384), array(384))),
        "relu [2048, 2048]": (ops.relu, (array(2048, 2048), array(2048))),
        "softmax [8, 900, 900]": (ops.softmax, (array(8, 900, 900),)),
        "attend_both_ways [17821, 256], 9 tokens": (fusion.attend_both_ways, both_ways(4, 9, 256)),
        "attend_both_ways [17821, 256], 256 tokens": (fusion.attend_both_ways, both_ways(4, 256, 256)),
        "attend_in_windows [200, 267], 3 heads, shifted": (
            swin.attend_in_windows, (array(200, 267, 3, 3, 32), array(3, 3, 32), array(3, 49, 49), 7, 3)),
        "window_attention [200, 267, 96], shifted": (
            swin.window_attention,
            (array(200, 267, 96), *(linear(96, 96) for _ in range(4)), array(13**2, 3), 3, 7, 3)),
        "deform_attn, 17821 queries": (
            deformable.deform_attn, (array(S, 8, 32), LEVELS, references, array(S, 8, 4, 4, 2), array(S, 8, 16))),
    }


def plain(value, sizes, references, offsets, scores):
    """deform_attn's problem as a call of plain.c, with locations and weights computed beforehand."""
    folder = tempfile.mkdtemp()
    library = Path(folder) / "plain.so"
    subprocess.run([os.environ.get("CC", "cc"), "-O3", "-march=native", "-ffast-math", "-shared", "-fPIC",
                    str(Path(__file__).with_name("plain.c")), "-o", str(library), "-lm"], check=True)
    loop = ctypes.CDLL(str(library)).plain  # lets go of the interpreter meanwhile
    Q, M, L, P, _ = offsets.shape
    levels = np.array(sizes, ctypes.c_long)
    locations = np.ascontiguousarray(deformable.sampling_locations(references, offsets, sizes), np.float32)
    weights = ops.softmax(scores)
    out = np.empty((Q, M * value.shape[2]), np.float32)
    arrays = [a.ctypes.data_as(ctypes.c_void_p) for a in (value, levels, locations, weights, out)]

    def rows(first, last):
        v, sizes_, at, w, o = arrays
        loop(v, sizes_, ctypes.c_long(L), at, w, o, *map(ctypes.c_long, (M, P, first, last)))

    def run():
        for_rows(rows, Q)
        return out

    return run


def report(threads: int, rounds: int) -> None:
    """Measure and print."""
    minigdino.set_threads(threads)
    print(f"{minigdino.info()['cpu']}, {threads} threads, {levels()[0] or 'baseline'}", end="\n\n")
    print("| | twin ms | NumPy ms | NumPy, of the twin |", "|---|---|---|---|", sep="\n")
    for name, (op, arguments) in problems().items():
        twin = milliseconds(lambda: op(*arguments), rounds)  # noqa: B023
        with minigdino.use("reference"):  # what the formula calls is NumPy, too
            formula = milliseconds(lambda: op(*arguments), min(rounds, 3))  # noqa: B023
        print(f"| {name} | {twin:.2f} | {formula:.1f} | {formula / twin:.1f} |", flush=True)
    op, arguments = problems()["deform_attn, 17821 queries"]
    loop = plain(*arguments)
    np.testing.assert_allclose(loop(), op(*arguments), rtol=1e-4, atol=1e-4)
    theirs, ours = [], []
    for _ in range(rounds):  # in turn, so that a slow moment hits both
        theirs.append(milliseconds(loop, 1))
        ours.append(milliseconds(lambda: op(*arguments), 1))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs))
    print(f"\ndeform_attn, softmax and locations included: {statistics.median(ours):.1f} ms; a plain C loop for this "
          f"processor, without them: {statistics.median(theirs):.1f} ms; ratio {ratio:.2f}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--rounds", type=int, default=9)
    options = options.parse_args()
    report(options.threads, options.rounds)
