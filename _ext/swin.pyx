# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Twins of minigdino/network/swin.py.

Windows are read in place: no map is padded, shifted or partitioned. `window_attention` processes a map in bands of
windows, so the queries, keys and values of a whole map are never stored.

K is the number of pixels in a window (k**2), KP is K rounded up to whole vectors. One head of a window fits in the
cache: q [K, D], transposed keys [D, KP], v [K, D] and one row of scores [KP]. Columns beyond K have weight 0.
"""

from importlib import import_module

import numpy as np

from cython cimport floating
from libc.stdlib cimport free, malloc
from _ext.vectors cimport LANES, softmax_row

from minigdino._ext.checks import check_arrays, check_shift, contiguous
from minigdino._ext.pool import for_rows

# not `from .products import`: Cython would take the module of whichever instruction set was loaded first
_products = import_module(".products", __name__.rpartition(".")[0])
multiply, pack = _products.multiply, _products.pack


cdef enum:
    # channels per head of all published models, pixels per window of the tiny ones; loops of constant length are faster
    USUAL_D = 32
    USUAL_K = 49
    WHOLE = (USUAL_K + LANES - 1) // LANES * LANES


cdef inline void add_product(const floating *vector, const floating *matrix, Py_ssize_t n, Py_ssize_t width,
                             floating *out) noexcept nogil:
    """out [width] += vector [n] @ matrix [n, width], four rows at a time, which saves loads and stores of out"""
    cdef Py_ssize_t i, j, whole = n - n % 4
    cdef const floating *row
    cdef floating v0, v1, v2, v3
    for i in range(0, whole, 4):
        row = matrix + i * width
        v0 = vector[i]
        v1 = vector[i + 1]
        v2 = vector[i + 2]
        v3 = vector[i + 3]
        for j in range(width):
            out[j] += v0 * row[j] + v1 * row[width + j] + (v2 * row[2 * width + j] + v3 * row[3 * width + j])
    for i in range(whole, n):
        for j in range(width):
            out[j] += vector[i] * matrix[i * width + j]


cdef inline void attend(const floating *q, const floating *keys, const floating *v, const floating *bias,
                        const floating *mask, Py_ssize_t K, Py_ssize_t KP, Py_ssize_t D, floating *score,
                        floating *out) noexcept nogil:
    """out [D] = softmax(q [D] @ keys [D, KP] + bias [KP] + mask [KP]) @ v [K, D]

    mask may be NULL; score [KP] is a buffer.
    """
    cdef Py_ssize_t d, j
    for j in range(KP):
        score[j] = bias[j]
    if mask != NULL:
        for j in range(KP):
            score[j] += mask[j]
    add_product(q, keys, D, KP, score)
    softmax_row(score, score, KP)
    for d in range(D):
        out[d] = 0
    add_product(score, v, K, D, out)


def _windows(const floating[:, :, :, :, ::1] qkv, const floating[:, :, ::1] qkv_bias,
             const floating[:, :, ::1] position_bias, int k, int up, int left,
             floating[:, :, :, ::1] out, Py_ssize_t first, Py_ssize_t last):
    """Windows first to last, row by row, of a map shifted up and left by some pixels.

    qkv [H, W, 3, M, D], qkv_bias [3, M, D], position_bias [M, K, KP], -inf beyond K -> out [H, W, M, D]
    """
    cdef int H = qkv.shape[0], W = qkv.shape[1], rows = (H + k - 1) // k * k, cols = (W + k - 1) // k * k
    cdef Py_ssize_t M = qkv.shape[3], D = qkv.shape[4], K = k * k, KP = (K + LANES - 1) // LANES * LANES
    cdef Py_ssize_t b, m, d, i, j
    cdef int r, c
    cdef floating scale = <floating> 1 / <floating> (<double> D) ** 0.5
    cdef floating *buffer = <floating *> malloc((2 * K * D + D * KP + KP + K * KP) * sizeof(floating))
    cdef int *indices = <int *> malloc(3 * K * sizeof(int))
    cdef int *row = indices
    cdef int *col = indices + K
    cdef int *region = indices + 2 * K
    cdef floating *q = buffer
    cdef floating *v = buffer + K * D
    cdef floating *keys = buffer + 2 * K * D
    cdef floating *score = keys + D * KP
    cdef floating *mask = score + KP
    cdef const floating *mask_row
    cdef bint one_region
    cdef const floating *pixel
    cdef const floating *extra = &qkv_bias[0, 0, 0]
    cdef Py_ssize_t step = M * D
    if buffer == NULL or indices == NULL:
        free(buffer)
        free(indices)
        raise MemoryError("window attention")
    with nogil:
        for i in range(D * KP + KP + K * KP):
            keys[i] = 0
        for b in range(first, last):
            for i in range(K):  # position of each pixel before the shift, and its region of the shifted map
                r = <int> (b // (cols // k)) * k + <int> i // k
                c = <int> (b % (cols // k)) * k + <int> i % k
                region[i] = 3 * ((r >= rows - k) + (r >= rows - up)) + (c >= cols - k) + (c >= cols - left)
                row[i] = (r + up) % rows
                col[i] = (c + left) % cols
            one_region = True
            for i in range(K):
                one_region = one_region and region[i] == region[0]
            if not one_region:
                for i in range(K):
                    for j in range(K):
                        mask[i * KP + j] = <floating> 0 if region[i] == region[j] else <floating> -100
            for m in range(M):
                for i in range(K):
                    if row[i] < H and col[i] < W:
                        pixel = &qkv[row[i], col[i], 0, m, 0]
                        for d in range(D):
                            q[i * D + d] = (pixel[d] + extra[m * D + d]) * scale
                            keys[d * KP + i] = pixel[step + d] + extra[step + m * D + d]
                            v[i * D + d] = pixel[2 * step + d] + extra[2 * step + m * D + d]
                    else:  # a padding token: its projections are the biases
                        for d in range(D):
                            keys[d * KP + i] = extra[step + m * D + d]
                            v[i * D + d] = extra[2 * step + m * D + d]
                for i in range(K):
                    if row[i] >= H or col[i] >= W:
                        continue  # the result of a padding token is not used
                    mask_row = NULL if one_region else mask + i * KP
                    if D == USUAL_D and K == USUAL_K:
                        attend(q + i * USUAL_D, keys, v, &position_bias[m, i, 0], mask_row, USUAL_K, WHOLE, USUAL_D,
                               score, &out[row[i], col[i], m, 0])
                    else:
                        attend(q + i * D, keys, v, &position_bias[m, i, 0], mask_row, K, KP, D, score,
                               &out[row[i], col[i], m, 0])
    free(buffer)
    free(indices)


def attend_in_windows(qkv, qkv_bias, position_bias, k, shift):
    """qkv [H, W, 3, M, D], qkv_bias [3, M, D], position_bias [M, k*k, k*k] -> [H, W, M, D]"""
    H, W, M, D = check_arrays("attend_in_windows", "qkv [H, W, 3, M, D], qkv_bias [3, M, D], position_bias [M, K, K]",
                              qkv, qkv_bias, position_bias, K=k * k)
    check_shift("attend_in_windows", shift, k)
    out = np.empty((H, W, M, D), qkv.dtype)
    if out.size:
        arrays = contiguous(qkv), contiguous(qkv_bias), _to_whole_vectors(position_bias)
        for_rows(lambda first, last: _windows(*arrays, k, shift, shift, out, first, last), _ceil(H, k) * _ceil(W, k))
    return out


def _to_whole_vectors(position_bias):
    """[M, K, K] -> [M, K, KP], -inf beyond K, so that these columns have weight 0"""
    M, K, _ = position_bias.shape
    padded = np.full((M, K, _ceil(K, LANES) * LANES), -np.inf, position_bias.dtype)
    padded[..., :K] = position_bias
    return padded


def _ceil(Py_ssize_t n, Py_ssize_t k):
    return (n + k - 1) // k


def _relative_position_bias(table, k):
    """As in minigdino/network/swin.py: table [(2*k-1)**2, M] -> [M, k*k, k*k]"""
    row, col = np.divmod(np.arange(k * k), k)
    rows, cols = row[:, None] - row + k - 1, col[:, None] - col + k - 1
    return np.moveaxis(table[rows * (2 * k - 1) + cols], 2, 0)


def window_attention(x, query, key, value, out_proj, relative_position_bias_table, n_heads, k, shift, residual=None):
    """x [H, W, C], residual [H, W, C] -> [H, W, C]

    Each thread applies all steps to one band at a time, so that every step finds its input in the cache. A band is one
    row of windows. Only the last band of a shifted map has rows from both ends, and so regions one above the other.
    """
    projections = {"query": query, "key": key, "value": value, "out_proj": out_proj}
    H, W, C = check_arrays(
        "window_attention", f"x [H, W, C], {''.join(f'{p}_weight [C, C], {p}_bias [C], ' for p in projections)}"
        "relative_position_bias_table [N, M], residual? [H, W, C]",
        x, *(p[name] for p in projections.values() for name in ("weight", "bias")), relative_position_bias_table,
        residual, N=(2 * k - 1)**2, M=n_heads)
    check_shift("window_attention", shift, k)
    if n_heads not in range(1, C + 1) or C % n_heads:
        raise ValueError(f"window_attention: expected a number of heads that divides {C} channels; got {n_heads}")
    D, bands = C // n_heads, _ceil(H, k)
    # one product for the three projections
    weight, bias = (np.concatenate([p[name] for p in (query, key, value)]) for name in ("weight", "bias"))
    qkv_bias, qkv_map = bias.reshape(3, n_heads, D), pack(weight)
    out_map, out_bias = pack(out_proj["weight"]), contiguous(out_proj["bias"])
    position_bias = _to_whole_vectors(_relative_position_bias(relative_position_bias_table, k))
    residual, y = None if residual is None else contiguous(residual), np.empty((H, W, C), x.dtype)

    def work(first, last):
        for band in range(first, last):
            top = band * k + shift
            both_ends = shift and band == bands - 1
            rows = np.r_[:min(shift, H), top:H] if both_ends else slice(top, top + k)
            part = x[rows].reshape(-1, C)  # [<= k * W, C]
            n = len(part) // W
            qkv = np.empty((n * W, 3 * C), x.dtype)
            multiply(part, qkv_map, qkv)
            attended = np.empty((n, W, n_heads, D), x.dtype)
            _windows(qkv.reshape(n, W, 3, n_heads, D), qkv_bias, position_bias, k, shift if both_ends else 0, shift,
                     attended, 0, _ceil(W, k))
            projected = np.empty((n * W, C), x.dtype)
            multiply(attended.reshape(-1, C), out_map, projected, out_bias,
                     None if residual is None else residual[rows].reshape(-1, C))
            y[rows] = projected.reshape(n, W, C)

    if y.size:
        for_rows(work, bands)
    return y
