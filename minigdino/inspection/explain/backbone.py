"""Figures of §3.1's image backbone: pixels, patches, windows, stages."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ...network.swin import PATCH
from .encode import packed, picture, principal_colours, spread, stretched

SMALL = 2**16  # pixels of an image that the page takes as it is; larger ones become JPEG
CHANNEL = 360  # pixels along the longer edge of a channel's picture
WEIGHTS = 40_000  # attention weights of a block that the page takes


def pixels(seen):
    """The resized image, and its three channels as numbers."""
    x = seen.one("forward.0/pixels")  # [3, H, W]
    channels = []
    for name, channel in zip(("red", "green", "blue"), x):
        shown = Image.fromarray(stretched(channel))
        shown.thumbnail((CHANNEL, CHANNEL))
        channels.append({"name": name, "src": picture(shown), "span": [float(channel.min()), float(channel.max())]})
    _, H, W = x.shape
    resized = seen.image.resize((W, H), resample=seen.model.settings.resample)
    return {"src": picture(resized, lossless=H * W < SMALL), "size": [H, W], "channels": channels}


def patches(seen):
    """The map that the patches become, and the learned filters that make it."""
    kernel = seen.one("*/patch_embedding.0/kernel")  # [C, 3*PATCH**2]
    tiles = [stretched(k).reshape(3, PATCH, PATCH).transpose(1, 2, 0) for k in kernel]
    embedded = seen.one("*/patch_embedding.0/return")
    return {"side": PATCH, "grid": list(embedded.shape[:2]),
            "embedded": picture(principal_colours(embedded), lossless=True),
            "filters": [picture(tile, lossless=True) for tile in tiles[:48]]}


def windows(seen):
    """Each stage's map, and how it is cut."""
    k = seen.model.config.backbone_config.window_size
    return {"stages": [{"stage": b["stage"], "map": b["map"], "k": k, "shift": k // 2}
                       for b in _blocks(seen) if not b["shift"]]}


def shift_mask(seen):
    """The pieces of each stage's shifted map, and the masks of four windows: inside, right, bottom, corner."""
    stages = []
    shifted = [b for b in _blocks(seen) if b["shift"]]
    for block in shifted:
        path = f"*/swin_block.{block['block']}/*/shift_mask.0/"
        pieces, mask = seen.one(path + "pieces")[..., 0], seen.one(path + "return")  # [H, W], [B, K, K]
        columns = pieces.shape[1] // block["k"]
        kinds = [0, columns - 1, len(mask) - columns, len(mask) - 1]
        # a piece is a piece of the rows and one of the columns, and numbered by their sum
        stages.append({**block, "masks": packed(mask[kinds]), "column_pieces": pieces[0].tolist(),
                       "row_pieces": (pieces[:, 0] - pieces[0, 0]).tolist()})
    return {"stages": stages}


def window_attention(seen):
    """The weights of a grid of pixels, in the first plain and the first shifted block of each stage."""
    blocks = []
    for block in _blocks(seen):
        (H, W), k, shift = block["map"], block["k"], block["shift"]
        weights = seen.one(f"*/swin_block.{block['block']}/*/attend_in_windows.0/weights")  # [B, M, K, K]
        heads = np.stack([weights.mean(axis=1), *weights.swapaxes(0, 1)])  # [1 + M, B, K, K]
        if H * W * k * k * len(heads) > WEIGHTS:
            heads = heads[:1]
        side = max(2, int((WEIGHTS / (k * k * len(heads))) ** 0.5))
        rows, cols = spread(H, side), spread(W, side)
        height, width = -(-H // k) * k, -(-W // k) * k
        r, c = (rows[:, None] - shift) % height, (cols - shift) % width
        chosen = heads[:, r // k * (width // k) + c // k, r % k * k + c % k]  # [heads, rows, cols, K]
        blocks.append({**block, "rows": rows.tolist(), "cols": cols.tolist(), "weights": packed(chosen, 16, per=1)})
    return {"blocks": blocks}


def position_bias(seen):
    """One square per head: the bias for every offset between two pixels of a window."""
    blocks = []
    for block in _blocks(seen):
        table = seen.one(f"*/swin_block.{block['block']}/*/relative_position_bias.0/table")  # [N, M]
        side = 2 * block["k"] - 1
        blocks.append({**block, "bias": packed(table.T.reshape(-1, side, side))})
    return {"blocks": blocks}


def stages(seen):
    """What each stage hands on, its three main directions as colours."""
    last = np.cumsum(seen.model.config.backbone_config.depths) - 1
    maps = [seen.one(f"forward.0/swin.0/swin_block.{i}/return") for i in last]
    return {"maps": [{"shape": list(m.shape), "src": picture(principal_colours(m), lossless=True)} for m in maps]}


def _blocks(seen):
    """The first plain and the first shifted block of each stage: {"stage", "block", "map", "k", "shift"}"""
    config, blocks, first = seen.model.config.backbone_config, [], 0
    k = config.window_size
    for stage, depth in enumerate(config.depths, start=1):
        for i in range(min(depth, 2 if k > 1 else 1)):
            H, W = seen.one(f"*/swin_block.{first + i}/*/attend_in_windows.0/return").shape[:2]
            blocks.append({"stage": stage, "block": first + i, "map": [H, W], "k": k, "shift": i * (k // 2)})
        first += depth
    return blocks
