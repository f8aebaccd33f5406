"""The example of fine-tuning: a new shape and a new colour, drawn by the generator of the embedded checkpoint."""

import numpy as np
import pytest

import minigdino
from minigdino.learning.annotations import read
from minigdino.learning.average_precision import AveragePrecision
from minigdino.learning.training import Options, train
from training import new_words, scenes
from training.outlines import NEW_SHAPES, SHAPES, outline
from training.world import COLOURS, NEW_COLOURS, SEEN, silhouette, tint


def test_the_new_words_are_no_words_of_the_embedded_checkpoint():
    tokenizer = minigdino.load("shapes").tokenizer
    for word in (*NEW_SHAPES, *NEW_COLOURS):
        assert len(tokenizer.tokens(word)) > 3  # spelled in letters
    for word in (*SHAPES, *COLOURS):
        assert len(tokenizer.tokens(word)) == 1


def test_what_was_drawn_before_has_no_new_things():
    assert not {*SHAPES} & {*NEW_SHAPES}
    assert not {*COLOURS} & {*NEW_COLOURS}
    assert not set(SEEN) & set(new_words.NEW)
    assert len(new_words.NEW) == len(COLOURS) + len(SHAPES) + 1


@pytest.mark.parametrize("other", [False, True])
def test_a_crescent_is_a_disc_without_a_bite(other):
    for seed in range(20):
        (polygon,) = outline("crescent", np.random.default_rng(seed), other)
        assert (np.hypot(*polygon.T) <= 1 + 1e-9).all()
        drawn = silhouette([polygon * 50 + 50], 100, 100)
        disc = silhouette([np.stack([np.cos(t := np.linspace(0, 6.28, 99)), np.sin(t)], 1) * 50 + 50], 100, 100)
        assert (drawn <= disc + 0.5).all()
        assert 0.2 < drawn.sum() / disc.sum() < 0.6
        assert drawn[50, 5] == 1  # left
        assert drawn[50, 60:].max() == 0  # right


def test_turquoise_is_between_green_and_blue():
    for seed in range(20):
        red, green, blue = tint("turquoise", np.random.default_rng(seed))
        assert red < 0.6 * max(green, blue)
        assert 0.8 < green / blue < 1.3


def test_the_pictures_and_their_annotations_fit_together(tmp_path):
    new_words.draw(tmp_path, new_words.TRAIN, 8, "train")
    samples = read(tmp_path / "train.json")
    assert len(samples) == 8
    names = {f"{colour} {shape}" for colour, shape in new_words.NEW}
    labels = [label for sample in samples for label in sample.labels]
    assert 0.25 < np.mean([label in names for label in labels]) < 0.75
    for number, sample in enumerate(samples):
        things = new_words.scene(new_words.TRAIN, number).things
        np.testing.assert_allclose(sample.boxes, [thing.box for thing in things], atol=1e-3)


def test_training_validation_and_test_have_different_pictures():
    pictures = [new_words.scene(kind, 0).image for kind in (new_words.TRAIN, new_words.VALIDATION, new_words.TEST)]
    for i, one in enumerate(pictures):
        assert all((one != other).any() for other in pictures[:i])
    assert new_words.OLD_SEEDS[new_words.TEST] == scenes.SEED != new_words.OLD_SEEDS[new_words.VALIDATION]


def test_the_old_phrases_name_what_was_drawn_before():
    assert len(set(new_words.OLD)) == len(SEEN) + len(SHAPES) + len(COLOURS)
    for phrase in new_words.OLD:
        assert not {*phrase.split()} & {*NEW_SHAPES, *NEW_COLOURS}
    for colour, shape in SEEN:
        assert {f"{colour} {shape}", shape, f"{colour} shape"} <= {*new_words.OLD}


def test_ap50_is_that_of_the_package():
    """The difference of two models has an error of its own, since both see the same pictures."""
    rng, expected, pictures = np.random.default_rng(0), AveragePrecision(), []
    for _ in range(30):
        pictures.append([])
        for phrase in ("red star", "star", "ring"):
            low = rng.integers(0, 8, (9, 2))
            boxes, scores = np.concatenate([low, low + rng.integers(1, 5, (9, 2))], axis=1), rng.random(6)
            truth = boxes[6 : 6 + rng.integers(0, 4)]
            expected.add(phrase, boxes[:6], scores, truth)
            pictures[-1].append(new_words.matched(phrase, boxes[:6], scores, truth.tolist()))
    assert new_words.ap50(pictures) == pytest.approx(expected.mean())
    changed = new_words.change(pictures, pictures[:15] * 2, samples=20)
    assert changed["before"][0] == new_words.ap50(pictures)
    assert changed["difference"][0] == pytest.approx(changed["after"][0] - changed["before"][0])
    assert all(error > 0 for _, error in changed.values())
    assert new_words.change(pictures, pictures, samples=20)["difference"] == (0, 0)


@pytest.mark.slow
def test_a_few_pictures_teach_new_words_and_old_ones_stay(tmp_path):
    """The example at a smaller size; docs/howto/fine-tune.md has the full one.

    The bounds are some standard errors below the measured differences, 0.849 ± 0.041 and -0.018 ± 0.007, because
    processors round differently and steps add that up.
    """
    new_words.draw(tmp_path, new_words.TRAIN, 50, "train")
    options = Options(steps=300, rate=5e-4, phrases=5, remember=new_words.OLD)
    for _ in train(minigdino.load("shapes"), read(tmp_path / "train.json"), tmp_path / "run", options, save_every=300):
        pass
    before, after = (new_words.measure(minigdino.load(source), 40) for source in ("shapes", tmp_path / "run"))
    found = {words: new_words.change(before[words], after[words]) for words in before}
    assert found["new"]["before"][0] < 0.2
    assert found["new"]["difference"][0] > 0.7
    assert found["old"]["difference"][0] > -0.04
