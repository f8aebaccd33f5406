"""Build the compiled twins; everything else is in pyproject.toml. Without a C compiler the NumPy references run."""

import os
import sys
import sysconfig

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

TWINS = ("deformable", "ops", "swin")

# The -fno-... flags change no result. The first two let the compiler evaluate both sides of a condition, which it needs
# for vectorisation. The last one stops GCC from adding a branch where a clamped value is constant.
FLAGS = ["-O3", "-fno-trapping-math", "-fno-math-errno", "-fno-tree-pre", "-g0"] if sys.platform != "win32" else ["/O2"]
NUMPY = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_1_22_API_VERSION")]
STRIP = ["-Wl,--strip-all"] if sys.platform == "linux" else []

# Every source is compiled for any processor and, on x86-64, also for AVX2 and AVX-512. minigdino/runtime/kernels.py
# selects one version at run time. A package built on one machine therefore runs on every other.
LEVELS = {"": []}
if sys.platform != "win32" and sysconfig.get_platform().endswith("x86_64"):
    LEVELS["avx2."] = ["-march=x86-64-v3"]
    LEVELS["avx512."] = ["-march=x86-64-v4", "-mprefer-vector-width=512"]

cythonize([f"_ext/{name}.pyx" for name in (*TWINS, "cpu", "memory")])


def extension(name, level="", flags=()):
    return Extension(f"minigdino._ext.{level}{name}", [f"_ext/{name}.c"], extra_compile_args=[*FLAGS, *flags],
                     extra_link_args=STRIP, include_dirs=[numpy.get_include()], define_macros=NUMPY, optional=True)


twins = [extension(name, level, flags) for name in TWINS for level, flags in LEVELS.items()]
setup(ext_modules=[extension("cpu"), extension("memory"), *twins], options={"build_ext": {"parallel": os.cpu_count()}})
