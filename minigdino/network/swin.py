"""§3.1  Image backbone. Swin Transformer (arXiv 2103.14030): attention in windows, shifted in every other block.

H, W rows and columns of a map, C channels, M heads, D channels of a head. k is the side of a window in map pixels
(M in the paper).
"""

from __future__ import annotations

import numpy as np

from ..runtime.kernels import accelerated
from .ops import feed_forward, layer_norm, linear, softmax

PATCH = 4  # side of a patch in pixels of the image


def pad_to_multiple(x, k):
    """Pad with zeros below and on the right, to multiples of k: x [H, W, C] -> [ceil(H/k)*k, ceil(W/k)*k, C]"""
    H, W, _ = x.shape
    return np.pad(x, ((0, -H % k), (0, -W % k), (0, 0))) if H % k or W % k else x


def windows(x, k):
    """Partition a map into k x k windows, row by row: x [H, W, C] -> [H*W/k**2, k**2, C]"""
    H, W, C = x.shape
    return x.reshape(H // k, k, W // k, k, C).swapaxes(1, 2).reshape(-1, k * k, C)


def unwindow(x, H, W):
    """Reassemble the windows into a map: x [H*W/k**2, k**2, C] -> [H, W, C]"""
    k = round(x.shape[1] ** 0.5)
    return x.reshape(H // k, W // k, k, k, -1).swapaxes(1, 2).reshape(H, W, -1)


def relative_position_bias(table, k):
    """B of Swin Eq. 4: one value per head and offset between two pixels of a window.

    Args:
        table [(2*k-1)**2, M]: learned values, one row per offset.
        k: side of a window.

    Returns:
        [M, k**2, k**2]: the bias of each pair of pixels.
    """
    row, col = np.divmod(np.arange(k * k, like=table), k)
    rows = row[:, None] - row + k - 1  # [k**2, k**2]
    cols = col[:, None] - col + k - 1  # [k**2, k**2]
    return np.moveaxis(table[rows * (2 * k - 1) + cols], -1, 0)


def shift_mask(H, W, k, shift, like):
    """Attention mask of the shifted windows (Swin Figure 4): the cyclic shift joins pixels that are not neighbours.

    Args:
        H, W: rows and columns of the padded map, multiples of k.
        k, shift: side of a window and its shift, in pixels.
        like: an array of the wanted dtype and device.

    Returns:
        [H*W/k**2, k**2, k**2]: 0 for two pixels of one region, -100 for pixels of different regions.
    """

    def region(n):  # 0: windows without shifted pixels; 1 and 2: the two sides of the cut in the last window
        index = np.arange(n, like=like)
        return (index >= n - k) * 1 + (index >= n - shift) * 1

    regions = (3 * region(H)[:, None] + region(W))[..., None]
    ids = windows(regions, k)[..., 0]
    # != paper: Swin section 3.2 masks; the released models add -100, which a large score could in principle outweigh
    return np.where(ids[:, :, None] == ids[:, None, :], 0, -100).astype(like.dtype)


@accelerated(numpy="minigdino._ext.swin:attend_in_windows", cupy="minigdino._ext.cuda:attend_in_windows")
def attend_in_windows(qkv, qkv_bias, position_bias, k, shift):
    """Attention within each (shifted) window (Swin Eq. 4, Figure 4): SoftMax(Q K^T / sqrt(D) + B) V.

    The map is padded before the bias is added, because the paper pads before it projects. So query, key and value
    of a padding token are equal to the biases.

    Args:
        qkv [H, W, 3, M, D]: query, key and value of each pixel, without their bias.
        qkv_bias [3, M, D]: the bias of the three projections.
        position_bias [M, k**2, k**2]: B.
        k, shift: side of a window and its shift, in pixels.

    Returns:
        [H, W, M, D]: attended values.
    """
    H, W, _, M, D = qkv.shape
    # padding tokens are keys too: the mask does not exclude them
    padded = pad_to_multiple(qkv.reshape(H, W, -1), k) + qkv_bias.reshape(-1)  # [ceil(H/k)*k, ceil(W/k)*k, 3*M*D]
    height, width, _ = padded.shape
    shifted = np.roll(padded, (-shift, -shift), (0, 1)) if shift else padded
    pixels = windows(shifted, k).reshape(-1, k * k, 3, M, D)  # [height*width/k**2, k**2, 3, M, D]
    q, key, v = pixels.transpose(2, 0, 3, 1, 4)  # [height*width/k**2, M, k**2, D]
    scores = (q * D**-0.5) @ key.swapaxes(2, 3) + position_bias  # [height*width/k**2, M, k**2, k**2]
    mask = shift_mask(height, width, k, shift, like=qkv)[:, None] if shift else 0
    masked = scores + mask  # [height*width/k**2, M, k**2, k**2]
    weights = softmax(masked)  # [height*width/k**2, M, k**2, k**2]
    attended = weights @ v  # [height*width/k**2, M, k**2, D]
    whole = unwindow(attended.swapaxes(1, 2).reshape(-1, k * k, M * D), height, width)
    unshifted = np.roll(whole, (shift, shift), (0, 1)) if shift else whole
    return unshifted[:H, :W].reshape(H, W, M, D)


@accelerated(numpy="minigdino._ext.swin:window_attention")
def window_attention(x, query, key, value, out_proj, relative_position_bias_table, n_heads, k, shift, residual=None):
    """Multi-head attention within windows (W-MSA and SW-MSA, Swin section 3.2), plus an optional residual.

    Args:
        x [H, W, C]: feature map.
        k, shift: side of a window and its shift, in pixels.
        residual [H, W, C]: added to the result.

    Returns:
        [H, W, C]: attended map, projected.
    """
    H, W, C = x.shape
    # one product for the three projections; on the padded windows it would be larger
    weight, bias = (np.concatenate([p[name] for p in (query, key, value)]) for name in ("weight", "bias"))
    qkv = linear(x, weight).reshape(H, W, 3, n_heads, -1)
    position_bias = relative_position_bias(relative_position_bias_table, k)  # [M, k**2, k**2]
    attended = attend_in_windows(qkv, bias.reshape(3, n_heads, -1), position_bias, k, shift)  # [H, W, M, D]
    return linear(attended.reshape(H, W, C), **out_proj, residual=residual)


def swin_block(x, layernorm_before, self_attn, layernorm_after, fc1, fc2, n_heads, k, shift, activation, eps):
    """Swin Transformer block (Swin Eq. 3). Successive blocks alternate between shift 0 and shift k // 2.

    Args:
        x [H, W, C]: feature map.

    Returns:
        [H, W, C]: feature map.
    """
    H, W, C = x.shape
    normed = layer_norm(x, **layernorm_before, eps=eps)  # [H, W, C]
    attended = window_attention(normed, **self_attn, n_heads=n_heads, k=k, shift=shift, residual=x)  # [H, W, C]
    rows = layer_norm(attended, **layernorm_after, eps=eps).reshape(H * W, C)
    return feed_forward(rows, fc1, fc2, activation, residual=attended.reshape(H * W, C)).reshape(H, W, C)


def patch_merging(x, norm, reduction, eps):
    """Patch merging (Swin section 3.1): concatenate each 2 x 2 neighbourhood to 4*C channels and project to 2*C.

    Args:
        x [H, W, C]: feature map.

    Returns:
        [ceil(H/2), ceil(W/2), 2*C]: feature map of half the resolution.
    """
    even = pad_to_multiple(x, 2)
    # the paper does not state the order; the released weights need (row, column) = (0,0) (1,0) (0,1) (1,1)
    parts = [even[row::2, col::2] for col in (0, 1) for row in (0, 1)]
    return linear(layer_norm(np.concatenate(parts, axis=-1), **norm, eps=eps), **reduction)


def patch_embedding(pixels, projection, norm, eps):
    """Patch partition and linear embedding (Swin section 3.1): every 4 x 4 patch of pixels becomes a token.

    Args:
        pixels [3, H, W]: normalised image.

    Returns:
        [ceil(H/4), ceil(W/4), C]: feature map.
    """
    image = pad_to_multiple(np.moveaxis(pixels, 0, -1), PATCH)
    H, W, _ = image.shape
    patches = image.reshape(H // PATCH, PATCH, W // PATCH, PATCH, 3).transpose(0, 2, 4, 1, 3)
    kernel = projection["weight"].reshape(len(projection["weight"]), -1)
    return layer_norm(linear(patches.reshape(*patches.shape[:2], -1), kernel, projection["bias"]), **norm, eps=eps)


def swin(pixels, embeddings, layers, hidden_states_norms, config):
    """Swin Transformer (Swin section 3.1): multi-scale feature maps of an image.

    Args:
        pixels [3, H, W]: normalised image.
        config: `SwinConfig`.

    Returns:
        list of [ceil(H/s), ceil(W/s), C], fine to coarse: layer-normalised maps of the stages in config.out_indices.
        The stride s is 4, 8, 16, 32 for stages 1 to 4.
    """
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
