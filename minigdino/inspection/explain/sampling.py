"""Figures of deformable attention: where a pixel, and where a query, looks."""

from __future__ import annotations

import numpy as np

from .deciding import best
from .encode import packed, spread

POINTS = 250_000  # points of all pixels and layers that the page takes


def sampling(seen):
    """Points and weights of a grid of the finest level's pixels, in every layer of the enhancer."""
    weights, locations = (_steps(seen, "enhancer.0/deformable_layer.*", name) for name in ("weights", "locations"))
    H, W = seen.sizes[0]
    side = int((POINTS / (len(weights) * weights[0][0].size)) ** 0.5)
    rows, cols = spread(H, max(side, 2)), spread(W, max(side, 2))
    chosen = (rows[:, None] * W + cols).reshape(-1)
    return {"rows": rows.tolist(), "cols": cols.tolist(), "grid": [H, W],
            **_packed([w[chosen] for w in weights], [x[chosen] for x in locations])}


def query_sampling(seen):
    """Points and weights of the best queries, in every layer of the decoder."""
    weights, locations = (_steps(seen, "decoder.0/decoder_layer.*", name) for name in ("weights", "locations"))
    chosen = best(seen)
    return {"queries": chosen.tolist(), **_packed([w[chosen] for w in weights], [x[chosen] for x in locations])}


def _steps(seen, layer, name):
    return seen.all(f"forward.0/{layer}/deformable_attention.0/deform_attn.0/{name}")


def _packed(weights, locations):
    """weights [N, n, M, L, P], locations [N, n, M, L, P, 2]"""
    return {"weights": packed(np.stack(weights)), "locations": packed(np.stack(locations), 16)}
