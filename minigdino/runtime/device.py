"""Compute devices: the CPU, or a GPU through CuPy. The device of a layer follows from the type of its arrays.

CuPy is imported only here and in the kernel launcher, and only when the caller names a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import warnings
from contextlib import AbstractContextManager

import numpy as np

from ..errors import ArgumentError, brief, from_signal_handler
from .memory import reused

INSTALL = 'pip install "minigdino[cuda12]" or "minigdino[cuda13]", to match the CUDA version that nvidia-smi shows'


class Cpu:
    """The CPU. Arrays stay in host memory."""

    name = "cpu"

    def computing(self) -> AbstractContextManager:
        """Return the context manager for a forward pass. Inside, new arrays reuse freed memory."""
        return reused()

    def send(self, array: np.ndarray) -> np.ndarray:
        """Return a host array unchanged."""
        return array

    def fetch(self, array) -> np.ndarray:
        """Return an array unchanged."""
        return array


class Gpu:
    """A GPU, identified by its CUDA index."""

    def __init__(self, index: int):
        self.index, self.name = index, f"cuda:{index}"

    def computing(self) -> AbstractContextManager:
        """Return the context manager for a forward pass. Inside, new arrays and kernels use this GPU."""
        return _cupy().cuda.Device(self.index)

    def send(self, array: np.ndarray):
        """Copy a host array to this device."""
        with self.computing():
            copy = _cupy().empty(array.shape, array.dtype)
            copy.set(array)  # cupy.asarray would allocate a pinned host buffer of the same size, and keep it
        return copy

    def fetch(self, array) -> np.ndarray:
        """Copy an array of this device to the host. Waits until the array is computed."""
        with self.computing():
            return array.get()


def find_device(device: str) -> Cpu | Gpu:
    """Find a device by its name.

    Args:
        device: "cpu", "cuda" (the first GPU) or "cuda:N".

    Returns:
        The device.

    Raises:
        ArgumentError: if the name is invalid, CuPy is not installed, or the GPU is not available.
    """
    if isinstance(device, str) and device == "cpu":
        return Cpu()
    found = re.fullmatch(r"cuda(?::(\d+))?", device) if isinstance(device, str) else None
    if not found:
        raise ArgumentError(f'device must be "cpu", "cuda" or "cuda:N"; got {brief(device)}')
    if importlib.util.find_spec("cupy") is None:
        raise ArgumentError(f"device {device!r} needs CuPy, which is not installed.\n"
                            f'---> hint: {INSTALL}; or use device="cpu"')
    try:
        n = count_gpus()
    except Exception as error:  # a missing driver, or one of another version, can raise anything
        raise ArgumentError(f"device {device!r} needs a GPU, but CuPy finds none that it can use "
                            f"({_first_line(error)}).\n---> hint: nvidia-smi must list a GPU, and CuPy must match its "
                            f'driver: {INSTALL}; or use device="cpu"') from None
    index = int(found[1] or 0)
    if index >= n:
        available = ", ".join(f"cuda:{i}" for i in range(n)) or "none"
        raise ArgumentError(f'device {device!r} does not exist; available GPUs: {available}. Use one of them, or "cpu"')
    return Gpu(index)


def count_gpus() -> int:
    """Return the number of GPUs that CuPy finds. Without a driver, CuPy's own error is raised."""
    return _cupy().cuda.runtime.getDeviceCount()


def describe_gpus() -> str:
    """Describe CuPy and the available GPUs in one line. Imports nothing if CuPy is not installed."""
    if importlib.util.find_spec("cupy") is None:
        return "none: CuPy is not installed"
    try:
        cupy = _cupy()
        names = [cupy.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in range(count_gpus())]
    except Exception as error:  # as in find_device
        if from_signal_handler(error):
            raise
        return f"none: CuPy finds no GPU it can use ({_first_line(error)})"
    return f"CuPy {cupy.__version__}, " + (", ".join(f"cuda:{i} {name}" for i, name in enumerate(names)) or "no GPU")


def _cupy():
    if "cupy" in sys.modules:
        return importlib.import_module("cupy")
    with warnings.catch_warnings():  # not thread-safe, so used for the first import only
        warnings.simplefilter("ignore")  # CuPy warns of a missing CUDA toolkit; its first use raises an error anyway
        return importlib.import_module("cupy")


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
