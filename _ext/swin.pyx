# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Twins of minigdino/network/swin.py.

Windows are read in place: no map is padded, shifted or partitioned. `window_attention` processes a map in bands of
windows, so the queries, keys and values of a whole map are not stored. With too few windows for all threads, these
share one step of the whole map after the other.

K is the number of pixels in a window (k**2), KP is K rounded up to whole vectors. Columns beyond K have weight 0.

The arithmetic of one head of a window is in windows.h for float32, and below for float64, which the tests use.
"""

from importlib import import_module

import numpy as np

from cython cimport floating
from _ext.vectors cimport softmax_row

from minigdino._ext.checks import check_arrays, check_shift, contiguous
from minigdino._ext.cpus import count
from minigdino._ext.pool import for_rows

cdef extern from "windows.h":
    enum: LANES
    ctypedef struct Map:
        const float *qkv
        const float *qkv_bias
        const float *position_bias
        const float *zeros
        float *out
        Py_ssize_t M
        Py_ssize_t D
        Py_ssize_t K
    ctypedef struct Window:
        Py_ssize_t *pixels
        Py_ssize_t *queries
        Py_ssize_t n_queries
        float *regions
        bint masked
    void attend(const Map *map, const Window *window, Py_ssize_t m, float *room) nogil
    Py_ssize_t room_to_attend(Py_ssize_t K, Py_ssize_t D) nogil

# not `from .products import`: Cython would take the module of whichever instruction set was loaded first
_products = import_module(".products", __name__.rpartition(".")[0])
multiply, multiply_in_pieces, pack = _products.multiply, _products.multiply_in_pieces, _products.pack
_ceil, _empty = _products._ceil, _products._empty

MIN_WINDOWS = 4  # in a part of a band; with fewer, rereading the weights costs more


cdef void attend_in_double(const double *qkv, const double *bias, const double *position_bias, const double *zeros,
                           const Window *window, Py_ssize_t m, Py_ssize_t M, Py_ssize_t K, Py_ssize_t KP,
                           Py_ssize_t D, double *score, double *out) noexcept nogil:
    """Head m of a window, as `attend`; score [K] is a buffer"""
    cdef Py_ssize_t n, i, j, d, C = M * D
    cdef double scale = 1 / (<double> D) ** 0.5
    cdef const double *q
    cdef const double *pixel
    bias += m * D
    for n in range(window.n_queries):
        i = window.queries[n]
        q = qkv + window.pixels[i] * 3 * C + m * D
        for j in range(K):
            pixel = (zeros if window.pixels[j] < 0 else qkv + window.pixels[j] * 3 * C) + C + m * D
            score[j] = 0
            for d in range(D):
                score[j] += (q[d] + bias[d]) * scale * (pixel[d] + bias[C + d])
            score[j] += position_bias[(m * K + i) * KP + j]
            if window.masked and window.regions[i] != window.regions[j]:
                score[j] -= 100
        softmax_row(score, score, K)
        for d in range(D):
            out[window.pixels[i] * C + m * D + d] = 0
        for j in range(K):
            pixel = (zeros if window.pixels[j] < 0 else qkv + window.pixels[j] * 3 * C) + 2 * C + m * D
            for d in range(D):
                out[window.pixels[i] * C + m * D + d] += score[j] * (pixel[d] + bias[2 * C + d])


cdef void find(Window *window, Py_ssize_t index, int H, int W, int k, int up, int left) noexcept nogil:
    """Find the pixels of a window before the shift of the map, and their regions of the shifted map"""
    cdef int rows = (H + k - 1) // k * k, cols = (W + k - 1) // k * k, n_cols = cols // k
    cdef int top = <int> (index // n_cols) * k, first = <int> (index % n_cols) * k
    cdef int i, j, r, c, row, col
    window.masked = (up and top == rows - k) or (left and first == cols - k)
    window.n_queries = 0
    for i in range(k):
        r = top + i
        row = r + up - rows if r + up >= rows else r + up
        for j in range(k):
            c = first + j
            col = c + left - cols if c + left >= cols else c + left
            window.regions[i * k + j] = 2 * (r >= rows - up) + (c >= cols - left)
            window.pixels[i * k + j] = -1
            if row < H and col < W:
                window.pixels[i * k + j] = <Py_ssize_t> row * W + col
                window.queries[window.n_queries] = i * k + j
                window.n_queries += 1


def _windows(const floating[:, :, :, :, ::1] qkv, const floating[:, :, ::1] qkv_bias,
             const floating[:, :, ::1] position_bias, int k, int up, int left,
             floating[:, :, :, ::1] out, Py_ssize_t first, Py_ssize_t last):
    """Attention in the heads first to last of all windows, row by row, of a map shifted up and left by some pixels.

    qkv [H, W, 3, M, D], qkv_bias [3, M, D], position_bias [M, K, KP], -inf beyond K -> out [H, W, M, D]
    """
    cdef Py_ssize_t M = qkv.shape[3], D = qkv.shape[4], K = k * k, KP = position_bias.shape[2], head
    cdef Py_ssize_t[:, ::1] indices = np.empty((2, K), np.intp)
    cdef float[::1] regions = np.zeros(KP, np.float32)
    dtype = np.float32 if floating is float else np.float64
    cdef floating[::1] room = _empty(room_to_attend(K, D), dtype)
    cdef floating[::1] zeros = np.zeros(3 * M * D, dtype)
    cdef Window window = Window(&indices[0, 0], &indices[1, 0], 0, &regions[0], False)
    cdef Map map
    room[:] = 0
    if floating is float:
        map = Map(&qkv[0, 0, 0, 0, 0], &qkv_bias[0, 0, 0], &position_bias[0, 0, 0], &zeros[0], &out[0, 0, 0, 0], M, D,
                  K)
    with nogil:
        for head in range(first, last):
            if head == first or head % M == 0:
                find(&window, head // M, <int> qkv.shape[0], <int> qkv.shape[1], k, up, left)
            if floating is float:
                attend(&map, &window, head % M, &room[0])
            else:
                attend_in_double(&qkv[0, 0, 0, 0, 0], &qkv_bias[0, 0, 0], &position_bias[0, 0, 0], &zeros[0], &window,
                                 head % M, M, K, KP, D, &room[0], &out[0, 0, 0, 0])


def attend_in_windows(qkv, qkv_bias, position_bias, k, shift):
    """qkv [H, W, 3, M, D], qkv_bias [3, M, D], position_bias [M, k*k, k*k] -> [H, W, M, D]"""
    H, W, M, D = check_arrays("attend_in_windows", "qkv [H, W, 3, M, D], qkv_bias [3, M, D], position_bias [M, K, K]",
                              qkv, qkv_bias, position_bias, K=k * k)
    check_shift("attend_in_windows", shift, k)
    out = np.empty((H, W, M, D), qkv.dtype)
    if out.size:
        arrays = contiguous(qkv), contiguous(qkv_bias), _to_whole_vectors(position_bias)
        for_rows(lambda first, last: _windows(*arrays, k, shift, shift, out, first, last),
                 _ceil(H, k) * _ceil(W, k) * M)
    return out


def _to_whole_vectors(position_bias):
    """[M, K, K] -> [M, K, KP], -inf beyond K, so that these columns have weight 0"""
    M, K, _ = position_bias.shape
    padded = np.full((M, K, _ceil(K, LANES) * LANES), -np.inf, position_bias.dtype)
    padded[..., :K] = position_bias
    return padded


def _relative_position_bias(table, k):
    """As in minigdino/network/swin.py: table [(2*k-1)**2, M] -> [M, k*k, k*k]"""
    row, col = np.divmod(np.arange(k * k), k)
    rows, cols = row[:, None] - row + k - 1, col[:, None] - col + k - 1
    return np.moveaxis(table[rows * (2 * k - 1) + cols], 2, 0)


def window_attention(x, query, key, value, out_proj, relative_position_bias_table, n_heads, k, shift, residual=None):
    """x [H, W, C], residual [H, W, C] -> [H, W, C]

    A band is one row of windows. A thread applies all steps to a band or a part of one, so that every step finds its
    input in the cache. If there are too few of them for all threads, these share each step of the whole map.
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
    D, bands, windows = C // n_heads, _ceil(H, k), _ceil(W, k)
    parts = max(1, min(_ceil(count(), bands or 1), windows // MIN_WINDOWS))  # of a band
    # one product for the three projections
    weight, bias = (np.concatenate([p[name] for p in (query, key, value)]) for name in ("weight", "bias"))
    qkv_bias, qkv_map = bias.reshape(3, n_heads, D), pack(weight)
    out_map, out_bias = pack(out_proj["weight"]), contiguous(out_proj["bias"])
    position_bias = _to_whole_vectors(_relative_position_bias(relative_position_bias_table, k))
    residual, y = None if residual is None else contiguous(residual), np.empty((H, W, C), x.dtype)

    def attend_in(rows, up, columns, left, multiply):
        if not (isinstance(rows, slice) or isinstance(columns, slice)):
            rows = rows[:, None]
        part = x[rows, columns]
        n, width = part.shape[:2]
        in_place = isinstance(rows, slice) and width == W  # then y[rows].reshape is a view
        to = y[rows].reshape(-1, C) if in_place else np.empty((n * width, C), x.dtype)
        qkv, attended = np.empty((n, width, 3, n_heads, D), x.dtype), np.empty((n, width, n_heads, D), x.dtype)
        multiply(part.reshape(-1, C), qkv_map, qkv.reshape(-1, 3 * C))
        for_rows(lambda first, last: _windows(qkv, qkv_bias, position_bias, k, up, left, attended, first, last),
                 _ceil(n, k) * _ceil(width, k) * n_heads)
        multiply(attended.reshape(-1, C), out_map, to, out_bias,
                 None if residual is None else residual[rows, columns].reshape(-1, C))
        if not in_place:
            y[rows, columns] = to.reshape(part.shape)

    # attend_in is a default argument. In the scope of `work`, it would be part of a reference cycle that holds arrays
    def work(first, last, attend_in=attend_in):
        for i in range(first, last):
            band, part = divmod(i, parts)
            attend_in(*_pixels(band, band + 1, H, k, shift),
                      *_pixels(windows * part // parts, windows * (part + 1) // parts, W, k, shift), multiply)

    if y.size and bands * parts >= count():
        for_rows(work, bands * parts)
    elif y.size:
        attend_in(slice(None), shift, slice(None), shift, multiply_in_pieces)
    return y


def _pixels(first, last, n, k, shift):
    """Rows or columns of the windows first to last of n pixels, and the shift that is left within them

    Only the last window of a shifted map joins both ends of the map, and so has several regions.
    """
    start = first * k + shift
    if not shift or last < _ceil(n, k):
        return slice(start, last * k + shift), 0
    return (np.r_[:min(shift, n), start:n] if first else slice(None)), shift
