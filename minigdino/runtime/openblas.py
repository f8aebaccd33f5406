"""What OpenBLAS reads from the environment when NumPy loads it, so this module must be imported before NumPy.

Whoever imports NumPy first, and minds the seconds, sets both for the process. A value that is set already stays.
"""

from __future__ import annotations

import os


def prepare(cpuinfo: str) -> None:
    """Set what makes a pass faster on this processor, as /proc/cpuinfo describes it."""
    # idle threads sleep after 2**14 cycles; by default they spin through our loops
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "14")
    if halves_wide_vectors(cpuinfo):
        os.environ.setdefault("OPENBLAS_CORETYPE", "Zen")


def halves_wide_vectors(cpuinfo: str) -> bool:
    """Whether it is AMD's Zen 4, which computes vectors of 512 bits in two halves.

    OpenBLAS has its kernels of 512 bits there, made for other processors; those of 256 run 7 % faster.
    """
    first, *_ = cpuinfo.split("\n\n")
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    return (said.get("vendor_id"), said.get("cpu family")) == ("AuthenticAMD", "25") and "avx512f" in said.get(
        "flags", "").split()


def _cpuinfo():
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return file.read(1 << 13)  # the first processor; a large server describes hundreds, which takes time
    except OSError:  # not Linux
        return ""


prepare(_cpuinfo())
