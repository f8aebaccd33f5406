"""Measure the compiled twins beside their NumPy references, at the sizes of the tiny model for 800 x 1066 pixels.

    python -m benchmarks.loops [--threads N] [--rounds N]

Deformable attention is also measured beside plain.c, which is compiled for the CPU that runs the benchmark.
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
from minigdino._ext.pool import for_rows

import minigdino
from minigdino.network import deformable, fusion, ops, swin
from minigdino.network.boxes import pixel_centres

LEVELS = ((100, 134), (50, 67), (25, 34), (13, 17))
S = sum(H * W for H, W in LEVELS)  # 17,821


def milliseconds(function, rounds: int) -> float:
    """Return the median time of a call, after one untimed call."""
    took = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        function()
        took.append(time.perf_counter() - start)
    return 1e3 * statistics.median(took[1:])


def problems() -> dict[str, tuple]:
    """Return the calls to measure: {"op [size]": (op, arguments)}."""
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
    """Return a function that runs plain.c on the arguments of `deform_attn`. Locations and weights are precomputed."""
    folder = tempfile.mkdtemp()
    library = Path(folder) / "plain.so"
    subprocess.run([os.environ.get("CC", "cc"), "-O3", "-march=native", "-ffast-math", "-shared", "-fPIC",
                    str(Path(__file__).with_name("plain.c")), "-o", str(library), "-lm"], check=True)
    loop = ctypes.CDLL(str(library)).plain  # ctypes releases the GIL during a call
    Q, M, L, P, _ = offsets.shape
    levels = np.array(sizes, ctypes.c_long)
    locations = np.ascontiguousarray(deformable.sampling_locations(references, offsets, sizes), np.float32)
    weights = ops.softmax(scores)
    out = np.empty((Q, M * value.shape[2]), np.float32)
    arrays = [a.ctypes.data_as(ctypes.c_void_p) for a in (value, levels, locations, weights, out)]

    def rows(first, last):
        value_, sizes_, locations_, weights_, out_ = arrays
        loop(value_, sizes_, ctypes.c_long(L), locations_, weights_, out_, *map(ctypes.c_long, (M, P, first, last)))

    def run():
        for_rows(rows, Q)
        return out

    return run


def report(threads: int, rounds: int) -> None:
    """Measure, and print the tables."""
    minigdino.set_threads(threads)
    print(f"{minigdino.info()['cpu']}, {threads} threads, {minigdino.info()['vectors']}", end="\n\n")
    print("| | twin ms | NumPy ms | NumPy's time ÷ twin's time |", "|---|---|---|---|", sep="\n")
    for name, (op, arguments) in problems().items():
        twin = milliseconds(lambda: op(*arguments), rounds)  # noqa: B023
        with minigdino.use("reference"):  # also for the ops that the reference calls
            reference = milliseconds(lambda: op(*arguments), min(rounds, 3))  # noqa: B023
        print(f"| {name} | {twin:.2f} | {reference:.1f} | {reference / twin:.1f} |", flush=True)
    op, arguments = problems()["deform_attn, 17821 queries"]
    loop = plain(*arguments)
    np.testing.assert_allclose(loop(), op(*arguments), rtol=1e-4, atol=1e-4)
    plain_ms, twin_ms = [], []
    for _ in range(rounds):  # in turn, so that a slow period of the machine affects both
        plain_ms.append(milliseconds(loop, 1))
        twin_ms.append(milliseconds(lambda: op(*arguments), 1))
    ratio = statistics.median(a / b for a, b in zip(twin_ms, plain_ms))
    print("", "| | ms |", "|---|---|",
          f"| deform_attn, including softmax and sampling locations | {statistics.median(twin_ms):.1f} |",
          f"| plain C loop, without them | {statistics.median(plain_ms):.1f} |",
          f"| median ratio | {ratio:.2f} |", sep="\n")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--rounds", type=int, default=9)
    options = options.parse_args()
    report(options.threads, options.rounds)
