# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The twins of minigdino/ops.py: each row is visited once and stays in the cache meanwhile."""

import math

import numpy as np

from cython cimport floating
from libc.math cimport sqrt
from _ext.vectors cimport LANES, exp_negative, softmax_row, total, total_of_squares

from minigdino._ext.checks import contiguous, same_dtype
from minigdino._ext.threads import for_rows

ENOUGH = 1 << 14  # numbers a thread should have to work on: less is done before another thread is awake


def _norm_rows(const floating[:, ::1] x, const floating[:, ::1] added, const floating[::1] weight,
               const floating[::1] bias, floating eps, floating[:, ::1] out, Py_ssize_t first, Py_ssize_t last):
    """added [N, C], or [0, C] for nothing"""
    cdef Py_ssize_t i, c, C = x.shape[1]
    cdef floating mean, scale
    cdef floating *row
    with nogil:
        for i in range(first, last):
            row = &out[i, 0]
            if added.shape[0]:
                for c in range(C):
                    row[c] = x[i, c] + added[i, c]
            else:
                for c in range(C):
                    row[c] = x[i, c]
            mean = total(row, C) / C
            for c in range(C):
                row[c] = row[c] - mean
            scale = <floating> 1 / <floating> sqrt(total_of_squares(row, C) / C + eps)
            for c in range(C):
                row[c] = row[c] * scale * weight[c] + bias[c]


def layer_norm(x, weight, bias, eps=1e-5):
    """x [..., C], weight [C], bias [C] -> [..., C]"""
    return add_norm(x, x[:0], weight, bias, eps)


def add_norm(x, added, weight, bias, eps=1e-5):
    """x [..., C], added [..., C], weight [C], bias [C] -> [..., C]"""
    *_, C = x.shape  # no index counts from the end here: wraparound is off, for Python objects too
    same_dtype(x, added, weight, bias)
    if added.shape != x.shape and len(added) or weight.shape != (C,) or bias.shape != (C,):
        raise ValueError(f"layer_norm: x {x.shape}, added {added.shape}, weight {weight.shape} and bias {bias.shape} "
                         "do not fit together")
    rows = contiguous(x).reshape(-1, C), contiguous(added).reshape(-1, C), contiguous(weight), contiguous(bias)
    out = np.empty_like(rows[0])
    if out.size:
        for_rows(lambda first, last: _norm_rows(*rows, eps, out, first, last), len(out), 1 + ENOUGH // C)
    return out.reshape(x.shape)


def _group_norm_groups(const floating[:, ::1] x, const floating[::1] weight, const floating[::1] bias, double eps,
                       floating[:, ::1] out, Py_ssize_t D, Py_ssize_t first, Py_ssize_t last):
    """Groups of D channels; sums over a whole map are long, so they are taken in double"""
    cdef Py_ssize_t i, c, g, N = x.shape[0]
    cdef double mean, spread
    cdef floating centre, scale
    with nogil:
        for g in range(first, last):
            mean = 0
            for i in range(N):
                for c in range(g * D, (g + 1) * D):
                    mean += x[i, c]
            mean = mean / (N * D)
            spread = 0
            for i in range(N):
                for c in range(g * D, (g + 1) * D):
                    spread += (x[i, c] - mean) * (x[i, c] - mean)
            centre = <floating> mean
            scale = <floating> (1 / sqrt(spread / (N * D) + eps))
            for i in range(N):
                for c in range(g * D, (g + 1) * D):
                    out[i, c] = (x[i, c] - centre) * scale * weight[c] + bias[c]


def group_norm(x, weight, bias, groups=32, eps=1e-5):
    """x [H, W, C], weight [C], bias [C] -> [H, W, C]"""
    same_dtype(x, weight, bias)
    H, W, C = x.shape
    if C % groups or weight.shape != (C,) or bias.shape != (C,):
        raise ValueError(f"group_norm: x {x.shape}, weight {weight.shape}, bias {bias.shape} and {groups} groups do not "
                         "fit together")
    rows, weight, bias = contiguous(x).reshape(-1, C), contiguous(weight), contiguous(bias)
    out = np.empty_like(rows)
    if out.size:
        for_rows(lambda first, last: _group_norm_groups(rows, weight, bias, eps, out, C // groups, first, last), groups)
    return out.reshape(H, W, C)


def _add_bias_rows(floating[:, ::1] y, const floating[::1] bias, Py_ssize_t first, Py_ssize_t last):
    cdef Py_ssize_t i, c
    with nogil:
        for i in range(first, last):
            for c in range(y.shape[1]):
                y[i, c] = y[i, c] + bias[c]


def linear(x, weight, bias=None, out=None):
    """x [..., I], weight [O, I], bias [O] -> [..., O]: the product is BLAS's, the bias is added by all threads"""
    *shape, I = x.shape
    y = np.matmul(x.reshape(-1, I), weight.T, out=out)
    if bias is not None:
        same_dtype(y, bias)
        if bias.shape != (len(weight),) or not y.flags.c_contiguous:
            raise ValueError(f"linear: weight {weight.shape} and bias {bias.shape} do not fit, or out is not contiguous")
        if y.size:
            bias = contiguous(bias)
            for_rows(lambda first, last: _add_bias_rows(y, bias, first, last), len(y), 1 + ENOUGH // len(bias))
    return y.reshape(*shape, len(weight))


def _softmax_rows(const floating[:, ::1] x, floating[:, ::1] out, Py_ssize_t first, Py_ssize_t last):
    cdef Py_ssize_t i, n = x.shape[1]
    with nogil:
        for i in range(first, last):
            softmax_row(&x[i, 0], &out[i, 0], n)


def _softmax_columns(const floating[:, ::1] x, floating[:, ::1] out, floating[::1] most, double[::1] share,
             Py_ssize_t first, Py_ssize_t last):
    """most and share [C] are room to work in; sums over an image are long, so they are taken in double"""
    cdef Py_ssize_t i, c, n = x.shape[0]
    with nogil:
        for c in range(first, last):
            most[c] = x[0, c]
            share[c] = 0
        for i in range(n):
            for c in range(first, last):
                most[c] = x[i, c] if x[i, c] > most[c] else most[c]
        for i in range(n):
            for c in range(first, last):
                out[i, c] = exp_negative(x[i, c] - most[c])
                share[c] += out[i, c]
        for c in range(first, last):
            most[c] = <floating> (1 / share[c])
        for i in range(n):
            for c in range(first, last):
                out[i, c] = out[i, c] * most[c]


def softmax(x, axis=-1):
    """x [...] -> [...]"""
    dtype, x = same_dtype(x), contiguous(x)
    axis = axis % x.ndim
    out, n = np.empty_like(x), x.shape[axis]
    if not x.size:
        return out
    if axis == x.ndim - 1:
        rows, result = x.reshape(-1, n), out.reshape(-1, n)
        for_rows(lambda first, last: _softmax_rows(rows, result, first, last), len(rows), 1 + ENOUGH // n)
        return out
    C = x.size // (n * math.prod(x.shape[:axis]))
    for sheet, result in zip(x.reshape(-1, n, C), out.reshape(-1, n, C)):
        room = np.empty(C, dtype), np.empty(C)
        for_rows(lambda first, last: _softmax_columns(sheet, result, *room, first, last), C, LANES)
    return out


def _relu_rows(const floating[:, ::1] x, const floating[::1] bias, floating[:, ::1] out, Py_ssize_t first,
               Py_ssize_t last):
    cdef Py_ssize_t i, c
    cdef floating a
    with nogil:
        for i in range(first, last):
            for c in range(x.shape[1]):
                a = x[i, c] + bias[c]
                out[i, c] = <floating> 0 if a < 0 else a  # in this order NaN stays NaN


cdef inline floating gelu_of(floating a, const floating *erfc) noexcept nogil:
    cdef floating z = (a if a > 0 else -a) * <floating> 0.7071067811865476
    cdef floating t = <floating> 1 / (<floating> 1 + <floating> 0.5 * z)
    cdef floating tail = <floating> 0.5 * t * exp_negative(-z * z) * (
        erfc[0] + t * (erfc[1] + t * (erfc[2] + t * (erfc[3] + t * (erfc[4] + t * (erfc[5] + t * (erfc[6] + t * (
            erfc[7] + t * erfc[8]))))))))
    return a * (tail if a < 0 else <floating> 1 - tail)


def _gelu_rows(const floating[:, ::1] x, const floating[::1] bias, const floating[::1] erfc, floating[:, ::1] out,
               Py_ssize_t first, Py_ssize_t last):
    cdef Py_ssize_t i, c
    cdef floating coefficients[9]  # a copy, which no store to out can change: the compiler keeps it in registers
    with nogil:
        for i in range(9):
            coefficients[i] = erfc[i]
        for i in range(first, last):
            for c in range(x.shape[1]):
                out[i, c] = gelu_of(x[i, c] + bias[c], coefficients)


def _activate(loop, x, bias, *constants):
    """loop over the rows of x [..., C] and bias [C] or None -> [..., C]"""
    *_, C = x.shape  # no index counts from the end here: wraparound is off, for Python objects too
    bias = np.zeros(C, x.dtype) if bias is None else bias
    same_dtype(x, bias)
    if bias.shape != (C,):
        raise ValueError(f"an activation of {x.shape} takes a bias of {(C,)}; got {bias.shape}")
    arrays = (contiguous(x).reshape(-1, C), contiguous(bias)) + constants
    out = np.empty_like(arrays[0])
    if out.size:
        for_rows(lambda first, last: loop(*arrays, out, first, last), len(out), 1 + ENOUGH // C)
    return out.reshape(x.shape)


def relu(x, bias=None):
    """x [..., C], bias [C] -> [..., C]"""
    return _activate(_relu_rows, x, bias)


def gelu(x, bias=None):
    """x [..., C], bias [C] -> [..., C]"""
    from minigdino.ops import ERFC

    return _activate(_gelu_rows, x, bias, np.array(ERFC, x.dtype))
