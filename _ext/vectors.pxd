# cython: language_level=3
"""Vectorised loops over contiguous elements: exp, sum, maximum and softmax.

Compilers do not reorder floating-point sums on their own. So each sum runs as LANES partial sums, in the same order on
every CPU. Constants are cast to `floating`: a bare 1.0 would promote float32 work to double, at half the vector width.
"""

from cython cimport floating
from libc.math cimport exp

cdef enum:
    LANES = 16

cdef union Bits:
    int i
    float f


cdef inline floating exp_negative(floating x) noexcept nogil:
    """exp(x) for x <= 0.

    float32: 2**n * exp(r), where |r| <= ln(2)/2 and exp(r) is a Taylor polynomial of degree 6. The relative error is
    below 3e-7, the absolute error below 1.7e-7. There is no branch: another condition on the result would prevent
    vectorisation.
    """
    cdef int n
    cdef floating clamped
    cdef float r, p
    cdef Bits power
    if floating is double:
        return exp(x)
    else:
        clamped = <float> -88 if x < <float> -88 else x  # not x > -88: NaN stays NaN
        n = <int> (clamped * <float> 1.44269504 - <float> 0.5)
        # ln(2) in two parts, which keeps the rounding error of n * ln(2) small
        r = (clamped - n * <float> 0.693145752) - n * <float> 1.42860677e-6
        p = <float> 1 + r * (<float> 1 + r * (<float> 0.5 + r * (<float> (1 / 6.) + r * (<float> (1 / 24.) + r * (
            <float> (1 / 120.) + r * <float> (1 / 720.))))))
        power.i = (n + 127) << 23  # n = -127 gives 0: a result below the smallest normal float is 0
        return power.f * p


cdef inline floating sum_of_lanes(const floating *lane) noexcept nogil:
    """Sum of LANES elements. Each step adds the upper half to the lower half, which takes few vector additions"""
    cdef floating[LANES] copy  # a copy of all lanes lets the compiler keep the caller's lanes in registers until here
    cdef Py_ssize_t j
    for j in range(LANES):
        copy[j] = lane[j]
    for j in range(8):
        copy[j] += copy[j + 8]
    for j in range(4):
        copy[j] += copy[j + 4]
    return (copy[0] + copy[2]) + (copy[1] + copy[3])


cdef inline floating total(const floating *x, Py_ssize_t n, bint squared) noexcept nogil:
    """Sum of x [n], or of its squares. `squared` is a constant wherever this is inlined"""
    cdef floating[LANES] lane
    cdef floating rest = 0
    cdef Py_ssize_t b, i, j
    for j in range(LANES):
        lane[j] = 0
    for b in range(n // LANES):
        for j in range(LANES):
            lane[j] += x[b * LANES + j] * x[b * LANES + j] if squared else x[b * LANES + j]
    for i in range(n - n % LANES, n):
        rest += x[i] * x[i] if squared else x[i]
    return sum_of_lanes(lane) + rest


cdef inline floating largest(const floating *x, Py_ssize_t n) noexcept nogil:
    """Maximum of x [n], where n > 0"""
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
    """out [n] = softmax(x [n]); x and out may be the same array"""
    cdef floating maximum = largest(x, n), scale
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = exp_negative(x[i] - maximum)
    scale = <floating> 1 / total(out, n, False)
    for i in range(n):
        out[i] = out[i] * scale
