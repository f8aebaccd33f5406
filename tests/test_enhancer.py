"""Neck, fusion and the enhancer's layers."""

from unittest import mock

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from minigdino._ext import fusion as in_blocks
from strategies import linear_weights, loose_both_ways_problems, rngs, sizes

from minigdino.network import ops
from minigdino.network.enhancer import conv_1x1, conv_3x3_stride_2, enhancer, neck, vision_positions
from minigdino.network.fusion import attend_both_ways, bi_attention, fusion_layer
from minigdino.network.ops import softmax


@given(rngs(), sizes(9))
def test_the_strided_convolution_is_its_definition(rng, size):
    x, w, b = rng.standard_normal((*size, 2)), rng.standard_normal((3, 2, 3, 3)), rng.standard_normal(3)
    y = conv_3x3_stride_2(x, w, b)
    assert y.shape == ((size[0] - 1) // 2 + 1, (size[1] - 1) // 2 + 1, 3)
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    i, j = (int(rng.integers(n)) for n in y.shape[:2])
    patch = padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
    np.testing.assert_allclose(y[i, j], np.einsum("ijc,ocij->o", patch, w) + b, atol=1e-10)


def test_a_1x1_convolution_is_a_linear_map_of_every_pixel():
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((3, 4, 2)), rng.standard_normal((5, 2, 1, 1)), rng.standard_normal(5)
    np.testing.assert_allclose(conv_1x1(x, w, b)[1, 2], w[:, :, 0, 0] @ x[1, 2] + b)


def test_coarser_maps_start_from_the_backbones_last_and_then_from_each_other():
    model = tiny.model(levels=6)
    features = [
        np.random.default_rng(i).standard_normal((2**i, 2**i, c), np.float32) for i, c in ((4, 32), (3, 64), (2, 128))
    ]
    maps = neck(features, model.weights["input_proj_vision"])
    assert [m.shape for m in maps] == [(16, 16, 64), (8, 8, 64), (4, 4, 64), (2, 2, 64), (1, 1, 64), (1, 1, 64)]
    features[1] = features[1] + 1
    again = neck(features, model.weights["input_proj_vision"])
    assert [np.array_equal(a, b) for a, b in zip(maps, again)] == [True, False, True, True, True, True]


@given(st.lists(sizes(5), min_size=1, max_size=3))
def test_levels_are_told_apart_by_their_embedding(levels):
    rng = np.random.default_rng(0)
    embed = rng.standard_normal((len(levels), 8))
    got = vision_positions(levels, embed, 20)
    bare = vision_positions(levels, 0 * embed, 20)
    np.testing.assert_allclose(got - bare, np.repeat(embed, [h * w for h, w in levels], axis=0), atol=1e-12)


def fusion_weights(rng, C=6, E=8):
    wide = ("vision_proj", "text_proj", "values_vision_proj", "values_text_proj")
    return {
        **{n: linear_weights(rng, E, C) for n in wide},
        **{n: linear_weights(rng, C, E) for n in ("out_vision_proj", "out_text_proj")},
    }


def glip(vision, text, w, n_heads):
    """Eq. 4 to 6 of arXiv 2112.03857 as they are written, a loop over heads: the definition of bi_attention."""
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
def test_blocks_of_the_image_add_up_to_all_of_it(problem, rows):
    """Each block of scores is scaled by its own largest, whichever block has the largest of all."""
    with mock.patch.object(in_blocks, "ROWS", rows):
        for got, want in zip(attend_both_ways(*problem), attend_both_ways.reference(*problem), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)


@given(loose_both_ways_problems())
def test_far_scores_overflow_nowhere(problem):
    vision, asked, *rest = problem
    arguments = [a if a is None else a.astype(np.float32) for a in (vision, 1e4 * asked, *rest)]
    with mock.patch.object(in_blocks, "ROWS", 7):
        for y in attend_both_ways(*arguments):
            assert np.isfinite(y).all()
        arguments[0][0] = np.nan  # in one block: it must show in every token's mean
        assert np.isnan(attend_both_ways(*arguments)[1]).all()


@given(rngs(), st.integers(1, 6), st.integers(1, 5))
def test_fusion_permutes_with_either_side(rng, S, T):
    w, v, t = fusion_weights(rng), rng.standard_normal((S, 6)), rng.standard_normal((T, 6))
    i, j = rng.permutation(S), rng.permutation(T)
    a, b = bi_attention(v, t, **w, n_heads=2)
    c, d = bi_attention(v[i], t[j], **w, n_heads=2)
    np.testing.assert_allclose(c, a[i], atol=1e-11)
    np.testing.assert_allclose(d, b[j], atol=1e-11)


@given(rngs(), st.floats(-200, 200))
def test_fusion_is_blind_to_a_constant_added_to_all_scores(rng, shift):
    """The released code subtracts the largest score of all heads before each softmax; the answer is the same."""
    scores = rng.standard_normal((2, 5, 3))
    for axis in (-1, -2):
        np.testing.assert_allclose(softmax(scores + shift, axis), softmax(scores, axis), rtol=1e-9)


@given(rngs())
def test_with_one_token_the_image_hears_that_token(rng):
    w, v, t = fusion_weights(rng), rng.standard_normal((4, 6)), rng.standard_normal((1, 6))
    from_text, _ = bi_attention(v, t, **w, n_heads=2)
    value = t @ w["values_text_proj"]["weight"].T + w["values_text_proj"]["bias"]
    heard = value @ w["out_vision_proj"]["weight"].T + w["out_vision_proj"]["bias"]
    np.testing.assert_allclose(from_text, np.repeat(heard, 4, axis=0), atol=1e-11)


@given(rngs(), st.integers(1, 9), st.integers(1, 7))
def test_a_fusion_layer_adds_what_is_heard_channel_by_channel_scaled(rng, S, T):
    """GLIP Eq. 5 and 6 with the layer's scales: the definition, where the code takes one of them into a map."""
    w, v, t = fusion_weights(rng), rng.standard_normal((S, 6)), rng.standard_normal((T, 6))
    norms = [{"weight": rng.standard_normal(6), "bias": rng.standard_normal(6)} for _ in range(2)]
    scales = rng.standard_normal((2, 6))
    normed = [ops.layer_norm(x, **norm, eps=1e-5) for x, norm in zip((v, t), norms)]
    want = [x + p * heard for x, p, heard in zip(normed, scales, glip(*normed, w, 2))]
    for got, x in zip(fusion_layer(v, t, *norms, w, *scales, n_heads=2, eps=1e-5), want):
        np.testing.assert_allclose(got, x, atol=1e-11)


def test_a_layer_scale_of_zero_leaves_the_normed_input():
    rng = np.random.default_rng(0)
    norm = {"weight": np.ones(6), "bias": np.zeros(6)}
    v, t = rng.standard_normal((4, 6)), rng.standard_normal((3, 6))
    a, b = fusion_layer(v, t, norm, norm, fusion_weights(rng), np.zeros(6), np.zeros(6), n_heads=2, eps=0)
    for got, x in ((a, v), (b, t)):
        np.testing.assert_allclose(got, (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True), atol=1e-12)


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
def test_the_image_changes_the_text_and_the_text_the_image(family):
    model = tiny.model(family)
    pixels = tiny.pixels()
    base = model.forward(pixels, tiny.IDS)
    other_image = model.forward(pixels[:, ::-1], tiny.IDS)
    other_text = model.forward(pixels, np.array([101, 210, 1012, 102]))
    np.testing.assert_array_equal(base.text_features, other_image.text_features)
    assert abs(base.text - other_image.text).max() > 1e-3
    assert abs(base.vision - other_text.vision).max() > 1e-3


def test_the_enhancer_keeps_shapes_and_float32():
    model = tiny.model()
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((*size, 64), np.float32) for size in ((4, 5), (2, 3), (1, 2), (1, 1))]
    text = rng.standard_normal((3, 64), np.float32)
    v, t = enhancer(
        maps,
        text,
        np.eye(3, dtype=bool),
        np.arange(3),
        model.weights["encoder"]["layers"],
        model.weights["level_embed"],
        model.config,
    )
    assert (v.shape, v.dtype, t.shape, t.dtype) == ((29, 64), np.float32, (3, 64), np.float32)
