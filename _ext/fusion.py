"""The twin of minigdino/network/fusion.py's table of scores. For a long prompt the table would be larger than the image, so
each thread takes some image tokens at a time through everything that is done with their scores."""

import numpy as np

from .threads import for_rows

ROWS = 1024  # image tokens at a time: few enough for the cache, many enough for products at full rate


def attend_both_ways(vision, asked, offset, told, bias, added=None):
    """vision [S, C], asked [M, T, C], offset [M, T], told [M, T, C], bias [C], added [S, C] -> [S, C], [M, T, C]

    A token's weights over the image need its largest score, which is known when all was seen. So each block sums with
    its own largest, and in the end the blocks' sums are brought to the same one (arXiv 1805.02867, section 3.1).
    """
    from minigdino.network.ops import linear, softmax

    (S, C), (M, T, _) = vision.shape, asked.shape
    if offset.shape != (M, T) or told.shape != asked.shape or (added is not None and added.shape != vision.shape):
        raise ValueError(f"attend_both_ways: asked {asked.shape}, offset {offset.shape}, told {told.shape} and added "
                         f"{None if added is None else added.shape} do not fit vision {vision.shape}")
    queries, offset, heard = asked.reshape(M * T, C), offset.reshape(M * T), told.reshape(M * T, C).T
    blocks = max(1, round(S / ROWS))
    edges = [S * b // blocks for b in range(blocks + 1)]
    from_text = np.empty((S, C), vision.dtype)
    most, share = np.empty((blocks, M * T), vision.dtype), np.empty((blocks, M * T))  # long sums, taken in double
    seen = np.empty((blocks, M * T, C), vision.dtype)

    def work(first, last):
        for b in range(first, last):
            rows = slice(edges[b], edges[b + 1])
            scores = linear(vision[rows], queries, offset)  # [ROWS, M*T]
            to_text = softmax(scores.reshape(-1, M, T)).reshape(-1, M * T)  # [ROWS, M*T]
            from_text[rows] = linear(to_text, heard, bias, None if added is None else added[rows])
            most[b] = scores.max(axis=0)
            weights = np.exp(scores - most[b])  # [ROWS, M*T]
            share[b] = weights.sum(axis=0, dtype=share.dtype)
            np.matmul(weights.T, vision[rows], out=seen[b])

    for_rows(work, blocks, products=True)
    scale = np.exp(most - most.max(axis=0))  # [blocks, M*T]
    total = (scale[:, :, None] * seen).sum(axis=0)  # [M*T, C]
    mean = total / (scale * share).sum(axis=0).astype(vision.dtype)[:, None]  # [M*T, C]
    return from_text, mean.reshape(M, T, C)
