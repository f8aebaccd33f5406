"""Query selection: similarity, proposals, top-N, and the boxes of the selected tokens."""

import math

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from strategies import rngs, sizes

from minigdino.network.boxes import sigmoid
from minigdino.network.ops import mlp
from minigdino.network.queries import proposals, select_queries, similarity, top

pytestmark = pytest.mark.usefixtures("both_kernels")

MODEL = tiny.model()


@given(rngs(), st.integers(1, 5), st.integers(1, 5))
def test_similarity_is_a_dot_product_and_mms_is_scaled_and_shifted(rng, n, T):
    x, text = rng.standard_normal((n, 16)), rng.standard_normal((T, 16))
    dots = [[float(a @ b) for b in text] for a in x]
    np.testing.assert_allclose(similarity(x, text), dots, atol=1e-12)
    np.testing.assert_allclose(similarity(x, text, np.float64(-3)), np.array(dots) / 4 - 3, atol=1e-12)


@given(st.lists(sizes(30), min_size=1, max_size=4))
def test_proposals_are_boxes_around_pixels_away_from_the_border(levels):
    anchors, inside = proposals(levels, like=np.zeros(0))
    boxes = sigmoid(anchors)
    start = 0
    for level, (H, W) in enumerate(levels):
        part, ok = boxes[start : start + H * W], inside[start : start + H * W]
        np.testing.assert_allclose(part[ok, 2:], 0.05 * 2**level, rtol=1e-9)
        assert not ok.any() or ((part[ok] > 0.01).all() and (part[ok] < 0.99).all())
        np.testing.assert_array_equal(part[~ok], 1)
        start += H * W


def test_the_border_is_one_percent():
    _, inside = proposals(((1, 60),), like=np.zeros(0, np.float32))
    assert list(inside[[0, 1, 58, 59]]) == [False, True, True, False]  # 0.5 / 60 < 0.01
    _, coarse = proposals(((1, 1),) * 6, like=np.zeros(0))
    assert coarse.tolist() == [True] * 5 + [False]  # a side of 0.05 * 2**5 would be 1.6 images


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.data())
def test_top_is_the_largest_first_and_ties_in_order(scores, data):
    n = data.draw(st.integers(1, len(scores)))
    want = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:n]
    assert top(np.float32(scores), n).tolist() == want


def select(vision, text, levels, selected=None, n=4):
    return select_queries(
        vision, text, levels, **MODEL.weights["query_selection"], n_queries=n, eps=1e-5, selected=selected
    )


@given(rngs(), st.integers(1, 4))
def test_selection_takes_the_image_tokens_most_similar_to_any_text_token(rng, T):
    levels = ((6, 6), (3, 3))
    vision, text = rng.standard_normal((45, 64), np.float32), rng.standard_normal((T, 64), np.float32)
    got = select(vision, text, levels)
    assert got["scores"].shape == (45,)
    rest = np.delete(got["scores"], got["selected"])
    assert got["scores"][got["selected"]].min() >= rest.max()
    np.testing.assert_array_equal(np.sort(got["scores"][got["selected"]])[::-1], got["scores"][got["selected"]])
    shuffled = select(vision, text[::-1], levels)  # the order of the text does not matter
    np.testing.assert_allclose(shuffled["scores"], got["scores"], atol=1e-5)


def test_boxes_of_selected_tokens_equal_those_of_all_tokens():
    rng = np.random.default_rng(0)
    got = select(rng.standard_normal((45, 64), np.float32), rng.standard_normal((2, 64), np.float32), ((6, 6), (3, 3)))
    head = MODEL.weights["query_selection"]["encoder_output_bbox_embed"]
    everywhere = sigmoid(mlp(got["output"], **head) + got["anchors"])
    np.testing.assert_allclose(got["references"], everywhere[got["selected"]], atol=1e-6)


def test_tokens_near_the_border_share_one_score():
    rng = np.random.default_rng(0)
    levels = ((1, 60),)
    got = select(rng.standard_normal((60, 64), np.float32), rng.standard_normal((2, 64), np.float32), levels)
    assert got["scores"][0] == got["scores"][59]
    assert len(np.unique(got["scores"][1:59])) == 58


def test_a_given_selection_replaces_the_models_own():
    rng = np.random.default_rng(0)
    vision, text, levels = (
        rng.standard_normal((36, 64), np.float32),
        rng.standard_normal((2, 64), np.float32),
        ((6, 6),),
    )
    free = select(vision, text, levels)
    chosen = free["selected"][::-1].copy()
    got = select(vision, text, levels, selected=chosen)
    np.testing.assert_array_equal(got["selected"], chosen)
    np.testing.assert_allclose(got["references"], free["references"][::-1], atol=1e-6)


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
def test_masked_tokens_that_are_selected_give_whole_image_boxes(family):
    """References of exactly 1 pass through the decoder without a warning or a NaN."""
    model = tiny.model(family, stages=(4,), levels=2, queries=3)
    out = model.forward(tiny.pixels(32, 64), tiny.IDS)  # levels of 1 x 2 and 1 x 1 tokens, some of them near the border
    assert math.isfinite(out.boxes.sum())
    assert (out.references >= 0).all()
    assert (out.references <= 1).all()
