"""Long lists: how they are cut into prompts."""

import warnings

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from minigdino import ArgumentError, PromptError, PromptWarning
from minigdino.chunks import chunks

TOKENIZER = tiny.tokenizer()
phrases = st.lists(st.sampled_from(tiny.WORDS), min_size=1, max_size=4).map(tuple)
lists = st.lists(phrases, min_size=1, max_size=30, unique_by=lambda words: TOKENIZER.tokens(" ".join(words)))


@given(lists.map(lambda found: [" ".join(words) for words in found]), st.integers(12, 60),
       st.none() | st.integers(1, 12))
def test_each_prompt_is_that_of_its_phrases_and_the_list_is_complete(listed, limit, chunk):
    prompts = chunks(listed, TOKENIZER, limit, chunk)
    assert [phrase for prompt in prompts for phrase in prompt.phrases] == listed
    for prompt in prompts:
        alone = TOKENIZER.encode(prompt.phrases)
        np.testing.assert_array_equal(prompt.ids, alone.ids)
        assert (prompt.ids.dtype, prompt.spans) == (alone.ids.dtype, alone.spans)
        assert len(prompt.ids) <= limit
        assert chunk is None or len(prompt.phrases) <= chunk


@given(lists.map(lambda found: [" ".join(words) for words in found]), st.integers(12, 60),
       st.none() | st.integers(1, 12))
def test_no_prompt_has_room_for_the_next_phrase(listed, limit, chunk):
    prompts = chunks(listed, TOKENIZER, limit, chunk)
    for prompt, following in zip(prompts, prompts[1:]):
        longer = TOKENIZER.encode([*prompt.phrases, following.phrases[0]])
        assert len(longer.ids) > limit or len(longer.phrases) > chunk


def test_a_list_that_fits_is_one_prompt():
    (prompt,) = chunks(["A cat.", "st. bernard"], TOKENIZER, 256)
    assert prompt.phrases == ["A cat", "st. bernard"]
    np.testing.assert_array_equal(prompt.ids, TOKENIZER.encode(["A cat.", "st. bernard"]).ids)


def test_phrases_with_the_same_tokens_are_refused_in_different_prompts_too():
    with pytest.raises(PromptError, match="two phrases must not have the same tokens; 'a cat' and 'A Cat.' have"):
        chunks(["a cat", "dog", "hat", "A Cat."], TOKENIZER, 256, 1)


def test_a_phrase_that_fits_into_no_prompt_is_named():
    assert len(chunks(["cat", "a red cat with a hat"], TOKENIZER, 9)) == 2
    with pytest.raises(PromptError, match="at most 5 tokens for this model; 'a red cat with a hat' has 6. Shorten it"):
        chunks(["cat", "a red cat with a hat"], TOKENIZER, 8)


def test_a_list_is_checked_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chunks(["a 猫", "a dog", "the 犬"], TOKENIZER, 256, 1)
    (warning,) = caught
    assert warning.category is PromptWarning
    assert "'猫' in the phrase 'a 猫', '犬' in the phrase 'the 犬'" in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chunks(["red, blue cat", "dog"], TOKENIZER, 256, 1)  # a comma in a list of several phrases is meant


def test_a_list_may_have_more_characters_than_a_text():
    pairs = [f"{a} {b} {c}" for a in "abcdefghijklmnopqrstuvwxyz" for b in "abcdefghijklmnopqrstuvwxyz"
             for c in tiny.WORDS]
    prompts = chunks(pairs, TOKENIZER, 256)
    assert sum(map(len, pairs)) > 2**16
    assert sum(len(prompt.phrases) for prompt in prompts) == len(pairs)


@pytest.mark.parametrize("chunk", [0, -1, 2.0, True, "40", float("nan"), [3]])
def test_a_chunk_that_is_no_number_of_phrases_is_refused(chunk):
    with pytest.raises(ArgumentError, match="chunk must be a whole number of 1 or more; got "):
        chunks(["a cat"], TOKENIZER, 256, chunk)


@pytest.mark.parametrize("phrases", ["a cat. a dog.", None, 3, {"a cat": 1}])
def test_only_a_list_is_cut(phrases):
    with pytest.raises(PromptError, match="must be a list of phrases; got "):
        chunks(phrases, TOKENIZER, 256)
