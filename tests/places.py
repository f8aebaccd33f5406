"""Where an op can run: as compiled for the levels of this processor, as its kernel on the host, on a GPU."""

from __future__ import annotations

import importlib.util
from unittest import mock

import fake_gpu
import numpy as np
import on_host
import pytest
from minigdino._ext import cuda

from minigdino.runtime import kernels

HOST, GPU = "cuda-on-host", "gpu"
WITH_COMPILER = pytest.mark.skipif(on_host.COMPILER is None, reason="g++ on Linux must run the .cu files on the host")
PLACES = [*kernels.levels(), pytest.param(HOST, marks=WITH_COMPILER), pytest.param(GPU, marks=pytest.mark.gpu)]


def examples(n):
    """How many problems to try: fewer where every access is looked at."""
    return n // 6 if on_host.SANITIZED else n


def mapped(f, value):
    """f of every array in tuples, lists and dicts; the rest stays."""
    if isinstance(value, dict):
        return {name: mapped(f, part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(f, part) for part in value)
    return f(value) if isinstance(value, np.ndarray) else value


def places_of(names):
    """(op, place) for pytest, wherever the op has a twin: on a GPU every op runs, if only as its formula"""
    for name in sorted(names):
        for place in PLACES:
            where, marks = (place.values[0], place.marks) if hasattr(place, "values") else (place, ())
            if where in (HOST, GPU) or written_for(name, where):
                yield pytest.param(name, where, marks=marks)


def written_for(name, level):
    """Whether an op has a twin for a level; one in Python, made of other twins, is there for all at once."""
    path = kernels.OPS[name].twins.get("numpy")
    return bool(path) and (level == "" or not in_python(path))


def in_python(path):
    """Whether the twin at "module:function" is not compiled."""
    return importlib.util.find_spec(path.partition(":")[0]).origin.endswith(".py")


def parts(result):
    """The arrays of an op's result, which is one or several."""
    return result if isinstance(result, tuple) else (result,)


def twin(name, place):
    """What runs for an op at a place; takes and gives NumPy arrays."""
    op = kernels.OPS[name]
    return {HOST: _on_host, GPU: _on_gpu}.get(place, lambda op: kernels.load_for(place, op.twins["numpy"]))(op)


def launching_on_host():
    """A context in which kernels are launched on the host."""
    return mock.patch.object(cuda, "compiled", on_host.compiled)


def _on_host(op):
    gpu = fake_gpu.Gpu()

    def run(*args):
        with gpu.computing(), launching_on_host():
            return _home(op(*mapped(gpu.send, args)))

    return run


def _on_gpu(op):
    cupy = pytest.importorskip("cupy")
    return lambda *args: _home(op(*mapped(cupy.asarray, args)))


def _home(result):
    return tuple(array.get() for array in result) if isinstance(result, tuple) else result.get()
