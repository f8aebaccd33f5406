"""Figures of fusion: image and text reading each other, as heat maps on the image."""

from __future__ import annotations

import numpy as np

from .encode import packed, pooled

NUMBERS = 800_000  # of each direction that the page takes


def token_looks(seen):
    """`to_vision`: each token's weights sum to 1 over all pixels of all levels; shares [layers, L, T] says where."""
    path = "*/attend_both_ways.0/to_vision"
    shares = [[m.sum(axis=(0, 1)) for m in seen.levels(weights.mean(axis=1))] for weights in seen.all(path)]
    return {**_maps(seen, path), "shares": packed(shares, 32)}


def pixel_reads(seen):
    """`to_text`: each pixel's weights sum to 1 over all tokens."""
    return _maps(seen, "*/attend_both_ways.0/to_text")


def _maps(seen, path):
    """One map for every layer, head (the mean of all first) and token, on each level: [layers, 1 + M, T, h, w]

    Where that is too much, heads are left out, and pixels are averaged in square blocks.
    """
    layers = seen.all(path)  # [S, M, T] each
    S, M, T = layers[0].shape
    shown = 1 + M if S * T * (1 + M) * len(layers) <= NUMBERS else 1
    most = max(16, NUMBERS // (T * shown * len(layers) * len(seen.sizes)))
    levels = [[] for _ in seen.sizes]
    for weights in layers:
        heads = np.stack([weights.mean(axis=1), *weights.swapaxes(0, 1)], axis=1)[:, :shown]  # [S, shown, T]
        for level, heat in zip(levels, seen.levels(heads)):
            level.append(pooled(heat, most).transpose(2, 3, 0, 1))
    return {"heads": shown - 1, "maps": [packed(np.stack(level), per=3) for level in levels]}
