"""Text in, token ids out: WordPiece tokens of a prompt, and which of them belong to each phrase.

T text tokens, [CLS] and [SEP] included.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .checkpoints.json_file import read_json
from .errors import CheckpointError, PromptError, brief

DELIMITERS = ("[CLS]", "[SEP]", ".", "?")
BLANK = " \t\r\n"
MOST_CHARACTERS = 2**16  # 256 tokens are far fewer; a longer text would take seconds to be refused


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt."""

    ids: np.ndarray  # [T] int64, from [CLS] to [SEP]
    phrases: list[str]  # the caller's, in order
    spans: list[tuple[int, int]]  # tokens [start, stop) of each phrase, delimiters left out


class Tokenizer:
    """A checkpoint's WordPiece tokenizer, never padding and never truncating."""

    def __init__(self, backend, clean_up: bool = False):
        backend.no_padding()
        backend.no_truncation()
        self.backend, self.clean_up = backend, clean_up
        found = {token: backend.token_to_id(token) for token in DELIMITERS}
        if missing := [token for token in ("[CLS]", "[SEP]", ".") if found[token] is None]:
            raise CheckpointError(f"the tokenizer has no token {missing[0]!r}; expected a BERT vocabulary")
        self.delimiters = tuple(i for i in found.values() if i is not None)
        self.cls, self.sep, self.dot = found["[CLS]"], found["[SEP]"], found["."]
        self.special = [t.content for t in backend.get_added_tokens_decoder().values() if t.special]

    @classmethod
    def from_directory(cls, directory: str | Path) -> Tokenizer | None:
        """Read `tokenizer.json`, else `vocab.txt`; None if there is neither. Raises CheckpointError if damaged."""
        from tokenizers import Tokenizer as Backend  # a compiled package: loaded when a checkpoint is, not at import

        directory = Path(directory)
        settings_file, settings = directory / "tokenizer_config.json", {}
        if settings_file.exists() and not isinstance(settings := read_json(settings_file), dict):
            raise CheckpointError(f"{settings_file}: must be a JSON object; got {brief(settings)}")
        for name, read in (("tokenizer.json", Backend.from_file), ("vocab.txt", lambda p: _from_vocab(p, settings))):
            if (path := directory / name).exists():
                backend = _ask(f"{path}: not a readable tokenizer", read, str(path))
                return cls(backend, bool(settings.get("clean_up_tokenization_spaces", False)))
        return None

    def encode(self, text: str | Sequence[str]) -> Prompt:
        """A str as transformers would read it, its final dot added if missing, or a list of phrases.

        Raises PromptError for a prompt without any phrase, and in a list for a phrase without tokens, one with
        a special token in it, and two with the same tokens.
        """
        phrases = [text] if isinstance(text, str) else text
        if not isinstance(phrases, (list, tuple)) or not all(isinstance(phrase, str) for phrase in phrases):
            raise PromptError(f"a prompt is a str or a list of str; got {_describe(text)}")
        if broken := [phrase for phrase in phrases if any("\ud800" <= c <= "\udfff" for c in phrase)]:
            raise PromptError(f"the prompt {broken[0]!r} holds half characters, as bytes that are not UTF-8 turn "
                              "into; type it again")
        if (n := sum(map(len, phrases))) > MOST_CHARACTERS:
            raise PromptError(f"the prompt has {n} characters; {MOST_CHARACTERS} is the most that is looked at. Ask "
                              "for fewer phrases at a time")
        return self._encode_text(text) if isinstance(text, str) else self._encode_phrases(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some tokens, as transformers spells it."""
        text = _ask(_CONTRADICTS, self.backend.decode, [int(i) for i in ids], skip_special_tokens=False)
        if self.clean_up:
            for old, new in CLEAN_UP:
                text = text.replace(old, new)
        return text

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`."""
        self.backend.save(str(Path(directory) / "tokenizer.json"))
        settings = {"tokenizer_class": "BertTokenizer", "clean_up_tokenization_spaces": self.clean_up}
        (Path(directory) / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _encode_text(self, text):
        closed = text if text.rstrip(BLANK).endswith((".", "?")) else text + "."
        encoding = _ask(_CONTRADICTS, self.backend.encode, closed)
        runs, start = [], 0
        for i, token in enumerate(encoding.ids):
            if token in self.delimiters:
                runs += [(start, i)] if i > start else []
                start = i + 1
        if not runs:
            raise PromptError(f'the prompt {text!r} names nothing to look for; write for example "a cat. a dog."')
        where = encoding.offsets
        phrases = [closed[where[start][0] : where[stop - 1][1]].strip(BLANK) for start, stop in runs]
        return Prompt(np.array(encoding.ids, np.int64), phrases, runs)

    def _encode_phrases(self, phrases):
        if not phrases:
            raise PromptError('the list of phrases is empty; give at least one, for example ["a cat"]')
        ids, spans, labels, seen = [self.cls], [], [], {}
        for phrase in phrases:
            label = phrase.strip(BLANK).rstrip(BLANK + ".")
            if special := [token for token in self.special if token in phrase]:
                raise PromptError(f"phrase {phrase!r} contains {special[0]}, a command to the model; take it out")
            # inside a phrase these would end it: the model reads blanks, the label keeps them
            words = label.lower().replace(".", " ").replace("?", " ")
            tokens = _ask(_CONTRADICTS, self.backend.encode, words, add_special_tokens=False).ids
            if not tokens:
                raise PromptError(f"phrase {phrase!r} has no words; every phrase needs at least one token")
            if (other := seen.setdefault(tuple(tokens), phrase)) is not phrase or len(seen) != len(spans) + 1:
                raise PromptError(f"phrases {other!r} and {phrase!r} are the same to the model; keep one of them")
            spans.append((len(ids), len(ids) + len(tokens)))
            labels.append(label)
            ids += [*tokens, self.dot]
        return Prompt(np.array([*ids, self.sep], np.int64), labels, spans)


_CONTRADICTS = "the tokenizer, though it loaded, contradicts itself on this text"


def _ask(complaint, call, *args, **options):
    """An answer of the tokenizers library, which raises bare Exceptions, and panics that are not even those."""
    try:
        return call(*args, **options)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # Ctrl-C
        raise CheckpointError(f"{complaint} ({brief(error)}); download it again") from None


# transformers' "clean_up_tokenization", for checkpoints that ask for it
CLEAN_UP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
            (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))


def _from_vocab(path, settings):
    """BERT's tokenizer from its vocabulary alone: what a tokenizer.json would spell out."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    vocab = models.WordPiece.read_file(path)
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.add_special_tokens([t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in vocab])
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True), strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(t, vocab[t]) for t in ("[CLS]", "[SEP]")])
    return backend


def _describe(value):
    if isinstance(value, (list, tuple)):
        odd = next((v for v in value if not isinstance(v, str)), None)
        return f"a {type(value).__name__} holding {odd!r}"
    return type(value).__name__
