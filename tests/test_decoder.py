"""Decoder: the steps of a layer and of the stack in the papers' order; refinement; permutations of queries."""

import definitions
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from strategies import attention_weights, linear_weights, rngs

from minigdino.network.boxes import box_positions, logit, sigmoid
from minigdino.network.decoder import decoder, decoder_layer, refine
from minigdino.network.ops import mlp

pytestmark = pytest.mark.usefixtures("both_kernels")

FAMILIES = ["grounding-dino", "mm-grounding-dino"]
SIZES = ((4, 5), (2, 3), (1, 2), (1, 1))


def run(model, queries, references, vision, text):
    return decoder(
        queries,
        references,
        vision,
        text,
        SIZES,
        **model.weights["decoder"],
        bbox_embed=model.weights["bbox_embed"],
        config=model.config,
    )


def problem(rng, n=5):
    return (
        rng.standard_normal((n, 64), np.float32),
        rng.random((n, 4), np.float32),
        rng.standard_normal((29, 64), np.float32),
        rng.standard_normal((3, 64), np.float32),
    )


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15)
@given(rng=rngs())
def test_the_decoder_is_equivariant_to_permutations_of_its_queries(family, rng):
    q, r, v, t = problem(rng)
    some = rng.permutation(5)
    states, boxes = run(tiny.model(family), q, r, v, t)
    again, moved = run(tiny.model(family), q[some], r[some], v, t)
    np.testing.assert_allclose(again, states[:, some], atol=2e-4)
    np.testing.assert_allclose(moved, boxes[:, some], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_boxes_are_the_references_and_every_layer_changes_them(family):
    model = tiny.model(family)
    q, r, v, t = problem(np.random.default_rng(0))
    states, boxes = run(model, q, r, v, t)
    assert (states.shape, boxes.shape) == ((3, 5, 64), (4, 5, 4))
    np.testing.assert_array_equal(boxes[0], r)
    assert ((boxes > 0) & (boxes < 1)).all()
    assert all(abs(a - b).max() > 1e-3 for a, b in zip(boxes, boxes[1:]))


def test_refine_adds_logits():
    rng = np.random.default_rng(0)
    head = tiny.model().weights["bbox_embed"][0]
    x, r = rng.standard_normal((3, 64), np.float32), rng.random((3, 4), np.float32)
    np.testing.assert_allclose(refine(x, r, head), sigmoid(mlp(x, **head) + logit(r)), rtol=1e-6)
    still = {"layers": [{k: 0 * v for k, v in layer.items()} for layer in head["layers"]]}
    np.testing.assert_allclose(refine(x, r, still), r, atol=1e-6)


def test_grounding_dino_shares_its_box_head_and_mm_does_not():
    shared, own = (tiny.model(f).weights["bbox_embed"] for f in FAMILIES)
    first = shared[0]["layers"][0]["weight"]
    assert all(head["layers"][0]["weight"] is first for head in shared)
    assert len({head["layers"][0]["weight"].sum() for head in own}) == 3


def layer_weights(rng, C, heads, points):
    def normed():
        return {"weight": rng.random(C) + 0.5, "bias": rng.standard_normal(C)}

    return {
        "self_attn": attention_weights(rng, C),
        "self_attn_layer_norm": normed(),
        "encoder_attn_text": attention_weights(rng, C),
        "encoder_attn_text_layer_norm": normed(),
        "encoder_attn": {
            "sampling_offsets": linear_weights(rng, heads * 2 * points * 2, C),
            "attention_weights": linear_weights(rng, heads * 2 * points, C),
            "value_proj": linear_weights(rng, C, C),
            "output_proj": linear_weights(rng, C, C),
        },
        "encoder_attn_layer_norm": normed(),
        "fc1": linear_weights(rng, 12, C),
        "fc2": linear_weights(rng, C, 12),
        "final_layer_norm": normed(),
    }


@settings(max_examples=25)
@given(rngs())
def test_a_layer_is_self_attention_text_image_and_feed_forward(rng):
    """Figure 3, block 3, with the text before the image.

    The positions of the boxes are added to the queries of every attention, and to the keys of self-attention. They are
    not added to values.
    """
    C, heads, points, levels = 8, 2, 3, ((3, 4), (2, 2))
    p = layer_weights(rng, C, heads, points)
    x, pos, image, text = (rng.standard_normal((n, C)) for n in (4, 4, 16, 5))
    boxes = rng.random((4, 4))
    want = definitions.norm(
        x + definitions.attention(x + pos, x + pos, x, p["self_attn"], heads), p["self_attn_layer_norm"]
    )
    want = definitions.norm(
        want + definitions.attention(want + pos, text, text, p["encoder_attn_text"], heads),
        p["encoder_attn_text_layer_norm"],
    )
    sampled = definitions.deformable_attention(want + pos, boxes, image, levels, p["encoder_attn"], heads, points)
    want = definitions.norm(want + sampled, p["encoder_attn_layer_norm"])
    want = definitions.norm(want + definitions.feed_forward(want, p["fc1"], p["fc2"], "relu"), p["final_layer_norm"])
    got = decoder_layer(
        x, pos, boxes, image, text, levels, **p, n_heads=heads, n_points=points, activation="relu", eps=1e-5
    )
    np.testing.assert_allclose(got, want, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=10)
@given(rng=rngs())
def test_the_decoder_refines_boxes_layer_by_layer(family, rng):
    """Each layer uses the positions of its boxes. Its state before the shared norm refines them."""
    model = tiny.model(family)
    config, w = model.config, model.weights["decoder"]
    q, r, v, t = problem(rng)
    x, boxes, states = q, [r], []
    for layer, head in zip(w["layers"], model.weights["bbox_embed"], strict=True):
        pos = definitions.mlp(box_positions(boxes[-1], 32), w["reference_points_head"]["layers"])
        x = decoder_layer(
            x, pos, boxes[-1], v, t, SIZES, **layer, n_heads=4, n_points=4, activation="relu", eps=config.layer_norm_eps
        )
        states.append(definitions.norm(x, w["norm"], config.layer_norm_eps))
        boxes.append(sigmoid(logit(boxes[-1]) + definitions.mlp(x, head["layers"])))
    for got, want in zip(run(model, q, r, v, t), (states, boxes)):
        np.testing.assert_allclose(got, want, atol=2e-4)
