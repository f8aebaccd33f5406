"""The matrix products of the compiled twins, for every instruction set of this CPU, with and without tiles or pairs."""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from minigdino._ext import cpus, instruction_sets, products
from minigdino._ext.precision import parts
from places import examples
from strategies import rngs

from minigdino.network.ops import gelu
from minigdino.runtime import kernels

pytestmark = pytest.mark.once

# {level: (instruction set of the module, whether it uses tiles, whether it uses pairs)}
LEVELS = {level: (level, False, False) for level in kernels.levels()}
if instruction_sets.tiles():
    LEVELS["amx"] = ("avx512", True, False)
if "avx512" in LEVELS and instruction_sets.load_for("", "minigdino._ext.cpu:pairs")(even_if_slow=True):
    LEVELS["avx512bf16"] = ("avx512", False, True)
if products.are_emulated:
    LEVELS.update({"emulated amx": ("", True, False), "emulated avx512bf16": ("", False, True)})
levels = pytest.mark.parametrize("level", LEVELS)


def function(name, level):
    """A function of the module of products, as compiled for one instruction set. Pairs run with precision "medium"."""
    level, uses_tiles, uses_pairs = LEVELS[level]
    path = f"minigdino._ext.products:{name}"
    module = instruction_sets.importlib.import_module(instruction_sets.module_of(level, path)[1])

    def call(*args, **options):
        before = module.uses_tiles, module.uses_pairs
        module.uses_tiles, module.uses_pairs = uses_tiles, uses_pairs
        try:
            with precision(1 if uses_pairs else parts.get()):
                return getattr(module, name)(*args, **options)
        finally:
            module.uses_tiles, module.uses_pairs = before

    return call


@contextmanager
def precision(n):
    """Split numbers into n parts."""
    token = parts.set(n)
    try:
        yield
    finally:
        parts.reset(token)


def product(level, x, w, *more, **options):
    return function("product", level)(x, w, *more, **options)


# Largest relative error of one product of two numbers, by the number of parts: what the omitted parts and products add
PER_PRODUCT = {3: 2**-23 + 2**-31, 2: 3 * 2**-16 + 2**-23, 1: 2**-7 + 2**-16}


def bound(level, x, w, depth=1, per_product=0):
    """Largest possible rounding error of every element, for sums in any order."""
    if level.endswith("avx512bf16"):
        per_product = PER_PRODUCT[1]
    return (abs(x).astype(float) @ abs(w).T.astype(float)) * ((x.shape[1] + depth + 2) * 2**-24 + per_product)


activations = st.sampled_from([None, "relu", "gelu"])
shapes = st.tuples(st.sampled_from([1, 2, 3, 9, 16, 17, 40, 97, 128, 130, 200, 300]) | st.integers(1, 60),
                   st.sampled_from([1, 15, 16, 17, 32, 33, 64, 95, 96, 97, 255, 256, 257, 600]) | st.integers(1, 130),
                   st.sampled_from([1, 4, 15, 16, 17, 31, 32, 33, 64, 65, 96, 100, 130]) | st.integers(1, 130))


@levels
@settings(max_examples=examples(150))
@given(rngs(), shapes, st.booleans(), st.booleans(), activations)
@example(np.random.default_rng(0), (1, 1, 1), True, True, "relu")
@example(np.random.default_rng(0), (500, 700, 100), True, True, "relu")
@example(np.random.default_rng(0), (500, 700, 100), True, True, "gelu")
def test_products_are_as_exact_as_the_factors_allow(level, rng, shape, with_bias, with_residual, activation):
    M, K, N = shape
    x, w = rng.standard_normal((M, K), np.float32), rng.standard_normal((N, K), np.float32)
    bias = rng.standard_normal(N, np.float32) if with_bias else None
    residual = rng.standard_normal((M, N), np.float32) if with_residual else None
    y = product(level, x, w, bias, residual, activation)
    exact = x.astype(float) @ w.T.astype(float) + (0 if bias is None else bias) + (0 if residual is None else residual)
    exact = np.maximum(exact, 0) if activation == "relu" else gelu.reference(exact) if activation == "gelu" else exact
    slope = 1.13 if activation == "gelu" else 1  # the largest: it amplifies the error of the product
    assert y.dtype == np.float32
    assert (abs(y - exact) <= slope * bound(level, x, w) + 1e-6 + 1e-6 * abs(exact)).all()


@levels
@pytest.mark.parametrize("n", [1, 2, 3])
@settings(max_examples=examples(25))
@given(rngs(), st.integers(1, 130), st.integers(64, 130), st.integers(2, 9), st.sampled_from(["relu", "gelu"]),
       st.booleans(), st.integers(0, 5))
def test_a_feed_forward_network_in_parts_has_the_bits_of_its_products(level, n, rng, M, C, blocks, activation,
                                                                      with_residual, n_odd):
    F, chunk = 32 * blocks, 128
    x, w1, w2 = (rng.standard_normal(shape, np.float32) for shape in ((M, C), (F, C), (C, F)))
    bias1, bias2 = rng.standard_normal(F, np.float32), rng.standard_normal(C, np.float32)
    residual = rng.standard_normal((M, C), np.float32) if with_residual else None
    odd = rng.permutation(M)[:n_odd]  # rows whose magnitudes need special treatment
    for row, value in zip(odd, (np.inf, np.nan, 1e30, 1e-40, -np.inf), strict=False):
        x[row] = value
    want, y = np.empty((M, C), np.float32), np.empty((M, C), np.float32)
    multiply, pack = function("multiply", level), function("pack", level)
    with precision(n), np.errstate(all="ignore"):
        first, second = pack(w1), pack(w2)
        for f in range(0, F, chunk):
            hidden = np.empty((M, min(chunk, F - f)), np.float32)
            multiply(x, first, hidden, bias1[f:f + chunk], activation=activation, first=f)
            last = f + chunk >= F
            multiply(hidden, second, want, bias2 if last else None, residual if last else None, first_channel=f,
                     add=f > 0)
        done = function("feed_forward_in_parts", level)(x, first, second, y, bias1, bias2, residual, activation, chunk)
    if done:
        np.testing.assert_array_equal(y, want)
    assert done == (LEVELS[level][1] and not len(odd))


@levels
@pytest.mark.parametrize("n", PER_PRODUCT)
@settings(max_examples=examples(60))
@given(rngs(), shapes, st.integers(-30, 30), st.integers(-30, 30))
@example(np.random.default_rng(0), (150, 700, 100), 0, 0)
def test_errors_stay_within_the_bound_of_the_precision(level, n, rng, shape, x_power, w_power):
    M, K, N = shape
    x = np.ldexp(rng.standard_normal((M + 100, K)), x_power).astype(np.float32)
    w = np.ldexp(rng.standard_normal((N, K)), w_power).astype(np.float32)
    with precision(n):
        y = product(level, x, w)
    error = abs(y - x.astype(float) @ w.T.astype(float))
    assert (error <= bound(level, x, w, per_product=PER_PRODUCT[n])).all()


@pytest.mark.skipif("amx" not in LEVELS, reason="this CPU has no tile instructions")
def test_tiles_compute_what_the_precision_says():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((300, 256), np.float32), rng.standard_normal((64, 256), np.float32)
    exact = x.astype(float) @ w.T.astype(float)
    errors = {}
    for n in PER_PRODUCT:
        with precision(n):
            errors[n] = abs(product("amx", x, w) - exact).max()
    assert errors[3] <= abs(product("avx512", x, w) - exact).max()
    assert 5 * errors[3] < errors[2] < errors[1] / 100


@pytest.mark.skipif("avx512bf16" not in LEVELS, reason="this CPU has no dot products of pairs")
def test_pairs_are_for_the_lowest_precision():
    """Where they are used for bfloat16, products of more bits are the same as without them."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((300, 256), np.float32), rng.standard_normal((64, 256), np.float32)
    module = instruction_sets.importlib.import_module("minigdino._ext.avx512.products")
    before = module.uses_tiles, module.uses_pairs
    module.uses_tiles, module.uses_pairs = False, True
    try:
        found = {}
        for n in PER_PRODUCT:
            with precision(n):
                found[n] = module.product(x, w)
    finally:
        module.uses_tiles, module.uses_pairs = before
    expected = product("avx512", x, w)
    np.testing.assert_array_equal(found[3], expected)
    np.testing.assert_array_equal(found[2], expected)
    assert 1e-4 < (abs(found[1] - expected) / np.linalg.norm(expected, axis=1, keepdims=True)).max() < 1e-2


@levels
@settings(max_examples=examples(100))
@given(rngs(), shapes)
def test_a_row_does_not_depend_on_the_other_rows(level, rng, shape):
    """To the bit, so that results do not depend on how threads divide the rows."""
    M, K, N = shape
    x, w = rng.standard_normal((M, K), np.float32), rng.standard_normal((N, K), np.float32)
    pack, multiply = function("pack", level), function("multiply", level)
    whole, pieces = np.empty((M, N), np.float32), np.empty((M, N), np.float32)
    multiply(x, pack(w), whole)
    cuts = sorted(rng.integers(0, M + 1, 3))
    for first, last in zip([0, *cuts], [*cuts, M]):
        multiply(x[first:last], pack(w), pieces[first:last])
    np.testing.assert_array_equal(pieces, whole)


@pytest.mark.parametrize("level", kernels.levels())
def test_each_twin_uses_the_products_of_its_own_instruction_set(level):
    """Also after the others were loaded."""
    modules = {}
    for other in [*kernels.levels(), level]:
        for name in ("ops", "products", "swin"):
            modules[other, name] = instruction_sets.importlib.import_module(
                instruction_sets.module_of(other, f"minigdino._ext.{name}:any")[1])
    assert modules[level, "ops"].product is modules[level, "products"].product
    assert modules[level, "swin"].multiply is modules[level, "products"].multiply


@pytest.mark.skipif("avx512" not in LEVELS, reason="this CPU has no AVX-512")
@settings(max_examples=examples(100))
@given(rngs(), shapes)
def test_avx2_and_avx512_give_the_same_bits(rng, shape):
    M, K, N = shape
    x, w = rng.standard_normal((M + 16, K), np.float32), rng.standard_normal((N, K), np.float32)
    np.testing.assert_array_equal(product("avx2", x, w), product("avx512", x, w))


@levels
@settings(max_examples=examples(60))
@given(rngs(), shapes, st.data())
def test_factors_may_have_any_strides(level, rng, shape, data):
    M, K, N = shape

    def view(rows, columns):
        kind = data.draw(st.sampled_from(["rows", "columns", "every second", "reversed", "unaligned"]))
        whole = rng.standard_normal((2 * rows, 2 * columns), np.float32)
        if kind == "unaligned":
            raw = np.zeros(4 * rows * columns + 1, np.uint8)
            raw[1:] = whole[:rows, :columns].ravel().view(np.uint8)
            return raw[1:].view(np.float32).reshape(rows, columns)
        return {"rows": whole[:rows, :columns], "columns": np.asfortranarray(whole[:rows, :columns]),
                "every second": whole[::2, ::2], "reversed": whole[:rows, :columns][::-1, ::-1]}[kind]

    x, w = view(M, K), view(N, K)
    assert (abs(product(level, x, w) - x.astype(float) @ w.T.astype(float)) <= bound(level, x, w)).all()


@levels
@pytest.mark.parametrize("rows", [3, 40, 200])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-30, 1e-40, -0.0, 3e38])
def test_unusual_numbers_behave_as_in_numpy(level, rows, odd):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((rows, 75), np.float32), rng.standard_normal((77, 75), np.float32)
    x[1, 7] = odd
    w[5, 9] = odd
    with np.errstate(all="ignore"):
        y, expected = product(level, x, w), x @ w.T
        np.testing.assert_array_equal(np.isfinite(y), np.isfinite(expected))
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(y[~finite], expected[~finite])
        assert (abs(y - expected)[finite] <= 1e-5 * abs(expected[finite]) + bound(level, x, w)[finite]).all()
        np.testing.assert_array_equal(np.isnan(product(level, x, w, activation="relu")), np.isnan(y))  # ReLU keeps NaN


@levels
def test_subnormal_rows_are_not_taken_as_0(level):
    """Tiles and pairs do that with subnormal numbers, so such rows are scaled."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(-8, 9, (200, 75)), rng.integers(-8, 9, (77, 75))
    y = product(level, np.ldexp(x, -140).astype(np.float32), np.ldexp(w, 40).astype(np.float32))
    np.testing.assert_array_equal(y, np.ldexp(x @ w.T, -100))


@levels
def test_a_product_can_be_built_from_parts(level):
    """From ranges of the channels, added up, and from panels of rows of W."""
    rng = np.random.default_rng(0)
    pack, multiply = function("pack", level), function("multiply", level)
    x, w = rng.integers(-4, 5, (70, 600)).astype(np.float32), rng.integers(-4, 5, (130, 600)).astype(np.float32)
    packed, y = pack(w), np.empty((70, 64), np.float32)
    for first, last in ((0, 256), (256, 320), (320, 600)):
        multiply(x[:, first:last], packed, y, first=64, first_channel=first, add=first > 0)
    np.testing.assert_array_equal(y, x @ w[64:128].T)
    for wrong in ({"first": 63}, {"first": 128}, {"first": -32}, {"first_channel": 1}, {"first_channel": -1}):
        with pytest.raises(ValueError, match="product: expected (w with|first to be a multiple)"):
            multiply(x, packed, y, **wrong)
    with pytest.raises(ValueError, match="contiguous rows"):
        multiply(x, packed, np.empty((64, 70), np.float32).T)


@levels
def test_nothing_is_written_beyond_the_result(level):
    """The last columns of a product are computed in a buffer, because a tile is wider than they are."""
    pack, multiply = function("pack", level), function("multiply", level)
    x, w = np.ones((50, 72), np.float32), np.ones((77, 72), np.float32)
    wide = np.full((52, 90), 7, np.float32)
    multiply(x, pack(w), wide[1:51, 3:80], np.ones(77, np.float32), wide[1:51, 3:80].copy())
    assert (wide[1:51, 3:80] == 80).all()
    wide[1:51, 3:80] = 7
    assert (wide == 7).all()


@levels
def test_unusual_rows_are_added_like_others(level):
    """With tiles or pairs, a row with infinity is computed in another way."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((70, 75), np.float32), rng.standard_normal((77, 75), np.float32)
    x[3, 5], x[4, 6], x[5, ::2], x[6, ::3] = np.inf, np.nan, -np.inf, np.inf
    x[9], x[10], x[11] = x[9] * 1e-30, x[10] * 1e30, x[11] * 1e-40
    y, bias, residual = (rng.standard_normal(shape, np.float32) for shape in ((70, 77), 77, (70, 77)))
    with np.errstate(all="ignore"):
        expected = np.maximum(y.astype(float) + x.astype(float) @ w.T.astype(float) + bias + residual, 0)
        function("multiply", level)(x, function("pack", level)(w), y, bias, residual, activation="relu", add=True)
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(y[~finite], expected[~finite])
        assert (abs(y - expected) <= bound(level, x, w, 3) + 1e-5)[finite].all()


@levels
def test_empty_products(level):
    for M, K, N in ((0, 3, 4), (3, 4, 0), (3, 0, 4), (20, 0, 4), (0, 0, 0)):
        y = product(level, np.ones((M, K), np.float32), np.ones((N, K), np.float32), np.ones(N, np.float32))
        np.testing.assert_array_equal(y, np.ones((M, N)))


@levels
@pytest.mark.parametrize("threads", [1, 4, 8])
def test_bits_do_not_depend_on_the_number_of_threads(level, threads):
    rng = np.random.default_rng(0)
    try:
        for M, K, N in ((9, 768, 3072), (900, 300, 270), (2000, 64, 36), (300, 64, 36)):
            x, w = rng.standard_normal((M, K), np.float32), rng.standard_normal((N, K), np.float32)
            cpus.limit(1)
            expected = product(level, x, w)
            cpus.limit(threads)
            np.testing.assert_array_equal(product(level, x, w), expected)
    finally:
        cpus.limit(None)
