"""Every twin is its reference; the switch between them does what it says."""

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EXACT_PROBLEMS, LOOSE_PROBLEMS

import minigdino
from minigdino import kernels
from minigdino.deformable import bilinear, deform_attn
from minigdino.ops import gelu

OPS = sorted(EXACT_PROBLEMS)  # the loose test walks the whole registry, which importing minigdino has filled


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPS)
@settings(max_examples=200)
@given(data=st.data())
def test_every_twin_is_its_reference_to_the_bit(name, dtype, data):
    op, args = kernels.OPS[name], data.draw(EXACT_PROBLEMS[name](dtype))
    fast, slow = kernels.load(op.twins["numpy"])(*args), op.reference(*args)
    assert fast.dtype == slow.dtype == dtype
    np.testing.assert_array_equal(fast, slow)


@pytest.mark.parametrize("name", sorted(kernels.OPS))
@settings(max_examples=100)
@given(data=st.data())
def test_every_twin_is_its_reference_at_any_size(name, data):
    op, args = kernels.OPS[name], data.draw(LOOSE_PROBLEMS[name]())
    np.testing.assert_allclose(kernels.load(op.twins["numpy"])(*args), op.reference(*args), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPS)
@settings(max_examples=20)
@given(data=st.data())
def test_twins_take_arrays_of_any_layout_and_leave_them_alone(name, data):
    op, args = kernels.OPS[name], data.draw(EXACT_PROBLEMS[name](np.float32))
    strided = [np.asfortranarray(a) if isinstance(a, np.ndarray) else a for a in args]
    for a in strided:
        if isinstance(a, np.ndarray):
            a.setflags(write=False)  # a mapped checkpoint is read-only
    np.testing.assert_array_equal(kernels.load(op.twins["numpy"])(*strided), op.reference(*args))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9])
def test_a_point_out_of_reach_reads_zero(odd):
    image, xy = np.ones((3, 5, 1, 2), np.float32), np.full((1, 1, 1, 2), odd, np.float32)
    with np.errstate(invalid="ignore"):
        for f in (bilinear, bilinear.reference):
            np.testing.assert_array_equal(f(image, xy), np.zeros((1, 1, 1, 2)))


def test_twins_refuse_what_does_not_fit():
    value, at, weights = (
        np.zeros((6, 2, 4), np.float32),
        np.zeros((3, 2, 1, 1, 2), np.float32),
        np.zeros((3, 2, 1, 1), np.float32),
    )
    assert deform_attn(value, ((2, 3),), at, weights).shape == (3, 8)
    for args in [
        (value, ((2, 4),), at, weights),
        (value, ((2, 3), (0, 0)), at, weights),
        (value, ((-2, -3),), at, weights),
        (value, ((2, 3),), at[:2], weights),
        (value[:, :1], ((2, 3),), at, weights),
    ]:
        with pytest.raises(ValueError, match="do not fit"):
            deform_attn(*args)
    with pytest.raises(TypeError, match="float32 or all float64"):
        deform_attn(value.astype(np.float64), ((2, 3),), at, weights)
    with pytest.raises(ValueError, match="do not fit"):
        bilinear(np.zeros((2, 2, 3, 1), np.float32), np.zeros((1, 2, 1, 2), np.float32))


def test_nothing_to_do_is_done():
    none = np.zeros((0, 2, 1, 1, 2), np.float32)
    assert deform_attn(np.zeros((6, 2, 4), np.float32), ((2, 3),), none, none[..., 0]).shape == (0, 8)


def test_use_switches_this_thread_only():
    seen = {}
    with minigdino.use("reference"):
        other = threading.Thread(target=lambda: seen.update(other=kernels.mode()))
        other.start()
        other.join()
        seen["here"] = kernels.mode()
        with minigdino.use("fast"):
            seen["inner"] = kernels.mode()
    assert seen == {"other": "fast", "here": "reference", "inner": "fast"}
    assert kernels.mode() == "fast"


def test_use_runs_the_formula(monkeypatch):
    monkeypatch.setattr(kernels, "load", lambda path: lambda *args: "twin")
    image, xy = np.ones((2, 2, 1, 1), np.float32), np.zeros((1, 1, 1, 2), np.float32)
    assert isinstance(bilinear(image, xy), str)
    with minigdino.use("reference"):
        assert isinstance(bilinear(image, xy), np.ndarray)


def test_an_unknown_mode_is_refused(monkeypatch):
    with pytest.raises(minigdino.ArgumentError, match='"fast" or "reference"; got \'quick\''), minigdino.use("quick"):
        pass
    monkeypatch.setenv("MINIGDINO_KERNELS", "turbo")
    with pytest.raises(minigdino.ArgumentError, match="MINIGDINO_KERNELS"):
        kernels.mode()


def test_missing_twins_are_announced_once_with_the_build_command(monkeypatch):
    monkeypatch.setattr(kernels, "_announced", False)
    monkeypatch.setattr(kernels, "load", lambda path: None)
    image, xy = np.ones((2, 2, 1, 1), np.float32), np.zeros((1, 1, 1, 2), np.float32)
    assert not any(minigdino.info()["twins"].values())  # asking is not needing: the warning is still to come
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for _ in range(2):
            bilinear(image, xy)
            gelu(xy)
    (message,) = [str(w.message) for w in heard]
    assert "minigdino._ext.bilinear:forward was not built; NumPy references run instead" in message
    assert "pip install" in message


def test_all_twins_are_built_here():
    assert kernels.live() == dict.fromkeys(kernels.OPS, True)


def test_without_any_twin_everything_still_runs():
    """A process in which no extension can be imported: one warning an op, the same answer."""
    code = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
sys.modules.update({f"minigdino._ext.{n}": None for n in ("bilinear", "deform_attn", "gelu")})
import numpy as np, tiny, minigdino
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    for _ in range(2):
        boxes = tiny.model().forward(tiny.pixels(), tiny.IDS).boxes
print(len(heard), heard[0].category.__name__, boxes.sum(), minigdino.info()["twins"]["deform_attn"])
"""
    env = {k: v for k, v in os.environ.items() if k != "MINIGDINO_KERNELS"}
    run = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True, env=env, check=False
    )
    assert run.returncode == 0, run.stderr
    warned, category, total, built = run.stdout.split()
    assert (warned, category, built) == ("1", "RuntimeWarning", "False")
    assert float(total) == pytest.approx(tiny.model().forward(tiny.pixels(), tiny.IDS).boxes.sum(), abs=0.05)


def test_a_forked_child_can_still_run_the_loops():
    code = """
import os, sys
import numpy as np
from minigdino._ext.threads import for_rows
total = np.zeros(100)
def fill(first, last): total[first:last] += 1
for_rows(fill, 100)
if (child := os.fork()) == 0:
    for_rows(fill, 100)
    os._exit(0 if (total == 2).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
