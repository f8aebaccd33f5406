"""Long lists of phrases, cut into prompts that fit into the text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import PromptError, brief
from .options import check_count
from .prompt import Prompt, Tokenizer


def chunks(phrases: Sequence[str], tokenizer: Tokenizer, limit: int, chunk: int | None = None) -> list[Prompt]:
    """Cut a list of phrases into prompts, in order. Each has as many phrases as fit.

    The list is checked as a whole: no two of its phrases may have the same tokens. A list that fits into one prompt
    gives the prompt of `Tokenizer.encode`.

    Args:
        phrases: any number of phrases, as in `Tokenizer.encode`.
        tokenizer: tokenizer of the model.
        limit: largest number of tokens of a prompt, as `Config.max_text_len`.
        chunk: largest number of phrases of a prompt; None for no such limit.

    Returns:
        At least one prompt. Their phrases, one prompt after the other, are those of the whole list. So the first phrase
        of a prompt has as its index in the list the number of phrases of the prompts before it.

    Raises:
        PromptError: as `Tokenizer.encode` does, or if a phrase alone does not fit into a prompt.
        ArgumentError: if `chunk` is not an int of 1 or more.

    Warns:
        PromptWarning: as `Tokenizer.encode` does, once for the whole list.
    """
    if chunk is not None:
        chunk = check_count(chunk, "chunk")
    if not isinstance(phrases, (list, tuple)):
        raise PromptError(f"a prompt that is cut into chunks must be a list of phrases; got {brief(phrases)}")
    whole = tokenizer.encode(phrases)
    prompts, first = [], 0
    while first < len(whole.spans):
        last = _last(whole, first, limit, chunk)
        prompts.append(_part(whole, first, last))
        first = last
    return prompts


def _last(whole, first, limit, chunk):
    """The index after the last phrase of the prompt that starts with the phrase `first`."""
    start = whole.spans[first][0]
    last = first
    most = len(whole.spans) if chunk is None else min(first + chunk, len(whole.spans))
    while last < most and whole.spans[last][1] - start + 3 <= limit:  # [CLS], the last dot and [SEP]
        last += 1
    if last == first:
        raise PromptError(f"a phrase must have at most {limit - 3} tokens for this model; "
                          f"{brief(whole.phrases[first])} has {whole.spans[first][1] - start}. Shorten it")
    return last


def _part(whole, first, last):
    """The prompt of the phrases from `first` to before `last`."""
    spans = whole.spans[first:last]
    start, stop = spans[0][0], spans[-1][1] + 1  # with the dot
    ids = np.concatenate([whole.ids[:1], whole.ids[start:stop], whole.ids[-1:]])
    return Prompt(ids, whole.phrases[first:last], [(a - start + 1, b - start + 1) for a, b in spans])
