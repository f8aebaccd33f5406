# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Twins of minigdino/network/ops.py: all steps of an op run on one row at a time, so each row stays in the cache."""

import numpy as np

from cython cimport floating
from libc.math cimport sqrt
from _ext.vectors cimport exp_negative, softmax_row, total, total_of_squares

from minigdino._ext.checks import contiguous, same_dtype
from minigdino._ext.erfc import ERFC
from minigdino._ext.pool import count, for_rows

MIN_ELEMENTS = 1 << 14  # per thread; with fewer, the loop ends before another thread starts
MIN_MULTIPLICATIONS = 1 << 20  # per thread, in a product
BLOCK_ROWS = 512  # per block of a feed-forward network: few enough for the cache, enough for products at full rate
MIN_ROWS = 256  # per thread in a feed-forward network; with fewer, rereading the weights costs more


def _norm_rows(const floating[:, ::1] x, const floating[:, ::1] residual, const floating[::1] weight,
               const floating[::1] bias, floating eps, floating[:, ::1] out, Py_ssize_t first, Py_ssize_t last):
    """residual [N, C], or [0, C] for none"""
    cdef Py_ssize_t i, c, C = x.shape[1]
    cdef floating mean, scale
    cdef floating *row
    with nogil:
        for i in range(first, last):
            row = &out[i, 0]
            if residual.shape[0]:
                for c in range(C):
                    row[c] = x[i, c] + residual[i, c]
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


def add_norm(x, residual, weight, bias, eps=1e-5):
    """x [..., C], residual [..., C], weight [C], bias [C] -> [..., C]"""
    *_, C = x.shape  # not x.shape[-1]: wraparound is off, for Python objects too
    same_dtype(x, residual, weight, bias)
    if residual.shape != x.shape and len(residual) or weight.shape != (C,) or bias.shape != (C,):
        raise ValueError(f"layer_norm: x {x.shape}, residual {residual.shape}, weight {weight.shape} and bias "
                         f"{bias.shape} do not fit together")
    rows = contiguous(x).reshape(-1, C), contiguous(residual).reshape(-1, C), contiguous(weight), contiguous(bias)
    out = np.empty_like(rows[0])
    if out.size:
        for_rows(lambda first, last: _norm_rows(*rows, eps, out, first, last), len(out), 1 + MIN_ELEMENTS // C)
    return out.reshape(x.shape)


def _group_norm_groups(const floating[:, ::1] x, const floating[::1] weight, const floating[::1] bias, double eps,
                       floating[:, ::1] out, Py_ssize_t D, Py_ssize_t first, Py_ssize_t last):
    """Groups first to last of D channels each. The long sums over a map are in double precision"""
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
        raise ValueError(f"group_norm: x {x.shape}, weight {weight.shape}, bias {bias.shape} and {groups} groups do "
                         "not fit together")
    rows, weight, bias = contiguous(x).reshape(-1, C), contiguous(weight), contiguous(bias)
    out = np.empty_like(rows)
    if out.size:
        for_rows(lambda first, last: _group_norm_groups(rows, weight, bias, eps, out, C // groups, first, last), groups)
    return out.reshape(H, W, C)


def _add_rows(floating[:, ::1] y, const floating[::1] bias, const floating[:, ::1] residual, Py_ssize_t first,
              Py_ssize_t last):
    """y [N, O] += bias [O] + residual [N, O], where [0] and [0, 0] stand for none"""
    cdef Py_ssize_t i, o
    with nogil:
        for i in range(first, last):
            if bias.shape[0]:
                for o in range(y.shape[1]):
                    y[i, o] = y[i, o] + bias[o]
            if residual.shape[0]:
                for o in range(y.shape[1]):
                    y[i, o] = y[i, o] + residual[i, o]


def _addends(N, O, bias, residual, dtype):
    """bias [O] or None, residual [..., O] or None -> bias [O] or [0], residual [N, O] or [0, 0]"""
    bias = np.empty(0, dtype) if bias is None else contiguous(bias)
    residual = np.empty((0, 0), dtype) if residual is None else contiguous(residual).reshape(-1, O)
    same_dtype(np.empty(0, dtype), bias, residual)
    if bias.shape not in ((O,), (0,)) or len(residual) not in (N, 0):
        raise ValueError(f"linear: bias {bias.shape} and residual {residual.shape} do not fit a product of {(N, O)}")
    return bias, residual


def linear(x, weight, bias=None, residual=None):
    """x [..., I], weight [O, I], bias [O], residual [..., O] -> [..., O]: BLAS multiplies, a threaded loop adds"""
    *shape, I = x.shape
    N, O = x.size // I, len(weight)
    bias, residual = _addends(N, O, bias, residual, same_dtype(x, weight))
    y = x.reshape(N, I) @ weight.T
    if y.size and len(bias) + len(residual):
        y = contiguous(y)
        for_rows(lambda first, last: _add_rows(y, bias, residual, first, last), N, 1 + MIN_ELEMENTS // O)
    return y.reshape(*shape, O)


def _softmax_rows(const floating[:, ::1] x, floating[:, ::1] out, Py_ssize_t first, Py_ssize_t last):
    cdef Py_ssize_t i, n = x.shape[1]
    with nogil:
        for i in range(first, last):
            softmax_row(&x[i, 0], &out[i, 0], n)


def softmax(x, axis=-1):
    """x [...] -> [...]"""
    along = np.moveaxis(x, axis, -1)
    same_dtype(x)
    rows = contiguous(along).reshape(-1, x.shape[axis])
    out = np.empty_like(rows)
    if out.size:
        for_rows(lambda first, last: _softmax_rows(rows, out, first, last), len(rows),
                 1 + MIN_ELEMENTS // rows.shape[1])
    return np.moveaxis(out.reshape(along.shape), -1, axis)


def _relu_rows(const floating[:, ::1] x, const floating[::1] bias, floating[:, ::1] out, Py_ssize_t first,
               Py_ssize_t last):
    cdef Py_ssize_t i, c
    cdef floating a
    with nogil:
        for i in range(first, last):
            for c in range(x.shape[1]):
                a = x[i, c] + bias[c]
                out[i, c] = <floating> 0 if a < 0 else a  # not a > 0: NaN stays NaN


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
    cdef floating coefficients[9]  # a copy that cannot alias out, so the compiler keeps it in registers
    with nogil:
        for i in range(9):
            coefficients[i] = erfc[i]
        for i in range(first, last):
            for c in range(x.shape[1]):
                out[i, c] = gelu_of(x[i, c] + bias[c], coefficients)


def _activate(activation, x, bias=None):
    """Activation of x + bias: x [..., C], bias [C] -> [..., C]"""
    *_, C = x.shape
    bias = np.zeros(C, x.dtype) if bias is None else contiguous(bias)
    same_dtype(x, bias)
    if bias.shape != (C,):
        raise ValueError(f"{activation}: bias {bias.shape} does not fit rows of {(C,)}")
    rows, loop = contiguous(x).reshape(-1, C), _loop(activation, bias)
    out = np.empty_like(rows)
    if out.size:
        for_rows(lambda first, last: loop(rows, out, first, last), len(out), 1 + MIN_ELEMENTS // C)
    return out.reshape(x.shape)


def _loop(activation, bias):
    """Loop of an activation by name: loop(x, out, first, last), x and out [N, C]; they may be the same array"""
    if activation == "relu":
        return lambda x, out, first, last: _relu_rows(x, bias, out, first, last)
    erfc = np.array(ERFC, bias.dtype)
    return lambda x, out, first, last: _gelu_rows(x, bias, erfc, out, first, last)


def relu(x):
    """x [..., C] -> [..., C]"""
    return _activate("relu", x)


def gelu(x):
    """x [..., C] -> [..., C]"""
    return _activate("gelu", x)


def feed_forward(x, fc1, fc2, activation, residual=None):
    """x [N, C], residual [N, C] -> [N, C]

    Each thread applies both maps to one block of rows at a time. The hidden layer of a block stays in the cache, and no
    thread waits for another between the maps.
    """
    N, dtype = len(x), same_dtype(x, *fc1.values(), *fc2.values())
    if N < MIN_ROWS * count():
        return linear(_activate(activation, linear(x, fc1["weight"]), fc1["bias"]), **fc2, residual=residual)
    F, C = len(fc1["bias"]), len(fc2["bias"])
    bias, residual = _addends(N, C, fc2["bias"], residual, dtype)
    activate, y = _loop(activation, contiguous(fc1["bias"])), np.empty((N, C), dtype)
    buffers = [np.empty((BLOCK_ROWS, F), dtype) for _ in range(count())]  # one per thread, from the caller's allocator

    def work(first, last):
        buffer, blocks = buffers.pop(), 1 + (last - first - 1) // BLOCK_ROWS
        edges = [first + (last - first) * b // blocks for b in range(blocks + 1)]
        for i, j in zip(edges, edges[1:]):
            hidden = np.matmul(x[i:j], fc1["weight"].T, out=buffer[:j - i])  # [BLOCK_ROWS, F]
            activate(hidden, hidden, 0, j - i)
            np.matmul(hidden, fc2["weight"].T, out=y[i:j])
            _add_rows(y, bias, residual, i, j)
        buffers.append(buffer)

    for_rows(work, N, MIN_ROWS, products=True)
    return y


def attend(q, k, v, mask=None):
    """q [M, Q, D], k [M, T, D], v [M, T, D], mask [Q, T] -> [Q, M*D]

    Each thread processes one head at a time. The scores of a head stay in its cache.
    """
    M, Q, D = q.shape
    T, dtype = k.shape[1], same_dtype(q, k, v)
    masked = np.zeros((0, 0), dtype) if mask is None else contiguous(np.where(mask, 0, -np.inf).astype(dtype))  # [Q, T]
    no_bias, y = np.empty(0, dtype), np.empty((Q, M, D), dtype)
    buffers = [np.empty((Q, T), dtype) for _ in range(count())]

    def work(first, last):
        scores = buffers.pop()
        for m in range(first, last):
            np.matmul(q[m], k[m].T, out=scores)
            _add_rows(scores, no_bias, masked, 0, Q)
            _softmax_rows(scores, scores, 0, Q)
            np.matmul(scores, v[m], out=y[:, m])
        buffers.append(scores)

    if y.size:
        for_rows(work, M, 1 + MIN_MULTIPLICATIONS // (Q * T * D), products=True)
    return y.reshape(Q, M * D)
