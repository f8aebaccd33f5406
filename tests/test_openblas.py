"""The environment variables for OpenBLAS, which must be set before NumPy is loaded."""

import os
import subprocess
import sys

import pytest

from minigdino.runtime import openblas

ZEN_4 = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nflags\t\t: fpu avx2 avx512f fma\n"


@pytest.mark.parametrize(
    ("cpuinfo", "halves"),
    [
        (ZEN_4, True),
        (ZEN_4 + "\n" + ZEN_4.replace("25", "26"), True),  # only the first processor is read
        (ZEN_4.replace("avx512f ", ""), False),  # Zen 3
        (ZEN_4.replace("25", "26"), False),  # Zen 5, with full-width vector units
        (ZEN_4.replace("AuthenticAMD", "GenuineIntel"), False),
        ("processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n", False),  # arm64
        ("", False),
    ],
)
def test_only_zen_4_gets_256_bit_kernels(cpuinfo, halves, monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    openblas.prepare(cpuinfo)
    assert os.environ == {"OPENBLAS_THREAD_TIMEOUT": "14", **({"OPENBLAS_CORETYPE": "Zen"} if halves else {})}


def test_existing_values_are_kept(monkeypatch):
    existing = {"OPENBLAS_THREAD_TIMEOUT": "20", "OPENBLAS_CORETYPE": "Haswell"}
    monkeypatch.setattr(os, "environ", dict(existing))
    openblas.prepare(ZEN_4)
    assert os.environ == existing


def test_the_variables_are_set_before_numpy_is_loaded():
    code = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            import os
            print(os.environ["OPENBLAS_THREAD_TIMEOUT"])
sys.meta_path.insert(0, Finder())
import minigdino
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS")}
    run = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["14"]
