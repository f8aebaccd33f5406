"""Only what pyproject.toml cannot say: the compiled twins. Without a C compiler the NumPy references run instead."""

import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

TWINS = ("bilinear", "deform_attn", "gelu")

# Neither option changes a result: they let the compiler compute both sides of a condition, and so several lanes.
FLAGS = ["-O3", "-fno-trapping-math", "-fno-math-errno"] if sys.platform != "win32" else ["/O2"]

extensions = cythonize([Extension(f"minigdino._ext.{name}", [f"_ext/{name}.pyx"], extra_compile_args=FLAGS)
                        for name in TWINS])
for extension in extensions:
    extension.optional = True  # only now: cythonize makes new ones, and forgets it

setup(ext_modules=extensions)
