"""A report of this installation: versions, hardware, kernels and available models."""

from __future__ import annotations

import platform

import numpy as np

from .._ext import cpus
from ..checkpoints import hub
from ..version import __version__
from . import device, kernels


def info() -> dict:
    """Report versions, CPU, BLAS, threads, compiled twins, GPU and cached models, as `minigdino info` prints them.

    Returns:
        {name: value}. "kernels" is what runs: "fast", "reference", or how many ops have twins if some are missing.
        "vectors" is the instruction set of the compiled twins, followed by each module that has another one. For
        products, "amx" and "avx512bf16 in medium" mean that AVX-512 is used with these instructions. "twins" is
        {op: whether its compiled twin can be used}. "models" lists sources for `load`. "missing" lists the compiled
        modules that this CPU could use but that were not built or cannot be loaded, with the reasons.
    """
    from ..learning import backward  # noqa: F401  registers its twins, which nothing else needs so far

    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return {
        "minigdino": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cpu": _cpu(),
        "blas": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        "threads": cpus.count(),
        "kernels": _kernels(),
        "vectors": _vectors(),
        "twins": kernels.live(),
        "gpu": device.describe_gpus(),
        "cache": str(hub.cache()),
        "models": ["shapes", *hub.cached()],
        "missing": kernels.missing(),
    }


def _kernels():
    """The mode, or what it comes to if twins are missing."""
    mode, twins = kernels.mode(), kernels.live()
    if mode == "reference" or all(twins.values()):
        return mode
    n = sum(twins.values())
    return f"fast for {n} of {len(twins)} ops" if n else "reference, because no kernel was built"


def _vectors():
    """The widest instruction set in use, then each module with another one: "avx512, swin: avx2"."""
    used = kernels.levels_in_use()
    main = next((level for level in ("avx512", "avx2", "baseline") if level in used.values()), "none")
    return ", ".join([main, *(f"{module}: {level}" for module, level in used.items() if level != main)])


def _cpu():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
