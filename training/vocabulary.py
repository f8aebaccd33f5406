"""A WordPiece vocabulary of 1,030 rows: the words of the prompts, and single letters for all other words.

transformers finds the ends of phrases by fixed ids. [PAD], [UNK], [CLS], [SEP], "." and "?" therefore have the ids that
they have in BERT, and so do all ASCII characters from "!" to "?".
"""

import json
import string
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from minigdino.prompt import bert_tokenizer
from training.outlines import SHAPES
from training.prompts import ANYTHING, ARTICLES
from training.world import COLOURS

ROWS = 1030
SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
ENDS = (0, 101, 102, 1012, 1029)  # [PAD], [CLS], [SEP], ".", "?": tokens outside of all phrases
PIECES = ("##s", "##es", "##ed", "##er", "##ing", "##ish", "##y")  # "##s" and "##y" are letters, too


def vocabulary() -> dict[str, int]:
    """Return the ids of all words, 0 to ROWS - 1."""
    rows = [f"[unused{i}]" for i in range(ROWS)]
    for word, i in SPECIAL.items():
        rows[i] = word
    for mark in map(chr, range(ord("!"), ord("?") + 1)):  # includes the digits
        rows[999 + ord(mark) - ord("!")] = mark
    letters = string.ascii_lowercase
    words = [*letters, *(f"##{c}" for c in letters + string.digits), *PIECES, *"@[\\]^_`{|}~"]
    words += [*ARTICLES, *ANYTHING, *COLOURS, *SHAPES]
    for i, word in enumerate(dict.fromkeys(words), start=104):
        rows[i] = word
    return {word: i for i, word in enumerate(rows)}


def tokenizer() -> Tokenizer:
    """Create BERT's uncased tokenizer for this vocabulary, without padding and truncation."""
    return bert_tokenizer(vocabulary())


def phrase_of_token(ids: np.ndarray) -> np.ndarray:
    """Return the index of the phrase of each token, -1 for none: ids [T] -> [T]."""
    inside = ~np.isin(ids, ENDS)
    starts = inside & ~np.concatenate([[False], inside[:-1]])
    return np.where(inside, np.cumsum(starts) - 1, -1)


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, vocab.txt and tokenizer_config.json for transformers."""
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in vocabulary()))
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": 256,
        "clean_up_tokenization_spaces": True,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
