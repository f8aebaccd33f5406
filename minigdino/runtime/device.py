"""Where a model computes: the CPU, or a GPU through CuPy. The layers never ask; they follow the arrays.

CuPy is imported here and nowhere else but in the kernels' launcher, and only when a GPU is asked for by name.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import warnings
from contextlib import AbstractContextManager

import numpy as np

from ..errors import ArgumentError
from .memory import reused

INSTALL = 'pip install "minigdino[cuda12]", or "minigdino[cuda13]", whichever CUDA nvidia-smi names'


class Cpu:
    """The host's own memory: nothing travels."""

    name = "cpu"

    def computing(self) -> AbstractContextManager:
        """What surrounds a forward pass."""
        return reused()

    def send(self, array: np.ndarray) -> np.ndarray:
        """A host array -> the same numbers on this device."""
        return array

    def fetch(self, array) -> np.ndarray:
        """An array of this device -> the same numbers on the host, when they are ready."""
        return array


class Gpu:
    """One GPU, by its number."""

    def __init__(self, index: int):
        self.index, self.name = index, f"cuda:{index}"

    def computing(self) -> AbstractContextManager:
        """What surrounds a forward pass: inside, new arrays and kernels are this GPU's."""
        return _cupy().cuda.Device(self.index)

    def send(self, array: np.ndarray):
        """A host array -> the same numbers on this device."""
        with self.computing():
            there = _cupy().empty(array.shape, array.dtype)
            there.set(array)  # from where it lies: cupy.asarray would pin as much memory of the host again, and keep it
        return there

    def fetch(self, array) -> np.ndarray:
        """An array of this device -> the same numbers on the host, when they are ready."""
        with self.computing():
            return array.get()


def find_device(device: str) -> Cpu | Gpu:
    """"cpu", "cuda" (the first GPU) or "cuda:N". Raises ArgumentError, saying which of a GPU's needs is missing."""
    if device == "cpu":
        return Cpu()
    found = re.fullmatch(r"cuda(?::(\d+))?", device) if isinstance(device, str) else None
    if not found:
        raise ArgumentError(f'device must be "cpu", "cuda" or "cuda:N"; got {device!r}')
    if importlib.util.find_spec("cupy") is None:
        raise ArgumentError(f'device {device!r} needs CuPy, which is not installed. Or use device="cpu"\n'
                            f"---> hint: {INSTALL}")
    try:
        n = count_gpus()
    except Exception as error:  # whatever a driver, or a toolkit of another version, makes of it
        raise ArgumentError(f"device {device!r}: CuPy is installed but finds no GPU that it can use "
                            f'({_first_line(error)}). Or use device="cpu"\n---> hint: nvidia-smi must list one, and '
                            f"CuPy be made for its driver: {INSTALL}") from None
    index = int(found[1] or 0)
    if index >= n:
        here = ", ".join(f"cuda:{i}" for i in range(n)) or "none"
        raise ArgumentError(f'device {device!r} is not here; GPUs that are: {here}. Or use device="cpu"')
    return Gpu(index)


def count_gpus() -> int:
    """How many GPUs CuPy finds. Raises what CuPy raises where it finds no driver."""
    return _cupy().cuda.runtime.getDeviceCount()


def describe_gpus() -> str:
    """One line on CuPy and the GPUs it finds; without CuPy installed, nothing is imported."""
    if importlib.util.find_spec("cupy") is None:
        return "none: CuPy is not installed"
    try:
        cupy = _cupy()
        names = [cupy.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in range(count_gpus())]
    except Exception as error:  # as in find_device
        return f"none: CuPy finds no GPU it can use ({_first_line(error)})"
    return f"CuPy {cupy.__version__}, " + (", ".join(f"cuda:{i} {name}" for i, name in enumerate(names)) or "no GPU")


def _cupy():
    if "cupy" in sys.modules:
        return importlib.import_module("cupy")
    with warnings.catch_warnings():  # which threads share, so only once
        warnings.simplefilter("ignore")  # a CUDA toolkit that it misses here will be missed again, as an error
        return importlib.import_module("cupy")


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
