# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""minigdino/ops.py's `gelu` as one loop: same polynomial, an exponential that the compiler can vectorise."""

import numpy as np

from cython cimport floating
from libc.math cimport exp

from minigdino._ext.checks import contiguous, same_dtype
from minigdino._ext.threads import for_rows

cdef union Bits:
    int i
    float f


cdef inline floating exp_negative(floating x) noexcept nogil:
    """exp(x) for x <= 0. float32: 2**n * exp(r) with |r| <= ln(2)/2 and a degree 6 Taylor polynomial, right to 1.6e-7."""
    cdef int n
    cdef float r, p
    cdef Bits power
    if floating is double:
        return exp(x)
    x = max(x, <float> -87)  # below, the result would not be a normal number; gelu is 0 there all the same
    n = <int> (x * <float> 1.44269504 - <float> 0.5)
    r = (x - n * <float> 0.693145752) - n * <float> 1.42860677e-6  # ln(2) in two parts, so that n * ln(2) is exact enough
    p = <float> 1 + r * (<float> 1 + r * (<float> 0.5 + r * (<float> (1 / 6.) + r * (<float> (1 / 24.) + r * (
        <float> (1 / 120.) + r * <float> (1 / 720.))))))
    power.i = (n + 127) << 23
    return power.f * p


def _rows(const floating[::1] x, const floating[::1] erfc, floating[::1] out, Py_ssize_t first, Py_ssize_t last):
    cdef Py_ssize_t i
    cdef floating a, z, t, tail, one = 1
    cdef floating c0 = erfc[0], c1 = erfc[1], c2 = erfc[2], c3 = erfc[3], c4 = erfc[4]
    cdef floating c5 = erfc[5], c6 = erfc[6], c7 = erfc[7], c8 = erfc[8]
    with nogil:
        for i in range(first, last):
            a = x[i]
            z = (a if a > 0 else -a) * <floating> 0.7071067811865476
            t = one / (one + <floating> 0.5 * z)
            tail = <floating> 0.5 * t * exp_negative(-z * z) * (
                c0 + t * (c1 + t * (c2 + t * (c3 + t * (c4 + t * (c5 + t * (c6 + t * (c7 + t * c8))))))))
            out[i] = a * (tail if a < 0 else one - tail)


def forward(x):
    """x [...] -> [...]"""
    from minigdino.ops import ERFC

    dtype = same_dtype(x)
    flat = contiguous(x).reshape(-1)
    out, erfc = np.empty_like(flat), np.array(ERFC, dtype)
    for_rows(lambda first, last: _rows(flat, erfc, out, first, last), flat.size)
    return out.reshape(x.shape)
