"""Tokenize a prompt: WordPiece token ids, and the token span of each phrase.

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
MAX_CHARACTERS = 2**16  # far more than 256 tokens have; tokenizing a longer text would take seconds


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt.

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
        from tokenizers import Tokenizer as Backend  # imported here, so that `import minigdino` does not load it

        directory = Path(directory)
        settings_file, settings = directory / "tokenizer_config.json", {}
        if settings_file.exists() and not isinstance(settings := read_json(settings_file), dict):
            raise CheckpointError(f"{settings_file}: must be a JSON object; got {brief(settings)}. Download the file "
                                  "again")
        for name, read in (("tokenizer.json", Backend.from_file), ("vocab.txt", lambda p: _from_vocab(p, settings))):
            if (path := directory / name).exists():
                backend = _call(f"{path}: not a readable tokenizer", read, str(path))
                return cls(backend, bool(settings.get("clean_up_tokenization_spaces", False)))
        return None

    def encode(self, text: str | Sequence[str]) -> Prompt:
        """Tokenize a prompt.

        Args:
            text: a str such as "a cat. a remote control." or a list of phrases.

                - A str is tokenized as transformers does. A final "." is added if it is missing.
                - In a listed phrase, the model reads a space for each "." and "?"; the label keeps them. Surrounding
                  spaces, and dots at the end, are removed from both.

        Returns:
            Token ids, phrases and spans.

        Raises:
            PromptError: if the prompt is not text, has too many characters, or contains no phrase. In a list, also
                if a phrase has no tokens or contains a special token, or if two phrases have the same tokens.
            CheckpointError: if the tokenizer's files are inconsistent.
        """
        phrases = [text] if isinstance(text, str) else text
        if not isinstance(phrases, (list, tuple)) or not all(isinstance(phrase, str) for phrase in phrases):
            raise PromptError(f"a prompt must be a str or a list of str; got {_describe(text)}")
        if broken := [phrase for phrase in phrases if any("\ud800" <= c <= "\udfff" for c in phrase)]:
            raise PromptError(f"a prompt must be valid Unicode; {broken[0]!r} contains surrogates, which stand for "
                              "bytes that are not UTF-8. Type the text again")
        if (n := sum(map(len, phrases))) > MAX_CHARACTERS:
            raise PromptError(f"a prompt must have at most {MAX_CHARACTERS} characters; got {n}. Split its phrases "
                              "over several calls")
        return self._encode_text(text) if isinstance(text, str) else self._encode_phrases(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Convert token ids to text, with the spelling of transformers.

        Args:
            ids: any number of token ids.

        Returns:
            The text; "" for no tokens.
        """
        text = _call(_INCONSISTENT, self.backend.decode, [int(i) for i in ids], skip_special_tokens=False)
        if self.clean_up:
            for old, new in CLEAN_UP:
                text = text.replace(old, new)
        return text

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`.

        Args:
            directory: an existing folder.
        """
        self.backend.save(str(Path(directory) / "tokenizer.json"))
        settings = {"tokenizer_class": "BertTokenizer", "clean_up_tokenization_spaces": self.clean_up}
        (Path(directory) / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _encode_text(self, text):
        closed = text if text.rstrip(BLANK).endswith((".", "?")) else text + "."
        encoding = _call(_INCONSISTENT, self.backend.encode, closed)
        spans, start = [], 0
        for i, token in enumerate(encoding.ids):
            if token in self.delimiters:
                spans += [(start, i)] if i > start else []
                start = i + 1
        if not spans:
            raise PromptError(f"a prompt must contain a phrase; {text!r} names nothing to look for. Write for example "
                              '"a cat. a dog."')
        offsets = encoding.offsets  # (start, stop) of each token in the text, in characters
        phrases = [closed[offsets[start][0] : offsets[stop - 1][1]].strip(BLANK) for start, stop in spans]
        return Prompt(np.array(encoding.ids, np.int64), phrases, spans)

    def _encode_phrases(self, phrases):
        if not phrases:
            raise PromptError('a prompt must contain a phrase; the list is empty. Write for example ["a cat"]')
        ids, spans, labels, seen = [self.cls], [], [], {}
        for phrase in phrases:
            label = phrase.strip(BLANK).rstrip(BLANK + ".")
            if special := [token for token in self.special if token in phrase]:
                raise PromptError(f"a phrase must not contain special tokens; {phrase!r} contains {special[0]}. Remove "
                                  "it")
            # a delimiter inside a phrase would end it, so the model gets a space; the label keeps the delimiter
            words = label.lower().replace(".", " ").replace("?", " ")
            tokens = _call(_INCONSISTENT, self.backend.encode, words, add_special_tokens=False).ids
            if not tokens:
                raise PromptError(f"a phrase must have at least one token; {phrase!r} has none. Remove it")
            if (other := seen.setdefault(tuple(tokens), phrase)) is not phrase or len(seen) != len(spans) + 1:
                raise PromptError(f"two phrases must not have the same tokens; {other!r} and {phrase!r} have. Keep one "
                                  "of them")
            spans.append((len(ids), len(ids) + len(tokens)))
            labels.append(label)
            ids += [*tokens, self.dot]
        return Prompt(np.array([*ids, self.sep], np.int64), labels, spans)


_INCONSISTENT = "the tokenizer's files are inconsistent and cannot be used on this text"


def _call(problem, function, *args, **options):
    """Call a function of the tokenizers library, and turn its exceptions into a CheckpointError.

    The library raises plain Exceptions. A panic of its Rust code is a BaseException, recognised by its name.
    """
    try:
        return function(*args, **options)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # KeyboardInterrupt or SystemExit
        raise CheckpointError(f"{problem} ({brief(error)}); download the checkpoint again") from None


# replacements of clean_up_tokenization in transformers, in its order
CLEAN_UP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
            (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))


def _from_vocab(path, settings):
    """Build BERT's tokenizer from a `vocab.txt`. It gives the same tokens as the checkpoint's `tokenizer.json`."""
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
        return f"a {type(value).__name__} with the element {odd!r}"
    return type(value).__name__
