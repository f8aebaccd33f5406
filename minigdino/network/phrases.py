"""§3.4  Sub-sentence level text features: each token attends to the tokens of its own phrase.

T text tokens, [CLS] and [SEP] included.
"""

from __future__ import annotations

import numpy as np

PUBLISHED_DELIMITERS = (101, 102, 1012, 1029)  # ids of [CLS] [SEP] . ? in the published vocabulary


def phrase_mask(token_ids, delimiters, like=None):
    """Self-attention mask of the text (Figure 4 (c)): split the tokens at the delimiters into phrases.

    A phrase includes the delimiter at its end. The last token and tokens without a closing delimiter attend only to
    themselves. So does the first token if it is a delimiter, such as [CLS].

    Args:
        token_ids [T]: ids, on the host.
        delimiters: ids that end a phrase.
        like: an array on the wanted device.

    Returns:
        [T, T], [T]: mask, True where a token (row) may attend to another (column); positions within the phrases.
    """
    # plain Python, since the list is short and on the host; a unique negative id marks a token outside all phrases
    ids = [int(i) for i in token_ids]
    phrase, position = list(range(-1, -1 - len(ids), -1)), [0] * len(ids)
    start = 0
    for i, token in enumerate(ids):
        if token in delimiters:
            if 0 < i < len(ids) - 1:
                phrase[start : i + 1] = [i] * (i + 1 - start)
                position[start : i + 1] = range(i + 1 - start)
            start = i + 1
    phrases, positions = np.asarray([phrase, position], like=like)  # one transfer to a device for both
    return phrases[:, None] == phrases[None, :], positions
