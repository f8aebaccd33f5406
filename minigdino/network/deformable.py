"""Multi-scale deformable attention. Deformable DETR (arXiv 2010.04159), section 4.1.

S image tokens over all levels, L levels, H, W rows and columns of a map, M heads, D channels of a head, Q queries, P
points of a head on a level, R coordinates of a reference: 2 for a point and 4 for a box. P is K
in the paper.
"""

from __future__ import annotations

import numpy as np

from ..runtime.kernels import accelerated
from .ops import linear, softmax


@accelerated(numpy="minigdino._ext.deformable:bilinear", cupy="minigdino._ext.cuda:bilinear")
def bilinear(image, xy):
    """Bilinear sampling of each head's channels, with zeros outside the map.

    The centre of pixel (row r, column c) is at ((c + 0.5) / W, (r + 0.5) / H).

    Args:
        image [H, W, M, D]: feature map, channels split into heads.
        xy [Q, M, P, 2]: sampling points as fractions of width and height.

    Returns:
        [Q, M, P, D]: sampled values.
    """
    H, W, M, D = image.shape
    x = xy[..., 0] * W - 0.5  # [Q, M, P]
    y = xy[..., 1] * H - 0.5  # [Q, M, P]
    head = np.arange(M, like=image)[:, None]  # [M, 1]
    total = np.zeros((*x.shape, D), image.dtype, like=image)  # [Q, M, P, D]
    for row in (np.floor(y), np.floor(y) + 1):
        for col in (np.floor(x), np.floor(x) + 1):
            inside = (row >= 0) & (row < H) & (col >= 0) & (col < W)  # [Q, M, P]
            bilinear_weight = np.where(inside, (1 - abs(x - col)) * (1 - abs(y - row)), 0)  # [Q, M, P]
            r = np.where(inside, row, 0).astype(int)  # [Q, M, P]
            c = np.where(inside, col, 0).astype(int)  # [Q, M, P]
            total = total + bilinear_weight[..., None] * image[r, c, head]
    return total


def sampling_locations(references, offsets, sizes):
    """Sampling locations of Deformable DETR Eq. 3: reference point plus offset, as fractions of the image.

    An offset from a point is in pixels of its level. An offset from a box is in units of its size divided by 2P: an
    offset of P reaches the edge.

    Args:
        references [Q, R]: (x, y) or (cx, cy, w, h), as fractions of the image.
        offsets [Q, M, L, P, 2]: sampling offsets (x, y).
        sizes: ((H, W), ...) of the levels.

    Returns:
        [Q, M, L, P, 2]: locations (x, y).
    """
    centre = references[:, None, None, None, :2]
    if references.shape[-1] == 2:
        pixels = np.asarray([(W, H) for H, W in sizes], offsets.dtype, like=offsets)[:, None]  # [L, 1, 2]
        return centre + offsets / pixels
    # != paper: appendix A.4 multiplies offsets by the box's size. Its factor 1/(2P) applies to their initial values
    # only; the released code applies it in every forward pass
    size = references[:, None, None, None, 2:]
    return centre + offsets / offsets.shape[3] * size * 0.5


@accelerated(numpy="minigdino._ext.deformable:deform_attn", cupy="minigdino._ext.cuda:deform_attn")
def deform_attn(value, sizes, references, offsets, scores):
    """Deformable DETR Eq. 3 without its linear maps: per head, the weighted sum of P sampled values on each level.

    Args:
        value [S, M, D]: projected image tokens, levels one after the other.
        sizes: ((H, W), ...) of the levels.
        references [Q, R]: a point or a box for each query, as fractions of the image.
        offsets [Q, M, L, P, 2]: sampling offsets.
        scores [Q, M, L*P]: attention weights before the softmax.

    Returns:
        [Q, M*D]: attended values, heads concatenated.
    """
    Q, M, L, P, _ = offsets.shape
    weights = softmax(scores).reshape(Q, M, L, P)  # [Q, M, L, P]
    locations = sampling_locations(references, offsets, sizes)  # [Q, M, L, P, 2]
    total, start = np.zeros((Q, M, value.shape[2]), value.dtype, like=value), 0  # [Q, M, D]
    for level, (H, W) in enumerate(sizes):
        image = value[start : start + H * W].reshape(H, W, M, -1)
        sampled = bilinear(image, locations[:, :, level])  # [Q, M, P, D]
        attended = (weights[:, :, level, :, None] * sampled).sum(axis=2)  # [Q, M, D]
        total, start = total + attended, start + H * W
    return total.reshape(Q, M * value.shape[2])


def deformable_attention(queries, references, memory, sizes, sampling_offsets, attention_weights, value_proj,
                         output_proj, n_heads, n_points):
    """Multi-scale deformable attention (Deformable DETR Eq. 3).

    Args:
        queries [Q, C]: input of the linear maps that predict sampling offsets and attention weights.
        references [Q, R]: a point or a box for each query, as fractions of the image.
        memory [S, C]: image tokens to sample from, levels one after the other.
        sizes: ((H, W), ...) of the levels.

    Returns:
        [Q, C]: attended values, projected.
    """
    Q, L = len(queries), len(sizes)
    value = linear(memory, **value_proj).reshape(len(memory), n_heads, -1)  # [S, M, D]
    # one product for both maps, so that the queries are read once
    weight, bias = (np.concatenate([sampling_offsets[name], attention_weights[name]]) for name in ("weight", "bias"))
    offsets, scores = np.split(linear(queries, weight, bias), [n_heads * L * n_points * 2], axis=1)
    attended = deform_attn(value, sizes, references, offsets.reshape(Q, n_heads, L, n_points, 2),
                           scores.reshape(Q, n_heads, L * n_points))  # [Q, C]
    return linear(attended, **output_proj)
