"""§3.1  Image backbone. Swin Transformer (arXiv 2103.14030): attention in windows, shifted in every other block.

H, W rows and columns of a map, C channels, M heads, D channels of a head, k side of a window, K pixels of a
window (k**2), B windows.
"""

from __future__ import annotations

import numpy as np

from ..runtime.kernels import accelerated
from .ops import feed_forward, layer_norm, linear, softmax

PATCH = 4  # pixels along the side of one patch


def pad_to_multiple(x, k):
    """Zero rows and columns below and right, up to multiples of k: x [H, W, C] -> [ceil(H/k)*k, ceil(W/k)*k, C]"""
    H, W, _ = x.shape
    return np.pad(x, ((0, -H % k), (0, -W % k), (0, 0))) if H % k or W % k else x


def windows(x, k):
    """Cut a map into k by k windows, row by row: x [H, W, C] -> [H*W/k**2, k**2, C]"""
    H, W, C = x.shape
    return x.reshape(H // k, k, W // k, k, C).swapaxes(1, 2).reshape(-1, k * k, C)


def unwindow(x, H, W):
    """Undo `windows`: x [B, K, C] -> [H, W, C]"""
    k = round(x.shape[1] ** 0.5)
    return x.reshape(H // k, W // k, k, k, -1).swapaxes(1, 2).reshape(H, W, -1)


def relative_position_bias(table, k):
    """B of Eq. 4, one value per head and offset between two pixels: table [(2*k-1)**2, M] -> [M, k**2, k**2]"""
    row, col = np.divmod(np.arange(k * k, like=table), k)
    rows = row[:, None] - row + k - 1  # [k**2, k**2]
    cols = col[:, None] - col + k - 1  # [k**2, k**2]
    return np.moveaxis(table[rows * (2 * k - 1) + cols], -1, 0)


def shift_mask(H, W, k, shift, like):
    """Figure 4: after the cyclic shift a window may hold pieces that are not neighbours; keep them apart.

    -> [H*W/k**2, k**2, k**2], 0 within a piece, -100 between two
    """

    def piece(n):
        at = np.arange(n, like=like)
        return (at >= n - k) * 1 + (at >= n - shift) * 1

    pieces = (3 * piece(H)[:, None] + piece(W))[..., None]
    ids = windows(pieces, k)[..., 0]
    # != paper: section 3.2 masks; the released models add -100, which a large score could in principle outweigh
    return np.where(ids[:, :, None] == ids[:, None, :], 0, -100).astype(like.dtype)


@accelerated(numpy="minigdino._ext.swin:attend_in_windows", cupy="minigdino._ext.cuda:attend_in_windows")
def attend_in_windows(qkv, qkv_bias, position_bias, k, shift):
    """Eq. 4 in each window, and Figure 4: SoftMax(Q K^T / sqrt(D) + B) V.

    qkv [H, W, 3, M, D] each pixel's query, key and value, still without their bias [3, M, D]: zeros that pad the map
    are then what the paper's zeros become. position_bias [M, k**2, k**2], shift in pixels -> [H, W, M, D]
    """
    H, W, _, M, D = qkv.shape
    # padding tokens, whose query, key and value are the biases, are real keys and never masked
    padded = pad_to_multiple(qkv.reshape(H, W, -1), k) + qkv_bias.reshape(-1)  # [ceil(H/k)*k, ceil(W/k)*k, 3*M*D]
    height, width, _ = padded.shape
    shifted = np.roll(padded, (-shift, -shift), (0, 1)) if shift else padded
    q, key, v = windows(shifted, k).reshape(-1, k * k, 3, M, D).transpose(2, 0, 3, 1, 4)  # [B, M, K, D]
    scores = (q * D**-0.5) @ key.swapaxes(2, 3) + position_bias  # [B, M, K, K]
    masked = scores + shift_mask(height, width, k, shift, like=qkv)[:, None] if shift else scores  # [B, M, K, K]
    weights = softmax.reference(masked)  # [B, M, K, K]
    attended = weights @ v  # [B, M, K, D]
    back = unwindow(attended.swapaxes(1, 2).reshape(-1, k * k, M * D), height, width)
    return (np.roll(back, (shift, shift), (0, 1)) if shift else back)[:H, :W].reshape(H, W, M, D)


@accelerated(numpy="minigdino._ext.swin:window_attention")
def window_attention(x, query, key, value, out_proj, relative_position_bias_table, n_heads, k, shift,
                     added=None):
    """Multi-head attention in windows, and what is `added` to it: x [H, W, C], added [H, W, C] -> [H, W, C]"""
    H, W, C = x.shape
    # all three maps in one product, and before padding and windows, which would only make it larger
    weight, bias = (np.concatenate([p[name] for p in (query, key, value)]) for name in ("weight", "bias"))
    qkv = linear(x, weight).reshape(H, W, 3, n_heads, -1)
    position_bias = relative_position_bias(relative_position_bias_table, k)  # [M, k**2, k**2]
    attended = attend_in_windows(qkv, bias.reshape(3, n_heads, -1), position_bias, k, shift)  # [H, W, M, D]
    return linear(attended.reshape(H, W, C), **out_proj, added=added)


def swin_block(x, layernorm_before, self_attn, layernorm_after, fc1, fc2, n_heads, k, shift, activation, eps):
    """Eq. 3, one of its two halves: shift is 0 or k // 2. x [H, W, C] -> [H, W, C]"""
    H, W, C = x.shape
    mixed = window_attention(layer_norm(x, **layernorm_before, eps=eps), **self_attn, n_heads=n_heads, k=k,
                             shift=shift, added=x)  # [H, W, C]
    rows = layer_norm(mixed, **layernorm_after, eps=eps).reshape(H * W, C)
    return feed_forward(rows, fc1, fc2, activation, added=mixed.reshape(H * W, C)).reshape(H, W, C)


def patch_merging(x, norm, reduction, eps):
    """Section 3.1: concatenate each 2 by 2 neighbourhood and halve. x [H, W, C] -> [ceil(H/2), ceil(W/2), 2*C]"""
    even = pad_to_multiple(x, 2)
    # the paper leaves the order open; the released weights need (row, column) = (0,0) (1,0) (0,1) (1,1)
    parts = [even[row::2, col::2] for col in (0, 1) for row in (0, 1)]
    return linear(layer_norm(np.concatenate(parts, axis=-1), **norm, eps=eps), **reduction)


def patch_embedding(pixels, projection, norm, eps):
    """Section 3.1: every 4 by 4 patch of pixels, mapped linearly. pixels [3, H, W] -> [ceil(H/4), ceil(W/4), C]"""
    image = pad_to_multiple(np.moveaxis(pixels, 0, -1), PATCH)
    H, W, _ = image.shape
    patches = image.reshape(H // PATCH, PATCH, W // PATCH, PATCH, 3).transpose(0, 2, 4, 1, 3)
    kernel = projection["weight"].reshape(len(projection["weight"]), -1)
    return layer_norm(linear(patches.reshape(*patches.shape[:2], -1), kernel, projection["bias"]), **norm, eps=eps)


def swin(pixels, embeddings, layers, hidden_states_norms, config):
    """pixels [3, H, W] -> the normed maps of config.out_indices, fine to coarse: [ceil(H/s), ceil(W/s), C] each,
    with stride s = 4, 8, 16, 32 for stages 1 to 4"""
    eps, k = config.layer_norm_eps, config.window_size
    x = patch_embedding(pixels, embeddings["patch_embeddings"]["projection"], embeddings["norm"], eps)
    features = []
    for stage, (layer, n_heads) in enumerate(zip(layers, config.num_heads), start=1):
        for i, block in enumerate(layer["blocks"]):
            x = swin_block(x, **block, n_heads=n_heads, k=k, shift=i % 2 * (k // 2),
                           activation=config.hidden_act, eps=eps)
        if stage in config.out_indices:
            features.append(layer_norm(x, **hidden_states_norms[f"stage{stage}"], eps=eps))
        if "downsample" in layer:
            x = patch_merging(x, **layer["downsample"], eps=eps)
    return features
