"""Figures of the text: who may see whom, and who does."""

from __future__ import annotations

import numpy as np

from .encode import packed, spread

NUMBERS = 600_000  # of attention between tokens that the page takes; a long prompt shows fewer layers


def phrase_mask(seen):
    """The mask [T, T] and the positions [T]."""
    mask, positions = (seen.one(f"forward.0/phrase_mask.0/return.{i}") for i in (0, 1))
    return {"mask": packed(mask), "positions": positions.tolist()}


def text_attention(seen):
    """Mean over heads of the attention [T, T] in every layer that lets tokens read tokens."""
    kinds = (("BERT layer", "*/bert_layer.*/attention.0/attend.0/weights"),
             ("enhancer layer", "*/text_enhancer_layer.*/attention.0/attend.0/weights"))
    layers = [(f"{kind} {i}", weights) for kind, path in kinds for i, weights in enumerate(seen.all(path), start=1)]
    shown = spread(len(layers), max(2, NUMBERS // layers[0][1][0].size))
    maps = np.stack([layers[i][1].mean(axis=0) for i in shown])  # [layers, T, T]
    return {"layers": [layers[i][0] for i in shown], "weights": packed(maps, per=1)}
