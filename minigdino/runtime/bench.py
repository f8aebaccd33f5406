"""Time each stage of a forward pass, and compare its speed with the speed of one large matrix product."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from ..checkpoints.config import Config
from ..detector import Model, load
from ..inspection.tracing import seconds_of
from .flops import stages
from .info import info

STAGES = {  # function in minigdino.network -> name of the stage in flops.py
    "bert": "text backbone",
    "swin": "image backbone",
    "neck": "neck",
    "fusion_layer": "enhancer, fusion",
    "text_enhancer_layer": "enhancer, text",
    "deformable_layer": "enhancer, deformable",
    "select_queries": "query selection",
    "decoder": "decoder",
}
ROWS, INPUTS, OUTPUTS = 17821, 256, 2048  # the largest matrix product of the tiny model at 800 x 1066 pixels


@dataclass(frozen=True)
class Bench:
    """Measured times. `str()` formats them as a table."""

    stages: dict[str, tuple[float, float]]  # name -> (FLOPs, median seconds)
    total: float  # median seconds of a forward pass
    rate: float  # FLOP/s of one large matrix product
    machine: str

    def __str__(self) -> str:
        lines = [self.machine,
                 f"matrix product [{ROWS}, {INPUTS}] @ [{INPUTS}, {OUTPUTS}]: {self.rate / 1e9:.0f} GFLOP/s", "",
                 f"{'stage':22}{'GFLOP':>8}{'seconds':>9}{'GFLOP/s':>9}{'of product rate':>17}"]
        known = sum(seconds for _, seconds in self.stages.values())
        rows = {**self.stages, "other": (0, max(0, self.total - known)),
                "forward pass": (sum(flop for flop, _ in self.stages.values()), self.total)}
        for name, (flop, seconds) in rows.items():
            speed = flop / max(seconds, 1e-9)
            lines.append(f"{name:22}{flop / 1e9:8.2f}{seconds:9.3f}{speed / 1e9:9.1f}{speed / self.rate:17.0%}")
        return "\n".join(lines)


def bench(source: str | None = None, size: tuple[int, int] = (800, 1066), tokens: int = 9, passes: int = 5,
          precision: str | None = None) -> Bench:
    """Time the stages of `forward` on random pixels and random token ids, after one untimed forward pass.

    Args:
        source: a model, as `load` accepts; None for the tiny geometry with random weights.
        size: (height, width) of the image, in pixels.
        tokens: number of text tokens.
        passes: number of timed forward passes.
        precision: as in `load`.

    Returns:
        The medians over all timed forward passes.
    """
    model = load(source, precision=precision) if source else Model.random(Config(), precision=precision)
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((3, *size), np.float32)
    ids = rng.integers(0, model.config.text_config.vocab_size, tokens)
    model.forward(pixels, ids)
    measured, totals = [], []
    for _ in range(passes):
        start = time.perf_counter()
        with seconds_of(STAGES) as seconds:
            model.forward(pixels, ids)
        totals.append(time.perf_counter() - start)
        measured.append(seconds)
    flop = stages(model.config, *size, tokens)
    table = {name: (flop[name], statistics.median(m[function] for m in measured)) for function, name in STAGES.items()}
    return Bench(table, statistics.median(totals), product_rate(), f"{_machine()}, precision {model.precision}")


def product_rate() -> float:
    """Return the speed of one large matrix product in FLOP/s, the best of five runs."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((ROWS, INPUTS), np.float32), rng.standard_normal((INPUTS, OUTPUTS), np.float32)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * ROWS * INPUTS * OUTPUTS / min(seconds)


def _machine():
    about = info()
    return (f"{about['cpu']}, {about['threads']} threads, {about['kernels']} kernels"
            f" ({about['vectors']}), NumPy {about['numpy']} with {about['blas']}")
