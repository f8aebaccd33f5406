"""Properties and definitions of bilinear sampling and deformable attention."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import linear_weights, loose_deform_attn_problems, rngs, sizes

from minigdino.network.boxes import pixel_centres
from minigdino.network.deformable import bilinear, deform_attn, deformable_attention, sampling_locations

pytestmark = pytest.mark.usefixtures("both_kernels")


@given(rngs(), sizes())
def test_sampling_at_a_pixel_centre_gives_the_pixel(rng, size):
    H, W = size
    image = rng.standard_normal((H, W, 1, 3))
    xy = pixel_centres(H, W, like=image)[:, None, None]
    np.testing.assert_allclose(bilinear(image, xy)[:, 0, 0], image.reshape(H * W, 3), atol=1e-12)


@given(rngs(), sizes())
def test_samples_are_zero_outside_and_half_at_the_border(rng, size):
    H, W = size
    image = np.ones((H, W, 1, 1))
    far = rng.uniform(0.5, 3, (8, 1, 1, 2)) / (W, H)  # half a pixel and more beyond the edge
    np.testing.assert_array_equal(bilinear(image, -far), 0)
    np.testing.assert_allclose(bilinear(image, 1 + far), 0, atol=1e-12)
    edge = np.float64([[[[0, 0.5 / H]]]])  # the left edge: half a pixel from the first centre
    np.testing.assert_allclose(bilinear(image, edge), 0.5)


@given(rngs(), sizes(), st.floats(-3, 3))
def test_sampling_is_linear_in_the_image(rng, size, a):
    one, two = rng.standard_normal((2, *size, 2, 3))
    xy = rng.uniform(-0.2, 1.2, (4, 2, 3, 2))
    np.testing.assert_allclose(bilinear(a * one + two, xy), a * bilinear(one, xy) + bilinear(two, xy), atol=1e-10)


@given(rngs())
def test_sampling_a_linear_ramp_is_exact(rng):
    H, W = 6, 9
    y, x = np.mgrid[:H, :W]
    a, b, c = rng.standard_normal(3)
    image = (a * x + b * y + c)[..., None, None]
    xy = rng.uniform(0.5, (W - 0.5, H - 0.5), (7, 1, 1, 2)) / (W, H)
    want = a * (xy[..., 0] * W - 0.5) + b * (xy[..., 1] * H - 0.5) + c
    np.testing.assert_allclose(bilinear(image, xy)[..., 0], want, atol=1e-9)


@given(loose_deform_attn_problems(), rngs())
def test_queries_are_independent(problem, rng):
    value, levels, *of_queries = problem
    some = rng.permutation(len(of_queries[0]))
    np.testing.assert_array_equal(
        deform_attn(value, levels, *(a[some] for a in of_queries)), deform_attn(*problem)[some]
    )


@given(loose_deform_attn_problems(), rngs())
def test_the_order_of_points_does_not_matter(problem, rng):
    value, levels, references, offsets, scores = problem
    some = rng.permutation(offsets.shape[3])
    moved = scores.reshape(offsets.shape[:-1])[..., some].reshape(scores.shape)
    np.testing.assert_allclose(
        deform_attn(value, levels, references, offsets[:, :, :, some], moved), deform_attn(*problem), atol=1e-12
    )


@given(loose_deform_attn_problems())
def test_the_result_is_the_sum_over_levels(problem):
    value, levels, *rest = problem
    start, total = 0, 0
    for H, W in levels:
        alone = np.zeros_like(value)
        alone[start : start + H * W] = value[start : start + H * W]
        total = total + deform_attn(alone, levels, *rest)
        start += H * W
    np.testing.assert_allclose(deform_attn(*problem), total, atol=1e-12)


@given(loose_deform_attn_problems(), rngs())
def test_a_point_of_weight_zero_has_no_effect(problem, rng):
    value, levels, references, offsets, scores = problem
    off = rng.random(scores.shape) < 0.5
    off[..., 0] = False
    silent = np.where(off, -np.inf, scores)
    elsewhere = np.where(off.reshape(offsets.shape[:-1])[..., None], rng.uniform(-9, 9, offsets.shape), offsets)
    np.testing.assert_array_equal(
        deform_attn(value, levels, references, elsewhere, silent),
        deform_attn(value, levels, references, offsets, silent),
    )


@given(rngs(), sizes(6), sizes(6))
def test_offsets_around_a_point_are_in_pixels(rng, one, two):
    levels = (one, two)
    references, offsets = rng.random((3, 2)), rng.standard_normal((3, 2, 2, 4, 2))
    locations = sampling_locations(references, offsets, levels)
    for level, (H, W) in enumerate(levels):
        np.testing.assert_allclose(
            (locations[:, :, level] - references[:, None, None]) * (W, H), offsets[:, :, level], atol=1e-9
        )


@given(rngs())
def test_offsets_around_a_box_are_in_fractions_of_half_its_size(rng):
    boxes, offsets = rng.random((3, 4)) + 0.1, np.ones((3, 2, 1, 4, 2))
    locations = sampling_locations(boxes, offsets * 4, ((5, 5),))  # P = 4, so an offset of 4 is half the box
    corner = (boxes[:, :2] + boxes[:, 2:] / 2)[:, None, None, None]
    np.testing.assert_allclose(locations, np.broadcast_to(corner, locations.shape))


@given(rngs())
def test_a_constant_image_gives_a_constant_for_any_weights(rng):
    """Attention weights sum to 1 over levels and points, so the result is the value that all pixels share."""
    C, levels = 8, ((30, 30), (15, 15))
    w = {
        "sampling_offsets": linear_weights(rng, 2 * 2 * 3 * 2, C),
        "attention_weights": linear_weights(rng, 2 * 2 * 3, C),
        "value_proj": linear_weights(rng, C, C),
        "output_proj": linear_weights(rng, C, C),
    }
    pixel, queries = rng.standard_normal(C), rng.standard_normal((4, C))
    memory = np.tile(pixel, (30 * 30 + 15 * 15, 1))
    w["sampling_offsets"] = {k: np.clip(v, -1, 1) * 0.3 for k, v in w["sampling_offsets"].items()}  # stay inside
    y = deformable_attention(queries, np.full((4, 2), 0.5), memory, levels, **w, n_heads=2, n_points=3)
    value = pixel @ w["value_proj"]["weight"].T + w["value_proj"]["bias"]
    want = value @ w["output_proj"]["weight"].T + w["output_proj"]["bias"]
    np.testing.assert_allclose(y, np.tile(want, (4, 1)), atol=1e-9)
