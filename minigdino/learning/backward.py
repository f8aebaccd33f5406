"""Backward passes of the ops: gradients of their operands, from the gradient of their result.

In the forward pass, an op with a rule here runs its compiled twin. An op without one runs as its formula is written,
and NumPy's functions are recorded one by one. Both give the same gradients; tests compare them. A rule is shorter than
the formula's record, because it keeps few arrays in memory and simplifies what it can.

C, I, O channels, M heads, D channels of a head, Q queries, T keys, N rows. g is always the gradient of the final value
with respect to the result y of the op, and has the shape of y.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np

from ..network.deformable import sampling_locations
from ..network.ops import softmax, split_heads
from ..network.swin import pad_to_multiple, shift_mask, unwindow, windows
from ..runtime.kernels import accelerated, intercepted, mode
from .recording import Node, Recorded, leaves, pull_back, replaced, values

RULES: dict[str, Callable] = {}


def rule(function):
    """Decorator that registers the backward pass of the op of the same name.

    It is called with g, the result and the arguments of the op, and returns {argument: function that returns its
    gradient}. The functions of arguments that are constants are not called.
    """
    RULES[function.__name__.rstrip("_")] = function
    return function


def run_op(op, args, kwargs, recompute=False):
    """Run an op on arrays, some of which may be recorded; see `kernels.intercepted`.

    Args:
        op, args, kwargs: the call.
        recompute: whether an op without a rule runs its twin now, and its formula in the backward pass. This keeps its
            operands in memory instead of all steps of its formula.
    """
    if next(leaves((args, kwargs)), None) is None:
        with intercepted(None):
            return op(*args, **kwargs)
    formula = inspect.unwrap(op)
    has_rule = op.__name__ in RULES and mode() == "fast"
    if not (has_rule or recompute):
        return formula(*args, **kwargs)
    bound = inspect.signature(formula).bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = bound.arguments
    with intercepted(None):
        y = op(**values(arguments))
    return _by_rule(op, y, arguments) if has_rule else _by_formula_again(formula, y, arguments)


def _by_rule(op, y, arguments):
    """The result of an op with a rule"""
    plain, wanted = values(arguments), {name: x.node for name, x in arguments.items() if isinstance(x, Recorded)}

    def back(g):
        operands = RULES[op.__name__](g, y, **plain)
        return ((node, operands[name]()) for name, node in wanted.items())

    return Recorded(y, Node(back))


def _by_formula_again(formula, y, arguments):
    """The result of an op, an array or a tuple of arrays. The formula runs in the backward pass"""
    def back(g):
        # the same values at the start of a record of its own
        again = {x.node: Recorded(x.value, Node()) for x in leaves(arguments)}
        with intercepted(run_op):
            result = formula(**replaced(arguments, lambda x: again[x.node]))
        found = pull_back(result, g, [x.node for x in again.values()])
        return ((node, found[x.node]) for node, x in again.items() if x.node in found)

    node = Node(back)
    if isinstance(y, tuple):  # the gradient of the node is {index: gradient of that part}
        return tuple(Recorded(part, Node(lambda g, i=i: [(node, {i: g})])) for i, part in enumerate(y))
    return Recorded(y, node)


@rule
def linear(g, y, x, weight, bias, residual):
    """y = x W^T + b + r: dx = g W, dW = g^T x, db = sum of g, dr = g"""
    rows = g.reshape(-1, g.shape[-1])  # [N, O]
    return {"x": lambda: (rows @ weight).reshape(x.shape), "weight": lambda: rows.T @ x.reshape(-1, x.shape[-1]),
            "bias": lambda: rows.sum(axis=0), "residual": lambda: g}


@rule
def matmul(g, y, a, b):
    """y = a b: da = g b^T, db = a^T g"""
    return {"a": lambda: g @ b.swapaxes(-1, -2), "b": lambda: a.swapaxes(-1, -2) @ g}


def through_norm(g, x, axes, eps, dtype=None):
    """Normalise, n = (x - mean) / deviation, and pass the gradient of n back (arXiv 1502.03167, section 3).

    Returns:
        n and dx = (g - mean(g) - n mean(g n)) / deviation, both of the shape of x.
    """
    def mean(array):
        return array.mean(axes, dtype, keepdims=True).astype(x.dtype)

    centred = x - mean(x)
    deviation = np.sqrt(mean(centred * centred) + eps)
    n = centred / deviation
    return n, (g - mean(g) - n * mean(g * n)) / deviation


@rule
def layer_norm(g, y, x, weight, bias, eps):
    """y = n w + b, where n is x, normalised over the channels: dw = sum of g n, db = sum of g"""
    n, dx = through_norm(g * weight, x, -1, eps)
    rows = tuple(range(x.ndim - 1))
    return {"x": lambda: dx, "weight": lambda: (g * n).sum(axis=rows), "bias": lambda: g.sum(axis=rows)}


@rule
def add_norm(g, y, x, residual, weight, bias, eps):
    """Layer norm of x + residual. Both get the same gradient."""
    operands = layer_norm(g, y, x + residual, weight, bias, eps)
    return {**operands, "residual": operands["x"]}


@rule
def group_norm(g, y, x, weight, bias, groups, eps):
    """y = n w + b, where n is x, normalised over the pixels and the channels of a group."""
    def grouped(array):
        return array.reshape(-1, groups, x.shape[-1] // groups)  # [H*W, G, C/G]

    n, dx = through_norm(grouped(g * weight), grouped(x), (0, 2), eps, np.float64)
    return {"x": lambda: dx.reshape(x.shape), "weight": lambda: (g * n.reshape(x.shape)).sum(axis=(0, 1)),
            "bias": lambda: g.sum(axis=(0, 1))}


@rule
def softmax_(g, y, x, axis):
    """dy_i/dx_j = y_i (1[i = j] - y_j)"""
    return {"x": lambda: through_softmax(g, y, axis)}


def through_softmax(g, y, axis=-1):
    """Gradient of x for y = softmax(x): y (g - sum(g y))"""
    return y * (g - (g * y).sum(axis=axis, keepdims=True))


@rule
def relu(g, y, x):
    """dy/dx = 1 for x > 0, else 0"""
    return {"x": lambda: np.where(x > 0, g, 0)}


@rule
def gelu(g, y, x):
    """y = x Phi(x): dy/dx = Phi(x) + x phi(x), with the normal distribution Phi and its density phi"""
    phi = np.exp(-0.5 * x * x) * (2 * np.pi) ** -0.5
    small = abs(x) < 1e-3  # there, Phi is a line to 1e-10, and y / x could be 0 / 0
    Phi = np.where(small, 0.5 + x * (2 * np.pi) ** -0.5, y / np.where(small, 1, x))
    return {"x": lambda: g * (Phi + x * phi)}


@rule
def attend(g, y, q, k, v, mask):
    """y = A v with A = softmax(s) and s = q k^T: dv = A^T g, dA = g v^T, dq = ds k, dk = ds^T q"""
    s = q @ k.swapaxes(1, 2)  # [M, Q, T]
    A = softmax(s if mask is None else np.where(mask, s, -np.inf))  # [M, Q, T]
    of_heads = split_heads(g, len(q))  # [M, Q, D]
    ds = through_softmax(of_heads @ v.swapaxes(1, 2), A)  # [M, Q, T]
    return {"q": lambda: ds @ k, "k": lambda: ds.swapaxes(1, 2) @ q, "v": lambda: A.swapaxes(1, 2) @ of_heads}


@accelerated(numpy="minigdino._ext.gradients:through_samples")
def through_samples(g, value, sizes, locations, weights):
    """Gradients of weighted sums of bilinear samples, y = sum of a s over levels and points, a the weight of sample s.

    A sample at (x, y) pixels is the sum over the four pixels v around it of (1 - |x - col|) (1 - |y - row|) v. So
    ds/dv is this product, and ds/dx is +v (1 - |y - row|) for the pixels on the right, - for those on the left.

    Args:
        g [Q, M, D]: gradient of y.
        value [S, M, D]: image tokens, levels one after the other.
        sizes: ((H, W), ...) of the levels.
        locations [Q, M, L, P, 2]: sampling locations (x, y) as fractions of the image.
        weights [Q, M, L, P]: a.

    Returns:
        [S, M, D], [Q, M, L, P, 2], [Q, M, L, P]: gradients of value, locations and weights.
    """
    of_value, of_locations, of_weights = np.zeros_like(value), np.zeros_like(locations), np.zeros_like(weights)
    head = np.arange(value.shape[1])[:, None]  # [M, 1]
    start = 0
    for level, (H, W) in enumerate(sizes):
        image, of_image = (array[start : start + H * W].reshape(H, W, *array.shape[1:]) for array in (value, of_value))
        a = weights[:, :, level]  # [Q, M, P]
        x, y = locations[:, :, level, :, 0] * W - 0.5, locations[:, :, level, :, 1] * H - 0.5  # [Q, M, P]
        for row, y_slope in (np.floor(y), -1), (np.floor(y) + 1, 1):  # slopes of the weights below
            for col, x_slope in (np.floor(x), -1), (np.floor(x) + 1, 1):
                inside = (row >= 0) & (row < H) & (col >= 0) & (col < W)  # [Q, M, P]
                x_weight, y_weight = (np.where(inside, 1 - abs(z), 0) for z in (x - col, y - row))  # [Q, M, P]
                pixel = np.where(inside, row, 0).astype(int), np.where(inside, col, 0).astype(int), head
                np.add.at(of_image, pixel, (a * x_weight * y_weight)[..., None] * g[:, :, None])
                dot = (g[:, :, None] * image[pixel]).sum(axis=-1)  # [Q, M, P]
                of_weights[:, :, level] += x_weight * y_weight * dot
                of_locations[:, :, level, :, 0] += x_slope * W * a * y_weight * dot
                of_locations[:, :, level, :, 1] += y_slope * H * a * x_weight * dot
        start += H * W
    return of_value, of_locations, of_weights


@rule
def deform_attn(g, y, value, sizes, references, offsets, scores):
    """y = weighted sum of samples, with weights softmax(scores) at the locations of Deformable DETR Eq. 3."""
    Q, M, L, P, _ = offsets.shape
    weights = softmax(scores)  # [Q, M, L*P]
    locations = sampling_locations(references, offsets, sizes)  # [Q, M, L, P, 2]
    of_value, of_locations, of_weights = through_samples(g.reshape(Q, M, -1), value, sizes, locations,
                                                         weights.reshape(Q, M, L, P))
    of_centre = of_locations.sum(axis=(1, 2, 3))  # [Q, 2]
    if references.shape[1] == 2:
        of_offsets = of_locations / np.asarray([(W, H) for H, W in sizes], offsets.dtype)[:, None]
        of_references = of_centre
    else:  # centre + offsets * size / (2 P)
        of_offsets = of_locations * (references[:, None, None, None, 2:] * (0.5 / P))
        of_references = np.concatenate([of_centre, (of_locations * offsets).sum(axis=(1, 2, 3)) * (0.5 / P)], axis=1)
    return {"value": lambda: of_value, "references": lambda: of_references, "offsets": lambda: of_offsets,
            "scores": lambda: through_softmax(of_weights.reshape(scores.shape), weights)}


@accelerated(numpy="minigdino._ext.gradients:through_windows")
def through_windows(g, qkv, qkv_bias, position_bias, k, shift):
    """Gradients of attention within windows, `attend` in each window and head.

    Args:
        g [H, W, M, D]: gradient of the attended values.
        qkv [H, W, 3, M, D], qkv_bias [3, M, D], position_bias [M, k**2, k**2], k, shift: as in `attend_in_windows`.

    Returns:
        [H, W, 3, M, D], [3, M, D], [M, k**2, k**2]: gradients of qkv, qkv_bias and position_bias.
    """
    H, W, _, M, D = qkv.shape
    height, width = H + -H % k, W + -W % k

    def to_windows(x):  # [H, W, ...] -> [n, k**2, ...], n windows
        padded = pad_to_multiple(x.reshape(H, W, -1), k)
        return windows(np.roll(padded, (-shift, -shift), (0, 1)), k).reshape(-1, k * k, *x.shape[2:])

    q, key, v = (to_windows(qkv) + qkv_bias).transpose(2, 0, 3, 1, 4)  # [n, M, k**2, D]
    q = q * D**-0.5
    mask = shift_mask(height, width, k, shift, like=qkv)[:, None] if shift else 0  # [n, 1, k**2, k**2]
    A = softmax(q @ key.swapaxes(2, 3) + position_bias + mask)  # [n, M, k**2, k**2]
    of_attended = to_windows(g).swapaxes(1, 2)  # [n, M, k**2, D]; 0 for padding tokens
    ds = through_softmax(of_attended @ v.swapaxes(2, 3), A)  # [n, M, k**2, k**2]
    of_q, of_key, of_v = ds @ key * D**-0.5, ds.swapaxes(2, 3) @ q, A.swapaxes(2, 3) @ of_attended  # [n, M, k**2, D]
    parts = np.stack([of_q, of_key, of_v]).transpose(1, 3, 0, 2, 4)  # [n, k**2, 3, M, D]
    whole = np.roll(unwindow(parts.reshape(-1, k * k, 3 * M * D), height, width), (shift, shift), (0, 1))
    # padding tokens are equal to the bias, so their gradients are a part of the bias's
    return whole[:H, :W].reshape(qkv.shape), parts.sum(axis=(0, 1)), ds.sum(axis=0)


@rule
def attend_in_windows(g, y, qkv, qkv_bias, position_bias, k, shift):
    """See `through_windows`."""
    of_qkv, of_bias, of_position_bias = through_windows(g, qkv, qkv_bias, position_bias, k, shift)
    return {"qkv": lambda: of_qkv, "qkv_bias": lambda: of_bias, "position_bias": lambda: of_position_bias}
