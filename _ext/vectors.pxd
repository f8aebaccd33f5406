# cython: language_level=3
"""Loops over a few contiguous numbers, written so that a compiler turns them into vector instructions.

Compilers do not reorder sums on their own, so a sum runs in LANES partial sums, on any processor in the same order.
Constants are cast to the type at hand: a bare 1.0 would carry float32 work out in double, at half the width.
"""

from cython cimport floating
from libc.math cimport exp

cdef enum:
    LANES = 16

cdef union Bits:
    int i
    float f


cdef inline floating exp_negative(floating x) noexcept nogil:
    """exp(x) for x <= 0. float32: 2**n * exp(r) with |r| <= ln(2)/2 and a degree 6 Taylor polynomial, right to 1.6e-7.

    No branch: one more condition on the result, and compilers give up on vectors.
    """
    cdef int n
    cdef floating near
    cdef float r, p
    cdef Bits power
    if floating is double:
        return exp(x)
    else:
        near = <float> -88 if x < <float> -88 else x  # asked in this way, NaN stays NaN
        n = <int> (near * <float> 1.44269504 - <float> 0.5)
        # ln(2) in two parts, so that n * ln(2) is exact enough
        r = (near - n * <float> 0.693145752) - n * <float> 1.42860677e-6
        p = <float> 1 + r * (<float> 1 + r * (<float> 0.5 + r * (<float> (1 / 6.) + r * (<float> (1 / 24.) + r * (
            <float> (1 / 120.) + r * <float> (1 / 720.))))))
        power.i = (n + 127) << 23  # 0 for the least n, -127: what is smaller than every normal number is 0
        return power.f * p


cdef inline floating folded(const floating *lane) noexcept nogil:
    """The sum of LANES numbers, half onto half, which takes a few vector additions"""
    cdef floating[LANES] copy  # whole, so that the compiler may keep what is copied in a register until then
    cdef Py_ssize_t j
    for j in range(LANES):
        copy[j] = lane[j]
    for j in range(8):
        copy[j] += copy[j + 8]
    for j in range(4):
        copy[j] += copy[j + 4]
    return (copy[0] + copy[2]) + (copy[1] + copy[3])


cdef inline floating total(const floating *x, Py_ssize_t n) noexcept nogil:
    """The sum of x [n]"""
    cdef floating[LANES] lane
    cdef floating rest = 0
    cdef Py_ssize_t b, i, j
    for j in range(LANES):
        lane[j] = 0
    for b in range(n // LANES):
        for j in range(LANES):
            lane[j] += x[b * LANES + j]
    for i in range(n - n % LANES, n):
        rest += x[i]
    return folded(lane) + rest


cdef inline floating total_of_squares(const floating *x, Py_ssize_t n) noexcept nogil:
    """The sum of the squares of x [n]"""
    cdef floating[LANES] lane
    cdef floating rest = 0
    cdef Py_ssize_t b, i, j
    for j in range(LANES):
        lane[j] = 0
    for b in range(n // LANES):
        for j in range(LANES):
            lane[j] += x[b * LANES + j] * x[b * LANES + j]
    for i in range(n - n % LANES, n):
        rest += x[i] * x[i]
    return folded(lane) + rest


cdef inline floating largest(const floating *x, Py_ssize_t n) noexcept nogil:
    """The largest of x [n], n > 0"""
    cdef floating[LANES] lane
    cdef floating result
    cdef Py_ssize_t b, i, j
    for j in range(LANES):
        lane[j] = x[0]
    for b in range(n // LANES):
        for j in range(LANES):
            lane[j] = x[b * LANES + j] if x[b * LANES + j] > lane[j] else lane[j]
    for j in range(8):
        lane[j] = lane[j] if lane[j] > lane[j + 8] else lane[j + 8]
    for j in range(4):
        lane[j] = lane[j] if lane[j] > lane[j + 4] else lane[j + 4]
    result = lane[0]
    for j in range(1, 4):
        result = lane[j] if lane[j] > result else result
    for i in range(n - n % LANES, n):
        result = x[i] if x[i] > result else result
    return result


cdef inline void softmax_row(const floating *x, floating *out, Py_ssize_t n) noexcept nogil:
    """out [n] = softmax of x [n]; both may be the same"""
    cdef floating most = largest(x, n), share
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = exp_negative(x[i] - most)
    share = <floating> 1 / total(out, n)
    for i in range(n):
        out[i] = out[i] * share
