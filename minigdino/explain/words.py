"""Figures of the text: who may see whom, and who does."""

from __future__ import annotations

import numpy as np

from .encode import packed


def phrase_mask(seen):
    """The mask [T, T] and the positions [T]."""
    mask, positions = (seen.one(f"forward.0/phrase_mask.0/return.{i}") for i in (0, 1))
    return {"mask": packed(mask), "positions": positions.tolist()}


def text_attention(seen):
    """Mean over heads of the attention [T, T] in every layer that lets tokens read tokens."""
    kinds = (("BERT layer", "*/bert_layer.*/attention.0/weights"),
             ("enhancer layer", "*/text_enhancer_layer.*/attention.0/weights"))
    layers = [(f"{kind} {i}", weights) for kind, path in kinds for i, weights in enumerate(seen.all(path), start=1)]
    maps = np.stack([weights.mean(axis=0) for _, weights in layers])  # [layers, T, T]
    return {"layers": [name for name, _ in layers], "weights": packed(maps, per=1)}
