"""Matching costs equal their definitions, and no other assignment of queries to boxes costs less."""

import dataclasses
import itertools

import definitions
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from strategies import rngs

from minigdino.network import matching
from minigdino.network.losses import Targets

CONFIG = tiny.config()


def boxes(rng, count, dtype=np.float64):
    """Random boxes inside the image."""
    sides = rng.uniform(0.02, 0.6, (count, 2))
    return np.concatenate([rng.uniform(sides / 2, 1 - sides / 2), sides], axis=1).astype(dtype)


def phrases(rng, count, T=7):
    """Tokens of random phrases; none has all tokens, or no token."""
    tokens = rng.random((count, T)) < 0.4
    tokens[:, 0], tokens[:, -1] = True, False
    return tokens


@st.composite
def problems(draw, queries=9, count=5, dtype=np.float64):
    """Logits, boxes and targets of any counts."""
    rng, Q, B = draw(rngs()), draw(st.integers(1, queries)), draw(st.integers(0, count))
    logits = rng.normal(0, draw(st.sampled_from([1, 8])), (Q, 7)).astype(dtype)
    return logits, boxes(rng, Q, dtype), Targets(boxes(rng, B, dtype), phrases(rng, B))


alphas = st.sampled_from([0.25, 0.5, 0.9])


@given(problems(), alphas, st.sampled_from([0, 1, 2]))
def test_class_costs_equal_their_definitions(problem, alpha, gamma):
    logits, _, targets = problem
    for function, which, eps in ((matching.class_cost, 0, 1e-8), (matching.summed_class_cost, 1, 1e-12)):
        cost = function(logits, targets.tokens, alpha, gamma)
        expected = [[definitions.class_cost(row, tokens, alpha, gamma, eps)[which] for tokens in targets.tokens]
                    for row in logits]
        np.testing.assert_allclose(cost, np.reshape(expected, cost.shape), rtol=1e-9, atol=1e-12)


@given(problems(), alphas)
def test_the_class_costs_differ_by_the_length_of_a_phrase_and_by_a_constant_of_the_query(problem, alpha):
    """So for phrases of one token each, a query prefers the same box by both."""
    logits, _, targets = problem
    logits = np.clip(logits, -8, 8)  # where eps has little effect
    mean, summed = (f(logits, targets.tokens, alpha) for f in (matching.class_cost, matching.summed_class_cost))
    rest = summed - mean * targets.tokens.sum(axis=1)  # the cost of answering no everywhere
    np.testing.assert_allclose(rest, np.broadcast_to(rest[:, :1], rest.shape), atol=1e-3)


@given(problems())
def test_a_cost_is_the_weighted_sum_of_three(problem):
    logits, candidates, targets = problem
    config = dataclasses.replace(CONFIG, class_cost=0.7, bbox_cost=3, giou_cost=11, focal_alpha=0.4)
    cost = matching.cost_matrix(logits, candidates, targets, config)
    for q, b in itertools.product(range(len(candidates)), range(len(targets.boxes))):
        expected = (0.7 * definitions.class_cost(logits[q], targets.tokens[b], 0.4, 2, 1e-8)[0]
                    + 3 * sum(abs(candidates[q] - targets.boxes[b]))
                    - 11 * definitions.giou(candidates[q], targets.boxes[b]))
        assert cost[q, b] == pytest.approx(expected, abs=1e-9)


@given(problems(queries=5, count=4))
def test_no_other_assignment_costs_less(problem):
    logits, candidates, targets = problem
    cost = matching.cost_matrix(logits, candidates, targets, CONFIG)
    rows, columns = matching.assign(cost)
    assert len(rows) == len(columns) == min(cost.shape)
    assert len(set(rows)) == len(rows) and len(set(columns)) == len(columns)
    if cost.shape[0] < cost.shape[1]:
        cost = cost.T
    Q, B = cost.shape
    best = min(sum(cost[q, b] for b, q in enumerate(chosen)) for chosen in itertools.permutations(range(Q), B))
    found = matching.cost_matrix(logits, candidates, targets, CONFIG)[rows, columns].sum()
    assert found == pytest.approx(best, abs=1e-9)


def pairs(problem, config=CONFIG):
    logits, candidates, targets = problem
    matches, _ = matching.match({"": (logits, candidates)}, targets, config)
    return {(int(q), int(b)) for q, b in zip(*matches[""])}


@given(problems(), rngs())
def test_another_order_of_boxes_or_queries_gives_the_same_pairs(problem, rng):
    logits, candidates, targets = problem
    q, b = rng.permutation(len(candidates)), rng.permutation(len(targets.boxes))
    permuted = logits[q], candidates[q], Targets(targets.boxes[b], targets.tokens[b])
    assert {(q[i], b[j]) for i, j in pairs(permuted)} == pairs(problem)


@given(rngs(), st.integers(1, 6), st.integers(0, 4))
def test_a_perfect_prediction_is_matched_to_its_box(rng, B, more):
    targets = Targets(boxes(rng, B), phrases(rng, B))
    logits = np.concatenate([np.where(targets.tokens, 30.0, -30.0), np.full((more, 7), -30.0)])
    assert pairs((logits, np.concatenate([targets.boxes, boxes(rng, more)]), targets)) == {(b, b) for b in range(B)}


@given(problems(dtype=np.float32))
def test_float32_stays_float32(problem):
    logits, candidates, targets = problem
    for class_cost in (matching.class_cost, matching.summed_class_cost):
        assert matching.cost_matrix(logits, candidates, targets, CONFIG, class_cost).dtype == np.float32


def test_costs_of_certain_answers_are_finite_without_warnings():
    tokens = np.ones((1, 1), bool)
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        for class_cost in (matching.class_cost, matching.summed_class_cost):
            cost = class_cost(np.float32([[-1e30], [0], [1e30]]), tokens, 0.25)
            assert np.isfinite(cost).all()
            assert (np.diff(cost[:, 0]) < 0).all()


def test_a_pair_without_a_finite_cost_is_matched_last():
    """Two boxes without an area have no GIoU. No warning is raised."""
    point = np.float32([[0.5, 0.5, 0, 0]])
    targets = Targets(np.concatenate([point, np.float32([[0.5, 0.5, 0.2, 0.2]])]), np.ones((2, 1), bool))
    candidates, logits = np.concatenate([point, targets.boxes[1:], point]), np.zeros((3, 1), np.float32)
    cost = matching.cost_matrix(logits, candidates, targets, CONFIG)
    assert (cost == np.finfo(np.float32).max).tolist() == [[True, False], [False, False], [True, False]]
    assert pairs((logits, candidates, targets)) == {(1, 0), (0, 1)}
    nan = np.full_like(candidates, np.nan)
    assert len(pairs((logits, nan, targets))) == 2


def test_each_stage_is_matched_on_its_own():
    rng = np.random.default_rng(0)
    targets = Targets(boxes(rng, 2), phrases(rng, 2))
    stages = {name: (rng.normal(0, 5, (6, 7)), boxes(rng, 6)) for name in ("", "_enc", "_0")}
    matches, costs = matching.match(stages, targets, CONFIG)
    assert matches.keys() == costs.keys() == stages.keys()
    for name, stage in stages.items():
        assert set(zip(*map(np.ndarray.tolist, matches[name]))) == pairs((*stage, targets))
        np.testing.assert_array_equal(costs[name], matching.cost_matrix(*stage, targets, CONFIG))
    summed, _ = matching.match(stages, targets, CONFIG, matching.summed_class_cost)
    np.testing.assert_array_equal(
        summed[""], matching.assign(matching.cost_matrix(*stages[""], targets, CONFIG, matching.summed_class_cost)))
