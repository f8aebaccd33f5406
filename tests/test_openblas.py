"""OpenBLAS is told what is faster, before NumPy loads it."""

import os
import subprocess
import sys

import pytest

from minigdino.runtime import openblas as blas

ZEN_4 = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nflags\t\t: fpu avx2 avx512f fma\n"


@pytest.mark.parametrize(
    ("cpuinfo", "halves"),
    [
        (ZEN_4, True),
        (ZEN_4 + "\n" + ZEN_4.replace("25", "26"), True),  # the first processor speaks for all
        (ZEN_4.replace("avx512f ", ""), False),  # Zen 3
        (ZEN_4.replace("25", "26"), False),  # Zen 5, whose vectors are whole
        (ZEN_4.replace("AuthenticAMD", "GenuineIntel"), False),
        ("processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n", False),  # arm64
        ("", False),
    ],
)
def test_zen_4_alone_gets_kernels_for_shorter_vectors(cpuinfo, halves, monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    blas.prepare(cpuinfo)
    assert os.environ == {"OPENBLAS_THREAD_TIMEOUT": "14", **({"OPENBLAS_CORETYPE": "Zen"} if halves else {})}


def test_what_the_user_has_set_stays(monkeypatch):
    mine = {"OPENBLAS_THREAD_TIMEOUT": "20", "OPENBLAS_CORETYPE": "Haswell"}
    monkeypatch.setattr(os, "environ", dict(mine))
    blas.prepare(ZEN_4)
    assert os.environ == mine


def test_the_environment_is_set_before_numpy_is_there():
    code = """
import sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            import os
            print(os.environ["OPENBLAS_THREAD_TIMEOUT"])
sys.meta_path.insert(0, Watch())
import minigdino
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS")}
    run = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["14"]
