"""Neck and feature enhancer: convolutions, positions, and the steps of the layers in the papers' order."""

import definitions
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import attention_weights, linear_weights, rngs, sizes

from minigdino.network.boxes import pixel_centres, sine_embedding
from minigdino.network.enhancer import (
    conv_1x1,
    conv_3x3_stride_2,
    deformable_layer,
    enhancer,
    neck,
    text_enhancer_layer,
    vision_positions,
)
from minigdino.network.fusion import fusion_layer
from minigdino.network.ops import group_norm

pytestmark = pytest.mark.usefixtures("both_kernels")


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


def test_each_coarser_map_is_computed_from_the_last_map_before_it():
    model = tiny.model(levels=6)
    features = [
        np.random.default_rng(i).standard_normal((2**i, 2**i, c), np.float32) for i, c in ((4, 32), (3, 64), (2, 128))
    ]
    maps = neck(features, model.weights["input_proj_vision"])
    assert [m.shape for m in maps] == [(16, 16, 64), (8, 8, 64), (4, 4, 64), (2, 2, 64), (1, 1, 64), (1, 1, 64)]
    features[1] = features[1] + 1
    again = neck(features, model.weights["input_proj_vision"])
    assert [np.array_equal(a, b) for a, b in zip(maps, again)] == [True, False, True, True, True, True]


def test_every_level_is_projected_and_group_normalised():
    """Deformable DETR A.2: 1 x 1 convolutions, then 3 x 3 ones of stride 2, each with a group norm of 32 groups."""
    model = tiny.model(levels=5)
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((n, n, c)).astype(np.float32) for n, c in ((6, 32), (3, 64), (2, 128))]
    *fine, (conv_4, norm_4), (conv_5, norm_5) = model.weights["input_proj_vision"]
    want = [group_norm(conv_1x1(x, **conv), **norm) for x, (conv, norm) in zip(features, fine)]
    want.append(group_norm(conv_3x3_stride_2(features[-1], **conv_4), **norm_4))
    want.append(group_norm(conv_3x3_stride_2(want[-1], **conv_5), **norm_5))
    for a, b in zip(neck(features, model.weights["input_proj_vision"]), want, strict=True):
        np.testing.assert_array_equal(a, b)


@given(st.lists(sizes(5), min_size=1, max_size=3))
def test_the_level_embedding_is_added_to_every_token_of_its_level(levels):
    rng = np.random.default_rng(0)
    embed = rng.standard_normal((len(levels), 8))
    got = vision_positions(levels, embed, 20)
    bare = vision_positions(levels, 0 * embed, 20)
    np.testing.assert_allclose(got - bare, np.repeat(embed, [h * w for h, w in levels], axis=0), atol=1e-12)


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


def test_the_enhancer_preserves_shapes_and_float32():
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


LEVELS = ((3, 4), (2, 2))
S, T, C, HEADS, POINTS = 16, 5, 8, 2, 3


def normed(rng):
    return {"weight": rng.random(C) + 0.5, "bias": rng.standard_normal(C)}


def text_layer(rng):
    return {
        "self_attn": attention_weights(rng, C),
        "fc1": linear_weights(rng, 12, C),
        "fc2": linear_weights(rng, C, 12),
        "layer_norm_before": normed(rng),
        "layer_norm_after": normed(rng),
    }


def image_layer(rng):
    return {
        "self_attn": {
            "sampling_offsets": linear_weights(rng, HEADS * len(LEVELS) * POINTS * 2, C),
            "attention_weights": linear_weights(rng, HEADS * len(LEVELS) * POINTS, C),
            "value_proj": linear_weights(rng, C, C),
            "output_proj": linear_weights(rng, C, C),
        },
        "self_attn_layer_norm": normed(rng),
        "fc1": linear_weights(rng, 12, C),
        "fc2": linear_weights(rng, C, 12),
        "final_layer_norm": normed(rng),
    }


def some_mask(rng):
    return (rng.random((T, T)) < 0.4) | np.eye(T, dtype=bool)


def post_norm(x, update, p):
    return definitions.norm(x + update, p)


@given(rngs(), st.sampled_from(["relu", "gelu"]))
def test_a_text_layer_is_post_norm_self_attention_within_the_mask(rng, activation):
    """Positions are added to queries and keys, not to values."""
    text, positions = rng.standard_normal((2, T, C))
    mask, p = some_mask(rng), text_layer(rng)
    attended = definitions.attention(text + positions, text + positions, text, p["self_attn"], HEADS, mask)
    x = post_norm(text, attended, p["layer_norm_before"])
    want = post_norm(x, definitions.feed_forward(x, p["fc1"], p["fc2"], activation), p["layer_norm_after"])
    got = text_enhancer_layer(text, positions, mask, **p, n_heads=HEADS, activation=activation, eps=1e-5)
    np.testing.assert_allclose(got, want, atol=1e-6)  # the erf fit of GELU


@settings(max_examples=25)
@given(rngs())
def test_an_image_layer_is_post_norm_deformable_attention(rng):
    """Positions are added to the queries, not to the memory that is sampled."""
    vision, positions, references = rng.standard_normal((S, C)), rng.standard_normal((S, C)), rng.random((S, 2))
    p = image_layer(rng)
    attended = definitions.deformable_attention(
        vision + positions, references, vision, LEVELS, p["self_attn"], HEADS, POINTS
    )
    x = post_norm(vision, attended, p["self_attn_layer_norm"])
    want = post_norm(x, definitions.feed_forward(x, p["fc1"], p["fc2"], "relu"), p["final_layer_norm"])
    got = deformable_layer(
        vision, positions, references, LEVELS, **p, n_heads=HEADS, n_points=POINTS, activation="relu", eps=1e-5
    )
    np.testing.assert_allclose(got, want, atol=1e-10)


@settings(max_examples=10)
@given(rngs())
def test_the_enhancer_is_fusion_then_text_then_image(rng):
    """Algorithm 1 of MM Grounding DINO: fusion, text self-attention within phrases, deformable image self-attention.

    The reference point of a pixel is its centre.
    """
    model = tiny.model()
    config, w = model.config, model.weights
    maps = [rng.standard_normal((*size, 64)).astype(np.float32) for size in ((3, 4), (2, 2), (1, 2), (1, 1))]
    text, mask, places = rng.standard_normal((T, 64)).astype(np.float32), some_mask(rng), np.array([0, 0, 1, 2, 0])
    sizes_ = tuple(m.shape[:2] for m in maps)
    x, t = np.concatenate([m.reshape(-1, 64) for m in maps]), text
    x_pos = vision_positions(sizes_, w["level_embed"], config.positional_embedding_temperature)
    t_pos = sine_embedding(places.astype(np.float32), 64, 10000)
    centres = np.concatenate([pixel_centres(*size, like=x) for size in sizes_])
    options = {"activation": config.activation_function, "eps": config.layer_norm_eps}
    for layer in w["encoder"]["layers"]:
        x, t = fusion_layer(x, t, **layer["fusion_layer"], n_heads=2, eps=config.layer_norm_eps)
        t = text_enhancer_layer(t, t_pos, mask, **layer["text_enhancer_layer"], n_heads=2, **options)
        x = deformable_layer(x, x_pos, centres, sizes_, **layer["deformable_layer"], n_heads=4, n_points=4, **options)
    got = enhancer(maps, text, mask, places, w["encoder"]["layers"], w["level_embed"], config)
    for a, b in zip(got, (x, t)):
        np.testing.assert_allclose(a, b, atol=1e-5)
