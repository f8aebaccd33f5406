"""Fusion equals GLIP's equations in their own order; attention in blocks equals attention of the whole image."""

import sys
from contextlib import ExitStack, contextmanager
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from minigdino._ext import cpus
from places import twin
from strategies import linear_weights, loose_both_ways_problems, rngs

from minigdino.network import ops
from minigdino.network.fusion import attend_both_ways, bi_attention, fusion_layer
from minigdino.network.ops import softmax
from minigdino.runtime import kernels

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


@contextmanager
def blocks_of(rows, loop):
    """The twin of each level, with blocks of about `rows` image tokens."""
    modules = [sys.modules[twin("attend_both_ways", level).__module__] for level in kernels.levels()]
    with ExitStack() as patches:
        for module in modules:
            patches.enter_context(mock.patch.object(module, "BLOCK_ROWS", rows))
            patches.enter_context(mock.patch.object(module, "MAX_TOKENS", {"short": 10**9, "long": 0}[loop]))
        yield [module.attend_both_ways for module in modules]


def single(problem):
    return [a if a is None else a.astype(np.float32) for a in problem]


@pytest.mark.parametrize("loop", ["short", "long"])
@given(loose_both_ways_problems(), st.integers(1, 20))
def test_attention_in_blocks_equals_attention_of_the_whole_image(loop, problem, rows):
    """Each block subtracts its own maximum, and any block may hold the largest score."""
    with blocks_of(rows, loop) as twins:
        for attend in twins:
            exact = attend_both_ways.reference(*problem)
            for got, want in zip(attend(*problem), exact, strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)
            for got, want in zip(attend(*single(problem)), exact, strict=True):
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * max(1, abs(want).max()))


@pytest.mark.parametrize("loop", ["short", "long"])
@given(loose_both_ways_problems())
def test_large_scores_do_not_overflow(loop, problem):
    vision, folded_keys, *rest = problem
    arguments = single((vision, 1e4 * folded_keys, *rest))
    with blocks_of(7, loop) as twins:
        for attend in twins:
            for y in attend(*arguments):
                assert np.isfinite(y).all()
            broken = [arguments[0].copy(), *arguments[1:]]
            broken[0][0] = np.nan  # one image token in one block; the context of every text token must be NaN
            from_text, image_context = attend(*broken)
            assert np.isnan(image_context).all()
            assert np.isnan(from_text[0]).all()
            assert np.isfinite(from_text[1:]).all()


@pytest.mark.parametrize("tokens", [9, 100])
def test_fusion_has_work_for_64_threads_and_the_same_bits_in_any_number(tokens, monkeypatch):
    """At 800 x 1066, the tiny model has 17,821 image tokens. The blocks depend on their number only."""
    rng, pieces = np.random.default_rng(0), []
    shapes = (17821, 8), (4, tokens, 8), (4, tokens), (4, tokens, 8), 8
    problem = single(map(rng.standard_normal, shapes))
    attend = twin("attend_both_ways", kernels.levels()[0])
    module = sys.modules[attend.__module__]
    for_rows = module.for_rows
    monkeypatch.setattr(module, "for_rows", lambda loop, n: (pieces.append(n), for_rows(loop, n)))
    results = []
    for n in (1, 2, 5):
        monkeypatch.setattr(cpus, "_limit", n)
        results.append([y.tobytes() for y in attend(*problem)])
    assert pieces[0] >= 64
    assert results[0] == results[1] == results[2]


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
