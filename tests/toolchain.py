"""Compile .cu files with the NVIDIA compilers that are installed: nvcc, and NVRTC, which CuPy uses."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

OPTIONS = "-std=c++17"  # as in minigdino/_ext/cuda.py


class Failed(Exception):
    """Compilation failed; the message is the compiler's output."""


def entries(ptx: str) -> dict[str, str]:
    """The kernels in PTX code: {mangled name: instructions}"""
    return dict(re.findall(r"^\.(?:visible|weak) \.entry (\w+)(\(.*?^\})", ptx, re.MULTILINE | re.DOTALL))


def by_nvcc(source: str, names: list[str], capability: str) -> dict[str, str]:
    """Compile CUDA source with nvcc.

    Args:
        source: CUDA source code.
        names: kernel instances to compile, such as "relu<float>".
        capability: compute capability, such as "9.0".

    Returns:
        {name: instructions} of the instances in the output.

    Raises:
        Failed: if the compiler fails.
    """
    table = "\nvoid *instances[] = {" + ", ".join(f"(void *){name}" for name in names) + "};\n"
    with tempfile.TemporaryDirectory() as folder:
        cu, ptx = Path(folder) / "kernels.cu", Path(folder) / "kernels.ptx"
        cu.write_text(source + table)
        target = f"compute_{capability.replace('.', '')}"
        run = subprocess.run(
            [NVCC, "-ptx", OPTIONS, "-Werror=all-warnings", f"-arch={target}", str(cu), "-o", str(ptx)],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise Failed(run.stdout + run.stderr)
        mangled = entries(ptx.read_text())
    # the mangled name _Z4reluIfEvPKT_S2_iPS0_ starts with the length of the name, the name and the template argument
    return {
        name: text
        for name in names
        for function, kind in [re.fullmatch(r"(\w+)<(\w+)>", name).groups()]
        for entry, text in mangled.items()
        if entry.startswith(f"_Z{len(function)}{function}I{kind[0]}E")
    }


def by_nvrtc(source: str, names: list[str], capability: str) -> dict[str, str]:
    """As `by_nvcc`, with NVRTC. Kernels are looked up by their lowered names, as CuPy does."""
    nvrtc, program = ctypes.CDLL(str(NVRTC)), ctypes.c_void_p()

    def call(function, *arguments):
        if status := getattr(nvrtc, f"nvrtc{function}")(*arguments):
            raise Failed(f"nvrtc{function} returned status {status}\n{log()}")

    def log():
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, text)
        return text.value.decode()

    call("CreateProgram", ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    try:
        for name in names:
            call("AddNameExpression", program, name.encode())
        options = [OPTIONS.encode(), f"--gpu-architecture=compute_{capability.replace('.', '')}".encode()]
        call("CompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*options))
        size = ctypes.c_size_t()
        call("GetPTXSize", program, ctypes.byref(size))
        ptx = ctypes.create_string_buffer(size.value)
        call("GetPTX", program, ptx)
        kernels, found = entries(ptx.value.decode()), {}
        for name in names:
            lowered = ctypes.c_char_p()
            call("GetLoweredName", program, name.encode(), ctypes.byref(lowered))
            if (entry := lowered.value.decode()) in kernels:
                found[name] = kernels[entry]
        return found
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _find_nvrtc():
    """The library of the wheel nvidia-cuda-nvrtc; its folder depends on the version of CUDA."""
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations if spec else ():
        if found := sorted(Path(root).glob("*/lib/libnvrtc.so.*")):
            return found[0]
    return None


NVCC, NVRTC = shutil.which("nvcc"), _find_nvrtc()
COMPILERS = {name: f for name, found, f in (("nvcc", NVCC, by_nvcc), ("nvrtc", NVRTC, by_nvrtc)) if found}
