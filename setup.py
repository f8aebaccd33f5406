"""Build the compiled twins; everything else is in pyproject.toml. Without a C compiler the NumPy references run.

Packagers and CI set MINIGDINO_REQUIRE_KERNELS=1: then the build fails if any compiled module is missing.
"""

import copy
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, ExecError, LinkError

TWINS = ("deformable", "fusion", "gradients", "ops", "products", "swin")  # compiled for every level
ONCE = ("cpu", "memory", "pool")  # compiled for any CPU only
PACKAGE = "minigdino._ext"
NUMPY = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_1_22_API_VERSION")]

# Flags that are used if the compiler accepts them. MSVC uses its default, /O2, and cannot compile product.h. The
# -fno-... flags change no result. The first two let the compiler evaluate both sides of a condition, which it needs for
# vectorisation. The last one is for GCC: it stops GCC from adding a branch where a clamped value is constant.
FLAGS = ["-O3", "-fno-trapping-math", "-fno-math-errno", "-fno-tree-pre", "-g0"]
FLAGS_FOR_LEVEL = {"avx512": ["-mprefer-vector-width=512"]}
STRIP = ["-Wl,--strip-all"]

# Every twin is compiled for any processor and, on x86-64, also for AVX2 and AVX-512: with the instructions that
# _ext/cpu.pyx looks for, and no others. _ext/instruction_sets.py selects one version at run time. A package built on
# one machine therefore runs on every other.
LEVELS = {"": []}  # {level: flags that it needs}
if sysconfig.get_platform().endswith("x86_64"):
    LEVELS["avx2"] = ["-mavx2", "-mfma", "-mbmi2"]
    LEVELS["avx512"] = [*LEVELS["avx2"], "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"]


class BuildKernels(build_ext):
    """Compile with the flags that the compiler accepts, and report every module that could not be built."""

    def finalize_options(self):
        """Compile with all CPUs. An option of `setup` would be lost in an editable installation."""
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self):
        """Build, report, and fail if a module is missing and MINIGDINO_REQUIRE_KERNELS is 1."""
        self.missing = {}  # {module: reason}
        in_place = self.inplace
        for self.inplace in (False, in_place):  # the file of an earlier build must not hide that a module fails now
            for ext in self.extensions:
                Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        super().run()
        missing = "".join(f"\n  {name.removeprefix(f'{PACKAGE}.')} was not built: {reason}"
                          for name, reason in sorted(self.missing.items()))
        if missing and os.environ.get("MINIGDINO_REQUIRE_KERNELS") == "1":
            raise CompileError(f"compiled modules are missing:{missing}\n---> hint: install a C compiler, or unset "
                               "MINIGDINO_REQUIRE_KERNELS to continue without them")
        print(f"minigdino: compiled modules are missing, so inference is slower:{missing}\n---> hint: install a C "
              "compiler. MINIGDINO_REQUIRE_KERNELS=1 turns this into an error" if missing
              else "minigdino: every compiled module was built", file=sys.stderr)

    def build_extensions(self):
        """Choose the flags of every extension, then build all."""
        self.rejected, self.strict = {}, []
        if self.probes() and self.accepts():
            # Python's own flags may cause warnings; then a warning does not mean that the probed flag was rejected
            self.strict = ["-Werror"] if self.accepts("-Werror") else []
            accepted = {flag for flag in [*FLAGS, *sum(FLAGS_FOR_LEVEL.values(), [])] if self.accepts(flag)}
            self.rejected = {level: needed for level, needed in LEVELS.items() if not self.accepts(*needed)}
            strip = STRIP if self.accepts(link=STRIP) else []
            for ext in self.extensions:
                wanted = [*FLAGS, *FLAGS_FOR_LEVEL.get(ext.level, [])]
                ext.extra_compile_args = [flag for flag in wanted if flag in accepted] + LEVELS[ext.level]
                ext.extra_link_args = strip
        super().build_extensions()

    def build_extension(self, ext):
        """Build one extension, in a folder of its own: the levels of a module have the same source, and run at once."""
        own = copy.copy(self)
        own.build_temp = os.path.join(self.build_temp, ext.name)
        try:
            if ext.level in self.rejected:
                raise CompileError(f"the compiler rejects {' '.join(self.rejected[ext.level])}")
            super(BuildKernels, own).build_extension(ext)
        except (CompileError, ExecError, LinkError) as error:
            self.missing[ext.name] = self.why_not(ext) or str(error)
            raise

    def probes(self):
        """Return whether the compiler has GCC's command line, so that the methods below can run it."""
        return self.compiler.compiler_type != "msvc"

    def accepts(self, *flags, link=()):
        """Return whether the compiler accepts flags; with `link`, also whether the linker accepts those."""
        with tempfile.TemporaryDirectory() as folder:
            source, made, library = (os.path.join(folder, name) for name in ("probe.c", "probe.o", "probe.so"))
            Path(source).write_text("int probe;\n")
            error = first_error([*self.compiler.compiler_so, *self.strict, *flags, "-c", source, "-o", made])
            return not (error or (link and first_error([*self.compiler.linker_so, made, *link, "-o", library])))

    def why_not(self, ext):
        """Return the compiler's first error for an extension; None if there is none or it cannot be found out."""
        if ext.level in self.rejected or not self.probes():
            return None
        options = [*(f"-I{path}" for path in [*self.compiler.include_dirs, *ext.include_dirs]),
                   *(f"-D{name}={value}" for name, value in ext.define_macros), *ext.extra_compile_args]
        with tempfile.TemporaryDirectory() as folder:
            made = os.path.join(folder, "probe.o")
            return first_error([*self.compiler.compiler_so, *options, "-c", *ext.sources, "-o", made])


def first_error(command):
    """Run a compiler without showing its messages. Return its first error; None if it succeeds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = [*done.stderr.splitlines(), f"{command[0]} failed with exit code {done.returncode}"]
    return next((line for line in lines if "error" in line), lines[0])


def extension(name, level=""):
    ext = Extension(".".join(filter(None, (PACKAGE, level, name))), [f"_ext/{name}.c"], optional=True,
                    include_dirs=[numpy.get_include()], define_macros=NUMPY,
                    depends=[str(path) for path in Path("_ext").glob("*.h")])  # puts them into the source archive
    ext.level = level
    return ext


cythonize([f"_ext/{name}.pyx" for name in (*TWINS, *ONCE)])
setup(ext_modules=[*map(extension, ONCE), *(extension(name, level) for name in TWINS for level in LEVELS)],
      cmdclass={"build_ext": BuildKernels})
