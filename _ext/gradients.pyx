# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Twins of minigdino/learning/backward.py. Heads are divided among threads: no two threads add to the same element."""

import numpy as np

from cython cimport floating
from libc.math cimport floor
from _ext.vectors cimport LANES, softmax_row, sum_of_lanes

from minigdino._ext.checks import check_arrays, check_levels, check_shift, contiguous
from minigdino._ext.pool import for_rows

cdef enum:
    USUAL_D = 32  # channels per head of the published models; a loop of constant length is twice as fast


cdef inline void add(floating factor, const floating *x, floating *y, Py_ssize_t n) noexcept nogil:
    """y [n] += factor * x [n]"""
    cdef Py_ssize_t i
    for i in range(n):
        y[i] += factor * x[i]


cdef inline floating through_pixel(const floating *g, const floating *pixel, floating *gradient, floating weight,
                                   Py_ssize_t D) noexcept nogil:
    """gradient [D] += weight * g [D]. Return the inner product of g and the pixel"""
    cdef floating[LANES] lane
    cdef floating rest = 0
    cdef Py_ssize_t b, d, j
    for j in range(LANES):
        lane[j] = 0
    for b in range(D // LANES):
        for j in range(LANES):
            lane[j] += g[b * LANES + j] * pixel[b * LANES + j]
    for d in range(D - D % LANES, D):
        rest += g[d] * pixel[d]
    add(weight, g, gradient, D)
    return sum_of_lanes(lane) + rest


cdef inline void through_point(const floating *g, const floating *image, floating *gradient, floating weight,
                               floating x, floating y, Py_ssize_t H, Py_ssize_t W, Py_ssize_t step, Py_ssize_t D,
                               floating *location, floating *of_weight) noexcept nogil:
    """One sampling point, at column x and row y of a map [H, W, step] -> the gradients of its location and weight"""
    cdef floating left, top, right_part, lower_part, dot, x_weight, y_weight, dx = 0, dy = 0, sample = 0
    cdef Py_ssize_t row, col, at
    cdef int i, j
    if (x > -1) & (x < W) & (y > -1) & (y < H):  # False for NaN
        left, top = <floating> floor(x), <floating> floor(y)
        right_part, lower_part = x - left, y - top
        for i in range(2):
            row = <Py_ssize_t> top + i
            if row < 0 or row >= H:
                continue
            y_weight = lower_part if i else 1 - lower_part
            for j in range(2):
                col = <Py_ssize_t> left + j
                if col < 0 or col >= W:
                    continue
                x_weight = right_part if j else 1 - right_part
                at = (row * W + col) * step
                if D == USUAL_D:
                    dot = through_pixel(g, image + at, gradient + at, weight * x_weight * y_weight, USUAL_D)
                else:
                    dot = through_pixel(g, image + at, gradient + at, weight * x_weight * y_weight, D)
                sample += x_weight * y_weight * dot
                dx += y_weight * dot if j else -y_weight * dot
                dy += x_weight * dot if i else -x_weight * dot
    of_weight[0] = sample
    location[0] = weight * dx * W
    location[1] = weight * dy * H


def _heads(const floating[:, :, ::1] g, const floating[:, :, ::1] value, const Py_ssize_t[:, ::1] levels,
           const floating[:, :, :, :, ::1] locations, const floating[:, :, :, ::1] weights,
           floating[:, :, ::1] of_value, floating[:, :, :, :, ::1] of_locations, floating[:, :, :, ::1] of_weights,
           Py_ssize_t first, Py_ssize_t last):
    """Heads first to last. levels [L, 3]: rows, columns and first pixel of each level"""
    cdef Py_ssize_t Q = g.shape[0], M = g.shape[1], D = g.shape[2], L = levels.shape[0], P = weights.shape[3]
    cdef Py_ssize_t m, q, l, p, H, W, start
    cdef floating half = <floating> 0.5
    with nogil:
        for m in range(first, last):
            for q in range(Q):
                for l in range(L):
                    H, W, start = levels[l, 0], levels[l, 1], levels[l, 2]
                    for p in range(P):
                        through_point(&g[q, m, 0], &value[start, m, 0], &of_value[start, m, 0], weights[q, m, l, p],
                                      locations[q, m, l, p, 0] * W - half, locations[q, m, l, p, 1] * H - half, H, W,
                                      M * D, D, &of_locations[q, m, l, p, 0], &of_weights[q, m, l, p])


def through_samples(g, value, sizes, locations, weights):
    """g [Q, M, D], value [S, M, D], locations [Q, M, L, P, 2], weights [Q, M, L, P]
    -> gradients of value, locations and weights"""
    Q, M, D, S, L, P = check_arrays(
        "through_samples", "g [Q, M, D], value [S, M, D], locations [Q, M, L, P, 2], weights [Q, M, L, P]",
        g, value, locations, weights)
    levels = check_levels("through_samples", sizes, L, S)
    results = np.zeros((S, M, D), g.dtype), np.zeros((Q, M, L, P, 2), g.dtype), np.zeros((Q, M, L, P), g.dtype)
    if Q * M * D * L * P:
        pixels = [H * W for H, W in levels]
        places = np.array([(H, W, start) for (H, W), start in zip(levels, np.cumsum(pixels) - pixels)], np.intp)
        arrays = contiguous(g), contiguous(value), places, contiguous(locations), contiguous(weights), *results
        for_rows(lambda first, last: _heads(*arrays, first, last), M)
    return results


cdef void through_window(const floating *q, const floating *key, const floating *key_t, const floating *v,
                         const floating *v_t, const floating *g, const floating *position_bias, const int *region,
                         floating *A, floating *ds, floating *of_q, floating *of_key, floating *of_v,
                         Py_ssize_t K, Py_ssize_t D) noexcept nogil:
    """One head of one window. q, key, v, g and their gradients [K, D], key_t and v_t [D, K], position_bias [K, K],
    region [K]. A and ds [K]: attention weights of a query, and the gradients of its scores, added to position_bias's"""
    cdef Py_ssize_t i, j, d
    cdef floating mean
    for i in range(K * D):
        of_q[i] = of_key[i] = of_v[i] = 0
    for i in range(K):
        for j in range(K):
            A[j] = position_bias[i * K + j] - (100 if region[i] != region[j] else 0)
            ds[i * K + j] = 0
        for d in range(D):
            add(q[i * D + d], key_t + d * K, A, K)
            add(g[i * D + d], v_t + d * K, ds + i * K, K)
        softmax_row(A, A, K)
        mean = 0
        for j in range(K):
            mean += A[j] * ds[i * K + j]
        for j in range(K):
            ds[i * K + j] = A[j] * (ds[i * K + j] - mean)
        for j in range(K):
            add(ds[i * K + j], key + j * D, of_q + i * D, D)
            add(ds[i * K + j], q + i * D, of_key + j * D, D)
            add(A[j], g + i * D, of_v + j * D, D)


def _window_heads(const floating[:, :, :, ::1] g, const floating[:, :, :, :, ::1] qkv,
                  const floating[:, :, ::1] qkv_bias, const floating[:, :, ::1] position_bias, int k, int shift,
                  floating[:, :, :, :, ::1] of_qkv, floating[:, :, ::1] of_bias, floating[:, :, ::1] of_position_bias,
                  Py_ssize_t first, Py_ssize_t last):
    """Heads first to last of all windows"""
    cdef Py_ssize_t H = qkv.shape[0], W = qkv.shape[1], D = qkv.shape[4], K = k * k
    cdef Py_ssize_t height = (H + k - 1) // k * k, width = (W + k - 1) // k * k
    cdef Py_ssize_t m, w, top, left, i, d, part, row, col
    cdef floating scale = <floating> (<double> D ** -0.5), x
    cdef floating[:, :, ::1] inputs = np.zeros((6, K, D), np.float32 if floating is float else np.float64)
    cdef floating[:, :, ::1] results = np.zeros_like(inputs[:3])
    cdef floating[:, ::1] scores = np.zeros((K + 1, K), np.float32 if floating is float else np.float64)
    cdef int[:, ::1] places = np.zeros((3, K), np.intc)  # row, column, region
    with nogil:
        for m in range(first, last):
            for w in range(height // k * (width // k)):
                top, left = w // (width // k) * k, w % (width // k) * k
                for i in range(K):
                    row, col = top + i // k, left + i % k  # of the shifted map
                    places[2, i] = ((row >= height - k) + (row >= height - shift)) * 3 + (
                        col >= width - k) + (col >= width - shift) if shift else 0
                    row, col = (row + shift) % height, (col + shift) % width
                    places[0, i], places[1, i] = <int> row, <int> col
                    for d in range(D):
                        for part in range(3):
                            x = qkv_bias[part, m, d]
                            if row < H and col < W:
                                x += qkv[row, col, part, m, d]
                            inputs[part, i, d] = x * scale if part == 0 else x
                        inputs[3, i, d] = g[row, col, m, d] if row < H and col < W else 0
                for i in range(K):
                    for d in range(D):  # transposed [D, K]
                        (&inputs[4, 0, 0])[d * K + i] = inputs[1, i, d]
                        (&inputs[5, 0, 0])[d * K + i] = inputs[2, i, d]
                through_window(&inputs[0, 0, 0], &inputs[1, 0, 0], &inputs[4, 0, 0], &inputs[2, 0, 0],
                               &inputs[5, 0, 0], &inputs[3, 0, 0], &position_bias[m, 0, 0], &places[2, 0],
                               &scores[K, 0], &scores[0, 0], &results[0, 0, 0], &results[1, 0, 0],
                               &results[2, 0, 0], K, D)
                add(<floating> 1, &scores[0, 0], &of_position_bias[m, 0, 0], K * K)
                for i in range(K):
                    row, col = places[0, i], places[1, i]
                    for part in range(3):
                        for d in range(D):
                            x = results[part, i, d] * scale if part == 0 else results[part, i, d]
                            of_bias[part, m, d] += x
                            if row < H and col < W:
                                of_qkv[row, col, part, m, d] = x


def through_windows(g, qkv, qkv_bias, position_bias, k, shift):
    """g [H, W, M, D], qkv [H, W, 3, M, D], qkv_bias [3, M, D], position_bias [M, k*k, k*k]
    -> gradients of qkv, qkv_bias and position_bias"""
    H, W, M, D = check_arrays(
        "through_windows", "g [H, W, M, D], qkv [H, W, 3, M, D], qkv_bias [3, M, D], position_bias [M, K, K]",
        g, qkv, qkv_bias, position_bias, K=k * k)
    check_shift("through_windows", shift, k)
    arrays = [contiguous(array) for array in (g, qkv, qkv_bias, position_bias)]
    results = [np.zeros_like(array) for array in arrays[1:]]
    if g.size:
        for_rows(lambda first, last: _window_heads(*arrays, k, shift, *results, first, last), M)
    return tuple(results)
