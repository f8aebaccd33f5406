"""Only what pyproject.toml cannot say: the compiled twins. Without a C compiler the NumPy references run instead."""

from Cython.Build import cythonize
from setuptools import Extension, setup

TWINS = ("bilinear", "deform_attn")

setup(ext_modules=cythonize(
    [Extension(f"minigdino._ext.{name}", [f"_ext/{name}.pyx"], extra_compile_args=["-O3"], optional=True)
     for name in TWINS]))
