"""Building blocks of any transformer: linear maps, norms, activations, multi-head attention.

I, O channels in and out, C channels, F hidden channels of the feed-forward network, G groups, H, W rows and columns of
a map, M heads, D channels of a head. N rows, Q queries and T keys can be tokens of any kind.
"""

from __future__ import annotations

import numpy as np

from ..runtime.kernels import accelerated


def detach(x):
    """The array itself, as a constant: no gradient passes back through it. x [...] -> [...]"""
    return np.asarray(x, like=x)


@accelerated(numpy="minigdino._ext.ops:linear")
def linear(x, weight, bias=None, residual=None):
    """Linear map x W^T + b, plus an optional residual.

    Args:
        x [..., I]: input rows.
        weight [O, I], bias [O]: the map, as the checkpoint stores it.
        residual [..., O]: added to the result.

    Returns:
        [..., O]: output rows.
    """
    rows = x.reshape(-1, x.shape[-1])  # [N, I], for one product; with more axes NumPy would run several
    product = (rows @ weight.T).reshape(*x.shape[:-1], len(weight))  # [..., O]
    biased = product if bias is None else product + bias  # [..., O]
    return biased if residual is None else biased + residual


@accelerated(numpy="minigdino._ext.products:matmul")
def matmul(a, b):
    """Matrix product, for every leading index of the two arrays.

    Args:
        a [..., N, I], b [..., I, O]: the factors.

    Returns:
        [..., N, O]: their product.
    """
    return a @ b


@accelerated(numpy="minigdino._ext.ops:layer_norm", cupy="minigdino._ext.cuda:layer_norm")
def layer_norm(x, weight, bias, eps=1e-5):
    """Layer Normalization over the channels (arXiv 1607.06450, Eq. 4).

    Args:
        x [..., C]: input rows.
        weight [C], bias [C]: gain and shift per channel.
        eps: added to the variance.

    Returns:
        [..., C]: normalised rows.
    """
    centred = x - x.mean(axis=-1, keepdims=True)  # [..., C]
    variance = (centred * centred).mean(axis=-1, keepdims=True)  # [..., 1]
    return centred / np.sqrt(variance + eps) * weight + bias


@accelerated(numpy="minigdino._ext.ops:add_norm", cupy="minigdino._ext.cuda:add_norm")
def add_norm(x, residual, weight, bias, eps=1e-5):
    """"Add & Norm" of the transformer (arXiv 1706.03762, Figure 1): layer norm of a sum.

    Args:
        x [..., C], residual [..., C]: the two summands.
        weight [C], bias [C], eps: parameters of the layer norm.

    Returns:
        [..., C]: normalised sum.
    """
    return layer_norm(x + residual, weight, bias, eps)


@accelerated(numpy="minigdino._ext.ops:group_norm", cupy="minigdino._ext.cuda:group_norm")
def group_norm(x, weight, bias, groups=32, eps=1e-5):
    """Group Normalization of a feature map (arXiv 1803.08494, Eq. 1, 2, 6 and 7).

    Args:
        x [H, W, C]: feature map.
        weight [C], bias [C]: gain and shift per channel.
        groups: G; each holds C / G neighbouring channels.
        eps: added to the variance.

    Returns:
        [H, W, C]: normalised map.
    """
    grouped = x.reshape(-1, groups, x.shape[-1] // groups)  # [H*W, G, C/G]
    axes = (0, 2)
    # a group has up to a million elements, too many for a sum in float32
    mean = grouped.mean(axis=axes, keepdims=True, dtype=np.float64).astype(x.dtype)  # [1, G, 1]
    centred = grouped - mean  # [H*W, G, C/G]
    variance = (centred * centred).mean(axis=axes, keepdims=True, dtype=np.float64).astype(x.dtype)  # [1, G, 1]
    return (centred / np.sqrt(variance + eps)).reshape(x.shape) * weight + bias


@accelerated(numpy="minigdino._ext.ops:softmax", cupy="minigdino._ext.cuda:softmax")
def softmax(x, axis=-1):
    """Softmax along one axis; -inf becomes 0.

    Args:
        x [...]: scores.
        axis: the axis that sums to 1 afterwards.

    Returns:
        [...]: weights.
    """
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


@accelerated(numpy="minigdino._ext.ops:relu", cupy="minigdino._ext.cuda:relu")
def relu(x):
    """Rectified linear unit max(x, 0): x [..., C] -> [..., C]"""
    return np.maximum(x, 0)


# Coefficients of P, constant term first: erfc(z) = t exp(-z^2) P(t), t = 1 / (1 + z/2), for z >= 0. P is a reweighted
# least-squares fit made for this project. Its largest relative error, 4.3e-8, is below float32 rounding.
ERFC = (0.28208641784288846, 0.2823753089106683, 0.24310375990106015, 0.20268688088316075, -0.026625696154921077,
        0.2780672097115286, -0.4871999480276077, 0.2845749904949677, -0.05906896644553143)


@accelerated(numpy="minigdino._ext.ops:gelu", cupy="minigdino._ext.cuda:gelu")
def gelu(x):
    """Gaussian Error Linear Unit x * Phi(x), exact (arXiv 1606.08415): x [..., C] -> [..., C]

    Phi is the cumulative normal distribution. NumPy has no erf, so Phi is computed from its tail, which keeps small
    values accurate to float32 rounding.
    """
    z = abs(x) * 0.5**0.5
    t = 1 / (1 + 0.5 * z)
    polynomial = ERFC[-1]
    for coefficient in ERFC[-2::-1]:
        polynomial = polynomial * t + coefficient
    tail = 0.5 * t * np.exp(-z * z) * polynomial  # Phi(-|x|)
    return x * np.where(x < 0, tail, 1 - tail)


ACTIVATIONS = {"relu": relu, "gelu": gelu}


@accelerated(numpy="minigdino._ext.ops:feed_forward", cupy="minigdino._ext.cuda:feed_forward")
def feed_forward(x, fc1, fc2, activation, residual=None):
    """Feed-forward network (arXiv 1706.03762, Eq. 2): linear, activation, linear, plus an optional residual.

    Args:
        x [N, C]: input rows.
        fc1, fc2: {"weight", "bias"} of the maps to F hidden channels and back.
        activation: "relu" or "gelu".
        residual [N, C]: added to the result.

    Returns:
        [N, C]: output rows.
    """
    hidden = linear(x, **fc1)  # [N, F]
    active = ACTIVATIONS[activation](hidden)  # [N, F]
    return linear(active, **fc2, residual=residual)


def mlp(x, layers):
    """Multi-layer perceptron, linear maps with ReLU between them: x [..., I] -> [..., O]"""
    *first, last = layers
    for layer in first:
        x = relu(linear(x, **layer))
    return linear(x, **last)


def split_heads(x, n_heads):
    """Split the channels into heads: x [N, C] -> [M, N, C/M], M = n_heads"""
    return x.reshape(len(x), n_heads, -1).swapaxes(0, 1)


def merge_heads(x):
    """Concatenate the heads' channels: x [M, N, D] -> [N, M*D]"""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)


@accelerated(numpy="minigdino._ext.ops:attend")
def attend(q, k, v, mask=None):
    """Scaled dot-product attention in every head (arXiv 1706.03762, Eq. 1), for queries already divided by sqrt(D).

    Args:
        q [M, Q, D], k [M, T, D], v [M, T, D]: queries, keys, values.
        mask [Q, T]: True where a query may attend to a key.

    Returns:
        [Q, M*D]: weighted mean of the values, heads concatenated.
    """
    scores = q @ k.swapaxes(1, 2)  # [M, Q, T]
    masked = scores if mask is None else np.where(mask, scores, -np.inf)  # [M, Q, T]
    weights = softmax(masked)  # [M, Q, T]
    return merge_heads(weights @ v)


def attention(queries, keys, values, query, key, value, out_proj, n_heads, mask=None):
    """Multi-head attention (arXiv 1706.03762, section 3.2.2), with Eq. 1 in each head.

    Args:
        queries [Q, C], keys [T, C], values [T, C]: inputs of the three projections.
        mask [Q, T]: True where a query may attend to a key.

    Returns:
        [Q, C]: attended values, projected.
    """
    q = split_heads(linear(queries, **query), n_heads) * (queries.shape[-1] // n_heads) ** -0.5  # [M, Q, D]
    k = split_heads(linear(keys, **key), n_heads)  # [M, T, D]
    v = split_heads(linear(values, **value), n_heads)  # [M, T, D]
    return linear(attend(q, k, v, mask), **out_proj)
