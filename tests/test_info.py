"""`info()` reports what was built and what runs; a compiled module that is missing or broken is never silent."""

import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from minigdino._ext import instruction_sets

import minigdino
from minigdino.learning import backward  # noqa: F401  registers its twins
from minigdino.runtime import kernels
from minigdino.runtime.bench import _machine

ROOT = Path(__file__).parent.parent

COMPILED = ("deformable", "fusion", "gradients", "ops", "products", "swin")
OF_PRODUCTS = (", products: amx" if instruction_sets.tiles() else
               ", products: avx512bf16 in medium" if instruction_sets.pairs() else "")


@pytest.fixture
def without(monkeypatch):
    """A function that makes compiled modules unavailable: {name: None if not built, else the error of loading it}."""

    def clear():
        for cached in (instruction_sets.levels, instruction_sets.load):
            cached.cache_clear()

    def hide(modules):
        def import_module(name):
            short = name.removeprefix("minigdino._ext.")
            if short in modules:
                raise modules[short] or ModuleNotFoundError(f"No module named {name!r}", name=name)
            return original(name)

        monkeypatch.setattr(instruction_sets.importlib, "import_module", import_module)
        clear()

    original = instruction_sets.importlib.import_module
    monkeypatch.setattr(instruction_sets, "problems", {})
    monkeypatch.setattr(kernels, "problems", instruction_sets.problems)
    monkeypatch.setattr(kernels, "_announced", False)
    clear()
    yield hide
    monkeypatch.undo()
    clear()


def warned():
    """The messages of warnings when an op runs twice."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            kernels.OPS["relu"](np.ones((2, 3), np.float32))
    return [str(warning.message) for warning in caught]


def test_a_complete_build_misses_nothing():
    info = minigdino.info()
    assert (info["kernels"], info["missing"]) == ("fast", [])
    assert info["vectors"] == (kernels.levels()[0] or "baseline") + OF_PRODUCTS
    assert info["vectors"] in _machine()
    assert warned() == []


@pytest.mark.skipif(len(kernels.levels()) == 1, reason="this CPU runs the baseline only")
def test_vectors_is_what_runs_and_not_what_the_cpu_supports(without):
    without({f"{level}.{module}": None for level in ("avx2", "avx512") for module in COMPILED})
    info = minigdino.info()
    assert (info["kernels"], info["vectors"]) == ("fast", "baseline")
    assert f"minigdino._ext.{kernels.levels()[0]}.ops was not built" in info["missing"]


@pytest.mark.skipif(len(kernels.levels()) == 1, reason="this CPU runs the baseline only")
def test_vectors_names_a_module_that_runs_with_another_instruction_set(without):
    best, second = kernels.levels()[0], kernels.levels()[1] or "baseline"
    without({f"{best}.swin": None})
    info = minigdino.info()
    assert info["vectors"] == f"{best}{OF_PRODUCTS}, swin: {second}"
    assert info["missing"] == [f"minigdino._ext.{best}.swin was not built"]
    assert set(info["twins"].values()) == {True}


def test_missing_helpers_are_listed(without):
    without({"cpu": None, "memory": None})
    info = minigdino.info()
    assert info["missing"] == ["minigdino._ext.cpu was not built", "minigdino._ext.memory was not built"]
    assert info["vectors"] == "baseline"
    (message,) = warned()
    assert "minigdino._ext.cpu was not built; kernels for other instruction sets run instead" in message


def test_without_any_kernel_the_report_says_that_references_run(without):
    without({name: None for level in ("", "avx2.", "avx512.") for name in (
        "cpu", "memory", "pool", *(f"{level}{module}" for module in COMPILED))})
    info = minigdino.info()
    assert (info["kernels"], info["vectors"]) == ("reference, because no kernel was built", "none")
    assert set(info["twins"].values()) == {False}
    assert "minigdino._ext.ops was not built" in info["missing"]
    with minigdino.use("reference"):
        assert minigdino.info()["kernels"] == "reference"


def test_ops_without_a_twin_are_counted(without):
    without({f"{level}deformable": None for level in ("", "avx2.", "avx512.")})
    info = minigdino.info()
    n = len(info["twins"])
    assert info["kernels"] == f"fast for {n - 2} of {n} ops"
    assert not info["twins"]["deform_attn"] and info["twins"]["relu"]


@pytest.mark.parametrize("error", [
    ImportError("ops.so: undefined symbol: cblas_sgemm"),
    ValueError("numpy.dtype size changed, may indicate binary incompatibility\nmore lines"),
    ModuleNotFoundError("No module named 'missing'", name="missing"),
], ids=lambda error: type(error).__name__)
def test_a_broken_module_is_not_called_not_built(without, error):
    without({f"{level}ops": error for level in ("", "avx2.", "avx512.")})
    first = str(error).partition("\n")[0]
    (message,) = warned()
    assert f"minigdino._ext.ops cannot be loaded ({type(error).__name__}: {first})" in message
    assert "NumPy references run instead" in message
    assert "relu was not built" not in message
    assert f"minigdino._ext.ops cannot be loaded ({type(error).__name__}: {first})" in minigdino.info()["missing"]


@pytest.mark.skipif(len(kernels.levels()) == 1, reason="this CPU runs the baseline only")
def test_a_broken_level_is_announced_although_another_level_runs(without):
    without({f"{kernels.levels()[0]}.ops": ImportError("GLIBC_2.99 not found")})
    (message,) = warned()
    assert "GLIBC_2.99 not found); kernels for other instruction sets run instead" in message


def test_a_function_that_an_old_build_does_not_have_is_reported(without):
    assert instruction_sets.load_for("", "minigdino._ext.ops:no_such_op") is None
    assert "has no attribute 'no_such_op'" in instruction_sets.problems["minigdino._ext.ops"]


def test_the_cpu_is_checked_for_exactly_the_instructions_of_each_level():
    setup, cpu = (ROOT.joinpath(name).read_text() for name in ("setup.py", "_ext/cpu.pyx"))
    used = [re.findall(r'"-m(\w+)"', line) for line in re.findall(r'LEVELS\["avx.*"\] = .*', setup)]
    checked = re.split("#define HAS_AVX512", cpu, maxsplit=1)
    assert used == [re.findall(r'supports\("(\w+)"\)', part) for part in checked]
    assert len(used) == 2 and all(used)


def test_import_enables_the_gil_or_refuses(without, monkeypatch):
    kernels.require_gil()
    states = iter([False, True])  # loading a compiled module enables it
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: next(states), raising=False)
    kernels.require_gil()
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    with pytest.raises(ImportError, match="PYTHON_GIL=1"):
        kernels.require_gil()


@pytest.mark.parametrize("error", [type("JobTimeout", (Exception,), {}), RecursionError, MemoryError, TimeoutError])
def test_an_exception_that_says_nothing_about_a_module_is_not_stored(monkeypatch, error):
    """A timeout of a signal handler, or too little memory, during the first use. The next use works."""
    path = "minigdino._ext.ops:gelu"

    def fail(name):
        raise error("30 s")

    instruction_sets.load.cache_clear()
    monkeypatch.setattr(instruction_sets, "problems", {})
    with monkeypatch.context() as patched:
        patched.setattr(instruction_sets.importlib, "import_module", fail)
        with pytest.raises(error):
            instruction_sets.load(path)
    assert instruction_sets.problems == {}
    assert instruction_sets.load(path) is not None
