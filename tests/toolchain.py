"""What NVIDIA's compilers make of a .cu file: NVRTC, which CuPy uses, and nvcc, whichever is installed."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

OPTIONS = "-std=c++17"  # as minigdino/_ext/cuda.py gives


class Failed(Exception):
    """The compiler's own words."""


def entries(ptx: str) -> dict[str, str]:
    """Kernels in PTX: mangled name -> instructions."""
    return dict(re.findall(r"^\.(?:visible|weak) \.entry (\w+)(\(.*?^\})", ptx, re.MULTILINE | re.DOTALL))


def by_nvcc(source: str, names: list[str], capability: str) -> dict[str, str]:
    """Which of these instances nvcc's output for a compute capability has, and their instructions."""
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
    # _Z4reluIfEvPKT_S2_iPS0_: the length of the name, the name, its template argument
    return {
        name: text
        for name in names
        for function, kind in [re.fullmatch(r"(\w+)<(\w+)>", name).groups()]
        for entry, text in mangled.items()
        if entry.startswith(f"_Z{len(function)}{function}I{kind[0]}E")
    }


def by_nvrtc(source: str, names: list[str], capability: str) -> dict[str, str]:
    """The same of NVRTC's output, under the names that CuPy looks for."""
    nvrtc, program = ctypes.CDLL(str(NVRTC)), ctypes.c_void_p()

    def call(function, *arguments):
        if status := getattr(nvrtc, f"nvrtc{function}")(*arguments):
            raise Failed(f"nvrtc{function} gives {status}\n{log()}")

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
    """The library in the wheel nvidia-cuda-nvrtc, whose folder differs between versions of CUDA."""
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations if spec else ():
        if found := sorted(Path(root).glob("*/lib/libnvrtc.so.*")):
            return found[0]
    return None


NVCC, NVRTC = shutil.which("nvcc"), _find_nvrtc()
COMPILERS = {name: f for name, here, f in (("nvcc", NVCC, by_nvcc), ("nvrtc", NVRTC, by_nvrtc)) if here}
