"""Twin of minigdino/network/fusion.py's `attend_both_ways`, in blocks of image tokens.

For a long prompt, the table of scores is larger than the image tokens. So each thread runs all steps that use the
scores on one block of image tokens at a time. The table is never stored in full.
"""

import numpy as np

from .checks import check_arrays, contiguous
from .instruction_sets import require
from .pool import for_rows

BLOCK_ROWS = 1024  # image tokens per block: few enough for the cache, enough for products at full rate

multiply, pack = require("minigdino._ext.products:multiply"), require("minigdino._ext.products:pack")
softmax = require("minigdino._ext.ops:softmax")


def attend_both_ways(vision, folded_keys, key_bias, mapped_values, bias, residual=None):
    """vision [S, C], folded_keys [M, T, C], key_bias [M, T], mapped_values [M, T, C], bias [C], residual [S, C]
    -> [S, C], [M, T, C]

    The softmax over the image needs the largest score of each text token, which is known only after the last block. So
    each block subtracts its own maximum. At the end, the sums are rescaled to the common maximum (arXiv 1805.02867,
    section 3.1).
    """
    S, C, M, T = check_arrays("attend_both_ways", "vision [S, C], folded_keys [M, T, C], key_bias [M, T], "
                              "mapped_values [M, T, C], bias [C], residual? [S, C]",
                              vision, folded_keys, key_bias, mapped_values, bias, residual)
    if not folded_keys.size or not S:
        raise ValueError(f"attend_both_ways: expected a token, a head and a channel; got vision {vision.shape} and "
                         f"folded_keys {folded_keys.shape}")
    keys, key_bias = pack(folded_keys.reshape(M * T, C)), contiguous(key_bias).reshape(M * T)
    values, bias = pack(mapped_values.reshape(M * T, C).T), contiguous(bias)
    residual = None if residual is None else contiguous(residual)
    blocks = max(1, round(S / BLOCK_ROWS))
    from_text = np.empty((S, C), vision.dtype)
    maximum, total = np.empty((blocks, M * T), vision.dtype), np.empty((blocks, M * T))  # long sums in float64
    weighted = np.empty((blocks, C, M * T), vision.dtype)

    def work(first, last):
        for b in range(first, last):
            rows = slice(S * b // blocks, S * (b + 1) // blocks)
            scores = np.empty((rows.stop - rows.start, M * T), vision.dtype)  # [BLOCK_ROWS, M*T]
            multiply(vision[rows], keys, scores, key_bias)
            to_text = softmax(scores.reshape(-1, M, T)).reshape(-1, M * T)  # [BLOCK_ROWS, M*T]
            multiply(to_text, values, from_text[rows], bias, None if residual is None else residual[rows])
            maximum[b] = scores.max(axis=0)
            weights = np.exp(scores - maximum[b])  # [BLOCK_ROWS, M*T]
            total[b] = weights.sum(axis=0, dtype=total.dtype)
            multiply(vision[rows].T, pack(weights.T), weighted[b])

    for_rows(work, blocks)
    scale = np.exp(maximum - maximum.max(axis=0))  # [blocks, M*T]
    context = (scale[:, None] * weighted).sum(axis=0).T  # [M*T, C]
    image_context = context / (scale * total).sum(axis=0).astype(vision.dtype)[:, None]  # [M*T, C]
    return from_text, image_context.reshape(M, T, C)
