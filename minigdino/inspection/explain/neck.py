"""Figures of the neck: the feature levels and the positional encoding of the image."""

from __future__ import annotations

from .encode import picture, principal_colours, stretched

CHANNELS = 6  # number of channels shown for rows, and for columns


def pyramid(recorded):
    """The feature map of each level, in its first three principal components."""
    maps = recorded.all("forward.0/neck.0/return.*")
    n_backbone = len(recorded.model.config.backbone_config.out_indices)
    return {"maps": [{"shape": list(m.shape), "made_by": "conv_1x1" if i < n_backbone else "conv_3x3_stride_2",
                      "src": picture(principal_colours(m), lossless=True)} for i, m in enumerate(maps)]}


def image_positions(recorded):
    """Some channels of the sine embedding on the finest level: first of the row, then of the column."""
    embedding = recorded.one("*/vision_positions.0/image_positions.0/return")  # [H*W, C]
    H, W = recorded.sizes[0]
    half = embedding.shape[1] // 2
    step = max(1, half // CHANNELS)
    channels = [*range(0, half, step)][:CHANNELS]
    return {"channels": [{"channel": c, "axis": axis, "src": picture(stretched(embedding[:, c].reshape(H, W)), True)}
                         for start, axis in ((0, "row"), (half, "column")) for c in (start + i for i in channels)]}
