"""Which device a model computes on, checked before anything is loaded."""

from __future__ import annotations

import importlib.util
import re

from .errors import ArgumentError

USE_CPU = 'this version computes on the CPU alone; use device="cpu"'


def check_device(device: str) -> None:
    """Raise ArgumentError, saying which of its needs is missing, for any device but "cpu"."""
    if device == "cpu":
        return
    if not isinstance(device, str) or not re.fullmatch(r"cuda(:\d+)?", device):
        raise ArgumentError(f'device must be "cpu"; got {device!r}')
    if importlib.util.find_spec("cupy") is None:
        raise ArgumentError(f"device {device!r} needs CuPy, which is not installed. And even with it, {USE_CPU}")
    import cupy

    try:
        n = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ArgumentError(f"device {device!r}: CuPy finds no GPU ({error}). And even with one, {USE_CPU}") from None
    raise ArgumentError(f"device {device!r}: there are {n} GPUs here, but {USE_CPU}")
