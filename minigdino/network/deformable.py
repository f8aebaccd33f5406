"""Multi-scale deformable attention. Deformable DETR (arXiv 2010.04159), section 4.1.

S image tokens over all levels, L levels, H, W rows and columns of a map, M heads, D channels of a head, Q queries, P
points of a head on a level, R numbers of a reference.
"""

from __future__ import annotations

import numpy as np

from ..runtime.kernels import accelerated
from .ops import linear, softmax


@accelerated(numpy="minigdino._ext.deformable:bilinear", cupy="minigdino._ext.cuda:bilinear")
def bilinear(image, xy):
    """Sample each head's channels at points given in fractions of width and height; outside is zero.

    The centre of pixel (row r, column c) is at ((c + 0.5) / W, (r + 0.5) / H).
    image [H, W, M, D], xy [Q, M, P, 2] -> [Q, M, P, D]
    """
    H, W, M, D = image.shape
    x = xy[..., 0] * W - 0.5  # [Q, M, P]
    y = xy[..., 1] * H - 0.5  # [Q, M, P]
    head = np.arange(M, like=image)[:, None]  # [M, 1]
    total = np.zeros((*x.shape, D), image.dtype, like=image)  # [Q, M, P, D]
    for row in (np.floor(y), np.floor(y) + 1):
        for col in (np.floor(x), np.floor(x) + 1):
            inside = (row >= 0) & (row < H) & (col >= 0) & (col < W)  # [Q, M, P]
            tent = np.where(inside, (1 - abs(x - col)) * (1 - abs(y - row)), 0)  # [Q, M, P]
            r = np.where(inside, row, 0).astype(int)  # [Q, M, P]
            c = np.where(inside, col, 0).astype(int)  # [Q, M, P]
            total = total + tent[..., None] * image[r, c, head]
    return total


def sampling_locations(references, offsets, sizes):
    """Where each head looks: p_q + delta p of Eq. 3. Offsets count pixels of their level around a point, and
    P-ths of half the box's size around a box.

    references [Q, R], R = 2 for points and 4 for boxes, offsets [Q, M, L, P, 2] -> [Q, M, L, P, 2]
    """
    at = references[:, None, None, None, :]
    if references.shape[-1] == 2:
        pixels = np.asarray([(W, H) for H, W in sizes], offsets.dtype, like=offsets)[:, None]  # [L, 1, 2]
        return at + offsets / pixels
    # != paper: appendix A.4 multiplies offsets by the box's size; the released code by half of it, divided by P
    return at[..., :2] + offsets / offsets.shape[3] * at[..., 2:] * 0.5


@accelerated(numpy="minigdino._ext.deformable:deform_attn", cupy="minigdino._ext.cuda:deform_attn")
def deform_attn(value, sizes, references, offsets, scores):
    """Eq. 3 between its linear maps: the sum over levels l and points p of A_lp * x_l(p_lp), for every head.

    value [S, M, D], sizes ((H, W), ...) per level, references [Q, R], R = 2 or 4, offsets [Q, M, L, P, 2],
    scores [Q, M, L*P] -> [Q, M*D]
    """
    Q, M, L, P, _ = offsets.shape
    weights = softmax.reference(scores).reshape(Q, M, L, P)  # [Q, M, L, P]
    locations = sampling_locations(references, offsets, sizes)  # [Q, M, L, P, 2]
    total, start = 0, 0
    for level, (H, W) in enumerate(sizes):
        image = value[start : start + H * W].reshape(H, W, M, -1)
        sampled = bilinear.reference(image, locations[:, :, level])  # [Q, M, P, D]
        attended = (weights[:, :, level, :, None] * sampled).sum(axis=2)  # [Q, M, D]
        total, start = total + attended, start + H * W
    return total.reshape(Q, M * value.shape[2])


def deformable_attention(queries, references, memory, sizes, sampling_offsets, attention_weights, value_proj,
                         output_proj, n_heads, n_points):
    """Eq. 3 of 2010.04159: M heads, each weighing P points on every level.

    queries [Q, C], references [Q, R], R = 2 or 4, memory [S, C], sizes ((H, W), ...) -> [Q, C]
    """
    Q, L = len(queries), len(sizes)
    value = linear(memory, **value_proj).reshape(len(memory), n_heads, -1)  # [S, M, D]
    # where to look and how much it counts, in one product: the queries are read once
    weight, bias = (np.concatenate([sampling_offsets[name], attention_weights[name]]) for name in ("weight", "bias"))
    offsets, scores = np.split(linear(queries, weight, bias), [n_heads * L * n_points * 2], axis=1)
    looked = deform_attn(value, sizes, references, offsets.reshape(Q, n_heads, L, n_points, 2),
                         scores.reshape(Q, n_heads, L * n_points))  # [Q, C]
    return linear(looked, **output_proj)
