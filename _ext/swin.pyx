# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The twins of minigdino/network/swin.py: each window is read where it lies in the map, so none is padded, shifted or cut; and
of a wide map bands of windows go through a whole attention, so its queries, keys and values are never there whole.

A window's numbers for one head fit in the cache: q [K, D], k transposed [D, KP], v [K, D], one row of scores [KP]. K is the
pixels of a window, KP is K rounded up to whole vectors; columns beyond K count nothing.
"""

import numpy as np

from cython cimport floating
from libc.stdlib cimport free, malloc
from _ext.vectors cimport LANES, softmax_row

from minigdino._ext.checks import contiguous, same_dtype
from minigdino._ext.threads import count, for_rows


cdef enum:
    # what the published models have: numbers the compiler knows make the loops faster
    USUAL_D = 32
    USUAL_K = 49
    WHOLE = (USUAL_K + LANES - 1) // LANES * LANES

WIDE = 512  # pixels of a band that are worth having a thread read all weights


cdef inline void add_product(const floating *vector, const floating *matrix, Py_ssize_t n, Py_ssize_t width,
                             floating *out) noexcept nogil:
    """out [width] += vector [n] @ matrix [n, width], four rows at a time so that out is loaded and stored less often"""
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
    """out [D] = softmax of q [D] @ keys [D, KP] + bias [KP] + mask [KP], or no mask, times v [K, D]; score [KP] is room"""
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
    """Windows first to last of the map shifted `up` and `left`, counted row by row; position_bias [M, K, KP], -inf beyond
    K; qkv [H, W, 3, M, D], out [H, W, M, D]"""
    cdef int H = qkv.shape[0], W = qkv.shape[1], rows = (H + k - 1) // k * k, cols = (W + k - 1) // k * k
    cdef Py_ssize_t M = qkv.shape[3], D = qkv.shape[4], K = k * k, KP = (K + LANES - 1) // LANES * LANES
    cdef Py_ssize_t b, m, d, i, j
    cdef int r, c
    cdef floating scale = <floating> 1 / <floating> (<double> D) ** 0.5
    cdef floating *room = <floating *> malloc((2 * K * D + D * KP + KP + K * KP) * sizeof(floating))
    cdef int *at = <int *> malloc(3 * K * sizeof(int))
    cdef int *row = at
    cdef int *col = at + K
    cdef int *piece = at + 2 * K
    cdef floating *q = room
    cdef floating *v = room + K * D
    cdef floating *keys = room + 2 * K * D
    cdef floating *score = keys + D * KP
    cdef floating *mask = score + KP
    cdef const floating *unlike
    cdef bint whole
    cdef const floating *pixel
    cdef const floating *extra = &qkv_bias[0, 0, 0]
    cdef Py_ssize_t step = M * D
    if room == NULL or at == NULL:
        free(room)
        free(at)
        raise MemoryError("window attention")
    with nogil:
        for i in range(D * KP + KP + K * KP):
            keys[i] = 0
        for b in range(first, last):
            for i in range(K):  # where the window's pixels lie before the shift, and in which piece of the map
                r = <int> (b // (cols // k)) * k + <int> i // k
                c = <int> (b % (cols // k)) * k + <int> i % k
                piece[i] = 3 * ((r >= rows - k) + (r >= rows - up)) + (c >= cols - k) + (c >= cols - left)
                row[i] = (r + up) % rows
                col[i] = (c + left) % cols
            whole = True
            for i in range(K):
                whole = whole and piece[i] == piece[0]
            if not whole:
                for i in range(K):
                    for j in range(K):
                        mask[i * KP + j] = <floating> 0 if piece[i] == piece[j] else <floating> -100
            for m in range(M):
                for i in range(K):
                    if row[i] < H and col[i] < W:
                        pixel = &qkv[row[i], col[i], 0, m, 0]
                        for d in range(D):
                            q[i * D + d] = (pixel[d] + extra[m * D + d]) * scale
                            keys[d * KP + i] = pixel[step + d] + extra[step + m * D + d]
                            v[i * D + d] = pixel[2 * step + d] + extra[2 * step + m * D + d]
                    else:  # a padding token: its products are zero, its bias is not
                        for d in range(D):
                            keys[d * KP + i] = extra[step + m * D + d]
                            v[i * D + d] = extra[2 * step + m * D + d]
                for i in range(K):
                    if row[i] >= H or col[i] >= W:
                        continue  # nobody asks for what a padding token sees
                    unlike = NULL if whole else mask + i * KP
                    if D == USUAL_D and K == USUAL_K:
                        attend(q + i * USUAL_D, keys, v, &position_bias[m, i, 0], unlike, USUAL_K, WHOLE, USUAL_D, score,
                               &out[row[i], col[i], m, 0])
                    else:
                        attend(q + i * D, keys, v, &position_bias[m, i, 0], unlike, K, KP, D, score,
                               &out[row[i], col[i], m, 0])
    free(room)
    free(at)


def attend_in_windows(qkv, qkv_bias, position_bias, k, shift):
    """qkv [H, W, 3, M, D], qkv_bias [3, M, D], position_bias [M, k*k, k*k] -> [H, W, M, D]"""
    dtype = same_dtype(qkv, qkv_bias, position_bias)
    H, W, three, M, D = qkv.shape
    if three != 3 or qkv_bias.shape != (3, M, D) or position_bias.shape != (M, k * k, k * k) or not 0 <= shift < k:
        raise ValueError(f"attend_in_windows: qkv {qkv.shape}, bias {qkv_bias.shape} and position bias "
                         f"{position_bias.shape} do not fit windows of {k} by {k}, shifted by {shift}")
    out = np.empty((H, W, M, D), dtype)
    if out.size:
        arrays = contiguous(qkv), contiguous(qkv_bias), _to_whole_vectors(position_bias)
        for_rows(lambda first, last: _windows(*arrays, k, shift, shift, out, first, last), _ceil(H, k) * _ceil(W, k))
    return out


def _to_whole_vectors(position_bias):
    """[M, K, K] -> [M, K, KP], -inf beyond K: what is not there counts nothing"""
    M, K, _ = position_bias.shape
    padded = np.full((M, K, _ceil(K, LANES) * LANES), -np.inf, position_bias.dtype)
    padded[..., :K] = position_bias
    return padded


def _ceil(Py_ssize_t n, Py_ssize_t k):
    return (n + k - 1) // k


def window_attention(x, query, key, value, out_proj, relative_position_bias_table, n_heads, k, shift, added=None):
    """x [H, W, C], added [H, W, C] -> [H, W, C]

    Each thread takes a band, the windows that lie side by side, through all steps: what one leaves is still near its cache
    for the next. Only the last band of a shifted map has rows from both ends, and pieces above each other.
    """
    from minigdino.network.ops import linear
    from minigdino.network.swin import relative_position_bias
    from minigdino.network.swin import window_attention as op

    H, W, C = x.shape
    bands = _ceil(H, k)
    if k * W < WIDE or bands < count():
        return op.reference(x, query, key, value, out_proj, relative_position_bias_table, n_heads, k, shift, added)
    weight, bias = (np.concatenate([p[name] for p in (query, key, value)]) for name in ("weight", "bias"))
    qkv_bias = bias.reshape(3, n_heads, C // n_heads)
    position_bias = relative_position_bias(relative_position_bias_table, k)  # [M, K, K]
    if (len(position_bias) != n_heads or weight.shape != (3 * C, C) or bias.shape != (3 * C,) or C % n_heads
            or not 0 <= shift < k or (added is not None and added.shape != x.shape)):
        raise ValueError(f"window_attention: x {x.shape}, added {None if added is None else added.shape}, maps of "
                         f"{weight.shape} and {len(position_bias)} heads do not fit {n_heads} heads in windows of {k} by "
                         f"{k}, shifted by {shift}")
    y = np.empty((H, W, C), same_dtype(x, weight, bias, position_bias))
    position_bias = _to_whole_vectors(position_bias)

    def work(first, last):
        for band in range(first, last):
            top = band * k + shift
            both_ends = shift and band == bands - 1
            rows = np.r_[:min(shift, H), top:H] if both_ends else slice(top, top + k)
            part = x[rows]  # [<= k, W, C]
            qkv = linear(part, weight).reshape(len(part), W, 3, n_heads, C // n_heads)
            attended = np.empty((len(part), W, n_heads, C // n_heads), x.dtype)
            _windows(qkv, qkv_bias, position_bias, k, shift if both_ends else 0, shift, attended, 0, _ceil(W, k))
            y[rows] = linear(attended.reshape(len(part), W, C), **out_proj,
                             added=None if added is None else added[rows])

    for_rows(work, bands, products=True)
    return y
