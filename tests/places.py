"""Places where an op can run: the instruction sets of this CPU, its CUDA kernel on the host, and a GPU."""

from __future__ import annotations

from unittest import mock

import fake_gpu
import numpy as np
import on_host
import pytest
from minigdino._ext import cuda

from minigdino.learning import backward  # noqa: F401  registers its twins
from minigdino.runtime import kernels

HOST, GPU = "cuda-on-host", "gpu"
WITH_COMPILER = pytest.mark.skipif(on_host.COMPILER is None, reason="running .cu files on the host needs g++ on Linux")
PLACES = [*kernels.levels(), pytest.param(HOST, marks=WITH_COMPILER), pytest.param(GPU, marks=pytest.mark.gpu)]


def examples(n):
    """Number of examples for Hypothesis: n, or fewer under the sanitizers, which are slow."""
    return n // 6 if on_host.SANITIZED else n


def mapped(f, value):
    """Apply f to every array in nested tuples, lists and dicts."""
    if isinstance(value, dict):
        return {name: mapped(f, part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(f, part) for part in value)
    return f(value) if isinstance(value, np.ndarray) else value


def places_of(names):
    """Yield pytest parameters (op, place) for the places with a twin. On a GPU, ops without one run their reference."""
    for name in sorted(names):
        for place in PLACES:
            where, marks = (place.values[0], place.marks) if hasattr(place, "values") else (place, ())
            if has_twin(name) if where not in (HOST, GPU) else runs_on_gpu(name):
                yield pytest.param(name, where, marks=marks)


def has_twin(name):
    """Return whether an op has a CPU twin."""
    return "numpy" in kernels.OPS[name].twins


def runs_on_gpu(name):
    """Return whether an op can run on a GPU. Backward passes cannot."""
    return kernels.OPS[name].__module__.startswith("minigdino.network")


def parts(result):
    """The arrays of an op's result, as a tuple."""
    return result if isinstance(result, tuple) else (result,)


def twin(name, place):
    """The implementation of an op at a place, as a function from NumPy arrays to NumPy arrays."""
    op = kernels.OPS[name]
    return {HOST: _on_host, GPU: _on_gpu}.get(place, lambda op: kernels.load_for(place, op.twins["numpy"]))(op)


def launching_on_host():
    """Context manager in which CUDA kernels are launched on the host."""
    return mock.patch.object(cuda, "compiled", on_host.compiled)


def _on_host(op):
    gpu = fake_gpu.Gpu()

    def run(*args):
        with gpu.computing(), launching_on_host():
            return _to_numpy(op(*mapped(gpu.send, args)))

    return run


def _on_gpu(op):
    cupy = pytest.importorskip("cupy")
    return lambda *args: _to_numpy(op(*mapped(cupy.asarray, args)))


def _to_numpy(result):
    return tuple(array.get() for array in result) if isinstance(result, tuple) else result.get()
