# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Twins of minigdino/network/ops.py.

Layer norms, softmax and activations run all steps on one row at a time, so that it stays in the cache.
"""

from importlib import import_module
from math import prod

import numpy as np

from cython cimport floating
from libc.math cimport sqrt
from _ext.vectors cimport softmax_row, total

from minigdino._ext.checks import check_activation, check_arrays, check_groups, contiguous
from minigdino._ext.cpus import count
from minigdino._ext.pool import for_rows

cdef extern from "attention.h":
    enum: PANEL
    enum: QUERY_ROWS
    ctypedef struct Matrix:
        const float *start
        Py_ssize_t row_stride
        Py_ssize_t channel_stride
    Py_ssize_t round_up(Py_ssize_t n, Py_ssize_t multiple) nogil
    void pack_head(Matrix keys, Matrix values, Py_ssize_t T, Py_ssize_t D, float *key_panels,
                   float *value_panels) nogil
    void attend_rows(Matrix queries, Py_ssize_t rows, Py_ssize_t T, Py_ssize_t D, const float *key_panels,
                     const float *value_panels, const float *hidden, float *y, Py_ssize_t y_stride,
                     float *scores) nogil

# not `from .products import`: Cython would take the module of whichever instruction set was loaded first
_products = import_module(".products", __name__.rpartition(".")[0])
activate, multiply, pack, product = _products.activate, _products.multiply, _products.pack, _products.product
feed_forward_in_parts, multiply_in_pieces = _products.feed_forward_in_parts, _products.multiply_in_pieces
_ceil = _products._ceil
MAX_UNPACKED_ROWS, MAX_FLOAT_ROWS = _products.MAX_UNPACKED_ROWS, _products.MAX_FLOAT_ROWS

MIN_MULTIPLICATIONS = 1 << 19  # per range of attention, which also computes many exponentials
MIN_ELEMENTS = 1 << 14  # per range; with fewer, the loop ends before another thread starts
PART_ROWS = 128  # rows whose moments are computed at a time; they stay in the cache
# Rows and hidden channels per block of a feed-forward network. A block stays in the cache, beside the weights it needs.
BLOCK_ROWS, BLOCK_CHANNELS = 384, 512
MIN_ROWS = BLOCK_ROWS // 2  # per range of rows; with fewer, rereading the weights costs more


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
            mean = total(row, C, False) / C
            for c in range(C):
                row[c] = row[c] - mean
            scale = <floating> 1 / <floating> sqrt(total(row, C, True) / C + eps)
            for c in range(C):
                row[c] = row[c] * scale * weight[c] + bias[c]


def layer_norm(x, weight, bias, eps=1e-5):
    """x [..., C], weight [C], bias [C] -> [..., C]"""
    return _norm("layer_norm", "x [..., C], residual? [..., C], weight [C], bias [C]", x, None, weight, bias, eps)


def add_norm(x, residual, weight, bias, eps=1e-5):
    """x [..., C], residual [..., C], weight [C], bias [C] -> [..., C]"""
    return _norm("add_norm", "x [..., C], residual [..., C], weight [C], bias [C]", x, residual, weight, bias, eps)


def _norm(op, spec, x, residual, weight, bias, eps):
    shape, C = check_arrays(op, spec, x, residual, weight, bias)
    addend = np.empty((0, C), x.dtype) if residual is None else contiguous(residual).reshape(prod(shape), C)
    rows = contiguous(x).reshape(prod(shape), C), addend, contiguous(weight), contiguous(bias)
    out = np.empty_like(rows[0])
    if out.size:
        for_rows(lambda first, last: _norm_rows(*rows, eps, out, first, last), len(out), 1 + MIN_ELEMENTS // C)
    return out.reshape(x.shape)


def _moments(const floating[:, ::1] x, double[:, ::1] mean, double[:, ::1] spread, Py_ssize_t first, Py_ssize_t last):
    """Mean, and sum of squared differences from it, of each channel in parts first to last of the rows"""
    cdef Py_ssize_t part, i, c, start, stop, N = x.shape[0], C = x.shape[1], parts = mean.shape[0]
    with nogil:
        for part in range(first, last):
            start, stop = N * part // parts, N * (part + 1) // parts
            for i in range(start, stop):
                for c in range(C):
                    mean[part, c] += x[i, c]
            for c in range(C):
                mean[part, c] /= stop - start
            for i in range(start, stop):
                for c in range(C):
                    spread[part, c] += (x[i, c] - mean[part, c]) * (x[i, c] - mean[part, c])


def _normalise_rows(const floating[:, ::1] x, const floating[::1] centre, const floating[::1] scale,
                    const floating[::1] weight, const floating[::1] bias, floating[:, ::1] out, Py_ssize_t first,
                    Py_ssize_t last):
    cdef Py_ssize_t i, c
    with nogil:
        for i in range(first, last):
            for c in range(x.shape[1]):
                out[i, c] = (x[i, c] - centre[c]) * scale[c] * weight[c] + bias[c]


def group_norm(x, weight, bias, groups=32, eps=1e-5):
    """x [H, W, C], weight [C], bias [C] -> [H, W, C]

    The rows are read twice, not once per group: for the moments of each channel in parts of the rows, and to normalise.
    The moments of a group follow from those of its channels and parts (Chan, Golub and LeVeque, 1983). The long sums
    are in double precision.
    """
    H, W, C = check_arrays("group_norm", "x [H, W, C], weight [C], bias [C]", x, weight, bias)
    check_groups("group_norm", groups, C)
    N, rows, weight, bias = H * W, contiguous(x).reshape(H * W, C), contiguous(weight), contiguous(bias)
    out = np.empty_like(rows)
    if out.size:
        parts = 1 + (N - 1) // PART_ROWS
        mean, spread = np.zeros((2, parts, C))
        for_rows(lambda first, last: _moments(rows, mean, spread, first, last), parts)
        sizes = np.diff(N * np.arange(parts + 1) // parts)[:, None, None]  # rows of each part
        mean, spread = mean.reshape(parts, groups, -1), spread.reshape(parts, groups, -1)  # [parts, groups, D]
        centre = (sizes * mean).sum(axis=(0, 2), keepdims=True) / (N * C // groups)  # [1, groups, 1]
        variance = (spread + sizes * (mean - centre) ** 2).sum(axis=(0, 2), keepdims=True) / (N * C // groups)
        moments = [np.repeat(a, C // groups).astype(x.dtype) for a in (centre, 1 / np.sqrt(variance + eps))]  # [C] each
        for_rows(lambda first, last: _normalise_rows(rows, *moments, weight, bias, out, first, last), N,
                 1 + MIN_ELEMENTS // C)
    return out.reshape(H, W, C)


def linear(x, weight, bias=None, residual=None):
    """x [..., I], weight [O, I], bias [O], residual [..., O] -> [..., O]"""
    shape, I, O = check_arrays("linear", "x [..., I], weight [O, I], bias? [O], residual? [..., O]", x, weight, bias,
                               residual)
    N = prod(shape)
    residual = None if residual is None else residual.reshape(N, O)
    return product(x.reshape(N, I), weight, bias, residual).reshape(*shape, O)


def _softmax_rows(const floating[:, ::1] x, floating[:, ::1] out, Py_ssize_t first, Py_ssize_t last):
    cdef Py_ssize_t i, n = x.shape[1]
    with nogil:
        for i in range(first, last):
            softmax_row(&x[i, 0], &out[i, 0], n)


def softmax(x, axis=-1):
    """x [...] -> [...]"""
    check_arrays("softmax", "x [...]", x)
    if axis not in range(-x.ndim, x.ndim):
        raise ValueError(f"softmax: expected an axis of x {x.shape}; got {axis}")
    along = np.moveaxis(x, axis, -1)
    *shape, n = along.shape
    rows = contiguous(along).reshape(prod(shape), n)
    out = np.empty_like(rows)
    if out.size:
        for_rows(lambda first, last: _softmax_rows(rows, out, first, last), len(rows),
                 1 + MIN_ELEMENTS // rows.shape[1])
    return np.moveaxis(out.reshape(along.shape), -1, axis)


def _activate(activation, x):
    shape, C = check_arrays(activation, "x [..., C]", x)
    rows = contiguous(x).reshape(prod(shape), C)
    out = np.empty_like(rows)
    if out.size:
        for_rows(lambda first, last: activate(rows[first:last], out[first:last], activation), len(out),
                 1 + MIN_ELEMENTS // C)
    return out.reshape(x.shape)


def relu(x):
    """x [..., C] -> [..., C]"""
    return _activate("relu", x)


def gelu(x):
    """x [..., C] -> [..., C]"""
    return _activate("gelu", x)


def feed_forward(x, fc1, fc2, activation, residual=None):
    """x [N, C], residual [N, C] -> [N, C]

    A thread computes one block of rows at a time, and BLOCK_CHANNELS hidden channels of it at a time. So no hidden
    layer is stored in full, and no thread waits for another between the two maps. With fewer than MIN_ROWS rows per
    thread, all threads share one map after the other, and the hidden layer is stored.
    """
    w1, w2, bias1, bias2 = fc1["weight"], fc2["weight"], fc1["bias"], fc2["bias"]
    N, C, F = check_arrays("feed_forward", "x [N, C], fc1_weight [F, C], fc1_bias [F], fc2_weight [C, F], "
                           "fc2_bias [C], residual? [N, C]", x, w1, bias1, w2, bias2, residual)
    check_activation("feed_forward", activation)
    if N <= MAX_UNPACKED_ROWS or not (C and F):  # the loop below needs channels
        return product(product(x, w1, bias1, activation=activation), w2, bias2, residual)
    in_parts = N > MAX_FLOAT_ROWS
    first_map, second_map, bias1, bias2 = pack(w1, in_parts), pack(w2, in_parts), contiguous(bias1), contiguous(bias2)
    residual = None if residual is None else contiguous(residual)
    y = np.empty((N, C), x.dtype)

    def work(first, last):
        blocks = 1 + (last - first - 1) // BLOCK_ROWS
        for b in range(blocks):
            rows = slice(first + (last - first) * b // blocks, first + (last - first) * (b + 1) // blocks)
            residual_rows = None if residual is None else residual[rows]
            if feed_forward_in_parts(x[rows], first_map, second_map, y[rows], bias1, bias2, residual_rows, activation,
                                     BLOCK_CHANNELS):
                continue
            hidden = np.empty((rows.stop - rows.start) * BLOCK_CHANNELS, x.dtype)
            for f in range(0, F, BLOCK_CHANNELS):
                bias, is_last = bias1[f:f + BLOCK_CHANNELS], f + BLOCK_CHANNELS >= F
                part = hidden[:(rows.stop - rows.start) * len(bias)].reshape(-1, len(bias))
                multiply(x[rows], first_map, part, bias, activation=activation, first=f)
                multiply(part, second_map, y[rows], bias2 if is_last else None, residual_rows if is_last else None,
                         first_channel=f, add=f > 0)

    if N // MIN_ROWS >= count():
        for_rows(work, N, MIN_ROWS)
    else:
        hidden = np.empty((N, F), x.dtype)
        multiply_in_pieces(x, first_map, hidden, bias1, activation=activation)
        multiply_in_pieces(hidden, second_map, y, bias2, residual, chunk=BLOCK_CHANNELS)  # as in `work`: the same bits
    return y


def attend(q, k, v, mask=None):
    """q [M, Q, D], k [M, T, D], v [M, T, D], mask [Q, T] -> [Q, M*D]

    A thread computes a block of queries of one head at a time, so it stores the scores of one block only.
    """
    hidden = None if mask is None else np.where(mask, 0, -np.inf).astype(getattr(q, "dtype", float))  # [Q, T]
    M, Q, D, T = check_arrays("attend", "q [M, Q, D], k [M, T, D], v [M, T, D], mask? [Q, T]", q, k, v, hidden)
    if not T:
        raise ValueError(f"attend: expected at least one key; got k {k.shape}")
    y = np.empty((Q, M, D), q.dtype)
    if y.size and q.dtype == np.float32:
        arrays = *(a if a.flags.aligned else a.copy() for a in (q, k, v)), None if mask is None else contiguous(hidden)
        for_rows(lambda first, last: _attend_blocks(*arrays, y, first, last), M * _ceil(Q, QUERY_ROWS),
                 1 + MIN_MULTIPLICATIONS // (QUERY_ROWS * T * D))
    elif y.size:
        for m in range(M):
            scores = product(q[m], k[m])
            if hidden is not None:
                np.copyto(scores, hidden, where=hidden < 0)  # not a sum: inf - inf would be NaN
            y[:, m] = product(softmax(scores), v[m].T)
    return y.reshape(Q, M * D)


def _attend_blocks(const float[:, :, :] q, const float[:, :, :] k, const float[:, :, :] v, const float[:, ::1] hidden,
                   float[:, :, ::1] y, Py_ssize_t first, Py_ssize_t last):
    """Blocks first to last of QUERY_ROWS queries, in the order of the heads"""
    cdef Py_ssize_t M = q.shape[0], Q = q.shape[1], D = q.shape[2], T = k.shape[1]
    cdef Py_ssize_t blocks = _ceil(Q, QUERY_ROWS), b, m, i, packed = -1
    cdef float[::1] keys = np.empty(round_up(T, PANEL) * D, np.float32)
    cdef float[::1] values = np.empty(round_up(D, PANEL) * T, np.float32)
    cdef float[::1] scores = np.empty(QUERY_ROWS * round_up(T, PANEL), np.float32)
    with nogil:
        for b in range(first, last):
            m, i = b // blocks, b % blocks * QUERY_ROWS
            if m != packed:
                pack_head(matrix(k, m, 0), matrix(v, m, 0), T, D, &keys[0], &values[0])
                packed = m
            attend_rows(matrix(q, m, i), min(QUERY_ROWS, Q - i), T, D, &keys[0], &values[0],
                        &hidden[i, 0] if hidden is not None else NULL, &y[i, m, 0], M * D, &scores[0])


cdef inline Matrix matrix(const float[:, :, :] a, Py_ssize_t m, Py_ssize_t i) noexcept nogil:
    return Matrix(&a[m, i, 0], a.strides[1] // 4, a.strides[2] // 4)
