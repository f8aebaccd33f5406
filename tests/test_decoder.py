"""The decoder refines boxes; queries trade places freely."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from strategies import rngs

from minigdino.network.boxes import logit, sigmoid
from minigdino.network.decoder import decoder, refine
from minigdino.network.ops import mlp

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
def test_permuted_queries_permute_the_answer(family, rng):
    q, r, v, t = problem(rng)
    some = rng.permutation(5)
    states, boxes = run(tiny.model(family), q, r, v, t)
    again, moved = run(tiny.model(family), q[some], r[some], v, t)
    np.testing.assert_allclose(again, states[:, some], atol=2e-4)
    np.testing.assert_allclose(moved, boxes[:, some], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_starts_where_the_last_one_ended(family):
    model = tiny.model(family)
    q, r, v, t = problem(np.random.default_rng(0))
    states, boxes = run(model, q, r, v, t)
    assert (states.shape, boxes.shape) == ((3, 5, 64), (4, 5, 4))
    np.testing.assert_array_equal(boxes[0], r)
    assert ((boxes > 0) & (boxes < 1)).all()
    assert all(abs(a - b).max() > 1e-3 for a, b in zip(boxes, boxes[1:]))


def test_refine_adds_in_logits():
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
