"""Twin of minigdino/network/fusion.py's `attend_both_ways`, in blocks of image tokens.

For a long prompt, the table of scores is larger than the image tokens. So each thread runs all steps that use the
scores on one block of image tokens at a time. The table is never stored in full.
"""

import numpy as np

from .instruction_sets import require
from .pool import for_rows

BLOCK_ROWS = 1024  # image tokens per block: few enough for the cache, enough for products at full rate

linear, softmax = require("minigdino._ext.ops:linear"), require("minigdino._ext.ops:softmax")


def attend_both_ways(vision, folded_keys, key_bias, mapped_values, bias, residual=None):
    """vision [S, C], folded_keys [M, T, C], key_bias [M, T], mapped_values [M, T, C], bias [C], residual [S, C]
    -> [S, C], [M, T, C]

    The softmax over the image needs the largest score of each text token, which is known only after the last block. So
    each block subtracts its own maximum. At the end, the sums are rescaled to the common maximum (arXiv 1805.02867,
    section 3.1).
    """
    (S, C), (M, T, _) = vision.shape, folded_keys.shape
    if (key_bias.shape != (M, T) or mapped_values.shape != folded_keys.shape
            or (residual is not None and residual.shape != vision.shape)):
        raise ValueError(f"attend_both_ways: folded_keys {folded_keys.shape}, key_bias {key_bias.shape}, mapped_values "
                         f"{mapped_values.shape} and residual {None if residual is None else residual.shape} do not "
                         f"fit vision {vision.shape}")
    keys, key_bias, values = folded_keys.reshape(M * T, C), key_bias.reshape(M * T), mapped_values.reshape(M * T, C).T
    blocks = max(1, round(S / BLOCK_ROWS))
    edges = [S * b // blocks for b in range(blocks + 1)]
    from_text = np.empty((S, C), vision.dtype)
    maximum, total = np.empty((blocks, M * T), vision.dtype), np.empty((blocks, M * T))  # long sums in float64
    weighted = np.empty((blocks, M * T, C), vision.dtype)

    def work(first, last):
        for b in range(first, last):
            rows = slice(edges[b], edges[b + 1])
            scores = linear(vision[rows], keys, key_bias)  # [BLOCK_ROWS, M*T]
            to_text = softmax(scores.reshape(-1, M, T)).reshape(-1, M * T)  # [BLOCK_ROWS, M*T]
            from_text[rows] = linear(to_text, values, bias, None if residual is None else residual[rows])
            maximum[b] = scores.max(axis=0)
            weights = np.exp(scores - maximum[b])  # [BLOCK_ROWS, M*T]
            total[b] = weights.sum(axis=0, dtype=total.dtype)
            np.matmul(weights.T, vision[rows], out=weighted[b])

    for_rows(work, blocks, products=True)
    scale = np.exp(maximum - maximum.max(axis=0))  # [blocks, M*T]
    context = (scale[:, :, None] * weighted).sum(axis=0)  # [M*T, C]
    image_context = context / (scale * total).sum(axis=0).astype(vision.dtype)[:, None]  # [M*T, C]
    return from_text, image_context.reshape(M, T, C)
