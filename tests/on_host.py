"""The .cu files of minigdino, compiled for this machine's processor, and launched on the arrays of `fake_gpu.py`.

With MINIGDINO_SANITIZE set, with AddressSanitizer and UndefinedBehaviorSanitizer, whose library the process must have
loaded first: `test_cuda.py` starts such a process.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from fake_gpu import Array, Gpu
from minigdino._ext import cuda

COMPILER = shutil.which("g++") if sys.platform == "linux" else None  # the header's fibers are Linux's
SANITIZED = "MINIGDINO_SANITIZE" in os.environ
HEADER = Path(__file__).with_name("cuda_on_host.h")
# some systems' compilers take a jump to another stack for an attack, unless told not to
FLAGS = ["-std=c++17", "-g", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-include", str(HEADER)]
CHECKS = ["-O1", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
TYPES = (np.dtype(np.float32), np.dtype(np.float64))


def build(text: str) -> ctypes.CDLL:
    """A library of C++ text."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernels.cpp"
        source.write_text(text)
        command = [COMPILER, *FLAGS, *(CHECKS if SANITIZED else ["-O2"]), str(source), "-o", f"{folder}/kernels.so"]
        subprocess.run(command, check=True, timeout=300)
        return ctypes.CDLL(f"{folder}/kernels.so")


@functools.cache
def library(file: str) -> ctypes.CDLL:
    """Every kernel that `minigdino._ext.cuda` may launch from a file, in both types."""
    names = [name for dtype in TYPES for name in cuda.instances(file, dtype)]
    return build(cuda.source(file) + "".join(map(wrapper, names)))


def entry(name: str) -> str:
    """"relu<float>" -> "relu_float": what the library calls it"""
    return name.replace("<", "_").rstrip(">")


def wrapper(name: str) -> str:
    """C++ text that makes one kernel callable."""
    return (
        f'extern "C" void {entry(name)}(int blocks, int threads, bool backwards, void **arguments) {{\n'
        f"    host::run({name}, blocks, threads, backwards, arguments);\n}}\n"
    )


def compiled(kernel: str, dtype: np.dtype):
    """What `minigdino._ext.cuda.compiled` gives on a GPU: call it with (grid, block, arguments)."""
    file = next(file for file, kernels in cuda.KERNELS.items() if kernel in kernels)
    name = f"{kernel}<{cuda.NAMES[dtype.char]}>"
    run = getattr(library(file), entry(name))

    def launch(grid, block, arguments):
        assert len(grid) == len(block) == 1
        assert 1 <= grid[0] < 2**31
        Gpu.current.launched[name] += 1
        *_, out = arguments
        held, results = [parameter(a) for a in arguments], []
        addresses = (ctypes.c_void_p * len(held))(*[p.ctypes.data for p in held])
        for backwards in (True, False):  # the order of threads must not matter
            out._host.fill(np.nan)
            run(*grid, *block, backwards, addresses)
            results.append(out.get())
        np.testing.assert_array_equal(*results, err_msg=f"{name} depends on the order of its threads")

    return launch


def parameter(argument) -> np.ndarray:
    """The bytes that a kernel is given for an argument, by CuPy's rules."""
    if isinstance(argument, Array):
        return np.array(argument._host.ctypes.data, np.uintp)
    if argument is None:
        return np.array(0, np.uintp)
    if isinstance(argument, np.generic) or (isinstance(argument, np.ndarray) and argument.size == 1):
        return np.asarray(argument)
    raise TypeError(f"CuPy passes no {type(argument).__name__} to a kernel")
