"""The build uses only flags that the compiler accepts, and reports every compiled module that is missing.

The compiler here is a script that logs its arguments and writes empty files. It rejects the words in $REJECTS, and
fails for sources named in $FAILS.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools", reason="running setup.py needs setuptools, which Python 3.12 and later do not bring")

ROOT = Path(__file__).parent.parent
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one level")

COMPILER = """#!/bin/sh
echo "$@" >> log.txt
while [ $# -gt 0 ]; do
    case " $REJECTS " in *" $1 "*) echo "cc: note: some text" >&2; echo "cc: error: unknown flag $1" >&2; exit 1;; esac
    case " $FAILS " in *" $1 "*) echo "$1:7: error: no such type" >&2; exit 1;; esac
    [ "$1" = -o ] && output=$2
    shift
done
echo > "$output"
"""
CYTHON = """
from pathlib import Path
def cythonize(sources):
    for source in sources:
        Path(source).with_suffix(".c").write_text("")
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A function that runs setup.py with the compiler above: its exit status, messages, and the files built."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "_ext").mkdir()
    (tmp_path / "cc").write_text(COMPILER)
    (tmp_path / "cc").chmod(0o755)
    (tmp_path / "Cython").mkdir()
    (tmp_path / "Cython" / "__init__.py").touch()
    (tmp_path / "Cython" / "Build.py").write_text(CYTHON)
    compiler = str(tmp_path / "cc")

    def run(*options, **variables):
        env = {k: v for k, v in os.environ.items() if k not in ("CFLAGS", "LDFLAGS", "MINIGDINO_REQUIRE_KERNELS")}
        env |= {"CC": compiler, "LDSHARED": f"{compiler} -shared", "PYTHONPATH": str(tmp_path), **variables}
        done = subprocess.run([sys.executable, "setup.py", "build_ext", "--build-lib", "lib", *options], cwd=tmp_path,
                              env=env, capture_output=True, text=True, timeout=120, check=False)
        names = {str(file.relative_to(tmp_path / "lib/minigdino/_ext")).partition(".")[0]
                 for file in (tmp_path / "lib").rglob("*.so")}
        return done.returncode, done.stderr, names

    run.folder = tmp_path
    run.log = lambda: (tmp_path / "log.txt").read_text().splitlines()
    return run


def compilations(build):
    """The command lines that compiled a module, without the probes."""
    return [line for line in build.log() if "_ext/" in line and " -c " in line]


def test_every_module_is_built_and_listed(build):
    status, said, names = build()
    assert status == 0
    assert {"cpu", "deformable", "ops", "swin"} <= names
    assert "every compiled module was built" in said
    assert all("-fno-tree-pre" in line for line in compilations(build))


def test_every_way_of_building_uses_all_cpus(build):
    program = ("from setuptools.dist import Distribution\n"
               "import setuptools, sys\n"
               "made = []\n"
               "setuptools.setup = lambda **options: made.append(Distribution(options))\n"
               "exec(compile(open('setup.py').read(), 'setup.py', 'exec'))\n"
               "made[0].get_command_obj('build_ext').ensure_finalized()\n"
               "command = made[0].reinitialize_command('build_ext')\n"  # as an editable installation does
               "command.ensure_finalized()\n"
               "print(command.parallel)")
    done = subprocess.run([sys.executable, "-c", program], cwd=build.folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(build.folder)}, timeout=120, check=True)
    assert int(done.stdout.split()[-1]) == os.cpu_count()


def test_flags_that_the_compiler_rejects_are_left_out(build):
    rejected = "-fno-tree-pre -mprefer-vector-width=512 -Wl,--strip-all"
    status, said, names = build(REJECTS=rejected, MINIGDINO_REQUIRE_KERNELS="1")
    assert status == 0, said
    assert "ops" in names
    assert not any(flag in line for flag in rejected.split() for line in compilations(build))
    assert all("-fno-math-errno" in line for line in compilations(build))


def test_flags_are_probed_without_werror_if_the_compiler_warns_about_pythons_own_flags(build):
    status, _, names = build(REJECTS="-Werror")
    assert status == 0
    assert "ops" in names
    assert all("-fno-tree-pre" in line and "-Werror" not in line for line in compilations(build))


@on_x86
def test_a_level_that_the_compiler_does_not_know_is_skipped_and_reported(build):
    status, said, names = build(REJECTS="-mavx512f")
    assert status == 0
    assert {"ops", "avx2/ops"} <= names
    assert not any(name.startswith("avx512/") for name in names)
    assert "avx512.ops was not built: the compiler rejects -mavx2" in said
    assert "MINIGDINO_REQUIRE_KERNELS=1" in said


def test_a_module_that_fails_is_reported_with_the_first_error_of_the_compiler(build):
    status, said, names = build(FAILS="_ext/ops.c")
    assert status == 0
    assert "deformable" in names
    assert not any(name.endswith("ops") for name in names)
    assert "\n  ops was not built: _ext/ops.c:7: error: no such type\n" in said


def test_a_missing_compiler_is_reported(build):
    status, said, names = build(CC="/no/such/compiler")
    assert (status, names) == (0, set())
    assert "ops was not built: " in said
    assert "/no/such/compiler" in said


@pytest.mark.parametrize("variables", [{"FAILS": "_ext/ops.c"}, {"CC": "/bin/false"}])
def test_a_missing_kernel_can_fail_the_build(build, variables):
    status, said, _ = build(**variables, MINIGDINO_REQUIRE_KERNELS="1")
    assert status != 0
    assert "ops was not built" in said
    assert said.rstrip().endswith("install a C compiler, or unset MINIGDINO_REQUIRE_KERNELS to continue without them")


def test_a_module_that_fails_does_not_keep_the_file_of_an_earlier_build(build):
    for level in ("", "avx2", "avx512"):
        (build.folder / "minigdino/_ext" / level).mkdir(parents=True, exist_ok=True)

    def in_place():
        return list((build.folder / "minigdino/_ext").glob("ops.*"))

    assert "ops" in build("--inplace")[2]
    assert in_place()
    assert "ops" not in build("--inplace", FAILS="_ext/ops.c")[2]
    assert not in_place()


@on_x86
def test_levels_compiled_at_the_same_time_use_different_object_files(build):
    build()
    outputs = [line.partition(" -o ")[2].split()[0] for line in compilations(build)]
    assert len(set(outputs)) == len(outputs) > 3
