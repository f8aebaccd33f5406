"""Fusion equals GLIP's equations in their own order; attention in blocks equals attention of the whole image."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from minigdino._ext import fusion as in_blocks
from strategies import linear_weights, loose_both_ways_problems, rngs

from minigdino.network import ops
from minigdino.network.fusion import attend_both_ways, bi_attention, fusion_layer
from minigdino.network.ops import softmax

pytestmark = pytest.mark.usefixtures("both_kernels")


def fusion_weights(rng, C=6, E=8):
    wide = ("vision_proj", "text_proj", "values_vision_proj", "values_text_proj")
    return {
        **{n: linear_weights(rng, E, C) for n in wide},
        **{n: linear_weights(rng, C, E) for n in ("out_vision_proj", "out_text_proj")},
    }


def glip(vision, text, w, n_heads):
    """Definition of bi_attention: Eq. 4 of arXiv 2112.03857 as written, as a loop over heads."""
    q, k = ops.linear(vision, **w["vision_proj"]), ops.linear(text, **w["text_proj"])
    v_vision, v_text = ops.linear(vision, **w["values_vision_proj"]), ops.linear(text, **w["values_text_proj"])
    D = q.shape[1] // n_heads
    vision_heads, text_heads = [], []
    for head in (slice(m * D, (m + 1) * D) for m in range(n_heads)):
        attention = q[:, head] @ k[:, head].T / D**0.5
        vision_heads.append(softmax(attention) @ v_text[:, head])
        text_heads.append(softmax(attention.T) @ v_vision[:, head])
    return (
        ops.linear(np.concatenate(vision_heads, 1), **w["out_vision_proj"]),
        ops.linear(np.concatenate(text_heads, 1), **w["out_text_proj"]),
    )


@given(rngs(), st.integers(1, 9), st.integers(1, 7), st.sampled_from([1, 2, 4]))
def test_fusion_is_glips_equations(rng, S, T, n_heads):
    w, v, t = fusion_weights(rng), rng.standard_normal((S, 6)), rng.standard_normal((T, 6))
    for got, want in zip(bi_attention(v, t, **w, n_heads=n_heads), glip(v, t, w, n_heads)):
        np.testing.assert_allclose(got, want, atol=1e-12)


@given(loose_both_ways_problems(), st.integers(1, 20))
def test_attention_in_blocks_equals_attention_of_the_whole_image(problem, rows):
    """Each block subtracts its own maximum, and any block may hold the largest score."""
    with mock.patch.object(in_blocks, "BLOCK_ROWS", rows):
        for got, want in zip(in_blocks.attend_both_ways(*problem), attend_both_ways.reference(*problem), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)


@given(loose_both_ways_problems())
def test_large_scores_do_not_overflow(problem):
    vision, folded_keys, *rest = problem
    arguments = [a if a is None else a.astype(np.float32) for a in (vision, 1e4 * folded_keys, *rest)]
    with mock.patch.object(in_blocks, "BLOCK_ROWS", 7):
        for y in attend_both_ways(*arguments):
            assert np.isfinite(y).all()
        arguments[0][0] = np.nan  # one image token in one block; the context of every text token must be NaN
        assert np.isnan(attend_both_ways(*arguments)[1]).all()


@given(rngs(), st.integers(1, 6), st.integers(1, 5))
def test_fusion_is_equivariant_to_permutations_of_image_and_text(rng, S, T):
    w, v, t = fusion_weights(rng), rng.standard_normal((S, 6)), rng.standard_normal((T, 6))
    i, j = rng.permutation(S), rng.permutation(T)
    a, b = bi_attention(v, t, **w, n_heads=2)
    c, d = bi_attention(v[i], t[j], **w, n_heads=2)
    np.testing.assert_allclose(c, a[i], atol=1e-11)
    np.testing.assert_allclose(d, b[j], atol=1e-11)


@given(rngs(), st.floats(-200, 200))
def test_softmax_ignores_a_constant_added_to_all_scores(rng, shift):
    """The released code subtracts the largest score of all heads before each softmax; the result is the same."""
    scores = rng.standard_normal((2, 5, 3))
    for axis in (-1, -2):
        np.testing.assert_allclose(softmax(scores + shift, axis), softmax(scores, axis), rtol=1e-9)


@given(rngs())
def test_with_one_token_the_image_receives_its_value(rng):
    w, v, t = fusion_weights(rng), rng.standard_normal((4, 6)), rng.standard_normal((1, 6))
    from_text, _ = bi_attention(v, t, **w, n_heads=2)
    value = t @ w["values_text_proj"]["weight"].T + w["values_text_proj"]["bias"]
    mapped = value @ w["out_vision_proj"]["weight"].T + w["out_vision_proj"]["bias"]
    np.testing.assert_allclose(from_text, np.repeat(mapped, 4, axis=0), atol=1e-11)


@given(rngs(), st.integers(1, 9), st.integers(1, 7))
def test_a_fusion_layer_is_glips_residual_scaled_per_channel(rng, S, T):
    """GLIP Eq. 5 and 6 with the layer's scales, one of which the code folds into a projection."""
    w, v, t = fusion_weights(rng), rng.standard_normal((S, 6)), rng.standard_normal((T, 6))
    norms = [{"weight": rng.standard_normal(6), "bias": rng.standard_normal(6)} for _ in range(2)]
    scales = rng.standard_normal((2, 6))
    normed = [ops.layer_norm(x, **norm, eps=1e-5) for x, norm in zip((v, t), norms)]
    want = [x + p * update for x, p, update in zip(normed, scales, glip(*normed, w, 2))]
    for got, x in zip(fusion_layer(v, t, *norms, w, *scales, n_heads=2, eps=1e-5), want):
        np.testing.assert_allclose(got, x, atol=1e-11)


def test_a_layer_scale_of_zero_leaves_the_normed_input():
    rng = np.random.default_rng(0)
    norm = {"weight": np.ones(6), "bias": np.zeros(6)}
    v, t = rng.standard_normal((4, 6)), rng.standard_normal((3, 6))
    a, b = fusion_layer(v, t, norm, norm, fusion_weights(rng), np.zeros(6), np.zeros(6), n_heads=2, eps=0)
    for got, x in ((a, v), (b, t)):
        np.testing.assert_allclose(got, (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True), atol=1e-12)
