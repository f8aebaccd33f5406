"""Every twin equals its reference; `use` and MINIGDINO_KERNELS switch between them."""

import importlib
import importlib.util
import os
import platform
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
from minigdino._ext import cpus, erfc, instruction_sets
from places import examples, mapped, parts, places_of, twin
from strategies import EXACT_PROBLEMS, LOOSE_PROBLEMS

import minigdino
from minigdino.network.deformable import bilinear, deform_attn
from minigdino.network.ops import ERFC, add_norm, feed_forward, gelu, layer_norm, relu, softmax
from minigdino.network.swin import attend_in_windows
from minigdino.runtime import kernels

pytestmark = pytest.mark.once

LEVELS = kernels.levels()
EXACT = list(places_of(EXACT_PROBLEMS))
LOOSE = list(places_of(kernels.OPS))  # the whole registry, so no twin stays untested


def floats(dtype):
    """Return a function that converts float arrays to a dtype. Masks stay boolean."""
    return lambda a: a.astype(dtype) if a.dtype.kind == "f" else a


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "level"), EXACT)
@settings(max_examples=examples(100))
@given(data=st.data())
def test_every_twin_equals_its_reference_to_the_bit(name, level, dtype, data):
    args = data.draw(EXACT_PROBLEMS[name](dtype))
    fast, slow = twin(name, level)(*args), kernels.OPS[name].reference(*args)
    assert fast.dtype == slow.dtype == dtype
    np.testing.assert_array_equal(fast, slow)


@pytest.mark.parametrize(("name", "level"), LOOSE)
@settings(max_examples=examples(60))
@given(data=st.data())
def test_every_twin_equals_its_reference_at_any_size(name, level, data):
    args = data.draw(LOOSE_PROBLEMS[name]())
    for fast, slow in zip(parts(twin(name, level)(*args)), parts(kernels.OPS[name].reference(*args)), strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("name", "level"), LOOSE)
@settings(max_examples=examples(60))
@given(data=st.data())
def test_every_twin_in_float32_is_as_accurate_as_its_reference(name, level, data):
    """The error against float64 is at most a few times that of the NumPy reference in float32.

    Terms of a product can cancel. Its rounding errors are then relative to the sum of the absolute terms. By chance,
    the reference can be far more accurate than that, and its last bits depend on where its arrays are.
    """
    args = mapped(floats(np.float32), data.draw(LOOSE_PROBLEMS[name]()))
    reference = kernels.OPS[name].reference
    exact_args = mapped(floats(np.float64), args)
    every = parts(twin(name, level)(*args)), parts(reference(*args)), parts(reference(*exact_args))
    for fast, slow, exact in zip(*every, strict=True):
        assert fast.dtype == np.float32
        absolute = reference(*mapped(np.abs, exact_args)) if name in ("linear", "matmul") else exact
        scale = max(1.0, abs(absolute).max(initial=0))
        rounding = ROUNDING[name](*exact_args) if name in ROUNDING else 0
        assert abs(fast - exact).max(initial=0) <= 4 * abs(slow - exact).max(initial=0) + 1e-6 * scale + rounding


def _of_scores(q, k, largest):
    """The error that rounding of scores can cause in a result: exp turns it into a relative error of the weights.

    largest: the largest absolute value that a result can have.
    """
    return 2**-23 * (abs(q) @ abs(k).swapaxes(1, 2)).max(initial=0) * largest


ROUNDING = {
    "attend": lambda q, k, v, mask: _of_scores(q, k, abs(v).max(initial=0)),
    "attend_both_ways": lambda vision, keys, key_bias, values, bias, residual: _of_scores(
        vision, keys, max(abs(vision).max(), abs(values).sum(axis=0).max())),
}


def field_of_records(a):
    """The same array without alignment: its strides are not multiples of the size of an element."""
    records = np.zeros(a.shape, [("number", "u1"), ("a", a.dtype)])
    records["a"] = a
    return records["a"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", [np.asfortranarray, field_of_records])
@pytest.mark.parametrize(("name", "level"), LOOSE)
@settings(max_examples=examples(12))
@given(data=st.data())
def test_twins_accept_any_memory_layout_and_do_not_write_to_their_arguments(name, level, layout, dtype, data):
    def changed(a):
        a = layout(a)
        a.setflags(write=False)  # a mapped checkpoint is read-only
        return a

    args = mapped(floats(dtype), data.draw(LOOSE_PROBLEMS[name]()))
    # products of few rows, in linear, may round differently for another layout
    tolerance = 100 * np.finfo(dtype).eps
    for other, usual in zip(parts(twin(name, level)(*mapped(changed, args))), parts(twin(name, level)(*args))):
        np.testing.assert_allclose(other, usual, rtol=tolerance, atol=tolerance * max(1, abs(usual).max(initial=0)))


WITH_POINTS = ("bilinear", "deform_attn", "through_samples")  # all of which may lie outside


@pytest.mark.parametrize(("name", "level"), LOOSE)
@settings(max_examples=examples(20))
@given(data=st.data())
def test_nan_propagates(name, level, data):
    """NaN in the first argument gives NaN in the result, so a corrupted weight is detected."""
    args = mapped(floats(np.float32), data.draw(LOOSE_PROBLEMS[name]()))
    args[0][...] = np.nan
    for result in parts(twin(name, level)(*args)):
        assert np.isnan(result).any() or name in WITH_POINTS


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one level")
def test_each_twin_is_compiled_for_every_level():
    paths = {op.twins["numpy"] for op in kernels.OPS.values() if "numpy" in op.twins}
    for path in paths:
        for level in ("avx512", "avx2", ""):
            module = path.partition(":")[0].rpartition(".")
            assert importlib.util.find_spec(f"{module[0]}.{level}.{module[2]}" if level else ".".join(module[::2]))


def test_the_best_level_that_was_built_is_loaded(monkeypatch):
    path = kernels.OPS["gelu"].twins["numpy"]
    assert instruction_sets.load(path) is twin("gelu", LEVELS[0])
    instruction_sets.load.cache_clear()
    monkeypatch.setattr(instruction_sets, "levels", lambda: ("no such level", ""))
    try:
        assert instruction_sets.load(path) is twin("gelu", "")
    finally:
        instruction_sets.load.cache_clear()


def test_the_coefficients_of_twins_and_reference_are_equal():
    assert erfc.ERFC == ERFC


def test_a_reference_runs_no_twin_inside(monkeypatch):
    """`op.reference` also runs the references of the ops that it calls."""
    monkeypatch.setattr(kernels, "load", lambda path: pytest.fail(f"{path} ran"))
    x = np.ones((3, 4))
    layer = {"weight": np.ones((4, 4)), "bias": np.zeros(4)}
    feed_forward.reference(x, layer, layer, "gelu")
    add_norm.reference(x, x, x[0], x[0])


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9])
def test_a_point_far_outside_samples_zero(odd):
    image, xy = np.ones((3, 5, 1, 2), np.float32), np.full((1, 1, 1, 2), odd, np.float32)
    with np.errstate(invalid="ignore"):
        for f in (bilinear, bilinear.reference):
            np.testing.assert_array_equal(f(image, xy), np.zeros((1, 1, 1, 2)))


def test_tracing_deformable_attention_runs_the_twin_of_bilinear(monkeypatch):
    """`deform_attn` samples in its own loop. Its reference, which shows the steps, calls the twin of `bilinear`."""
    loaded, load = [], kernels.load
    monkeypatch.setattr(kernels, "load", lambda path: loaded.append(path.rpartition(":")[2]) or load(path))
    value, at = np.ones((6, 2, 4), np.float32), np.full((3, 2), 0.5, np.float32)
    args = value, ((2, 3),), at, np.zeros((3, 2, 1, 1, 2), np.float32), np.zeros((3, 2, 1), np.float32)
    deform_attn(*args)
    assert loaded == ["deform_attn"]
    with kernels.opened(lambda reference: reference.__name__ == "deform_attn"):
        deform_attn(*args)
    assert loaded[1:] == ["softmax", "bilinear"]


def test_empty_arrays_give_empty_results():
    none = np.zeros((0, 2, 1, 1, 2), np.float32)
    value, at = np.zeros((6, 2, 4), np.float32), np.zeros((0, 2), np.float32)
    assert deform_attn(value, ((2, 3),), at, none, none[..., 0, 0]).shape == (0, 8)
    pointless = np.zeros((3, 2, 1, 0, 2), np.float32)
    nowhere = deform_attn(value, ((2, 3),), np.zeros((3, 2), np.float32), pointless, pointless[:, :, 0, :, 0])
    np.testing.assert_array_equal(nowhere, np.zeros((3, 8)))
    empty, one = np.zeros((0, 5), np.float32), np.ones(5, np.float32)
    for y in (relu(empty), gelu(empty), softmax(empty), layer_norm(empty, one, one), add_norm(empty, empty, one, one)):
        assert y.shape == (0, 5)


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


def test_use_reference_runs_the_numpy_reference(monkeypatch):
    monkeypatch.setattr(kernels, "load", lambda path: lambda *args: "twin")
    image, xy = np.ones((2, 2, 1, 1), np.float32), np.zeros((1, 1, 1, 2), np.float32)
    assert isinstance(bilinear(image, xy), str)
    with minigdino.use("reference"):
        assert isinstance(bilinear(image, xy), np.ndarray)


def test_an_unknown_mode_is_rejected(monkeypatch):
    with pytest.raises(minigdino.ArgumentError, match='"fast" or "reference"; got \'quick\''):
        minigdino.use("quick")  # without a block, too
    monkeypatch.setenv("MINIGDINO_KERNELS", "turbo")
    with pytest.raises(minigdino.ArgumentError, match="MINIGDINO_KERNELS"):
        kernels.mode()


def test_missing_twins_are_announced_once_with_the_build_command(monkeypatch):
    monkeypatch.setattr(kernels, "_announced", False)
    monkeypatch.setattr(kernels, "load", lambda path: None)
    image, xy = np.ones((2, 2, 1, 1), np.float32), np.zeros((1, 1, 1, 2), np.float32)
    assert not any(minigdino.info()["twins"].values())  # info() does not warn; the first use will
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            bilinear(image, xy)
            gelu(xy)
    (message,) = [str(w.message) for w in caught]
    assert "minigdino._ext.deformable:bilinear was not built; NumPy references run instead" in message
    assert "pip install" in message


def test_all_twins_are_built_here():
    assert kernels.live() == {name: True for name, op in kernels.OPS.items() if "numpy" in op.twins}


def test_without_any_twin_a_forward_pass_still_runs():
    """A process that can import no extension: one warning, the same result."""
    code = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
names = ("cpu", "deformable", "fusion", "memory", "ops", "pool", "products", "swin")
sys.modules.update({f"minigdino._ext.{name}": None for name in names})
sys.modules.update({f"minigdino._ext.{level}": None for level in ("avx2", "avx512")})
import numpy as np, tiny, minigdino
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        boxes = tiny.model().forward(tiny.pixels(), tiny.IDS).boxes
print(len(caught), caught[0].category.__name__, boxes.sum(), minigdino.info()["twins"]["deform_attn"])
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
from minigdino._ext.pool import for_rows
total = np.zeros(100)
def fill(first, last): total[first:last] += 1
for_rows(fill, 100)
if (child := os.fork()) == 0:
    for_rows(fill, 100)
    os._exit(0 if (total == 2).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("level", LEVELS)
def test_a_feed_forward_network_without_hidden_channels_gives_its_bias(level):
    for rows in (3, 500):
        x, fc1 = np.ones((rows, 4)), {"weight": np.ones((0, 4)), "bias": np.ones(0)}
        fc2 = {"weight": np.ones((4, 0)), "bias": np.arange(4.0)}
        result = twin("feed_forward", level)(x, fc1, fc2, "relu")
        np.testing.assert_array_equal(result, np.tile(np.arange(4.0), (rows, 1)))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rows", [5, 20, 1000])
def test_a_feed_forward_network_without_channels_gives_no_channels(level, rows):
    fc1, fc2 = {"weight": np.ones((8, 0)), "bias": np.ones(8)}, {"weight": np.ones((0, 8)), "bias": np.ones(0)}
    assert twin("feed_forward", level)(np.ones((rows, 0)), fc1, fc2, "relu").shape == (rows, 0)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("size", "M", "D", "k"),
    [((15, 18), 3, 32, 7), ((14, 14), 2, 24, 7), ((9, 8), 1, 40, 7), ((13, 30), 2, 32, 12), ((9, 10), 1, 33, 6)],
)
def test_windows_of_usual_and_other_sizes(size, M, D, k, level):
    """Whole vectors and panels, and parts of them: of a window's pixels, of a head's channels, and of queries."""
    rng = np.random.default_rng(0)
    qkv, bias = rng.standard_normal((*size, 3, M, D), np.float32), rng.standard_normal((3, M, D), np.float32)
    args = qkv, bias, rng.standard_normal((M, k * k, k * k), np.float32), k
    for shift in (0, k // 2):
        got = twin("attend_in_windows", level)(*args, shift)
        np.testing.assert_allclose(got, attend_in_windows.reference(*args, shift), rtol=0, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", range(3), ids=["query", "key", "value"])
@pytest.mark.parametrize("at", [(3, 4), (6, 6)], ids=["middle", "last"])  # 7 * 7 pixels: the last one is left over
def test_a_number_that_is_not_finite_reaches_the_same_elements(at, part, odd, level):
    rng = np.random.default_rng(0)
    qkv, bias = rng.standard_normal((14, 14, 3, 2, 32), np.float32), np.zeros((3, 2, 32), np.float32)
    qkv[(*at, part, 1, 5)] = odd
    args = qkv, bias, np.zeros((2, 49, 49), np.float32), 7, 0
    with np.errstate(invalid="ignore"):
        want = attend_in_windows.reference(*args)
    np.testing.assert_allclose(twin("attend_in_windows", level)(*args), want, rtol=0, atol=1e-5)


STAGES = [((200, 267), 3), ((100, 134), 6), ((50, 67), 12), ((25, 34), 24)]  # Swin-T for 800 x 1066 pixels: map, heads


def window_attention_of(size, M):
    rng, C = np.random.default_rng(0), 32 * M
    maps = [{"weight": rng.standard_normal((C, C), np.float32) * C**-0.5, "bias": rng.standard_normal(C, np.float32)}
            for _ in range(4)]  # fmt: skip
    x, residual = rng.standard_normal((2, *size, C), np.float32)
    return x, *maps, rng.standard_normal((169, M), np.float32), M, 7, 3, residual


@pytest.fixture
def pieces(monkeypatch):
    """Largest numbers of pieces into which loops can be divided. Loops that pack weights are short and left out."""
    found, depth = [], [0]

    def for_rows(loop, n, minimum=1):
        if not depth[0] and not loop.__qualname__.startswith("pack."):
            found.append(n // minimum)
        depth[0] += 1
        loop(0, n)
        depth[0] -= 1

    for op in kernels.OPS:
        names = twin(op, LEVELS[0]).__globals__  # not of the module in sys.modules, which a test may have loaded again
        for module in (names, names["multiply"].__globals__) if "multiply" in names else (names,):
            monkeypatch.setitem(module, "for_rows", for_rows)
    return found


@pytest.mark.parametrize(("size", "M"), STAGES)
def test_64_threads_all_have_some_of_each_step_of_window_attention(size, M, pieces, monkeypatch):
    monkeypatch.setattr(cpus, "_limit", 64)
    twin("window_attention", LEVELS[0])(*window_attention_of(size, M))
    assert min(pieces) >= 64
    pieces.clear()
    monkeypatch.setattr(cpus, "_limit", 2)
    twin("window_attention", LEVELS[0])(*window_attention_of(size, M))
    assert pieces == [-(-size[0] // 7)]  # two threads take bands, whose steps find their input in the cache


def layer_of(outputs, inputs):
    rng = np.random.default_rng(0)
    return {"weight": rng.standard_normal((outputs, inputs), np.float32),
            "bias": rng.standard_normal(outputs, np.float32)}


# the feed-forward networks of the tiny geometry for 800 x 1066 pixels: rows, channels, hidden channels
NETWORKS = [(17821, 256, 2048), (900, 256, 2048), (53400, 96, 384), (3350, 384, 1536), (850, 768, 3072)]


@pytest.mark.parametrize(("N", "C", "F"), NETWORKS)
def test_64_threads_all_have_some_of_each_step_of_a_feed_forward_network(N, C, F, pieces, monkeypatch):
    monkeypatch.setattr(cpus, "_limit", 64)
    x = np.random.default_rng(0).standard_normal((N, C), np.float32)
    twin("feed_forward", LEVELS[0])(x, layer_of(F, C), layer_of(C, F), "relu")
    assert min(pieces) >= 64


def test_64_threads_all_have_some_of_the_other_loops(pieces, monkeypatch):
    monkeypatch.setattr(cpus, "_limit", 64)
    rng = np.random.default_rng(0)
    x, norm = rng.standard_normal((17821, 256), np.float32), rng.standard_normal((2, 256), np.float32)
    twin("linear", LEVELS[0])(x, **layer_of(256, 256))
    twin("add_norm", LEVELS[0])(x, x, *norm)
    twin("group_norm", LEVELS[0])(x[:13400].reshape(100, 134, 256), *norm)
    heads = rng.standard_normal((8, 900, 32), np.float32)
    twin("attend", LEVELS[0])(heads, heads, heads)
    sizes = (100, 134), (50, 67), (25, 34), (13, 17)
    offsets, scores = rng.standard_normal((900, 8, 4, 4, 2), np.float32), rng.standard_normal((900, 8, 16), np.float32)
    twin("deform_attn", LEVELS[0])(x.reshape(-1, 8, 32), sizes, rng.random((900, 2), np.float32), offsets, scores)
    assert min(pieces) >= 64


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("N", "C", "F"), [(150, 128, 1100), (400, 64, 640), (700, 96, 384)])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_blocks_and_steps_of_a_feed_forward_network_give_the_same_bits(N, C, F, activation, level, monkeypatch):
    x, results = np.random.default_rng(0).standard_normal((N, C), np.float32), []
    x[3], x[-5] = 1e-40, np.inf  # rows with a treatment of their own
    for threads in (1, 2, 64):
        monkeypatch.setattr(cpus, "_limit", threads)
        with np.errstate(all="ignore"):
            results.append(twin("feed_forward", level)(x, layer_of(F, C), layer_of(C, F), activation, x))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("size", "M"), [((50, 67), 12), ((25, 34), 24), ((20, 9), 1), ((15, 177), 1), ((17, 1), 1)])
def test_parts_of_bands_and_steps_of_window_attention_give_the_same_bits(size, M, level, monkeypatch):
    args, results = window_attention_of(size, M), []
    for threads in (1, 2, 3, 8, 64):
        monkeypatch.setattr(cpus, "_limit", threads)
        results.append(twin("window_attention", level)(*args))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
