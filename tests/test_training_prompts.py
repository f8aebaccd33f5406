"""Prompts for training: all labels of an image and some absent phrases, which are always a valid prompt."""

import warnings

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from strategies import rngs

from minigdino import ArgumentError, PromptError, PromptWarning
from minigdino.learning.annotations import Sample
from minigdino.learning.prompts import check, mixed

TOKENIZER = tiny.tokenizer()
PHRASES = ["a cat", "A cat.", "red hat", "st. bernard", "st bernard", "dog", "Dog", "the blue star", "tennis", "man",
           "tshirt with a green star at the remote control", "cat, dog"]
EQUAL = {"A cat.": "a cat", "st bernard": "st. bernard", "Dog": "dog"}  # the same tokens
DIFFERENT = [phrase for phrase in PHRASES if phrase not in EQUAL]
labels_of = st.lists(st.sampled_from(DIFFERENT), max_size=8)


def sample(*labels):
    return Sample("a.jpg", np.zeros((len(labels), 4), np.float32), labels)


def encoded(phrases):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptWarning)  # "cat, dog" may be two phrases
        return TOKENIZER.encode(phrases)


def least(labels):
    """Number of tokens of a prompt with these labels only."""
    return len(encoded(sorted(set(labels))).ids) if labels else 2


@given(labels_of, st.lists(st.sampled_from(PHRASES), max_size=20), rngs(), st.integers(-2, 12), st.integers(0, 60))
def test_a_prompt_has_all_labels_and_is_valid(labels, phrases, rng, n, room):
    limit = least(labels) + room
    try:
        found = mixed(labels, phrases, rng, n, TOKENIZER, limit)
    except ArgumentError as error:
        assert "expected a label or a phrase that fits in" in str(error)
        assert not labels and (room < 3 or all(len(TOKENIZER.tokens(p)) + 1 > room for p in phrases))
        return
    prompt = encoded(found)  # refuses two phrases with the same tokens
    assert len(prompt.ids) <= limit
    assert set(labels) <= set(found) <= {*labels, *phrases}
    assert len(found) <= max(n, len(set(labels)), 1)


@given(labels_of, st.integers(0, 99))
def test_the_same_seed_gives_the_same_prompt(labels, seed):
    one, other = (mixed(labels, PHRASES, np.random.default_rng(seed), 9, TOKENIZER) for _ in range(2))
    assert one == other


def test_every_number_of_phrases_and_every_order_occurs():
    rng = np.random.default_rng(0)
    found = [mixed(["dog", "man", "dog"], DIFFERENT, rng, 5, TOKENIZER) for _ in range(300)]
    counts = np.bincount([len(phrases) for phrases in found])
    assert counts[:2].sum() == 0 and len(counts) == 6
    assert counts[2:].min() > 50  # of 75
    assert {phrases.index("dog") for phrases in found} == set(range(5))
    assert {phrase for phrases in found for phrase in phrases} == set(DIFFERENT)


def test_an_image_without_labels_has_absent_phrases_only():
    rng = np.random.default_rng(0)
    assert {len(mixed([], DIFFERENT, rng, 3, TOKENIZER)) for _ in range(50)} == {1, 2, 3}
    for phrases in ([], ["tshirt with a green star"]):
        with pytest.raises(ArgumentError, match=r"expected a label or a phrase that fits in 6 tokens; got \["):
            mixed([], phrases, rng, 3, TOKENIZER, 6)


def test_a_long_phrase_leaves_room_for_a_shorter_one():
    rng = np.random.default_rng(0)
    found = {tuple(mixed(["dog"], ["tshirt with a green star", "man"], rng, 2, TOKENIZER, 6)) for _ in range(50)}
    assert found == {("dog",), ("dog", "man"), ("man", "dog")}


def test_a_prompt_of_one_phrase_is_made_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mixed(["cat, dog"], ["a zebra"], np.random.default_rng(0), 1, TOKENIZER) == ["cat, dog"]


@pytest.mark.parametrize(("labels", "error", "message"), [
    (["dog", "Dog"], ArgumentError, "two labels of an image must not have the same tokens; 'dog' and 'Dog' have"),
    (["st. bernard", "st bernard"], ArgumentError, "'st. bernard' and 'st bernard' have"),
    (["dog", "the blue star"], ArgumentError,
     "the labels of an image must have at most 7 tokens together; 2 labels have 8. Shorten them, or remove"),
    (["dog", " . "], PromptError, "a phrase must have at least one token; ' . ' has none"),
    (["a [SEP] b"], PromptError, "a phrase must not contain special tokens"),
    (["\U0001f600"], PromptError, "a phrase must have a word of the model's vocabulary"),
    (["\ud800"], PromptError, "a prompt must be valid Unicode"),
    (["a" * 70_000], PromptError, "a phrase must have at most 65536 characters")])
def test_invalid_labels_are_refused_before_the_training(labels, error, message):
    with pytest.raises(error) as caught:
        mixed(labels, ["man"], np.random.default_rng(0), 5, TOKENIZER, 7)
    assert message in str(caught.value)
    with pytest.raises(ArgumentError) as caught:
        check([sample("man"), sample(*labels)], TOKENIZER, 7)
    assert str(caught.value).startswith("a.jpg: ")
    assert message in str(caught.value)


@given(st.lists(labels_of, max_size=5), rngs())
def test_checked_samples_have_prompts(labels, rng):
    samples = [sample(*found) for found in labels]
    check(samples, TOKENIZER)
    for one in samples:
        assert set(one.labels) <= set(mixed(one.labels, PHRASES, rng, 5, TOKENIZER))


@given(st.sampled_from(PHRASES))
def test_the_tokens_of_a_phrase_are_those_of_its_span(phrase):
    prompt = encoded(["green", phrase])
    assert TOKENIZER.tokens(phrase) == tuple(prompt.ids[slice(*prompt.spans[1])])
    with pytest.raises(PromptError, match="must be a str or a list of str; got a list with the element None"):
        TOKENIZER.tokens(None)
