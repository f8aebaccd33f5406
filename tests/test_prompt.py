"""Tokenisation of prompts: token ids, phrases and spans."""

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

import minigdino
from minigdino.network.phrases import PUBLISHED_DELIMITERS as DELIMITERS
from minigdino.prompt import Tokenizer

TOKENIZER = tiny.tokenizer()
words = st.lists(st.sampled_from(tiny.WORDS), min_size=1, max_size=4).map(" ".join)
phrase_lists = st.lists(words, min_size=1, max_size=6, unique=True)


@given(phrase_lists)
def test_spans_cover_the_phrases_and_nothing_else(phrases):
    try:
        prompt = TOKENIZER.encode(phrases)
    except minigdino.PromptError as error:  # such as "t shirt" and "t  shirt"
        assert "must not have the same tokens" in str(error)
        return
    covered = [i for start, stop in prompt.spans for i in range(start, stop)]
    assert covered == [i for i, token in enumerate(prompt.ids) if token not in DELIMITERS]
    assert prompt.phrases == phrases
    for phrase, (start, stop) in zip(phrases, prompt.spans):
        assert TOKENIZER.decode(prompt.ids[start:stop]) == phrase


@given(phrase_lists)
def test_a_list_gives_the_tokens_of_the_joined_text(phrases):
    joined = TOKENIZER.encode(". ".join(phrases) + ".")
    try:
        listed = TOKENIZER.encode(phrases)
    except minigdino.PromptError:
        return
    np.testing.assert_array_equal(listed.ids, joined.ids)
    assert listed.phrases == joined.phrases
    assert listed.spans == joined.spans


def test_a_text_is_lower_cased_and_closed_but_phrases_stay_as_written():
    prompt = TOKENIZER.encode("A Cat. the  Remote control")
    np.testing.assert_array_equal(prompt.ids, TOKENIZER.encode("a cat. the remote control.").ids)
    assert prompt.phrases == ["A Cat", "the  Remote control"]
    assert prompt.ids.dtype == np.int64


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("cat . dog . ", ["cat", "dog"]),
        ("cat? dog", ["cat", "dog"]),
        ("cat. . dog.", ["cat", "dog"]),
        ("is it a cat?", ["is it a cat"]),
        ("cat.cat.", ["cat", "cat"]),
        ("cat [SEP] dog", ["cat", "dog"]),
    ],
)
def test_a_text_is_split_into_phrases(text, phrases):
    assert TOKENIZER.encode(text).phrases == phrases


def test_dots_inside_a_listed_phrase_stay_in_its_label():
    prompt = TOKENIZER.encode(["St. Bernard", " a cat. ", "what? hat."])
    assert prompt.phrases == ["St. Bernard", "a cat", "what? hat"]
    np.testing.assert_array_equal(prompt.ids, TOKENIZER.encode("st bernard. a cat. what hat.").ids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names nothing"),
        (" . ? ", "names nothing"),
        ([], "the list is empty"),
        (["cat", " . "], "at least one token; ' . ' has none"),
        (["a cat", "A  cat."], "same tokens; 'a cat' and 'A  cat.' have"),
        (["cat", "cat"], "same tokens; 'cat' and 'cat' have"),
        (["cat", "dog [SEP]"], r"contains \[SEP\]"),
        (7, "a str or a list of str; got int"),
        (["cat", 7], "a list with the element 7"),
        (b"cat", "got bytes"),
    ],
)
def test_invalid_prompts_are_rejected(text, message):
    with pytest.raises(minigdino.PromptError, match=message):
        TOKENIZER.encode(text)


LONG = "x" * 65_536


@pytest.mark.parametrize(
    "text",
    [
        "\ud800" + LONG,
        " " * 65_536,
        [" " * 65_536],
        ["[SEP]" + LONG[5:]],
        [LONG[: 2**15], LONG[: 2**15]],
        [LONG * 2],
        {LONG},
        ["cat", {LONG}],
        ["cat", 10**5000],
    ],
    ids=range(9),
)
def test_messages_shorten_long_prompts(text):
    with pytest.raises(minigdino.PromptError) as caught:
        TOKENIZER.encode(text)
    assert len(str(caught.value)) < 400


def test_prompts_are_compared_by_identity():
    prompt = TOKENIZER.encode("a cat")
    assert prompt == prompt != TOKENIZER.encode("a cat")
    assert prompt in {prompt}


def test_padding_and_truncation_are_always_off():
    backend = TOKENIZER.backend.from_str(TOKENIZER.backend.to_str())
    backend.enable_padding(length=128)
    backend.enable_truncation(4)
    assert len(Tokenizer(backend).encode("a cat. a dog. a hat.").ids) == 11


def test_decode_has_the_spelling_of_transformers():
    ids = TOKENIZER.encode("man at the man ' s hat, tennis").ids
    assert tiny.tokenizer().decode(ids) == "[CLS] man at the man ' s hat, tennis. [SEP]"
    assert tiny.tokenizer(clean_up=True).decode(ids) == "[CLS] man at the man's hat, tennis. [SEP]"
    assert TOKENIZER.decode(TOKENIZER.encode("tennis").ids[2:3]) == "##n"


def test_vocab_txt_alone_gives_the_same_tokens(tmp_path):
    vocab = sorted(TOKENIZER.backend.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab.txt").write_text("\n".join(token for token, _ in vocab) + "\n")
    again = Tokenizer.from_directory(tmp_path)
    text = "A cát. remote-control? man's [SEP] tennis xyz \u4e2d \U0001f431."
    np.testing.assert_array_equal(again.encode(text).ids, TOKENIZER.encode(text).ids)
    assert again.delimiters == DELIMITERS


def test_a_saved_tokenizer_can_be_read(tmp_path):
    tiny.tokenizer(clean_up=True).save(tmp_path)
    again = Tokenizer.from_directory(tmp_path)
    assert again.clean_up
    np.testing.assert_array_equal(again.encode(["a cat", "tennis"]).ids, TOKENIZER.encode(["a cat", "tennis"]).ids)


def test_a_missing_tokenizer_is_none_and_a_corrupted_one_an_error(tmp_path):
    assert Tokenizer.from_directory(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(minigdino.CheckpointError, match=r"tokenizer\.json: not a readable JSON file"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("cat\ndog\n")
    with pytest.raises(minigdino.CheckpointError, match=r"vocab\.txt: expected a BERT vocabulary; it lacks"):
        Tokenizer.from_directory(tmp_path)
