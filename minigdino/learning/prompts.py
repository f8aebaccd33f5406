"""Prompts for training: the labels of an image, mixed with phrases that it does not contain."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ..errors import ArgumentError, PromptError, brief
from ..prompt import Tokenizer
from .annotations import Sample


def mixed(labels: Sequence[str], phrases: Sequence[str], rng: np.random.Generator, n: int, tokenizer: Tokenizer,
          limit: int = 256) -> list[str]:
    """Return the prompt of a training image: each of its labels, and random absent phrases, in random order.

    An absent phrase is one without a box in the image. The number of phrases is uniform between that of the labels and
    `n`, so that the model learns from short and long prompts. It is smaller if no further phrase fits.

    Args:
        labels: labels of the boxes, in any number.
        phrases: the phrases from which absent ones are drawn. They may contain the labels.
        rng: random generator.
        n: largest number of phrases. An image with more labels has all of them, and no other phrase.
        tokenizer: tokenizer of the model.
        limit: largest number of tokens of a prompt, as `Config.max_text_len`.

    Returns:
        Phrases with different tokens, at least one, that are together a valid prompt.

    Raises:
        ArgumentError: if two labels have the same tokens, the labels do not fit in a prompt, or there is no phrase.
        PromptError: if a label, or a phrase that was drawn, is no valid phrase.
    """
    chosen = _required(labels, tokenizer.tokens, limit)
    wanted = rng.integers(max(len(chosen), 1), max(len(chosen), n, 1) + 1)
    length = _length(chosen)
    for i in rng.permutation(len(phrases)):
        if len(chosen) == wanted:
            break
        phrase = phrases[int(i)]
        tokens = tokenizer.tokens(phrase)
        if tokens not in chosen and length + len(tokens) + 1 <= limit:
            chosen[tokens] = phrase
            length = _length(chosen)
    if not chosen:
        raise ArgumentError(f"expected a label or a phrase that fits in {limit} tokens; got {brief(list(phrases))}. "
                            "Add phrases that name objects")
    found = list(chosen.values())
    return [found[i] for i in rng.permutation(len(found))]


def check(samples: Iterable[Sample], tokenizer: Tokenizer, limit: int = 256, together: bool = True) -> None:
    """Check that the labels of each image make valid prompts.

    Args:
        samples: the annotated images.
        tokenizer: tokenizer of the model.
        limit: largest number of tokens of a prompt.
        together: whether all labels of an image are in one prompt, as in `mixed`. Otherwise, each is valid on its own.

    Raises:
        ArgumentError: if a label is no valid phrase; if a label, or the labels of an image together, do not fit in a
            prompt; or if two labels that are together have the same tokens. The message names the image.
    """
    tokens = functools.cache(tokenizer.tokens)  # images share their labels
    for sample in samples:
        try:
            if together:
                _required(sample.labels, tokens, limit)
            else:
                check_each(dict.fromkeys(sample.labels), tokenizer, limit)
        except (ArgumentError, PromptError) as error:
            raise ArgumentError(f"{sample.path}: {error}") from None


def check_each(phrases: Iterable[str], tokenizer: Tokenizer, limit: int = 256) -> None:
    """Check that each phrase is a valid prompt on its own.

    Args:
        phrases: the phrases.
        tokenizer: tokenizer of the model.
        limit: largest number of tokens of a prompt.

    Raises:
        ArgumentError: if a phrase does not fit in a prompt.
        PromptError: if a phrase is no valid phrase.
    """
    for phrase in phrases:
        if (length := _length([tokenizer.tokens(phrase)])) > limit:
            raise ArgumentError(f"expected phrases that fit in a prompt of {limit} tokens; {brief(phrase)} needs "
                                f"{length}. Shorten it")


def new_tokens(phrases: Iterable[str], old: Iterable[str], tokenizer: Tokenizer) -> list[int]:
    """Return the sorted ids of the tokens of some phrases that no old phrase has."""
    return sorted({i for phrase in phrases for i in tokenizer.tokens(phrase)}
                  - {i for phrase in old for i in tokenizer.tokens(phrase)})


def _required(labels, tokens: Callable[[str], tuple[int, ...]], limit) -> dict[tuple[int, ...], str]:
    """{tokens: label} of the labels of an image."""
    chosen: dict[tuple[int, ...], str] = {}
    for label in labels:
        if (other := chosen.setdefault(tokens(label), label)) != label:
            raise ArgumentError(f"two labels of an image must not have the same tokens; {brief(other)} and "
                                f"{brief(label)} have. Write them in the same way in the annotations")
    if (length := _length(chosen)) > limit:
        raise ArgumentError(f"the labels of an image must have at most {limit} tokens together; {len(chosen)} labels "
                            f"have {length}. Shorten them, or remove some of its boxes")
    return chosen


def _length(chosen):
    """Number of tokens of a prompt: [CLS], each phrase with its dot, and [SEP]."""
    return 2 + sum(len(tokens) + 1 for tokens in chosen)
