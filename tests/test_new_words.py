"""The example of fine-tuning: a new shape and a new colour, drawn by the generator of the embedded checkpoint."""

import numpy as np
import pytest

import minigdino
from minigdino.learning.annotations import read
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


@pytest.mark.slow
def test_a_few_pictures_teach_new_words(tmp_path):
    """The example at a smaller size; docs/howto/fine-tune.md has the full one."""
    new_words.draw(tmp_path, new_words.TRAIN, 30, "train")
    options = Options(steps=100, rate=5e-4, phrases=5)
    for _ in train(minigdino.load("shapes"), read(tmp_path / "train.json"), tmp_path / "run", options, save_every=100):
        pass
    before, after = (new_words.measure(minigdino.load(source), 20) for source in ("shapes", tmp_path / "run"))
    assert before["new"] < 0.2
    assert after["new"] > before["new"] + 0.2
    assert after["old"] > before["old"] - 0.2
