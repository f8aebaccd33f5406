"""Conversions of boxes and logits; position embeddings."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from strategies import rngs, sizes

from minigdino.network import boxes

fractions = st.floats(1e-5, 1 - 1e-5)


@given(st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=8))
def test_sigmoid_equals_its_definition_and_is_symmetric(values):
    x = np.float32(values)
    y = boxes.sigmoid(x)
    np.testing.assert_allclose(y, [1 / (1 + math.exp(-v)) for v in values], rtol=3e-7, atol=0)
    np.testing.assert_allclose(y + boxes.sigmoid(-x), 1, rtol=1e-6)


def test_sigmoid_reaches_its_limits_without_warnings():
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(boxes.sigmoid(np.float32([-np.inf, np.inf])), [0, 1])
    assert boxes.sigmoid(np.float32([0.0])).dtype == np.float32


@given(st.lists(fractions, min_size=1, max_size=8))
def test_logit_undoes_the_sigmoid(values):
    p = np.float64(values)
    np.testing.assert_allclose(boxes.sigmoid(boxes.logit(p)), p, rtol=1e-9)


def test_logit_clamps_its_argument():
    border = math.log(1e-5 / (1 - 1e-5))
    np.testing.assert_allclose(boxes.logit(np.float64([0, -3, 1, 7])), [border, border, -border, -border])
    np.testing.assert_allclose(boxes.logit(np.float32([1])), 11.51156, rtol=1e-6)  # 1 - 1e-5 in float32


@given(rngs(), st.integers(0, 6))
def test_corners_and_centres_round_trip(rng, n):
    box = rng.random((n, 4))
    x0, y0, x1, y1 = boxes.cxcywh_to_xyxy(box).T
    np.testing.assert_allclose(np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1), box, atol=1e-12)


@given(st.floats(0, 250, width=32), st.sampled_from([20, 10000]))
def test_sine_embedding_is_its_definition(x, temperature):
    got = boxes.sine_embedding(np.float64([x]), 8, temperature)[0]
    for i in range(8):
        angle = x * 2 * math.pi / temperature ** (2 * (i // 2) / 8)
        assert math.isclose(got[i], (math.cos if i % 2 else math.sin)(angle), abs_tol=1e-9)


def test_sine_embedding_of_float32_stays_float32():
    assert boxes.sine_embedding(np.float32([1, 2]), 8, 20).dtype == np.float32


@given(sizes())
def test_pixel_centres_run_row_by_row(size):
    H, W = size
    centres = boxes.pixel_centres(H, W, like=np.zeros(0))
    r, c = np.divmod(np.arange(H * W), W)
    np.testing.assert_allclose(centres, np.stack([(c + 0.5) / W, (r + 0.5) / H], 1), rtol=1e-15)


@given(sizes(6))
def test_every_pixel_of_a_map_has_its_own_position(size):
    H, W = size
    positions = boxes.image_positions(H, W, 32, 20, like=np.zeros(0))
    assert positions.shape == (H * W, 32)
    assert len(np.unique(positions.round(9), axis=0)) == H * W
    rows = positions.reshape(H, W, 32)[:, :, :16]  # the first half of the channels is the row
    np.testing.assert_array_equal(rows, np.broadcast_to(rows[:, :1], rows.shape))


def test_box_positions_put_y_before_x():
    one, two = boxes.box_positions(np.float64([[0.1, 0.2, 0.3, 0.4], [0.1, 0.7, 0.3, 0.4]]), 4)
    np.testing.assert_array_equal(one[4:], two[4:])
    assert (one[:4] != two[:4]).any()
