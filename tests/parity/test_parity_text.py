"""Text: token ids are those of transformers' processor, with the published 30,522 words."""

import shutil

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import VOCABULARY, transformers
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from minigdino import PromptError
from minigdino.prompt import Tokenizer

FILES = ("tokenizer.json", "vocab.txt")
TEXTS = [
    "a cat.", "a cat. a remote control.", "A Cat . A DOG .", "a cat. a dog", "is it a cat? a dog?", "a cat. . a dog.",
    "..a cat..", "a cat!", "one, two; three: four.", "x-ray. state-of-the-art. -", "the dog's bone. o'clock. 'quoted'.",
    "café. naïve façade. Ångström. ÜBER. İstanbul. ß.", "e\u0301te\u0301. \ufb01sh.", "a\u00adb. zero\u200bwidth.",
    "中文 文字. 猫.", "日本語テスト. 한국어.", "العربية. עברית. ไทย. हिन्दी.", "３ＤＯ　ｗｉｄｅ．", "a。b．c？",
    "🐈. a 🐕 dog. 👨\u200d👩\u200d👧.", "don’t – “quote” … dash—dash.", "tab\tnew\nline\r\nend.", "  a   cat  .  ",
    "[MASK] [SEP] [PAD] [UNK] [CLS].", "[cls] ##ing #hash.", "a" * 101 + ".", "\x00nul\x7f control.",
    "unbelievableness. electroencephalographically.", "C++ & C#. 50% of $3.99. a_b. a/b. (x) [y] {z}.",
]
LISTS = [["a cat"], ["a cat", "a dog"], ["A Cat ", " a DOG"], ["x-ray", "the dog's bone"], ["café", "中文", "🐈"],
         ["cat", "remote control", "sofa", "naïve façade"], ("a", "b", "c"), ["don’t", "50%"], ["a" * 101, "b!"]]
text = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" .?'-#éあ中🐈")), max_size=40)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """transformers' processor as AutoProcessor reads it, with a tokenizer that neither pads nor truncates."""
    where = tmp_path_factory.mktemp("processor")
    backend = tokenizers.Tokenizer.from_file(str(VOCABULARY / "tokenizer.json"))
    backend.no_padding()
    backend.no_truncation()
    backend.save(str(where / "tokenizer.json"))
    shutil.copy(VOCABULARY / "tokenizer_config.json", where)
    tokenizer = transformers.BertTokenizer.from_pretrained(where)
    transformers.GroundingDinoProcessor(GroundingDinoImageProcessorPil(), tokenizer).save_pretrained(where)
    processor = transformers.AutoProcessor.from_pretrained(where, backend="pil")
    assert type(processor) is transformers.GroundingDinoProcessor
    return processor


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Our tokenizers, each from one of the two files alone."""
    found = {}
    for name in FILES:
        where = tmp_path_factory.mktemp(name)
        shutil.copy(VOCABULARY / name, where)
        found[name] = Tokenizer.from_directory(where)
    return found


@pytest.fixture(params=FILES)
def tokenizer(request, ours):
    return ours[request.param]


def their_ids(processor, text):
    return np.asarray(processor(text=text)["input_ids"]).reshape(-1)


def closed(text):
    """A str is read as it stands, but for a missing end."""
    return text if text.rstrip(" \t\r\n").endswith((".", "?")) else text + "."


@pytest.mark.parametrize("text", TEXTS)
def test_a_str_has_their_ids(processor, tokenizer, text):
    np.testing.assert_array_equal(tokenizer.encode(text).ids, their_ids(processor, closed(text)))


@pytest.mark.parametrize("labels", LISTS, ids=str)
def test_a_list_has_the_ids_of_their_merged_labels(processor, tokenizer, labels):
    np.testing.assert_array_equal(tokenizer.encode(labels).ids, their_ids(processor, labels))
    np.testing.assert_array_equal(tokenizer.encode(labels).ids, their_ids(processor, [list(labels)]))


@settings(max_examples=300, deadline=None)
@given(text=text)
def test_any_str_has_their_ids(ours, processor, text):
    for tokenizer in ours.values():
        try:
            found = tokenizer.encode(text).ids
        except PromptError:
            continue
        np.testing.assert_array_equal(found, their_ids(processor, closed(text)))


@settings(max_examples=300, deadline=None)
@given(labels=st.lists(text.filter(lambda t: not set(t) & set(".?")), min_size=1, max_size=5))
def test_any_list_has_their_ids(ours, processor, labels):
    for tokenizer in ours.values():
        try:
            found = tokenizer.encode(labels).ids
        except PromptError:
            continue
        np.testing.assert_array_equal(found, their_ids(processor, labels))


def test_a_tokenizer_that_pads_and_truncates_to_128_does_neither_here(processor):
    text = "a cat. " * 80
    found = Tokenizer.from_directory(VOCABULARY).encode(text).ids
    assert len(found) == 242
    np.testing.assert_array_equal(found, their_ids(processor, text))


@pytest.mark.parametrize("clean_up", [False, True])
def test_decoded_tokens_read_as_theirs(processor, tokenizer, clean_up):
    rng = np.random.default_rng(0)
    texts = [their_ids(processor, text)[1:-1] for text in TEXTS]
    chosen = [rng.integers(0, 30522, n) for n in rng.integers(0, 9, 200)]
    ours = Tokenizer(tokenizer.backend, clean_up=clean_up)
    for some in [*texts, *[t[1::2] for t in texts], *chosen]:
        wanted = processor.tokenizer.decode([int(i) for i in some], clean_up_tokenization_spaces=clean_up)
        assert ours.decode(some) == wanted


@pytest.mark.parametrize("clean_up", [None, False, True])
def test_the_saved_tokenizer_says_whether_to_clean_up(tmp_path, clean_up):
    options = {} if clean_up is None else {"clean_up_tokenization_spaces": clean_up}
    theirs = transformers.BertTokenizer.from_pretrained(VOCABULARY, **options)
    theirs.save_pretrained(tmp_path)
    some = theirs("the dog's bone isn't here. we've won!")["input_ids"]
    assert Tokenizer.from_directory(tmp_path).decode(some) == theirs.decode(some)


def test_transformers_reads_the_tokenizer_we_save(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        np.testing.assert_array_equal(theirs(closed(text))["input_ids"], tokenizer.encode(text).ids)
