"""AP50 equals its definition, written down without a shortcut, and known values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import rngs

from minigdino.learning.average_precision import AveragePrecision, average_precision, hits, iou


def area(box):
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def iou_of(a, b):
    shared = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    union = area(a) + area(b) - shared
    return shared / union if union else 0


def hits_of(boxes, truth):
    found, taken = [], set()
    for box in boxes:
        free = [(iou_of(box, other), -j) for j, other in enumerate(truth) if j not in taken]
        overlap, j = max(free, default=(0, 0))
        found.append(bool(free) and overlap >= 0.5)
        taken |= {-j} if found[-1] else set()
    return found


def precision_of(scores, found, total):
    """For each of 101 recalls, the best precision of all cuts with at least this recall."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    cuts = [sum(found[i] for i in order[: n + 1]) for n in range(len(order))]
    return sum(max((right / (n + 1) for n, right in enumerate(cuts) if right / total >= recall / 100), default=0)
               for recall in range(101)) / 101


def boxes_of(rng, n):
    corners = rng.integers(0, 7, (n, 4)).astype(float)  # many equal ones, some without an area
    return np.sort(corners.reshape(n, 2, 2), axis=1).reshape(n, 4)


@given(rngs(), st.integers(0, 6), st.integers(0, 6))
def test_iou_and_hits_equal_their_definitions(rng, n, m):
    boxes, truth = boxes_of(rng, n), boxes_of(rng, m)
    expected = np.array([[iou_of(a, b) for b in truth] for a in boxes]).reshape(n, m)
    np.testing.assert_allclose(iou(boxes, truth), expected)
    found = hits(boxes, truth)
    assert found.tolist() == hits_of(boxes, truth)
    assert found.sum() <= m


@given(rngs(), st.integers(0, 12), st.integers(1, 7))
def test_average_precision_equals_its_definition(rng, n, total):
    scores = rng.permutation(n) / 16
    found = np.zeros(n, bool)
    found[rng.permutation(n)[:total]] = rng.random(min(n, total)) < 0.7
    value = average_precision(scores, found, total)
    assert value == pytest.approx(precision_of(scores, found.tolist(), total))
    assert 0 <= value <= 1


def test_known_values():
    assert average_precision(np.array([0.9]), np.array([True]), 1) == 1
    assert average_precision(np.array([0.9]), np.array([True]), 2) == pytest.approx(51 / 101)  # up to a recall of 0.5
    assert average_precision(np.array([0.9, 0.8]), np.array([False, True]), 1) == 0.5
    assert average_precision(np.array([0.8, 0.9]), np.array([False, True]), 1) == 1
    assert average_precision(np.zeros(0), np.zeros(0, bool), 3) == 0


def test_the_mean_counts_labels_with_boxes_in_all_images_together():
    square, far = np.array([[0.0, 0, 10, 10]]), np.array([[50.0, 50, 60, 60]])
    result = AveragePrecision()
    result.add("cat", square, np.array([0.9]), square)
    result.add("cat", far, np.array([0.5]), square)  # a second image, where it is missed
    result.add("dog", far, np.array([0.4]), far + 1)  # IoU 81/119
    result.add("hat", far, np.array([0.99]), np.zeros((0, 4)))  # there is none anywhere
    assert result.by_label() == {"cat": pytest.approx(51 / 101), "dog": 1}
    assert result.mean() == pytest.approx((51 / 101 + 1) / 2)
    assert np.isnan(AveragePrecision().mean())


def test_boxes_of_an_image_may_come_in_any_order():
    truth, boxes = np.array([[0.0, 0, 8, 8]]), np.array([[0.0, 0, 8, 7], [0, 0, 8, 8]])
    for order in ([0, 1], [1, 0]):
        result = AveragePrecision()
        result.add("cat", boxes[order], np.array([0.5, 0.9])[order], truth)
        assert result.mean() == 1
