"""Tokenisation of prompts: token ids, phrases and spans."""

import functools
import re
import sys
import warnings

import numpy as np
import pytest
import tiny
from hypothesis import assume, given
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


@given(st.text(alphabet="aA cats.,?dog-é", max_size=30))
def test_a_text_is_read_as_it_is_with_the_characters_of_each_token(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of unknown words, and of commas
        ids, offsets = TOKENIZER.read(text)
    assert ids.tolist() == TOKENIZER.backend.encode(text).ids
    assert (ids.dtype, ids[0], ids[-1]) == (np.int64, TOKENIZER.cls, TOKENIZER.sep)
    assert offsets[0] == offsets[-1] == (0, 0)
    covered = "".join(text[start:stop] for start, stop in offsets)
    assert covered == text.replace(" ", "")


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
        (["cat", "猫"], "a word of the model's vocabulary; '猫' has only unknown words. Use other words"),
        (["🐱", "🐶"], "'🐱' has only unknown words"),
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


@pytest.mark.filterwarnings("ignore::minigdino.PromptWarning")
def test_decode_has_the_spelling_of_transformers():
    ids = TOKENIZER.encode("man at the man ' s hat, tennis").ids
    assert tiny.tokenizer().decode(ids) == "[CLS] man at the man ' s hat, tennis. [SEP]"
    assert tiny.tokenizer(clean_up=True).decode(ids) == "[CLS] man at the man's hat, tennis. [SEP]"
    assert TOKENIZER.decode(TOKENIZER.encode("tennis").ids[2:3]) == "##n"


@pytest.mark.filterwarnings("ignore::minigdino.PromptWarning")
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


# warnings

known = st.sampled_from(tiny.WORDS)
unknown = st.text(alphabet="\U0001f431\U0001f436\u00b0\u0416", min_size=1, max_size=3)


def warnings_of(call):
    """The messages of the PromptWarnings of a call, each of which must name this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(w.category is minigdino.PromptWarning and w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


@given(st.lists(st.lists(st.one_of(known, unknown), min_size=1, max_size=4), min_size=1, max_size=3), st.booleans())
def test_every_unknown_word_is_reported_with_its_phrase(phrases, listed):
    phrases = [["a", *words] for words in phrases]  # a listed phrase needs one word of the vocabulary
    texts = [" ".join(words) for words in phrases]
    assume(len(set(texts)) == len(texts))
    try:
        messages = warnings_of(lambda: TOKENIZER.encode(texts if listed else ". ".join(texts)))
    except minigdino.PromptError as error:
        assert "the same tokens" in str(error)  # [UNK] for both
        return
    pairs = [(word.lower() if listed else word, text) for words, text in zip(phrases, texts)
             for word in words if word not in tiny.WORDS]
    pairs = list(dict.fromkeys(pairs))
    assert len(messages) == bool(pairs)
    for word, text in pairs[:3]:
        assert f"{word!r} in the phrase {text!r}" in messages[0]
    if pairs:
        assert (f" and {len(pairs) - 3} more. " in messages[0]) == (len(pairs) > 3)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("cat, dog", "as one. If several are meant, write 'cat. dog.'"),
        ("a cat; a dog\na hat.", "write 'a cat. a dog. a hat.'"),
        ("man. cat, dog.", "'cat, dog' as one. If several are meant, write 'cat. dog.'"),
        (["cat\ndog"], "If several are meant, give each one separately: 'cat', 'dog'"),
        (["cat, dog"], "If several are meant, give each one separately: 'cat', 'dog'"),
    ],
)
def test_a_separator_within_a_phrase_gives_a_hint(text, advice):
    messages = warnings_of(lambda: TOKENIZER.encode(text))
    assert advice in messages[-1]  # the small vocabulary lacks ";", which gives another warning


@pytest.mark.parametrize("text", ["猫. 犬.", "猫", "🐱. 🐶?"])
def test_a_text_of_unknown_words_only_is_tokenized_as_in_transformers_with_a_warning(text):
    (message,) = warnings_of(lambda: TOKENIZER.encode(text))
    n = len(re.findall("[.?]", text)) or 1
    assert message.count("in the phrase") == n
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prompt = TOKENIZER.encode(text)
    assert len(prompt.phrases) == n
    assert all(prompt.ids[start] == TOKENIZER.unknown for start, _ in prompt.spans)
    with pytest.raises(minigdino.PromptError, match="has only unknown words"):
        TOKENIZER.encode(prompt.phrases)


@pytest.mark.parametrize(
    "text", ["cat.\ndog.", "\ncat, \n", ", cat", "1,000 cats", "a cat - a dog", ["red, blue cat", "dog"], ["cat,"]]
)
def test_separators_that_separate_nothing_give_no_hint(text):
    assert warnings_of(lambda: TOKENIZER.encode(text)) == []


def test_a_warning_has_the_line_of_the_caller():
    model = tiny.model()
    for call in (model.tokenize, functools.partial(model.detect, []),
                 functools.partial(minigdino.detect, [], model=model)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call("a 猫")
            line = sys._getframe().f_lineno - 1
        assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)]


def test_long_words_are_shortened_in_warnings():
    (message,) = warnings_of(lambda: TOKENIZER.encode(f"{'z' * 50_000} 猫 cat"))
    assert "'猫' in the phrase" in message and len(message) < 900


def test_a_prompt_for_many_images_is_checked_once():
    model = tiny.model()
    photos = [tiny.photo(40, 40)] * 2
    for text in ("cat, dog", "a 猫", ["a 猫"]):
        assert len(warnings_of(lambda text=text: model.detect(photos, text))) == 1
        assert len(warnings_of(lambda text=text: minigdino.detect(photos, text, model=model))) == 1
        assert len(warnings_of(lambda text=text: model.tokenize(text))) == 1
    assert len(warnings_of(lambda: model.detect(photos, [["a 猫"], ["a cat"]]))) == 1
