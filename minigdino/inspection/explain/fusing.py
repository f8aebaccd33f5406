"""Figures of the fusion: cross-attention weights between image and text, as heat maps on the image."""

from __future__ import annotations

import numpy as np

from .encode import packed, pooled

MAX_WEIGHTS = 800_000  # attention weights in the page, for each direction


def token_looks(recorded):
    """Weights of each text token over the image tokens (`to_vision`); shares [layers, L, T] are the sums per level."""
    path = "*/attend_both_ways.0/to_vision"
    shares = [[m.sum(axis=(0, 1)) for m in recorded.levels(weights.mean(axis=1))] for weights in recorded.all(path)]
    return {**_maps(recorded, path), "shares": packed(shares, 32)}


def pixel_reads(recorded):
    """Weights of each image token over the text tokens (`to_text`)."""
    return _maps(recorded, "*/attend_both_ways.0/to_text")


def _maps(recorded, path):
    """Maps [layers, 1 + M, T, h, w] of each level; index 0 of the second axis is the mean of the heads.

    Beyond MAX_WEIGHTS, only the mean of the heads is stored, and the maps are averaged over square blocks.
    """
    layers = recorded.all(path)  # [S, M, T] each
    S, M, T = layers[0].shape
    shown = 1 + M if S * T * (1 + M) * len(layers) <= MAX_WEIGHTS else 1
    max_cells = max(16, MAX_WEIGHTS // (T * shown * len(layers) * len(recorded.sizes)))
    levels = [[] for _ in recorded.sizes]
    for weights in layers:
        heads = np.stack([weights.mean(axis=1), *weights.swapaxes(0, 1)], axis=1)[:, :shown]  # [S, shown, T]
        for level, heat in zip(levels, recorded.levels(heads)):
            level.append(pooled(heat, max_cells).transpose(2, 3, 0, 1))
    return {"heads": shown - 1, "maps": [packed(np.stack(level), per=3) for level in levels]}
