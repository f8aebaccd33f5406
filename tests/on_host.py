"""Compile minigdino's .cu files for the CPU and launch their kernels on the arrays of `fake_gpu.py`.

If MINIGDINO_SANITIZE is set, they are compiled with AddressSanitizer and UndefinedBehaviorSanitizer. The process must
then load the sanitizers' libraries first; `test_cuda.py` starts such a process.
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

COMPILER = shutil.which("g++") if sys.platform == "linux" else None  # the fibers of the header need Linux
SANITIZED = "MINIGDINO_SANITIZE" in os.environ
HEADER = Path(__file__).with_name("cuda_on_host.h")
# _FORTIFY_SOURCE, the default of some compilers, reports a longjmp to another stack as an error
FLAGS = ["-std=c++17", "-g", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-include", str(HEADER)]
CHECKS = ["-O1", "-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
TYPES = (np.dtype(np.float32), np.dtype(np.float64))


def build(text: str) -> ctypes.CDLL:
    """Compile C++ code to a shared library and load it."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernels.cpp"
        source.write_text(text)
        command = [COMPILER, *FLAGS, *(CHECKS if SANITIZED else ["-O2"]), str(source), "-o", f"{folder}/kernels.so"]
        subprocess.run(command, check=True, timeout=300)
        return ctypes.CDLL(f"{folder}/kernels.so")


@functools.cache
def library(file: str) -> ctypes.CDLL:
    """A library of all kernels of a .cu file, compiled for float and double."""
    names = [name for dtype in TYPES for name in cuda.instances(file, dtype)]
    return build(cuda.source(file) + "".join(map(wrapper, names)))


def entry(name: str) -> str:
    """The name of a kernel in the library: "relu<float>" -> "relu_float"."""
    return name.replace("<", "_").rstrip(">")


def wrapper(name: str) -> str:
    """C++ code of the function that launches one kernel."""
    return (
        f'extern "C" void {entry(name)}(int blocks, int threads, bool backwards, void **arguments) {{\n'
        f"    host::run({name}, blocks, threads, backwards, arguments);\n}}\n"
    )


def compiled(kernel: str, dtype: np.dtype):
    """Replacement for `minigdino._ext.cuda.compiled`: a function to call with (grid, block, arguments).

    It launches the kernel twice, with the threads in opposite orders, and compares the results.
    """
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
        for backwards in (True, False):
            out._host.fill(np.nan)
            run(*grid, *block, backwards, addresses)
            results.append(out.get())
        np.testing.assert_array_equal(*results, err_msg=f"{name} depends on the order of its threads")

    return launch


def parameter(argument) -> np.ndarray:
    """The value that CuPy would pass to a kernel for an argument."""
    if isinstance(argument, Array):
        return np.array(argument._host.ctypes.data, np.uintp)
    if argument is None:
        return np.array(0, np.uintp)
    if isinstance(argument, np.generic) or (isinstance(argument, np.ndarray) and argument.size == 1):
        return np.asarray(argument)
    raise TypeError(f"expected an array or a NumPy scalar; CuPy passes no {type(argument).__name__} to a kernel")
