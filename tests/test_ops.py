"""Properties and definitions of the basic ops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from minigdino._ext import cpus
from places import twin
from strategies import attention_weights, linear_weights, rngs

from minigdino.network import ops
from minigdino.runtime import kernels

pytestmark = pytest.mark.usefixtures("both_kernels")


@given(rngs(), st.integers(1, 8), st.floats(-1e3, 1e3))
def test_softmax_rows_are_positive_and_sum_to_one_and_ignore_a_shift(rng, n, shift):
    x = rng.normal(0, 5, (4, n))
    y = ops.softmax(x)
    assert (y > 0).all()
    np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=1e-14)
    np.testing.assert_allclose(ops.softmax(x + shift), y, rtol=1e-9)
    np.testing.assert_allclose(ops.softmax(x.T, axis=0), y.T, rtol=1e-14)


def test_softmax_of_minus_infinity_is_zero():
    np.testing.assert_array_equal(ops.softmax(np.float32([[0, -np.inf, 0]])), [[0.5, 0, 0.5]])


@given(rngs(), st.integers(2, 40), st.floats(0.1, 10), st.floats(-5, 5))
def test_layer_norm_gives_zero_mean_and_unit_variance_for_any_scale_and_shift(rng, C, scale, shift):
    x = rng.standard_normal((3, C))
    one, zero = np.ones(C), np.zeros(C)
    y = ops.layer_norm(x, one, zero, eps=0)
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose((y * y).mean(axis=-1), 1, rtol=1e-9)
    np.testing.assert_allclose(ops.layer_norm(x * scale + shift, one, zero, eps=0), y, atol=1e-9)
    np.testing.assert_allclose(ops.layer_norm(x, 2 * one, 3 * one, eps=0), 2 * y + 3)


def test_layer_norm_supports_berts_small_eps():
    x = np.full((1, 8), 5, np.float32)
    np.testing.assert_array_equal(ops.layer_norm(x, np.ones(8, "f4"), np.zeros(8, "f4"), eps=1e-12), 0 * x)


@given(rngs(), st.integers(1, 9), st.integers(1, 9))
def test_group_norm_normalises_each_group_over_the_whole_map(rng, H, W):
    x = rng.normal(3, 2, (H, W, 64))
    y = ops.group_norm(x, np.ones(64), np.zeros(64), eps=0).reshape(H * W, 32, 2)
    if H * W > 1:
        np.testing.assert_allclose(y.mean(axis=(0, 2)), 0, atol=1e-9)
        np.testing.assert_allclose((y * y).mean(axis=(0, 2)), 1, rtol=1e-9)


def test_group_norm_survives_a_large_mean_on_a_large_map():
    rng = np.random.default_rng(0)
    x = rng.normal(100, 1, (200, 300, 32))
    exact = ops.group_norm(x, np.ones(32), np.zeros(32))
    single = ops.group_norm(x.astype("f4"), np.ones(32, "f4"), np.zeros(32, "f4"))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, exact, atol=2e-5)


def test_group_norm_of_a_drifting_map_has_the_same_bits_in_any_number_of_threads(monkeypatch):
    """The moments are computed in parts of the rows, whose means differ here by far more than they vary within one."""
    x = np.random.default_rng(0).normal(0, 1, (90, 40, 64)) + np.arange(90)[:, None, None] * 10
    weight, bias = np.random.default_rng(1).standard_normal((2, 64))
    single, results = [a.astype("f4") for a in (x, weight, bias)], []
    exact = ops.group_norm.reference(*(a.astype(float) for a in single))
    np.testing.assert_allclose(ops.group_norm(x, weight, bias), ops.group_norm.reference(x, weight, bias), atol=1e-12)
    for n in (1, 2, 5):
        monkeypatch.setattr(cpus, "_limit", n)
        results.append(ops.group_norm(*single))
        np.testing.assert_allclose(results[-1], exact, atol=2e-6)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("gelu", [ops.gelu, ops.gelu.reference], ids=["twin", "reference"])
def test_gelu_is_exact_to_float32_rounding(gelu):
    x = np.linspace(-12, 12, 100_001).astype(np.float32)
    exact = np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(float)])
    y = gelu(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, exact, rtol=4e-7, atol=1e-7)
    double = gelu(x.astype(float))
    np.testing.assert_allclose(double, exact, rtol=1e-7, atol=1e-12)  # the fit itself: 4.3e-8 of the tail


def test_gelu_is_not_the_tanh_approximation():
    x = np.linspace(-4, 4, 999)
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert abs(ops.gelu(x) - tanh).max() > 4e-4


@given(rngs(), st.integers(1, 6), st.sampled_from([1, 2, 4]))
def test_heads_split_and_merge(rng, n, heads):
    x = rng.standard_normal((n, 8))
    np.testing.assert_array_equal(ops.merge_heads(ops.split_heads(x, heads)), x)


@given(rngs(), st.integers(1, 6), st.integers(1, 6))
def test_attention_is_equivariant_to_queries_and_invariant_to_key_order(rng, Q, T):
    w = attention_weights(rng, 8)
    q, k, v = rng.standard_normal((Q, 8)), rng.standard_normal((T, 8)), rng.standard_normal((T, 8))
    some, other = rng.permutation(Q), rng.permutation(T)
    y = ops.attention(q, k, v, **w, n_heads=2)
    np.testing.assert_allclose(ops.attention(q[some], k, v, **w, n_heads=2), y[some], atol=1e-12)
    np.testing.assert_allclose(ops.attention(q, k[other], v[other], **w, n_heads=2), y, atol=1e-12)


@given(rngs(), st.integers(2, 6))
def test_attention_never_reads_a_masked_key(rng, T):
    w, x = attention_weights(rng, 8), rng.standard_normal((T, 8))
    mask = np.ones((T, T), bool)
    mask[:, -1] = False
    mask[-1, -1] = True
    changed = x.copy()
    changed[-1] += 100
    y = ops.attention(x, x, x, **w, n_heads=2, mask=mask)
    z = ops.attention(x, changed, changed, **w, n_heads=2, mask=mask)
    np.testing.assert_array_equal(y[:-1], z[:-1])
    np.testing.assert_allclose(y[:-1], ops.attention(x[:-1], x[:-1], x[:-1], **w, n_heads=2), atol=1e-12)


@given(rngs())
def test_attention_is_its_definition(rng):
    w, q, k = attention_weights(rng, 6), rng.standard_normal((3, 6)), rng.standard_normal((4, 6))
    Q, K, V = (x @ w[n]["weight"].T + w[n]["bias"] for x, n in ((q, "query"), (k, "key"), (k, "value")))
    heads = []
    for h in (slice(0, 3), slice(3, 6)):
        e = np.exp(Q[:, h] @ K[:, h].T / math.sqrt(3))
        heads.append(e / e.sum(1, keepdims=True) @ V[:, h])
    want = np.concatenate(heads, 1) @ w["out_proj"]["weight"].T + w["out_proj"]["bias"]
    np.testing.assert_allclose(ops.attention(q, k, k, **w, n_heads=2), want, atol=1e-12)


@pytest.mark.parametrize("name", sorted(ops.ACTIVATIONS))
def test_feed_forward_computes_each_row_independently(name):
    rng = np.random.default_rng(0)
    fc1, fc2, x = linear_weights(rng, 12, 6), linear_weights(rng, 6, 12), rng.standard_normal((3001, 6))
    alone = [ops.feed_forward.reference(row[None], fc1, fc2, name)[0] for row in x]
    np.testing.assert_allclose(ops.feed_forward(x, fc1, fc2, name), alone, atol=1e-12)


@pytest.mark.parametrize("level", kernels.levels())
@pytest.mark.parametrize(("queries", "keys", "D"), [(9, 9, 64), (130, 9, 32), (130, 300, 32), (48, 33, 5), (49, 1, 3)])
def test_attention_in_blocks_of_queries(level, queries, keys, D, monkeypatch):
    """It equals the reference, with and without a mask, and has the same bits in any number of threads."""
    rng, attend = np.random.default_rng(0), twin("attend", level)
    q, k, v = (rng.standard_normal((3, n, D)).astype(np.float32) for n in (queries, keys, keys))
    mask = rng.random((queries, keys)) < 0.5
    mask[:, 0] = True
    for hidden in (None, mask):
        results = []
        for n in (1, 2, 5):
            monkeypatch.setattr(cpus, "_limit", n)
            results.append(attend(q, k, v, hidden))
            exact = ops.attend.reference(*(a.astype(float) for a in (q, k, v)), hidden)
            np.testing.assert_allclose(results[-1], exact, atol=1e-5)
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[0], results[2])
    q[0, 3] = np.nan  # one query of one head
    broken = np.isnan(attend(q, k, v)).reshape(queries, 3, D)
    assert broken[3, 0].all()
    assert broken.sum() == D


def test_a_masked_score_may_be_infinite():
    """The mask replaces a score. Adding -inf to an infinite score would give NaN."""
    rng = np.random.default_rng(0)
    q, k, v = (np.abs(rng.standard_normal((2, 3, 4))).astype(np.float32) for _ in range(3))
    k[:, 1] = np.inf
    mask = np.array([[True, False, True]] * 3)
    for f in (ops.attend, ops.attend.reference):
        np.testing.assert_allclose(f(q, k, v, mask), ops.attend(q, k[:, ::2], v[:, ::2]), rtol=1e-5)
