"""Remembering old phrases: equal predictions have the loss 0, its gradient gives the slope, and a run keeps them."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from strategies import rngs
from test_gradients import assert_gradient

import minigdino
from minigdino import ArgumentError, PromptError, cli
from minigdino.checkpoints.weights import build
from minigdino.learning import command, distillation, state, training
from minigdino.learning.annotations import Sample
from minigdino.learning.gradients import value_and_gradients
from minigdino.learning.optimizer import NEW_WORDS
from minigdino.learning.prompts import new_tokens
from minigdino.learning.training import Options, train
from minigdino.network import decoder, queries
from minigdino.network.boxes import sigmoid
from minigdino.network.losses import total
from minigdino.network.model import forward

MODEL = tiny.model("mm-grounding-dino", encoder_layers=1, decoder_layers=2)
OLD = "a cat", "dog", "green star"
FAST = Options(steps=3, rate=1e-3, size=(48, 64), remember=OLD)
PIXELS, IDS = MODEL.preprocess(tiny.photo(60, 80), size=(48, 64)), np.array(MODEL.tokenize(list(OLD)).ids)

logits_of = st.floats(-25, 25)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """An image with a rectangle."""
    path = tmp_path_factory.mktemp("images") / "0.png"
    picture = Image.fromarray(tiny.photo(60, 80))
    ImageDraw.Draw(picture).rectangle([5, 9, 34, 40], "#e02020")
    picture.save(path)
    return [Sample(str(path), np.float32([[5, 9, 35, 41]]), ("red hat",))]


def predicted(tensors, dtype=np.float32, selected=None):
    """All predictions for the old phrases."""
    arrays = {name: x.astype(dtype) if isinstance(x, np.ndarray) else x for name, x in tensors.items()}
    return forward(PIXELS.astype(dtype), IDS, MODEL.tokenizer.delimiters, build(arrays, MODEL.config), MODEL.config,
                   selected, details=True)


# The loss.


@given(logits_of, logits_of)
def test_the_divergence_equals_its_definition(logit, wanted):
    p, q = (np.float64([sigmoid(x), sigmoid(-x)]) for x in (np.float64(wanted), np.float64(logit)))
    found = distillation.divergence(np.float64([logit]), np.float64([wanted]))
    np.testing.assert_allclose(found, (p * np.log(p / q)).sum(), rtol=1e-9, atol=1e-12)


@given(st.floats(-60, 60, width=32), st.floats(-60, 60, width=32))
def test_the_divergence_is_0_for_equal_logits_and_above_for_others(logit, wanted):
    logits = np.float32([logit, wanted])
    found = distillation.divergence(logits, np.float32(wanted))
    assert found.dtype == np.float32
    assert found[1] == 0
    assert found[0] >= -1e-5 * (1 + abs(logits).max())
    if abs(logit - wanted) > 0.1 and max(abs(logit), abs(wanted)) < 5:
        assert found[0] > 0


def test_the_divergence_of_any_float32_is_finite_without_warnings():
    x = np.float32([-1e30, -100, -1e-30, 0, 1e-30, 100, 1e30])
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        assert np.isfinite(distillation.divergence(x[:, None], x[None])).all()


@given(rngs(), st.integers(1, 5), st.integers(1, 5))
def test_the_derivative_of_the_divergence_is_the_difference_of_the_probabilities(rng, n, m):
    logits, wanted = rng.normal(0, 3, (2, n, m))
    assert_gradient(lambda x: distillation.divergence(x, wanted), (logits,))
    _, gradients = value_and_gradients(lambda x: distillation.divergence(x["x"], wanted).sum(), {"x": logits})
    np.testing.assert_allclose(gradients["x"], sigmoid(logits) - sigmoid(wanted), atol=1e-12)


def test_equal_predictions_cost_nothing_and_have_no_gradient():
    wanted = predicted(MODEL.tensors)
    assert set(distillation.distillation(wanted, wanted, MODEL.config).values()) == {0.0}

    def loss(trained):
        output = predicted({**MODEL.tensors, **trained}, selected=wanted.selected)
        return total(distillation.distillation(output, wanted, MODEL.config), MODEL.config)

    start = {name: MODEL.tensors[name] for name in training.trained_names(MODEL.tensors, "detector")}
    value, gradients = value_and_gradients(loss, start)
    changed, slope = value_and_gradients(loss, {name: x * np.float32(1.01) for name, x in start.items()})
    assert abs(value) < 1e-4 * changed
    assert training.global_norm(gradients) < 1e-3 * training.global_norm(slope)


def test_the_gradient_of_the_loss_gives_the_slope(monkeypatch):
    """Where boxes pass their gradients on, too: `detach` stops them in training."""
    for module in (decoder, queries):
        monkeypatch.setattr(module, "detach", lambda x: x)
    names = training.trained_names(MODEL.tensors, "decoder")
    wanted, rng = predicted(MODEL.tensors, np.float64), np.random.default_rng(0)
    start = {name: MODEL.tensors[name].astype(np.float64) * 1.02 for name in names}
    direction = {name: rng.standard_normal(x.shape) * abs(x).mean() for name, x in start.items()}

    def loss(trained):
        weights = build({**{name: x.astype(np.float64) for name, x in MODEL.tensors.items()}, **trained}, MODEL.config)
        output = forward(PIXELS.astype(np.float64), IDS, MODEL.tokenizer.delimiters, weights, MODEL.config,
                         wanted.selected, details=True, image_features=wanted.image_features)
        return total(distillation.distillation(output, wanted, MODEL.config), MODEL.config)

    value, gradients = value_and_gradients(loss, start)
    assert value > 0
    ends = [loss({name: x + h * direction[name] for name, x in start.items()}) for h in (1e-7, -1e-7)]
    slope = sum((gradients[name] * direction[name]).sum() for name in names)
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-7, rel=1e-4)


def test_boxes_count_as_much_as_the_other_model_is_certain():
    wanted = predicted(MODEL.tensors)
    moved = dataclasses.replace(wanted, boxes=wanted.boxes * np.float32(0.9))
    certainty = sigmoid(wanted.logits).max(axis=1)
    found = distillation.distillation(moved, wanted, MODEL.config)
    assert {name for name, value in found.items() if value} == {"loss_bbox"}
    distance = (certainty * ((moved.boxes - wanted.boxes) ** 2).sum(axis=1)).sum() / max(1, certainty.sum())
    assert found["loss_bbox"] == pytest.approx(distance, rel=1e-5)


def test_a_token_that_was_not_selected_counts_too():
    wanted = predicted(MODEL.tensors)
    logits = wanted.encoder_logits.copy()
    logits[np.setdiff1d(np.arange(len(logits)), wanted.selected)[0], 1] += 3
    found = distillation.distillation(dataclasses.replace(wanted, encoder_logits=logits), wanted, MODEL.config)
    assert {name for name, value in found.items() if value} == {"loss_ce_enc"}


# A run.


def steps_of(samples, folder, options, **more):
    return list(train(MODEL, samples, folder, options, save_every=100, **more))


def change(folder):
    """How much the predictions for the old phrases have changed."""
    wanted = predicted(MODEL.tensors)
    output = predicted(minigdino.load(folder).tensors, selected=wanted.selected)
    return float(total(distillation.distillation(output, wanted, MODEL.config), MODEL.config))


def test_the_first_step_has_the_loss_of_the_labels_alone(samples, tmp_path):
    runs = [steps_of(samples, tmp_path / str(len(old)), dataclasses.replace(FAST, remember=old)) for old in ((), OLD)]
    assert runs[0][0].loss == pytest.approx(runs[1][0].loss, rel=1e-5)
    assert runs[0][2].loss != pytest.approx(runs[1][2].loss, rel=1e-5)


def test_a_run_changes_what_it_remembers_less(samples, tmp_path):
    options, changes = dataclasses.replace(FAST, steps=10, augment="none"), {}
    for old in ((), OLD):
        steps = steps_of(samples, tmp_path / str(len(old)), dataclasses.replace(options, remember=old))
        changes[old] = change(tmp_path / str(len(old)))
        assert np.mean([step.loss for step in steps[-3:]]) < steps[0].loss
    assert changes[OLD] < changes[()] / 2


@pytest.mark.parametrize("what", ["detector", "all"])
def test_a_run_that_remembers_is_resumed_with_the_same_bits(samples, tmp_path, what):
    options = dataclasses.replace(FAST, train=what)
    whole = steps_of(samples, tmp_path / "whole", options)
    steps = train(MODEL, samples, tmp_path / "run", options)
    first = list(itertools.islice(steps, 1))
    steps.close()
    rest = steps_of(samples, tmp_path / "run", options, resume=True)
    assert [step.loss for step in first + rest] == [step.loss for step in whole]
    one, other = (minigdino.load(tmp_path / name).tensors for name in ("whole", "run"))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    with pytest.raises(ArgumentError, match=r"needs the settings.*remember"):
        train(MODEL, samples, tmp_path / "run", dataclasses.replace(options, remember=OLD[:1]), resume=True)


# New words.

EMBEDDINGS = MODEL.tensors[training.EMBEDDINGS]
RED, HAT = MODEL.tokenizer.tokens("red hat")


@given(st.lists(st.sampled_from(tiny.WORDS), max_size=6), st.lists(st.sampled_from(tiny.WORDS), max_size=6))
def test_new_tokens_are_those_that_no_old_phrase_has(labels, old):
    found = new_tokens(labels, old, MODEL.tokenizer)
    ids = {word: MODEL.tokenizer.tokens(word) for word in tiny.WORDS}
    assert found == sorted({i for i in range(len(EMBEDDINGS)) if any(i in ids[word] for word in labels)
                            and not any(i in ids[word] for word in old)})


def test_only_the_embeddings_of_new_tokens_change(samples, tmp_path):
    """They have ten times the rate, and the first step of AdamW changes each number by about the rate."""
    options = dataclasses.replace(FAST, steps=1, warm_up=0, weight_decay=0.0)
    for number, (old, expected) in enumerate([((), []), (OLD, [RED, HAT]), (("a hat",), [RED]), (("red hat",), [])]):
        steps_of(samples, tmp_path / str(number), dataclasses.replace(options, remember=old))
        found = abs(minigdino.load(tmp_path / str(number)).tensors[training.EMBEDDINGS] - EMBEDDINGS)
        assert np.flatnonzero(found.max(axis=1)).tolist() == sorted(expected)
        np.testing.assert_allclose(found[expected], 1e-2, rtol=0.05)


def test_further_rows_of_the_table_have_the_gradients_of_their_tokens(samples):
    """They are the rows of the gradient of the whole table."""
    run = training._Run(MODEL, samples, ["red hat"], Path("unused"), dataclasses.replace(FAST, train="all"))
    whole = training._Run(MODEL, samples, ["red hat"], Path("unused"), dataclasses.replace(FAST, train="all"))
    whole._new, whole._rows = [], np.arange(len(EMBEDDINGS))
    tensors = {name: MODEL.tensors[name] for name in whole._start if name != NEW_WORDS}
    loss, gradients = run._gradients(state.initial(run._start), *run._sample(0))
    expected, all_gradients = whole._gradients(state.initial(tensors), *whole._sample(0))
    assert loss == expected
    table = all_gradients[training.EMBEDDINGS]
    np.testing.assert_array_equal(gradients[NEW_WORDS], table[sorted([RED, HAT])])
    assert table[[RED, HAT]].any()
    np.testing.assert_array_equal(gradients[training.EMBEDDINGS][[RED, HAT]], 0)


@pytest.mark.parametrize("what", ["heads", "all"])
def test_a_share_of_the_starting_embeddings_is_kept(samples, tmp_path, what):
    run = training._Run(MODEL, samples, ["red hat"], tmp_path, dataclasses.replace(FAST, train=what, keep=0.25))
    start = state.initial(run._start)
    changed = dataclasses.replace(start, tensors={name: array + np.float32(1) for name, array in start.tensors.items()})
    found = run.model(changed).tensors
    np.testing.assert_allclose(found[training.EMBEDDINGS][[RED, HAT]], EMBEDDINGS[[RED, HAT]] + 0.75, rtol=1e-6)
    np.testing.assert_allclose(np.delete(found[training.EMBEDDINGS], [RED, HAT], axis=0),
                               np.delete(EMBEDDINGS, [RED, HAT], axis=0) + 0.75 * (what == "all"), rtol=1e-6)


# Options.


@pytest.mark.parametrize("phrases", ["a cat", ["a cat"], (1,)])
def test_what_is_no_tuple_of_phrases_is_refused(phrases):
    with pytest.raises(ArgumentError, match="remember must be a tuple of phrases; got"):
        Options(remember=phrases)


def test_a_phrase_that_makes_no_prompt_is_an_error_before_a_file_is_written(samples, tmp_path):
    for phrase, kind, message in (("", PromptError, "phrase"), ("cat " * 300, ArgumentError, r"303\. Shorten it")):
        with pytest.raises(kind, match=message):
            train(MODEL, samples, tmp_path / "run", dataclasses.replace(FAST, remember=(phrase,)))
    assert not (tmp_path / "run").exists()


def test_the_command_reads_the_phrases_from_a_file(samples, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "read", lambda *args: samples)
    monkeypatch.setattr(command, "train", lambda *args, **more: seen.append(args[3]) or iter(()))
    (tmp_path / "old.txt").write_text("a cat\n\ngreen star \n")

    def run(file):
        arguments = ["train", "data.json", "--out", "run", "--model", "shapes", "--remember", str(tmp_path / file)]
        command.run(cli.parser().parse_args(arguments), seen.append)

    run("old.txt")
    assert seen[0].remember == ("a cat", "green star")
    with pytest.raises(ArgumentError, match="Check the path of --remember"):
        run("none.txt")
