"""Figures of the text: the phrase mask and the attention weights within it."""

from __future__ import annotations

import numpy as np

from .encode import packed, spread

MAX_WEIGHTS = 600_000  # attention weights in the page; a long prompt shows fewer layers


def phrase_mask(recorded):
    """The mask [T, T] and the positions [T]."""
    mask, positions = (recorded.one(f"forward.0/phrase_mask.0/return.{i}") for i in (0, 1))
    return {"mask": packed(mask), "positions": positions.tolist()}


def text_attention(recorded):
    """Attention weights [T, T] of every layer with text self-attention, the mean of the heads."""
    kinds = (("BERT layer", "*/bert_layer.*/attention.0/attend.0/weights"),
             ("enhancer layer", "*/text_enhancer_layer.*/attention.0/attend.0/weights"))
    layers = [(f"{kind} {i}", weights) for kind, path in kinds for i, weights in enumerate(recorded.all(path), start=1)]
    shown = spread(len(layers), max(2, MAX_WEIGHTS // layers[0][1][0].size))
    maps = np.stack([layers[i][1].mean(axis=0) for i in shown])  # [layers, T, T]
    return {"layers": [layers[i][0] for i in shown], "weights": packed(maps, per=1)}
