"""Figures of deformable attention: sampling points of image tokens and of queries."""

from __future__ import annotations

import numpy as np

from .deciding import best
from .encode import packed, spread

MAX_POINTS = 250_000  # sampling points in the page, for all tokens and layers


def sampling(recorded):
    """Sampling points and weights of a grid of tokens on the finest level, in every enhancer layer."""
    weights, locations = (_steps(recorded, "enhancer.0/deformable_layer.*", name) for name in ("weights", "locations"))
    H, W = recorded.sizes[0]
    side = int((MAX_POINTS / (len(weights) * weights[0][0].size)) ** 0.5)
    rows, cols = spread(H, max(side, 2)), spread(W, max(side, 2))
    chosen = (rows[:, None] * W + cols).reshape(-1)
    return {"rows": rows.tolist(), "cols": cols.tolist(), "grid": [H, W],
            **_packed([w[chosen] for w in weights], [x[chosen] for x in locations])}


def query_sampling(recorded):
    """Sampling points and weights of the best queries, in every decoder layer."""
    weights, locations = (_steps(recorded, "decoder.0/decoder_layer.*", name) for name in ("weights", "locations"))
    chosen = best(recorded)
    return {"queries": chosen.tolist(), **_packed([w[chosen] for w in weights], [x[chosen] for x in locations])}


def _steps(recorded, layer, name):
    return recorded.all(f"forward.0/{layer}/deformable_attention.0/deform_attn.0/{name}")


def _packed(weights, locations):
    """weights [N, n, M, L, P], locations [N, n, M, L, P, 2]"""
    return {"weights": packed(np.stack(weights)), "locations": packed(np.stack(locations), 16)}
