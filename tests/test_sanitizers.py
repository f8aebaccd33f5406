"""The compiled twins under AddressSanitizer and UndefinedBehaviorSanitizer, which find what boundscheck=False hides.

The C files that the build left in _ext are compiled again, for one instruction set. `PYTHONMALLOC=malloc` gives every
tuple a block of its own, so that a read past the end of a shape is found too.
"""

import functools
import json
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import on_host
import pytest
from minigdino._ext import instruction_sets
from places import WITH_COMPILER
from test_cuda import sanitized

import minigdino
from minigdino.runtime import kernels

pytestmark = [pytest.mark.slow, WITH_COMPILER]

PACKAGE, SOURCES = Path(minigdino.__file__).parent, Path(instruction_sets.__file__).parent
FLAGS = ["-x", "c", "-shared", "-fPIC", "-O0", "-g1", "-U_FORTIFY_SOURCE", f"-I{sysconfig.get_path('include')}",
         f"-I{np.get_include()}", "-DNPY_NO_DEPRECATED_API=NPY_1_7_API_VERSION",
         "-DNPY_TARGET_VERSION=NPY_1_22_API_VERSION", *on_host.CHECKS[1:]]  # fmt: skip


@functools.cache
def built(*flags):
    """A folder with a copy of the package whose extensions are compiled with the sanitizers, without AVX versions."""
    sources = sorted(SOURCES.glob("*.pyx"))
    stale = [path.name for path in sources if not _is_newer(path.with_suffix(".c"), path)]
    if stale:
        pytest.skip(f"no current C file of {', '.join(stale)}; run make build")
    folder = tempfile.TemporaryDirectory()
    package = Path(folder.name) / "minigdino"
    (package / "_ext").mkdir(parents=True)
    for path in (*PACKAGE.iterdir(), *(path for path in SOURCES.iterdir() if path.is_file())):
        if path.suffix not in (".so", ".c") and path.name not in ("_ext", "__pycache__"):
            (package / ("_ext" if path.parent == SOURCES else "") / path.name).symlink_to(path)

    def compile(path):
        library = package / "_ext" / (path.stem + sysconfig.get_config_var("EXT_SUFFIX"))
        command = [on_host.COMPILER, *FLAGS, *flags, str(path.with_suffix(".c")), "-o", str(library)]
        subprocess.run(command, check=True, timeout=300)

    with ThreadPoolExecutor() as pool:
        list(pool.map(compile, sources))
    return folder


def _is_newer(path, other):
    return path.exists() and path.stat().st_mtime >= other.stat().st_mtime


@pytest.fixture
def run(monkeypatch):
    """A function that runs Python code with the sanitized twins."""
    monkeypatch.setenv("PYTHONMALLOC", "malloc")
    monkeypatch.setenv("MINIGDINO_VECTORS", "baseline")  # the only level that is compiled with the sanitizers

    def run(code, *args, flags=()):
        start = f"import sys; sys.path.insert(0, {built(*flags).name!r}); import minigdino\n"
        return sanitized("-W", "ignore", "-c", start + code, *args)

    return run


def test_the_sanitizer_detects_a_loop_that_is_too_long(run):
    code = """
import numpy as np
from minigdino._ext import deformable
image, xy, out = np.ones((2, 3, 1, 4)), np.full((5, 1, 1, 2), 0.5), np.zeros((5, 1, 1, 4))
deformable._bilinear_rows(image, xy, out, 0, int(sys.argv[1]))
print(deformable.__file__, out.sum())
"""
    right = run(code, "5")
    assert right.returncode == 0, right.stderr[-3000:]
    assert right.stdout.startswith(built().name)
    assert "heap-buffer-overflow" in run(code, "6").stderr


def test_sanitizers_find_no_error_when_twins_refuse_arguments(run):
    """The cases of refused.py."""
    refused = Path(__file__).with_name("refused.py")
    done = run(f"import runpy; runpy.run_path({str(refused)!r}, run_name='__main__')", "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    case, _, report = done.stderr.partition("\n=====")
    assert done.returncode == 0, case[-200:] + report[:2000]
    assert [line["op"] for line in lines] == sorted(kernels.OPS)
    assert not any(line["faults"] for line in lines)


def test_sanitizers_find_no_error_in_the_twins(run):
    """The generated problems of test_kernels.py, the tests of products and of the allocator."""
    done = run("import pytest; sys.exit(pytest.main(sys.argv[1:]))", "-q", "-p", "no:cacheprovider",
               "tests/test_memory.py", "tests/test_kernels.py", "tests/test_products.py", "-k",
               "every_twin and not cuda and not gpu or empty or test_products or test_memory")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


def test_products_by_emulated_instructions_are_exact_and_within_bounds(run):
    """The tests of products, with the instructions of tiles.h and pairs.h in C. So they run on every processor."""
    done = run("""
import pytest
from minigdino._ext import products
for n in (1, 2, 3):
    products.parts.set(n)
    assert products.pack(products.np.ones((70, 70), "f")).parts == n
sys.exit(pytest.main(sys.argv[1:]))
""", "-q", "-p", "no:cacheprovider", "tests/test_products.py", "-k", "emulated",
               flags=("-DEMULATE_TILES", "-O1"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
