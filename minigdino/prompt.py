"""Tokenize a prompt: WordPiece token ids, and the token span of each phrase.

T text tokens, [CLS] and [SEP] included.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoints.json_file import read_json, read_text, status
from .errors import ArgumentError, CheckpointError, PromptError, brief, warn_prompt

DELIMITERS = ("[CLS]", "[SEP]", ".", "?")
BLANK = " \t\r\n"
SEPARATOR = re.compile(r"(?<!\d),|,(?!\d)|[;\r\n]")  # not the comma of "1,000"
SHOWN = 3  # unknown words that a warning names
MAX_CHARACTERS = 2**16  # of a text or a phrase; 256 tokens have far fewer, and more would take seconds


@dataclass(frozen=True, eq=False)
class Prompt:
    """A tokenized prompt. Two of them are equal only if they are the same object.

    Attributes:
        ids: [T] int64 token ids, from [CLS] to [SEP].
        phrases: the phrases in the caller's wording, in order.
        spans: (start, stop) token indices of each phrase, without its delimiter; `stop` is exclusive.
    """

    ids: np.ndarray  # [T]
    phrases: list[str]
    spans: list[tuple[int, int]]


class Tokenizer:
    """The WordPiece tokenizer of a checkpoint. It never pads or truncates.

    Args:
        backend: a `tokenizers.Tokenizer`. Its padding and truncation are switched off.
        clean_up: whether `decode` removes the space before punctuation, as transformers does if the checkpoint sets
            clean_up_tokenization_spaces.

    Raises:
        CheckpointError: if the vocabulary does not contain [CLS], [SEP] or ".".
    """

    def __init__(self, backend, clean_up: bool = False):
        backend.no_padding()
        backend.no_truncation()
        self.backend, self.clean_up = backend, clean_up
        found = {token: backend.token_to_id(token) for token in DELIMITERS}
        if missing := [token for token in ("[CLS]", "[SEP]", ".") if found[token] is None]:
            raise CheckpointError(f"the tokenizer must have a BERT vocabulary; it lacks the token {missing[0]!r}. "
                                  "Download the checkpoint again")
        self.delimiters = tuple(i for i in found.values() if i is not None)
        self.cls, self.sep, self.dot = found["[CLS]"], found["[SEP]"], found["."]
        self.unknown = backend.token_to_id(getattr(backend.model, "unk_token", None) or "[UNK]")
        self.special = [t.content for t in backend.get_added_tokens_decoder().values() if t.special]

    @classmethod
    def from_directory(cls, directory: str | Path) -> Tokenizer | None:
        """Read the tokenizer of a checkpoint.

        Args:
            directory: the checkpoint. `tokenizer.json` is read if present, else `vocab.txt`. `tokenizer_config.json`
                is optional.

        Returns:
            The tokenizer, or None if the directory has neither file.

        Raises:
            CheckpointError: if a file is corrupted.
        """
        file, settings = os.path.join(directory, "tokenizer_config.json"), {}
        if status(file) and not isinstance(settings := read_json(file), dict):
            raise CheckpointError(f"{file}: must be a JSON object; got {brief(settings)}. Download the file again")
        for name, read in (("tokenizer.json", _from_json), ("vocab.txt", _from_vocab)):
            if status(path := os.path.join(directory, name)):  # not a dangling link, which hub caches may have
                return cls(read(path, settings), bool(settings.get("clean_up_tokenization_spaces", False)))
        return None

    def encode(self, text: str | Sequence[str]) -> Prompt:
        """Tokenize a prompt.

        Args:
            text: a str such as "a cat. a remote control." or a list of phrases.

                - A str is tokenized as transformers does, also if all its words are unknown. A final "." is added if
                  it is missing.
                - In a listed phrase, the model reads a space for each "." and "?"; the label keeps them. Surrounding
                  spaces, and dots at the end, are removed from both.

        Returns:
            Token ids, phrases and spans.

        Raises:
            PromptError: if the prompt is not text, has too many characters, or contains no phrase. In a list, also
                if a phrase has no tokens, only unknown words, or a special token, or if two phrases have the same
                tokens.
            CheckpointError: if the tokenizer's files are inconsistent.

        Warns:
            PromptWarning: if a word is not in the vocabulary, so that the model reads [UNK] instead; or if a comma, a
                semicolon or a line break may separate phrases (in a str, or in the only phrase of a list).
        """
        _check_text(text)
        return self._encode_text(text) if isinstance(text, str) else self._encode_phrases(text)

    def tokens(self, phrase: str) -> tuple[int, ...]:
        """Tokenize one phrase of a list, without a warning.

        Args:
            phrase: the phrase, as in `encode`.

        Returns:
            Its token ids, without a delimiter. In a prompt, each phrase has one.

        Raises:
            PromptError: as `encode` does for a list with this phrase.
            CheckpointError: if the tokenizer's files are inconsistent.
        """
        _check_text([phrase])
        return tuple(self._encode_phrase(phrase)[2].ids)

    def read(self, text: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
        """Tokenize a text as it is, whatever its phrases are, and without a warning.

        Args:
            text: any text.

        Returns:
            Token ids [T], from [CLS] to [SEP], and for each token the (start, stop) of its characters in the text, with
            start = stop for [CLS] and [SEP].

        Raises:
            PromptError: if the text is no str, too long, or not valid Unicode.
            CheckpointError: if the tokenizer's files are inconsistent.
        """
        _check_text(text)
        encoding = _call(self.backend.encode, text)
        return np.array(encoding.ids, np.int64), encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Convert token ids to text, with the spelling of transformers.

        Args:
            ids: any number of token ids, 0 or larger.

        Returns:
            The text; "" for no tokens.

        Raises:
            ArgumentError: if `ids` holds anything else.
        """
        try:
            numbers = [int(i) for i in ids]
        except (TypeError, ValueError, OverflowError):  # OverflowError: infinity
            numbers = [-1]
        if not all(0 <= number < 2**32 for number in numbers):
            raise ArgumentError(f"token ids must be a list of ints, 0 or larger; got {brief(ids)}")
        text = _call(self.backend.decode, numbers, skip_special_tokens=False)
        if self.clean_up:
            for old, new in CLEAN_UP:
                text = text.replace(old, new)
        return text

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`.

        Args:
            directory: an existing folder.
        """
        settings = {"tokenizer_class": "BertTokenizer", "clean_up_tokenization_spaces": self.clean_up}
        # transformers prefers these to the options in tokenizer.json
        settings |= {name: getattr(self.backend.normalizer, option) for name, option in OPTIONS.items()
                     if hasattr(self.backend.normalizer, option)}
        # written by Python, because the library reports a full disk as a plain Exception
        for name, text in (("tokenizer.json", self.backend.to_str(pretty=True)),
                           ("tokenizer_config.json", json.dumps(settings, indent=2) + "\n")):
            (Path(directory) / name).write_text(text, encoding="utf-8", newline="\n")

    def _encode_text(self, text):
        closed = text if text.rstrip(BLANK).endswith((".", "?")) else text + "."
        encoding = _call(self.backend.encode, closed)
        spans, start = [], 0
        for i, token in enumerate(encoding.ids):
            if token in self.delimiters:
                spans += [(start, i)] if i > start else []
                start = i + 1
        if not spans:
            raise PromptError(f"a prompt must contain a phrase; {brief(text)} names nothing to look for. Write for "
                              'example "a cat. a dog."')
        offsets = encoding.offsets  # (start, stop) of each token in the text, in characters
        phrases = [closed[offsets[start][0] : offsets[stop - 1][1]].strip(BLANK) for start, stop in spans]
        words = self._unknown_words(closed, encoding)
        _warn_of_unknown([(word, phrase) for phrase, (start, stop) in zip(phrases, spans)
                          for word in words[start:stop] if word])
        _warn_of_separators(phrases, lambda parts: f"write {brief('. '.join(parts) + '.')}")
        return Prompt(np.array(encoding.ids, np.int64), phrases, spans)

    def _encode_phrases(self, phrases):
        if not phrases:
            raise PromptError('a prompt must contain a phrase; the list is empty. Write for example ["a cat"]')
        ids, spans, labels, seen, unknown = [self.cls], [], [], {}, []
        for phrase in phrases:
            label, words, encoding = self._encode_phrase(phrase)
            tokens = encoding.ids
            unknown += [(word, label) for word in self._unknown_words(words, encoding) if word]
            if (other := seen.setdefault(tuple(tokens), phrase)) is not phrase or len(seen) != len(spans) + 1:
                raise PromptError(f"two phrases must not have the same tokens; {brief(other)} and {brief(phrase)} "
                                  "have. Keep one of them")
            spans.append((len(ids), len(ids) + len(tokens)))
            labels.append(label)
            ids += [*tokens, self.dot]
        _warn_of_unknown(unknown)
        if len(labels) == 1:  # with more of them, a comma is probably meant
            _warn_of_separators(labels, lambda parts: f"give each one separately: {', '.join(map(brief, parts))}")
        return Prompt(np.array([*ids, self.sep], np.int64), labels, spans)

    def _encode_phrase(self, phrase):
        """The label of a listed phrase, the text that the model reads, and the encoding of that text."""
        label = as_label(phrase)
        if special := [token for token in self.special if token in phrase]:
            raise PromptError(f"a phrase must not contain special tokens; {brief(phrase)} contains "
                              f"{brief(special[0])[1:-1]}. Remove it")
        # a delimiter inside a phrase would end it, so the model gets a space; the label keeps the delimiter
        words = label.lower().replace(".", " ").replace("?", " ")
        encoding = _call(self.backend.encode, words, add_special_tokens=False)
        if not encoding.ids:
            raise PromptError(f"a phrase must have at least one token; {brief(phrase)} has none. Remove it")
        if set(encoding.ids) == {self.unknown}:
            raise PromptError("a phrase must have a word of the model's vocabulary; "
                              f"{brief(phrase)} has only unknown words. {OTHER_WORDS}")
        return label, words, encoding

    def _unknown_words(self, text, encoding):
        """For each token: the word of the text that the vocabulary cannot spell, or None."""
        return [text[slice(*offsets)] if i == self.unknown else None
                for i, offsets in zip(encoding.ids, encoding.offsets)]


def as_label(phrase: str) -> str:
    """Return a phrase as its label has it: without spaces around it, and without dots at its end."""
    return phrase.strip(BLANK).rstrip(BLANK + ".")


def _check_text(text):
    """Check that a prompt is a str or a list of str, each of limited size."""
    phrases = [text] if isinstance(text, str) else text
    if not isinstance(phrases, (list, tuple)) or not all(isinstance(phrase, str) for phrase in phrases):
        raise PromptError(f"a prompt must be a str or a list of str; got {_describe(text)}")
    if broken := [phrase for phrase in phrases if not _is_text(phrase)]:
        raise PromptError(f"a prompt must be valid Unicode; {brief(broken[0])} contains surrogates, which stand "
                          "for bytes that are not UTF-8. Type the text again")
    if (n := max(map(len, phrases), default=0)) > MAX_CHARACTERS:
        name, advice = ("prompt", "Split its phrases into a list") if phrases is not text else ("phrase", "Shorten it")
        raise PromptError(f"a {name} must have at most {MAX_CHARACTERS} characters; got {n}. {advice}")


OTHER_WORDS = "Use other words; the published checkpoints know English only"


def _warn_of_unknown(found):
    """Warn of unknown words, given as pairs (word, phrase)."""
    if found := list(dict.fromkeys(found)):
        named = ", ".join(f"{brief(word)} in the phrase {brief(phrase)}" for word, phrase in found[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        warn_prompt("each word of a prompt must be in the model's vocabulary, else the model reads [UNK] and its boxes "
                    f"mean nothing; got {named}{more}. {OTHER_WORDS}")


def _warn_of_separators(phrases, advice):
    """Warn of the first phrase that may be several ones, and show them as `advice` writes them.

    It may be one, too: "Portland, Oregon" and "Cat, Dog" have the same form.
    """
    for phrase in phrases:
        parts = [part.strip(BLANK) for part in SEPARATOR.split(phrase) if part.strip(BLANK)]
        if len(parts) > 1:
            warn_prompt("only a dot or a question mark ends a phrase, so the model reads "
                        f"{brief(phrase)} as one. If several are meant, {advice(parts)}")
            return


def _call(function, *args, **options):
    """Call a function of the tokenizers library, and turn its exceptions into a CheckpointError.

    The library raises plain Exceptions, and "PanicException" if its Rust code panics. A signal handler of the caller
    can raise during the call, too; its exception comes with a Python frame, and is not changed.
    """
    try:
        return function(*args, **options)
    except BaseException as error:
        if type(error).__name__ not in ("Exception", "PanicException") or getattr(error.__traceback__, "tb_next", None):
            raise
        raise CheckpointError(f"the tokenizer cannot be used on this text ({brief(error)}); download the checkpoint "
                              "again") from None


# replacements of clean_up_tokenization in transformers, in its order
CLEAN_UP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
            (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))


SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
OPTIONS = {  # key of tokenizer_config.json -> option of the normalizer
    "do_lower_case": "lowercase", "strip_accents": "strip_accents", "tokenize_chinese_chars": "handle_chinese_chars"}


def bert_tokenizer(vocabulary: dict[str, int], added: Sequence | None = None, *, unk_token: str = "[UNK]",
                   max_input_chars_per_word: int = 100, cleanup: bool = True, **normalizer):
    """Build BERT's tokenizer.

    Args:
        vocabulary: {token: id}, with `unk_token`, [CLS] and [SEP].
        added: `tokenizers.AddedToken`s, found before the text is split into words. By default, BERT's special tokens.
        unk_token: token of a word that the vocabulary cannot spell.
        max_input_chars_per_word: a longer word becomes `unk_token`.
        cleanup: whether the library's decoder removes spaces before punctuation.
        normalizer: options of `tokenizers.normalizers.BertNormalizer`.

    Returns:
        A `tokenizers.Tokenizer`.
    """
    # imported here, so that `import minigdino` does not load it
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.WordPiece(vocabulary, unk_token=unk_token,
                                       max_input_chars_per_word=max_input_chars_per_word))
    if added is None:
        added = [AddedToken(token, normalized=False, special=True) for token in SPECIAL if token in vocabulary]
    for token in added:  # one by one: each gets the next free id, and early versions of the library ignore `special`
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    backend.normalizer = normalizers.BertNormalizer(**normalizer)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=cleanup)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")])
    return backend


def _from_vocab(path, settings):
    """Build BERT's tokenizer from a `vocab.txt`. It gives the same tokens as the checkpoint's `tokenizer.json`."""
    try:
        text = read_text(path).removesuffix("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable vocabulary ({brief(error)}); download it again") from None
    _check_count(path, text.count("\n") + 1)  # before splitting, which would take seconds
    lines = text.split("\n")
    for name in OPTIONS:
        _check(os.path.join(os.path.dirname(path), "tokenizer_config.json"), settings, name, (*BOOL, None))
    options = {option: settings[name] for name, option in OPTIONS.items() if settings.get(name) is not None}
    return bert_tokenizer(_checked(path, {line.rstrip(): i for i, line in enumerate(lines)}), **options)


def _from_json(path, _):
    """Build BERT's tokenizer from a `tokenizer.json`.

    The tokenizers library would run anything that such a file describes, such as a regular expression that takes
    minutes, or a recursion that ends the process. Therefore the file may contain only what BERT checkpoints contain.
    """
    from tokenizers import AddedToken

    file = read_json(path)
    for field, supported in FIELDS.items():  # first, so that a message about another kind of tokenizer names its kind
        _check(path, file, field, supported)
    vocabulary = _checked(path, _at(file, "model.vocab"), _at(file, "model.unk_token"))
    for field, supported in _template(file, vocabulary).items():
        _check(path, file, field, supported)
    entries = _at(file, "added_tokens") or []
    if not isinstance(entries, list) or len(entries) > MAX_ADDED or not all(map(_is_added_token, entries)):
        raise CheckpointError(f"{path}: added_tokens must be a list of at most {MAX_ADDED} tokens, each of at most "
                              f"{MAX_ADDED_LENGTH} characters; got {brief(entries)}. {_ADVICE}")
    normalizer = {name: _at(file, f"normalizer.{name}") for name in NORMALIZER}
    backend = bert_tokenizer(
        vocabulary, [AddedToken(entry["content"], **{flag: entry[flag] for flag in FLAGS}) for entry in entries],
        unk_token=file["model"]["unk_token"], cleanup=file["decoder"]["cleanup"],
        max_input_chars_per_word=file["model"]["max_input_chars_per_word"], **normalizer)
    for entry in entries:
        if backend.token_to_id(entry["content"]) != entry["id"]:
            raise CheckpointError(f"{path}: an added token must have its id in model.vocab, or the next free one; got "
                                  f"{brief(entry['id'])} for {brief(entry['content'])}. {_ADVICE}")
    return backend


BOOL = (True, False)
MAX_WORD = 200  # characters; the time of WordPiece grows with the square of a word's length
FIELDS = {  # fields of a tokenizer.json, and their supported values
    "model.type": ("WordPiece", None),  # None: the first versions of the library did not write it
    "model.continuing_subword_prefix": ("##",),
    "model.max_input_chars_per_word": range(1, MAX_WORD + 1),
    "normalizer.type": ("BertNormalizer",),
    "normalizer.clean_text": BOOL,
    "normalizer.handle_chinese_chars": BOOL,
    "normalizer.strip_accents": (*BOOL, None),
    "normalizer.lowercase": BOOL,
    "pre_tokenizer.type": ("BertPreTokenizer",),
    "decoder.type": ("WordPiece",),
    "decoder.prefix": ("##",),
    "decoder.cleanup": BOOL,
}
NORMALIZER = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token
MAX_ADDED, MAX_ADDED_LENGTH = 1000, 100  # added tokens, and characters of each; published files have 5 tokens
MAX_TOKENS = 2**18  # of a vocabulary; the largest of BERT has 119,547
_ADVICE = "Use the tokenizer of a published Grounding DINO checkpoint"


def _template(file, vocabulary):
    """Fields of the post-processor, which adds [CLS] and [SEP], and their supported values."""
    cls, sep = vocabulary["[CLS]"], vocabulary["[SEP]"]
    if _at(file, "post_processor.type") == "BertProcessing":
        return {"post_processor.cls": (["[CLS]", cls],), "post_processor.sep": (["[SEP]", sep],)}
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
              {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
    return {"post_processor.type": ("TemplateProcessing",), "post_processor.single": (single,),
            "post_processor.special_tokens.[CLS].ids": ([cls],), "post_processor.special_tokens.[SEP].ids": ([sep],)}


def _is_added_token(entry):
    return (isinstance(entry, dict) and type(entry.get("id")) is int and _is_text(entry.get("content"))
            and 0 < len(entry["content"]) <= MAX_ADDED_LENGTH and all(type(entry.get(flag)) is bool for flag in FLAGS))


def _at(file, field):
    """The value of a field such as "model.type". None if it is absent."""
    for key in field.split("."):
        file = file.get(key) if isinstance(file, dict) else None
    return file


def _check(path, file, field, supported):
    value = _at(file, field)
    if not any(type(value) is type(v) and value == v for v in supported):
        several = isinstance(supported, range)
        expected = f"{supported[0]} to {supported[-1]}" if several else " or ".join(map(brief, supported))
        raise CheckpointError(f"{path}: {field} must be {expected}; got {brief(value)}. {_ADVICE}")


def _check_count(path, n):
    if n > MAX_TOKENS:
        raise CheckpointError(f"{path}: the vocabulary must have at most {MAX_TOKENS} tokens; got {n}. {_ADVICE}")


def _checked(path, vocabulary: Any, unk_token: Any = "[UNK]") -> dict[str, int]:
    """Return a vocabulary if the tokenizers library can use it."""
    if isinstance(vocabulary, dict):
        _check_count(path, len(vocabulary))
    ids = vocabulary.values() if isinstance(vocabulary, dict) else [None]
    if (not all(type(i) is int and 0 <= i < 2**31 for i in ids) or len(set(ids)) < len(ids)
            or not _is_text("".join(vocabulary))):
        raise CheckpointError(f"{path}: the vocabulary must give each token its own id; got {brief(vocabulary)}. "
                              f"{_ADVICE}")
    for token in (unk_token, "[CLS]", "[SEP]"):
        if not isinstance(token, str) or token not in vocabulary:
            raise CheckpointError(f"{path}: expected a BERT vocabulary; it lacks the token {brief(token)}. {_ADVICE}")
    return vocabulary


def _is_text(value):
    """Return whether a value is a str without surrogates, which the tokenizers library cannot represent."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _describe(value):
    if isinstance(value, (list, tuple)):
        odd = next((v for v in value if not isinstance(v, str)), None)
        return f"a {type(value).__name__} with the element {brief(odd)}"
    return type(value).__name__
