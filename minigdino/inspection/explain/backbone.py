"""Figures of the image backbone (§3.1): input, patches, windows, stages."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ...network.swin import PATCH
from .encode import packed, picture, principal_colours, spread, stretched

SMALL = 2**16  # pixels; smaller images are stored as PNG, larger ones as JPEG
CHANNEL = 360  # pixels on the longer edge of a channel's picture
MAX_WEIGHTS = 40_000  # attention weights in the page, for each block


def pixels(recorded):
    """The resized image, and its three normalised channels with their ranges."""
    x = recorded.one("forward.0/pixels")  # [3, H, W]
    channels = []
    for name, channel in zip(("red", "green", "blue"), x):
        shown = Image.fromarray(stretched(channel))
        shown.thumbnail((CHANNEL, CHANNEL))
        channels.append({"name": name, "src": picture(shown), "span": [float(channel.min()), float(channel.max())]})
    _, H, W = x.shape
    resized = recorded.image.resize((W, H), resample=recorded.model.settings.resample)
    return {"src": picture(resized, lossless=H * W < SMALL), "size": [H, W], "channels": channels}


def patches(recorded):
    """The map of embedded patches, and the learned filters that compute it."""
    kernel = recorded.one("*/patch_embedding.0/kernel")  # [C, 3*PATCH**2]
    tiles = [stretched(k).reshape(3, PATCH, PATCH).transpose(1, 2, 0) for k in kernel]
    embedded = recorded.one("*/patch_embedding.0/return")
    return {"side": PATCH, "grid": list(embedded.shape[:2]),
            "embedded": picture(principal_colours(embedded), lossless=True),
            "filters": [picture(tile, lossless=True) for tile in tiles[:48]]}


def windows(recorded):
    """Map size, window size and shift of each stage."""
    k = recorded.model.config.backbone_config.window_size
    return {"stages": [{"stage": b["stage"], "map": b["map"], "k": k, "shift": k // 2}
                       for b in _blocks(recorded) if not b["shift"]]}


def shift_mask(recorded):
    """The regions of each stage's shifted map, and the masks of four windows: interior, right, bottom, corner."""
    stages = []
    shifted = [b for b in _blocks(recorded) if b["shift"]]
    for block in shifted:
        path = f"*/swin_block.{block['block']}/*/shift_mask.0/"
        regions, mask = recorded.one(path + "regions")[..., 0], recorded.one(path + "return")  # [H, W], [N, K, K]
        columns = regions.shape[1] // block["k"]
        kinds = [0, columns - 1, len(mask) - columns, len(mask) - 1]
        # the number of a region is the sum of a number for its rows and one for its columns
        stages.append({**block, "masks": packed(mask[kinds]), "column_regions": regions[0].tolist(),
                       "row_regions": (regions[:, 0] - regions[0, 0]).tolist()})
    return {"stages": stages}


def window_attention(recorded):
    """Attention weights of a grid of tokens, in the first plain and the first shifted block of each stage."""
    blocks = []
    for block in _blocks(recorded):
        (H, W), k, shift = block["map"], block["k"], block["shift"]
        weights = recorded.one(f"*/swin_block.{block['block']}/*/attend_in_windows.0/weights")  # [N, M, K, K]
        heads = np.stack([weights.mean(axis=1), *weights.swapaxes(0, 1)])  # [1 + M, N, K, K]
        if H * W * k * k * len(heads) > MAX_WEIGHTS:
            heads = heads[:1]
        side = max(2, int((MAX_WEIGHTS / (k * k * len(heads))) ** 0.5))
        rows, cols = spread(H, side), spread(W, side)
        height, width = -(-H // k) * k, -(-W // k) * k
        r, c = (rows[:, None] - shift) % height, (cols - shift) % width
        chosen = heads[:, r // k * (width // k) + c // k, r % k * k + c % k]  # [heads, rows, cols, K]
        blocks.append({**block, "rows": rows.tolist(), "cols": cols.tolist(), "weights": packed(chosen, 16, per=1)})
    return {"blocks": blocks}


def position_bias(recorded):
    """The bias of each head for every offset between two tokens of a window, as a square."""
    blocks = []
    for block in _blocks(recorded):
        table = recorded.one(f"*/swin_block.{block['block']}/*/relative_position_bias.0/table")  # [(2*k-1)**2, M]
        side = 2 * block["k"] - 1
        blocks.append({**block, "bias": packed(table.T.reshape(-1, side, side))})
    return {"blocks": blocks}


def stages(recorded):
    """The output of each stage, in its first three principal components."""
    last = np.cumsum(recorded.model.config.backbone_config.depths) - 1
    maps = [recorded.one(f"forward.0/swin.0/swin_block.{i}/return") for i in last]
    return {"maps": [{"shape": list(m.shape), "src": picture(principal_colours(m), lossless=True)} for m in maps]}


def _blocks(recorded):
    """{"stage", "block", "map", "k", "shift"} of the first plain and the first shifted block of each stage."""
    config, blocks, first = recorded.model.config.backbone_config, [], 0
    k = config.window_size
    for stage, depth in enumerate(config.depths, start=1):
        for i in range(min(depth, 2 if k > 1 else 1)):
            H, W = recorded.one(f"*/swin_block.{first + i}/*/attend_in_windows.0/return").shape[:2]
            blocks.append({"stage": stage, "block": first + i, "map": [H, W], "k": k, "shift": i * (k // 2)})
        first += depth
    return blocks
