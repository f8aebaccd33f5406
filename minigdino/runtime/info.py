"""A report of this installation: versions, hardware, kernels and available models."""

from __future__ import annotations

import platform

import numpy as np

from .._ext import pool
from ..checkpoints import hub
from ..version import __version__
from . import device, kernels


def info() -> dict:
    """Report versions, CPU, BLAS, threads, compiled twins, GPU and cached models, as `minigdino info` prints them.

    Returns:
        {name: value}. "twins" is {op: whether its compiled twin was built}; "models" lists sources for `load`.
    """
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return {
        "minigdino": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cpu": _cpu(),
        "blas": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        "threads": pool.count(),
        "kernels": kernels.mode(),
        "vectors": kernels.levels()[0] or "baseline",
        "twins": kernels.live(),
        "gpu": device.describe_gpus(),
        "cache": str(hub.cache()),
        "models": ["shapes", *hub.cached()],
    }


def _cpu():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
