"""What any transformer needs: linear maps, norms, activations, attention.

C channels, I, O channels in and out, F hidden channels of the feed-forward, G groups, H, W rows and columns of a map, M
heads, D channels of a head. N rows and T keys may be of any kind.
"""

from __future__ import annotations

import numpy as np

from ..runtime.kernels import accelerated


@accelerated(numpy="minigdino._ext.ops:linear")
def linear(x, weight, bias=None, added=None):
    """x W^T + b, and what is `added` to it: x [..., I], weight [O, I], bias [O], added [..., O] -> [..., O]"""
    rows = x.reshape(-1, x.shape[-1])  # [N, I] all in one product, where NumPy would make one for each row of a map
    product = (rows @ weight.T).reshape(*x.shape[:-1], len(weight))  # [..., O]
    biased = product if bias is None else product + bias  # [..., O]
    return biased if added is None else biased + added


@accelerated(numpy="minigdino._ext.ops:layer_norm", cupy="minigdino._ext.cuda:layer_norm")
def layer_norm(x, weight, bias, eps=1e-5):
    """Layer Normalization (arXiv 1607.06450) Eq. 4: x [..., C], weight [C], bias [C] -> [..., C]"""
    centred = x - x.mean(axis=-1, keepdims=True)  # [..., C]
    variance = (centred * centred).mean(axis=-1, keepdims=True)  # [..., 1]
    return centred / np.sqrt(variance + eps) * weight + bias


@accelerated(numpy="minigdino._ext.ops:add_norm", cupy="minigdino._ext.cuda:add_norm")
def add_norm(x, added, weight, bias, eps=1e-5):
    """"Add & Norm" of arXiv 1706.03762, Figure 1: x [..., C], added [..., C], weight [C], bias [C] -> [..., C]"""
    return layer_norm.reference(x + added, weight, bias, eps)


@accelerated(numpy="minigdino._ext.ops:group_norm", cupy="minigdino._ext.cuda:group_norm")
def group_norm(x, weight, bias, groups=32, eps=1e-5):
    """Group Normalization (arXiv 1803.08494) Eq. 1 over a whole map: x [H, W, C], weight [C], bias [C] -> [H, W, C]"""
    grouped = x.reshape(-1, groups, x.shape[-1] // groups)  # [H*W, G, C/G]
    axes = (0, 2)
    # a map holds up to a million values a group: their sums are the one place where float32 is too short
    mean = grouped.mean(axis=axes, keepdims=True, dtype=np.float64).astype(x.dtype)  # [1, G, 1]
    centred = grouped - mean  # [H*W, G, C/G]
    variance = (centred * centred).mean(axis=axes, keepdims=True, dtype=np.float64).astype(x.dtype)  # [1, G, 1]
    return (centred / np.sqrt(variance + eps)).reshape(x.shape) * weight + bias


@accelerated(numpy="minigdino._ext.ops:softmax", cupy="minigdino._ext.cuda:softmax")
def softmax(x, axis=-1):
    """x [...] -> [...], each slice along the axis positive with sum 1; -inf becomes 0"""
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


@accelerated(numpy="minigdino._ext.ops:relu", cupy="minigdino._ext.cuda:relu")
def relu(x, bias=None):
    """x [..., C], bias [C] of the linear map that made x, if it is still to be added -> [..., C]"""
    return np.maximum(x if bias is None else x + bias, 0)


# erfc(z) = t exp(-z^2) P(t), t = 1 / (1 + z/2), for z >= 0. P is a least-squares fit of our own, reweighted until its
# largest relative error was least: 4.3e-8, below float32 rounding. Constant term first.
ERFC = (0.28208641784288846, 0.2823753089106683, 0.24310375990106015, 0.20268688088316075, -0.026625696154921077,
        0.2780672097115286, -0.4871999480276077, 0.2845749904949677, -0.05906896644553143)


@accelerated(numpy="minigdino._ext.ops:gelu", cupy="minigdino._ext.cuda:gelu")
def gelu(x, bias=None):
    """Gaussian Error Linear Unit (arXiv 1606.08415), exact: x * Phi(x), Phi the normal distribution.

    NumPy has no erf. Phi is taken from the tail, which keeps the small values right to float32 rounding.
    x [..., C], bias [C] of the linear map that made x, if it is still to be added -> [..., C]
    """
    a = x if bias is None else x + bias
    z = abs(a) * 0.5**0.5
    t = 1 / (1 + 0.5 * z)
    polynomial = ERFC[-1]
    for coefficient in ERFC[-2::-1]:
        polynomial = polynomial * t + coefficient
    tail = 0.5 * t * np.exp(-z * z) * polynomial  # Phi(-|a|)
    return a * np.where(a < 0, tail, 1 - tail)


ACTIVATIONS = {"relu": relu, "gelu": gelu}


@accelerated(numpy="minigdino._ext.ops:feed_forward")
def feed_forward(x, fc1, fc2, activation, added=None):
    """Attention Is All You Need (arXiv 1706.03762) Eq. 2, and what is `added`: x [N, C], added [N, C] -> [N, C]"""
    hidden = ACTIVATIONS[activation](linear(x, fc1["weight"]), fc1["bias"])  # [N, F]
    return linear(hidden, **fc2, added=added)


def mlp(x, layers):
    """Linear maps with ReLU between them: x [..., I] -> [..., O]"""
    *first, last = layers
    for layer in first:
        x = relu(linear(x, layer["weight"]), layer["bias"])
    return linear(x, **last)


def split_heads(x, n_heads):
    """x [N, C] -> [M, N, C/M], M = n_heads"""
    return x.reshape(len(x), n_heads, -1).swapaxes(0, 1)


def merge_heads(x):
    """x [M, N, D] -> [N, M*D]"""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)


@accelerated(numpy="minigdino._ext.ops:attend")
def attend(q, k, v, mask=None):
    """Attention Is All You Need (arXiv 1706.03762) Eq. 1 in every head, for a q that is divided by sqrt(D) already.
    mask says which key a query may see.

    q [M, Q, D], k [M, T, D], v [M, T, D], mask [Q, T] -> [Q, M*D]
    """
    scores = q @ k.swapaxes(1, 2)  # [M, Q, T]
    seen = scores if mask is None else np.where(mask, scores, -np.inf)  # [M, Q, T]
    weights = softmax(seen)  # [M, Q, T]
    return merge_heads(weights @ v)


def attention(queries, keys, values, query, key, value, out_proj, n_heads, mask=None):
    """Multi-head attention, arXiv 1706.03762 section 3.2.2 with Eq. 1 in each head.

    queries [Q, C], keys [T, C], values [T, C], mask [Q, T] -> [Q, C]
    """
    q = split_heads(linear(queries, **query), n_heads) * (queries.shape[-1] // n_heads) ** -0.5  # [M, Q, D]
    k = split_heads(linear(keys, **key), n_heads)  # [M, T, D]
    v = split_heads(linear(values, **value), n_heads)  # [M, T, D]
    return linear(attend(q, k, v, mask), **out_proj)
