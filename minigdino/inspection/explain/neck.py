"""Figures of the pyramid: its levels, and how a pixel says where it is."""

from __future__ import annotations

from .encode import picture, principal_colours, stretched

CHANNELS = 6  # of each axis, that the page shows


def pyramid(seen):
    """Every level, its three main directions as colours."""
    maps = seen.all("forward.0/neck.0/return.*")
    n_backbone = len(seen.model.config.backbone_config.out_indices)
    return {"maps": [{"shape": list(m.shape), "made_by": "conv_1x1" if i < n_backbone else "conv_3x3_stride_2",
                      "src": picture(principal_colours(m), lossless=True)} for i, m in enumerate(maps)]}


def image_positions(seen):
    """A few channels of the finest level's embedding: sines of the row, then sines of the column."""
    embedding = seen.one("*/vision_positions.0/image_positions.0/return")  # [H*W, C]
    H, W = seen.sizes[0]
    half = embedding.shape[1] // 2
    step = max(1, half // CHANNELS)
    channels = [*range(0, half, step)][:CHANNELS]
    return {"channels": [{"channel": c, "axis": axis, "src": picture(stretched(embedding[:, c].reshape(H, W)), True)}
                         for start, axis in ((0, "row"), (half, "column")) for c in (start + i for i in channels)]}
