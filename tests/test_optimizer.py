"""AdamW equals its formula, element by element; its groups, the learning rate and the clipping are as documented."""

import math

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from strategies import rngs

from minigdino.learning import optimizer
from minigdino.learning.optimizer import Moments, adamw, clip_factor, decays, global_norm, group, learning_rate


def by_hand(x, gradients, rates, decay):
    """AdamW of one number, as in arXiv 1711.05101, Algorithm 2."""
    m = v = 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        x = x - rate * m_hat / (math.sqrt(v_hat) + 1e-8) - rate * decay * x
    return x


def steps(x, gradients, rates, decay):
    moments = Moments.zeros(x)
    for step, (g, rate) in enumerate(zip(gradients, rates)):
        x, moments = adamw(x, g, moments, step, rate, decay)
    return x


@given(rngs(), st.integers(1, 6), st.floats(0, 0.5))
def test_adamw_equals_its_formula(rng, n, decay):
    x, gradients, rates = rng.normal(size=(2, 3)), rng.normal(size=(n, 2, 3)), rng.uniform(0, 0.1, n)
    found = steps(x, gradients, rates, decay)
    for i in np.ndindex(2, 3):
        assert found[i] == pytest.approx(by_hand(x[i], gradients[(slice(None), *i)], rates, decay), abs=1e-12)


def test_known_values():
    """torch.optim.AdamW(lr=0.1, weight_decay=0.1) for these gradients, computed with PyTorch 2.13."""
    x = steps(np.array([1.0, -2.0]), np.array([[0.5, 1.0], [-0.25, 1.0], [1.0, 0.0]]), [0.1] * 3, 0.1)
    np.testing.assert_allclose(x, [0.7801104766702113, -2.2149082869141092], rtol=1e-12)


@given(rngs(), st.floats(0.01, 100))
def test_the_first_step_is_the_rate_for_gradients_of_any_scale(rng, scale):
    x, g = np.zeros(5), rng.choice([-1, 1], 5) * scale
    np.testing.assert_allclose(steps(x, [g], [0.25], 0), -0.25 * np.sign(g), rtol=1e-5)


@given(rngs())
def test_no_argument_changes_and_arrays_stay_float32(rng):
    for shape in ((), (3,), (2, 4)):
        x, g = (np.asarray(rng.normal(size=shape), np.float32) for _ in range(2))
        moments = Moments(x * 0.5, g * g)
        kept = [array.copy() for array in (x, g, moments.mean, moments.square)]
        for array in (x, g):
            array.flags.writeable = False
        new, after = adamw(x, g, moments, 3, 0.1, 0.1)
        for array in (new, after.mean, after.square):
            assert type(array) is np.ndarray
            assert (array.shape, array.dtype) == (shape, np.float32)
        for before, array in zip(kept, (x, g, moments.mean, moments.square)):
            np.testing.assert_array_equal(before, array)


def test_without_a_gradient_a_parameter_only_decays():
    np.testing.assert_allclose(steps(np.full(2, 8.0), np.zeros((3, 2)), [0.5] * 3, 0.5), 8 * 0.75**3)


@given(st.integers(1, 500), st.data())
def test_the_rate_rises_to_the_peak_and_falls_from_there(n, data):
    warm_up = data.draw(st.integers(0, n))
    rates = [learning_rate(step, n, 2.0, warm_up) for step in range(n)]
    assert min(rates) > 0
    assert max(rates) <= 2
    assert (np.diff(rates[:warm_up]) > 0).all()
    assert (np.diff(rates[warm_up:]) <= 0).all()
    if warm_up < n:
        assert rates[warm_up] == 2
        middle = (warm_up + n) / 2
        assert learning_rate(middle, n, 2.0, warm_up) == pytest.approx(1)


@given(rngs(), st.floats(0.01, 9))
def test_clipping_bounds_the_norm_of_all_gradients_together(rng, limit):
    gradients = {"a": rng.normal(size=(2, 3)).astype(np.float32), "b": np.float32(rng.normal(size=4))}
    norm = global_norm(gradients)
    assert norm == pytest.approx(math.sqrt(sum(float(g) ** 2 for array in gradients.values() for g in array.flat)))
    factor = clip_factor(norm, limit)
    assert factor == (1 if norm <= limit else pytest.approx(limit / norm))
    assert clip_factor(0.0, limit) == 1


def test_the_norm_of_large_gradients_does_not_overflow():
    assert global_norm({"a": np.full(4, 1e30, np.float32)}) == pytest.approx(2e30, rel=1e-6)


@pytest.mark.parametrize("family", ["grounding-dino", "mm-grounding-dino"])
def test_every_tensor_has_a_group_and_each_choice_trains_more(family):
    model = tiny.model(family)
    groups = {name: group(name) for name in model.tensors}
    assert set(groups.values()) == set(optimizer.GROUPS)
    sizes = [len(optimizer.trained_names(model.tensors, what)) for what in ("heads", "decoder", "detector", "all")]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == len(model.tensors)
    for name, found in groups.items():
        assert (found == "text") == name.startswith("model.text_backbone.")
        assert (found == "backbone") == name.startswith("model.backbone.")
        assert (found == "heads") == ("bbox_embed" in name or "class_embed" in name)
    assert groups["model.decoder.layers.0.fc1.weight"] == groups["model.enc_output.weight"] == "decoder"
    assert groups["model.text_projection.weight"] == groups["model.level_embed"] == "enhancer"


def test_tensors_that_the_model_does_not_use_are_not_trained():
    unused = "model.text_backbone.pooler.dense.weight"
    assert optimizer.trained_names([unused, "model.level_embed"], "all") == ["model.level_embed"]


def test_matrices_decay_and_biases_and_norms_do_not():
    model = tiny.model("mm-grounding-dino")
    decaying = {name for name, array in model.tensors.items() if decays(name, array.shape)}
    assert "model.decoder.layers.0.fc1.weight" in decaying
    assert "model.text_backbone.embeddings.word_embeddings.weight" in decaying
    assert not [name for name in decaying if "bias" in name or "norm" in name.lower().rpartition(".")[0][-12:]]
    assert len(decaying) > len(model.tensors) / 4
