"""Generated problems: arrays of awkward shapes, and for every accelerated op a problem whose answer is exact."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st


def rngs():
    """A NumPy generator, shrinking towards seed 0."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


def sizes(most: int = 12):
    """Rows and columns of a map."""
    return st.tuples(st.integers(1, most), st.integers(1, most))


def linear_weights(rng, outputs, inputs):
    """{"weight" [O, I], "bias" [O]} in float64, for comparisons to rounding."""
    return {"weight": rng.standard_normal((outputs, inputs)) / inputs**0.5, "bias": rng.standard_normal(outputs)}


def attention_weights(rng, width):
    """The four maps of multi-head attention."""
    return {name: linear_weights(rng, width, width) for name in ("query", "key", "value", "out_proj")}


# Small integers, eighths and coordinates in 64ths on maps whose sides are powers of two: every product and every sum is
# exact in float32, in any order, so twin and reference must agree to the bit.


def _eighths(rng, shape, dtype):
    return (rng.integers(0, 9, shape) / 8).astype(dtype)


def _points(rng, shape, dtype):
    return (rng.integers(-8, 128, shape) / 64).astype(dtype)  # a good part of them outside the image


@st.composite
def bilinear_problems(draw, dtype):
    rng = draw(rngs())
    Q, M, P, D = (draw(st.integers(1, n)) for n in (9, 3, 4, 5))
    H, W = (2 ** draw(st.integers(0, 4)) for _ in range(2))
    return rng.integers(-32, 33, (H, W, M, D)).astype(dtype), _points(rng, (Q, M, P, 2), dtype)


@st.composite
def deform_attn_problems(draw, dtype):
    rng = draw(rngs())
    Q, M, L, P, D = (draw(st.integers(1, n)) for n in (9, 3, 3, 4, 5))
    levels = tuple((2 ** draw(st.integers(0, 4)), 2 ** draw(st.integers(0, 4))) for _ in range(L))
    value = rng.integers(-32, 33, (sum(H * W for H, W in levels), M, D)).astype(dtype)
    return value, levels, _points(rng, (Q, M, L, P, 2), dtype), _eighths(rng, (Q, M, L, P), dtype)


# Ops that only add and multiply; the others are held to a few units in the last place by LOOSE_PROBLEMS alone.
EXACT_PROBLEMS = {"bilinear": bilinear_problems, "deform_attn": deform_attn_problems}


@st.composite
def loose_bilinear_problems(draw):
    rng = draw(rngs())
    (H, W), (Q, M, P, D) = draw(sizes()), [draw(st.integers(1, n)) for n in (9, 3, 4, 5)]
    return rng.standard_normal((H, W, M, D)), rng.uniform(-0.5, 1.5, (Q, M, P, 2))


@st.composite
def loose_deform_attn_problems(draw):
    rng = draw(rngs())
    Q, M, L, P, D = (draw(st.integers(1, n)) for n in (9, 3, 3, 4, 5))
    levels = tuple(draw(sizes()) for _ in range(L))
    value = rng.standard_normal((sum(H * W for H, W in levels), M, D))
    return value, levels, rng.uniform(-0.5, 1.5, (Q, M, L, P, 2)), rng.random((Q, M, L, P))


# Any size, any float64: a twin may round differently by a few units in the last place.
@st.composite
def loose_gelu_problems(draw):
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    return (draw(rngs()).normal(0, draw(st.sampled_from([0.1, 3, 30])), shape),)


LOOSE_PROBLEMS = {
    "bilinear": loose_bilinear_problems,
    "deform_attn": loose_deform_attn_problems,
    "gelu": loose_gelu_problems,
}
