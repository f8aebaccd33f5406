"""Set the environment variables that OpenBLAS reads when NumPy loads it.

This module has no effect once NumPy is loaded; set both variables yourself in that case. Existing values are kept.
"""

from __future__ import annotations

import os


def prepare(cpuinfo: str) -> None:
    """Set the variables that make a forward pass faster on this CPU.

    Args:
        cpuinfo: text of /proc/cpuinfo; empty if there is none.
    """
    # Idle OpenBLAS threads sleep after 2**14 cycles. By default they spin longer, and slow down minigdino's own loops.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "14")
    if halves_wide_vectors(cpuinfo):
        os.environ.setdefault("OPENBLAS_CORETYPE", "Zen")


def halves_wide_vectors(cpuinfo: str) -> bool:
    """Return whether the CPU is an AMD Zen 4, which executes 512-bit vector instructions in two halves.

    OpenBLAS chooses 512-bit kernels there that were tuned for other CPUs. Its 256-bit kernels are 7 % faster.

    Args:
        cpuinfo: text of /proc/cpuinfo.
    """
    first, *_ = cpuinfo.split("\n\n")
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    is_zen_3_or_4 = (fields.get("vendor_id"), fields.get("cpu family")) == ("AuthenticAMD", "25")
    return is_zen_3_or_4 and "avx512f" in fields.get("flags", "").split()


def _cpuinfo():
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return file.read(1 << 13)  # the first processor; reading hundreds of them takes time
    except OSError:  # not Linux
        return ""


prepare(_cpuinfo())
