"""Measure matrix products in float32 beside NumPy's BLAS, both in one thread, at sizes of the tiny model.

    [MINIGDINO_VECTORS=avx512] python -m benchmarks.products [--rounds N]

minigdino's time includes packing W. MINIGDINO_VECTORS chooses the instructions of its products. The instructions of
OpenBLAS, NumPy's usual BLAS, are chosen by OPENBLAS_CORETYPE, for example Haswell for AVX2.
"""

from __future__ import annotations

import argparse
import statistics
import time

from .peers import machine
from .processes import add_rounds, alternate, call

# name: M, K, N of X [M, K] W^T [K, N], for an image of 800 x 1066
SIZES = {
    "image backbone, stage 2, attention": (13400, 192, 576),
    "image backbone, stage 3, feed-forward": (3350, 384, 1536),
    "image backbone, stage 3, feed-forward, second": (3350, 1536, 384),
    "image backbone, stage 4, feed-forward": (850, 768, 3072),
    "enhancer, attention": (17821, 256, 256),
    "enhancer, feed-forward": (17821, 256, 2048),
    "enhancer, feed-forward, second": (17821, 2048, 256),
    "decoder, attention": (900, 256, 256),
}


def seconds(M: int, K: int, N: int, rounds: int) -> tuple[list[float], list[float]]:
    """Measure X [M, K] W^T [K, N] by minigdino and by NumPy in turn. Returns the seconds of both, one per round."""
    import numpy as np
    from minigdino._ext.instruction_sets import load
    from minigdino._ext.memory import reused

    import minigdino

    minigdino.set_threads(1)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((M, K), np.float32), rng.standard_normal((N, K), np.float32)
    product = load("minigdino._ext.products:product")
    if product is None:
        raise SystemExit("the compiled twins of products are missing; build them with `pip install -e .`")
    found = {"minigdino": [], "numpy": []}
    with reused():  # both then write to memory that was used before, as in a forward pass
        for way in alternate(tuple(found), rounds + 1):
            start = time.perf_counter()
            product(x, w) if way == "minigdino" else x @ w.T
            found[way].append(time.perf_counter() - start)
    return found["minigdino"][1:], found["numpy"][1:]


def row(name: str, size: tuple[int, int, int], ours: list[float], numpy: list[float]) -> str:
    """Make a line of the table: rates, and minigdino's in proportion to NumPy's, within a round."""
    M, K, N = size
    rates = [2e-9 * M * K * N / statistics.median(taken) for taken in (ours, numpy)]
    ratio = statistics.median(theirs / own for own, theirs in zip(ours, numpy, strict=True))
    return f"| {name} | [{M}, {K}] @ [{K}, {N}] | {rates[0]:.0f} | {rates[1]:.0f} | {ratio:.2f} |"


def table(rounds: int) -> None:
    """Measure in this process, and print the table."""
    import minigdino

    print(f"{machine(1)}; {minigdino.info()['vectors']}; medians of {rounds} rounds", end="\n\n")
    print("| | | minigdino, GFLOP/s | NumPy, GFLOP/s | minigdino's rate ÷ NumPy's |\n|---|---|---|---|---|")
    for name, size in SIZES.items():
        print(row(name, size, *seconds(*size, rounds)), flush=True)


def report(options) -> None:
    """Measure in a new process, and print the table."""
    # NumPy reads the number of threads of its BLAS when it is imported
    print(call("products", "--inside", "--rounds", options.rounds, threads=1), flush=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_rounds(options)
    options.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.inside:
        table(options.rounds)
    else:
        report(options)
