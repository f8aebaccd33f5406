"""§3.4  Sub-sentence level text features: a token attends to its own phrase alone.

T text tokens, [CLS] and [SEP] included.
"""

from __future__ import annotations

import numpy as np

PUBLISHED_DELIMITERS = (101, 102, 1012, 1029)  # ids of [CLS] [SEP] . ? in the published vocabulary


def phrase_mask(token_ids, delimiters, like=None):
    """Figure 4 (c): split the tokens at the delimiters; a token sees the tokens of its own phrase.

    A phrase is closed by its delimiter, which belongs to it; the first and the last token stand alone, and so does
    any token that no delimiter closes. token_ids [T], on the host whatever `like` is -> mask [T, T] bool, positions [T]
    counted from 0 in each phrase
    """
    # a page of Python on short host lists: it decides sizes and positions, not arithmetic
    ids = [int(i) for i in token_ids]
    block, position = list(range(-1, -1 - len(ids), -1)), [0] * len(ids)  # alone, until a delimiter says otherwise
    start = 0
    for i, token in enumerate(ids):
        if token in delimiters:
            if 0 < i < len(ids) - 1:
                block[start : i + 1] = [i] * (i + 1 - start)
                position[start : i + 1] = range(i + 1 - start)
            start = i + 1
    blocks, positions = np.asarray([block, position], like=like)  # both on their way to a device at once
    return blocks[:, None] == blocks[None, :], positions
