"""Hypothesis strategies that generate arguments for every op, with unusual shapes.

Ops that only add and multiply also have problems whose results are exact in floating point.
"""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st


def rngs():
    """A NumPy generator, shrinking towards seed 0."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


def sizes(maximum: int = 12):
    """Rows and columns of a map."""
    return st.tuples(st.integers(1, maximum), st.integers(1, maximum))


def linear_weights(rng, outputs, inputs):
    """{"weight" [O, I], "bias" [O]} in float64, for comparisons to rounding."""
    return {"weight": rng.standard_normal((outputs, inputs)) / inputs**0.5, "bias": rng.standard_normal(outputs)}


def attention_weights(rng, width):
    """The four linear maps of multi-head attention."""
    return {name: linear_weights(rng, width, width) for name in ("query", "key", "value", "out_proj")}


# Small integers, and coordinates in 64ths on maps whose sides are powers of two. Every product and every sum is then
# exact in float32 in any order, so twin and reference must agree to the bit.


def _points(rng, shape, dtype):
    return (rng.integers(-8, 128, shape) / 64).astype(dtype)  # many of them outside the image


@st.composite
def bilinear_problems(draw, dtype):
    rng = draw(rngs())
    Q, M, P, D = (draw(st.integers(1, n)) for n in (9, 3, 4, 5))
    H, W = (2 ** draw(st.integers(0, 4)) for _ in range(2))
    return rng.integers(-32, 33, (H, W, M, D)).astype(dtype), _points(rng, (Q, M, P, 2), dtype)


@st.composite
def deform_attn_problems(draw, dtype):
    rng = draw(rngs())
    Q, M, L, D = (draw(st.integers(1, n)) for n in (9, 3, 3, 5))
    P = 2 ** draw(st.integers(0, 2))  # a box's offsets are divided by P
    levels = tuple((2 ** draw(st.integers(0, 4)), 2 ** draw(st.integers(0, 4))) for _ in range(L))
    value = rng.integers(-32, 33, (sum(H * W for H, W in levels), M, D)).astype(dtype)
    references = (rng.integers(0, 17, (Q, draw(st.sampled_from([2, 4])))) / 16).astype(dtype)
    references[:, 2:] = rng.integers(1, 3, references[:, 2:].shape) / 2  # width and height of a box
    offsets = (rng.integers(-8, 9, (Q, M, L, P, 2)) / 2).astype(dtype)
    # a power of two of equal scores, -inf elsewhere: the softmax is exact
    finite = 2 ** rng.integers(0, int(np.log2(L * P)) + 1, (Q, M, 1))
    rank = rng.permuted(np.broadcast_to(np.arange(L * P), (Q, M, L * P)), axis=2)
    return value, levels, references, offsets, np.where(rank < finite, 1.5, -np.inf).astype(dtype)


@st.composite
def relu_problems(draw, dtype):
    shape = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    return (draw(rngs()).integers(-9, 9, shape).astype(dtype),)


@st.composite
def linear_problems(draw, dtype):
    rng = draw(rngs())
    rows, inputs, outputs = (draw(st.integers(1, n)) for n in (9, 40, 40))

    def integers(*shape):
        return rng.integers(-9, 9, shape).astype(dtype)

    bias, residual = integers(outputs), integers(rows, outputs)
    return (integers(rows, inputs), integers(outputs, inputs), draw(st.sampled_from([None, bias])),
            draw(st.sampled_from([None, residual])))


@st.composite
def feed_forward_problems(draw, dtype):
    rng = draw(rngs())
    N, C, F = draw(st.sampled_from([1, 7, 700])), draw(st.integers(1, 9)), draw(st.integers(1, 20))

    def integers(*shape):
        return rng.integers(-9, 9, shape).astype(dtype)

    fc1, fc2 = ({"weight": integers(*shape), "bias": integers(shape[0])} for shape in ((F, C), (C, F)))
    return integers(N, C), fc1, fc2, "relu", draw(st.sampled_from([None, integers(N, C)]))


@st.composite
def matmul_problems(draw, dtype):
    rng = draw(rngs())
    N, inner, outputs = (draw(st.integers(1, n)) for n in (30, 300, 40))
    return rng.integers(-4, 5, (2, N, inner)).astype(dtype), rng.integers(-4, 5, (2, inner, outputs)).astype(dtype)


# Ops that only add and multiply. LOOSE_PROBLEMS compares the others, to a few units in the last place.
EXACT_PROBLEMS = {
    "bilinear": bilinear_problems,
    "deform_attn": deform_attn_problems,
    "feed_forward": feed_forward_problems,
    "linear": linear_problems,
    "matmul": matmul_problems,
    "relu": relu_problems,
}


@st.composite
def loose_bilinear_problems(draw):
    rng = draw(rngs())
    (H, W), (Q, M, P, D) = draw(sizes()), [draw(st.integers(1, n)) for n in (9, 3, 4, 5)]
    return rng.standard_normal((H, W, M, D)), rng.uniform(-0.5, 1.5, (Q, M, P, 2))


@st.composite
def loose_deform_attn_problems(draw):
    rng = draw(rngs())
    Q, M, L, P, D = (draw(st.integers(1, n)) for n in (9, 3, 3, 4, 5))
    D = draw(st.sampled_from([D, 32]))  # the twin has a faster loop for 32
    levels = tuple(draw(sizes()) for _ in range(L))
    value = rng.standard_normal((sum(H * W for H, W in levels), M, D))
    references = rng.uniform(-0.2, 1.2, (Q, draw(st.sampled_from([2, 4]))))
    return value, levels, references, 3 * rng.standard_normal((Q, M, L, P, 2)), 3 * rng.standard_normal((Q, M, L * P))


def _array(draw, rng, max_ndim=3):
    """An array of any shape and scale; its rows are from less than one vector to several vectors and a remainder."""
    shape = (*draw(st.lists(st.integers(1, 7), max_size=max_ndim - 1)), draw(st.integers(1, 70)))
    return rng.normal(0, draw(st.sampled_from([0.1, 3, 30])), shape)


@st.composite
def loose_activation_problems(draw):
    return (_array(draw, draw(rngs())),)


@st.composite
def loose_softmax_problems(draw):
    rng = draw(rngs())
    x = _array(draw, rng)
    x[rng.random(x.shape) < draw(st.sampled_from([0, 0.3]))] = -np.inf
    x[..., 0] = x[0] = 0  # no slice is fully masked, along any axis
    axis = draw(st.integers(-x.ndim, x.ndim - 1))
    if axis % x.ndim not in (0, x.ndim - 1):
        x[:, 0] = 0
    return x, axis


@st.composite
def loose_layer_norm_problems(draw):
    rng = draw(rngs())
    x = _array(draw, rng)
    shift, weight, bias = rng.standard_normal((3, x.shape[-1]))
    return x + shift, weight, bias, draw(st.sampled_from([1e-5, 1e-3]))


@st.composite
def loose_group_norm_problems(draw):
    rng = draw(rngs())
    groups, D = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    x = rng.normal(draw(st.sampled_from([0, 30])), 3, (*draw(sizes()), groups * D))
    return x, *rng.standard_normal((2, groups * D)), groups, draw(st.sampled_from([1e-5, 1e-3]))


@st.composite
def loose_linear_problems(draw):
    rng = draw(rngs())
    x, outputs = _array(draw, rng), draw(st.integers(1, 40))
    weight, bias = rng.standard_normal((outputs, x.shape[-1])), rng.standard_normal(outputs)
    residual = rng.standard_normal((*x.shape[:-1], outputs))
    return x, weight, draw(st.sampled_from([None, bias])), draw(st.sampled_from([None, residual]))


@st.composite
def loose_matmul_problems(draw):
    rng = draw(rngs())
    N, inner, outputs = (draw(st.integers(1, n)) for n in (30, 40, 40))
    shape = draw(st.sampled_from([(), (3,), (2, 2)]))
    return rng.standard_normal((*shape, N, inner)), rng.standard_normal((*shape, inner, outputs))


@st.composite
def loose_feed_forward_problems(draw):
    rng = draw(rngs())
    C, F = draw(st.integers(1, 9)), draw(st.integers(1, 20))
    N = draw(st.sampled_from([1, 7, 700, 1301]))  # few rows, and several blocks for each thread
    x, residual = rng.standard_normal((2, N, C))
    fc1, fc2 = linear_weights(rng, F, C), linear_weights(rng, C, F)
    return x, fc1, fc2, draw(st.sampled_from(["relu", "gelu"])), draw(st.sampled_from([None, residual]))


@st.composite
def loose_attend_problems(draw):
    rng = draw(rngs())
    M, Q, T, D = (draw(st.integers(1, n)) for n in (9, 20, 70, 9))
    mask = rng.random((Q, T)) < 0.5
    mask[:, 0] = True  # every query attends to at least one key
    q, k, v = (3 * rng.standard_normal((M, n, D)) for n in (Q, T, T))
    return q, k, v, draw(st.sampled_from([None, mask]))


@st.composite
def loose_add_norm_problems(draw):
    x, *rest = draw(loose_layer_norm_problems())
    return x, draw(rngs()).standard_normal(x.shape), *rest


@st.composite
def loose_window_problems(draw):
    rng = draw(rngs())
    H, W = draw(sizes(11))
    M, D, k = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 6, 32])), draw(st.integers(1, 5))
    qkv, bias = rng.standard_normal((H, W, 3, M, D)), rng.standard_normal((3, M, D))
    return qkv, bias, rng.standard_normal((M, k * k, k * k)), k, draw(st.sampled_from([0, k // 2]))


@st.composite
def loose_window_attention_problems(draw):
    rng = draw(rngs())
    H, W = draw(sizes(11))
    W = draw(st.sampled_from([W, 140]))  # narrow maps, and maps that the twin computes in bands
    heads, k = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    C = 2 * heads
    table = rng.standard_normal(((2 * k - 1) ** 2, heads))
    x, residual = rng.standard_normal((2, H, W, C))
    shift = draw(st.sampled_from([0, k // 2]))
    return x, *attention_weights(rng, C).values(), table, heads, k, shift, draw(st.sampled_from([None, residual]))


@st.composite
def loose_both_ways_problems(draw):
    rng = draw(rngs())
    S = draw(st.integers(1, 70))
    M, T, C = (draw(st.integers(1, n)) for n in (3, 9, 7))
    vision, residual = rng.standard_normal((2, S, C))
    folded_keys, mapped_values = rng.standard_normal((2, M, T, C)) * draw(st.sampled_from([0.1, 3, 30]))
    key_bias, bias = rng.standard_normal((M, T)), rng.standard_normal(C)
    return vision, folded_keys, key_bias, mapped_values, bias, draw(st.sampled_from([None, residual]))


# Any size, float64: a twin may differ by a few units in the last place.
@st.composite
def loose_sample_gradients(draw):
    value, levels, references, offsets, scores = draw(loose_deform_attn_problems())
    Q, M, L, P, _ = offsets.shape
    rng = draw(rngs())
    return (rng.standard_normal((Q, M, value.shape[2])), value, levels, rng.uniform(-0.5, 1.5, offsets.shape),
            rng.random((Q, M, L, P)))


@st.composite
def loose_window_gradients(draw):
    qkv, *rest = draw(loose_window_problems())
    H, W, _, M, D = qkv.shape
    return draw(rngs()).standard_normal((H, W, M, D)), qkv, *rest


LOOSE_PROBLEMS = {
    "add_norm": loose_add_norm_problems,
    "attend": loose_attend_problems,
    "attend_both_ways": loose_both_ways_problems,
    "attend_in_windows": loose_window_problems,
    "bilinear": loose_bilinear_problems,
    "deform_attn": loose_deform_attn_problems,
    "feed_forward": loose_feed_forward_problems,
    "gelu": loose_activation_problems,
    "group_norm": loose_group_norm_problems,
    "layer_norm": loose_layer_norm_problems,
    "linear": loose_linear_problems,
    "matmul": loose_matmul_problems,
    "relu": loose_activation_problems,
    "softmax": loose_softmax_problems,
    "through_samples": loose_sample_gradients,
    "through_windows": loose_window_gradients,
    "window_attention": loose_window_attention_problems,
}
