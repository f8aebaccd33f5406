"""Intersection over union and non-maximum suppression, beside their definitions."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import rngs

from minigdino import overlap
from minigdino.overlap import iou, suppress


def some_boxes(rng, n):
    """Boxes with small integer corners, so that many overlap and some are equal."""
    low = rng.integers(0, 6, (n, 2))
    return np.concatenate([low, low + rng.integers(0, 6, (n, 2))], axis=1).astype(np.float32)


def pixels(box):
    """The set of unit squares in a box with integer corners."""
    left, top, right, bottom = map(int, box)
    return {(x, y) for x in range(left, right) for y in range(top, bottom)}


@given(rngs(), st.integers(0, 6), st.integers(0, 6))
def test_iou_is_the_fraction_of_common_pixels(rng, n, m):
    a, b = some_boxes(rng, n), some_boxes(rng, m)
    found = iou(a, b)
    assert found.shape == (n, m)
    for i, j in np.ndindex(n, m):
        both, either = pixels(a[i]) & pixels(b[j]), pixels(a[i]) | pixels(b[j])
        assert found[i, j] == pytest.approx(len(both) / len(either) if either else 0)


@given(rngs(), st.integers(0, 15), st.sampled_from([0, 0.3, 0.5, 1]), st.booleans())
def test_suppression_keeps_what_no_better_kept_box_of_its_group_covers(rng, n, threshold, grouped):
    boxes, scores = some_boxes(rng, n), rng.integers(0, 4, n).astype(np.float32)
    groups = rng.integers(0, 2, n) if grouped else np.zeros(n, int)
    kept = []
    for i in sorted(range(n), key=lambda i: (-scores[i], i)):
        if not any(groups[i] == groups[k] and iou(boxes[[i]], boxes[[k]])[0, 0] > threshold for k in kept):
            kept.append(i)
    assert suppress(boxes, scores, threshold, groups if grouped else None).tolist() == sorted(kept)


def test_many_boxes_need_little_memory():
    """A matrix of all pairs would have 3 GB."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (20_000, 2))
    boxes = np.concatenate([low, low + 40], axis=1)
    assert len(suppress(boxes, rng.random(20_000), 0.3)) < 100


def test_boxes_of_different_groups_are_not_compared(monkeypatch):
    """Else the boxes of a list of 1,203 names would take minutes."""
    rng, pairs = np.random.default_rng(0), []
    boxes, groups = some_boxes(rng, 600), rng.integers(0, 200, 600)
    monkeypatch.setattr(overlap, "iou", lambda a, b: pairs.append(len(a) * len(b)) or iou(a, b))
    suppress(boxes, rng.random(600), 1, groups)
    assert sum(pairs) == sum(n * (n - 1) // 2 for n in np.bincount(groups).tolist())


def test_a_box_that_is_not_finite_suppresses_nothing():
    boxes = np.float32([[0, 0, np.inf, 10], [0, 0, np.inf, 10], [np.nan] * 4, [-np.inf, 0, 9, 9], [0, 0, 9, 9]])
    with warnings.catch_warnings(action="error"):
        assert suppress(boxes, np.float32([0.9, 0.8, 0.7, 0.6, 0.5]), 0).tolist() == [0, 1, 2, 3, 4]
