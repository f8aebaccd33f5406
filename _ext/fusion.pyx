# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Twin of minigdino/network/fusion.py's `attend_both_ways`, in blocks of image tokens.

For a long prompt, the table of scores is larger than the image tokens. So each thread runs all steps that use the
scores on one block of image tokens at a time. The table is never stored in full.
"""

from importlib import import_module

import numpy as np

from cython cimport floating

from minigdino._ext.checks import check_arrays, contiguous
from minigdino._ext.pool import for_rows

# not `from .products import`: Cython would take the module of whichever instruction set was loaded first
_package = __name__.rpartition(".")[0]
_products, softmax = import_module(".products", _package), import_module(".ops", _package).softmax
multiply, pack = _products.multiply, _products.pack

cdef extern from "fusion.h":
    ctypedef struct Text:
        Py_ssize_t C
        Py_ssize_t M
        Py_ssize_t T
        const float *keys
        const float *key_bias
        const float *values
        const float *bias
    enum: PANEL
    Py_ssize_t round_up(Py_ssize_t n, Py_ssize_t multiple) nogil
    Py_ssize_t room_for_block(Py_ssize_t S, Py_ssize_t C, Py_ssize_t N) nogil
    void pack_panels(const float *w, Py_ssize_t w_stride, Py_ssize_t channel_stride, Py_ssize_t N, Py_ssize_t K,
                     Py_ssize_t first, Py_ssize_t last, float *panels) nogil
    void attend_block(const Text *text, const float *vision, const float *residual, Py_ssize_t S, float *from_text,
                      float *maxima, float *totals, float *weighted, float *room) nogil

BLOCK_ROWS = 256  # image tokens per block: few enough for the cache and for many threads, enough for fast products
MAX_TOKENS = 256  # text tokens times heads; for more, products by tiles are faster than `attend_block`


def attend_both_ways(vision, folded_keys, key_bias, mapped_values, bias, residual=None):
    """vision [S, C], folded_keys [M, T, C], key_bias [M, T], mapped_values [M, T, C], bias [C], residual [S, C]
    -> [S, C], [M, T, C]

    The softmax over the image needs the largest score of each text token, which is known only after the last block. So
    each block subtracts its own maximum. At the end, the sums are rescaled to the common maximum (arXiv 1805.02867,
    section 3.1).
    """
    S, C, M, T = check_arrays("attend_both_ways", "vision [S, C], folded_keys [M, T, C], key_bias [M, T], "
                              "mapped_values [M, T, C], bias [C], residual? [S, C]",
                              vision, folded_keys, key_bias, mapped_values, bias, residual)
    if not folded_keys.size or not S:
        raise ValueError(f"attend_both_ways: expected a token, a head and a channel; got vision {vision.shape} and "
                         f"folded_keys {folded_keys.shape}")
    N, blocks, dtype = M * T, max(1, round(S / BLOCK_ROWS)), vision.dtype
    folded_keys, mapped_values = contiguous(folded_keys), contiguous(mapped_values)
    text = folded_keys.reshape(N, C), contiguous(key_bias).reshape(N), mapped_values.reshape(N, C).T, contiguous(bias)
    image = contiguous(vision), np.empty((0, C), dtype) if residual is None else contiguous(residual)
    from_text, weighted = np.empty((S, C), dtype), np.empty((blocks, N, C), dtype)
    maximum, total = np.empty((2, blocks, N), dtype)
    results = from_text, maximum, total, weighted
    if dtype == np.float32 and N <= MAX_TOKENS:
        for_rows(_short_prompt(M, *text, *image, *results), blocks)
    else:
        for_rows(_long_prompt(M, *text, *image, *results), blocks)
    scale = np.exp(maximum - maximum.max(axis=0))  # [blocks, N]
    scale /= (scale * total).sum(axis=0, dtype=float)  # a long sum, in float64
    image_context = np.empty((N, C), dtype)
    for_rows(lambda first, last: _sum_blocks(scale, weighted, image_context, first, last), N)
    return from_text, image_context.reshape(M, T, C)


def _long_prompt(M, keys, key_bias, values, bias, vision, residual, from_text, maximum, total, weighted):
    """Loop over blocks in which the products are those of products.pyx"""
    (blocks, N, _), S = weighted.shape, len(vision)
    keys, values = pack(keys), pack(values)

    def work(first, last):
        for b in range(first, last):
            rows = slice(S * b // blocks, S * (b + 1) // blocks)
            scores = np.empty((rows.stop - rows.start, N), vision.dtype)
            multiply(vision[rows], keys, scores, key_bias)
            to_text = softmax(scores.reshape(len(scores), M, -1)).reshape(scores.shape)
            multiply(to_text, values, from_text[rows], bias, residual[rows] if len(residual) else None)
            maximum[b] = scores.max(axis=0)
            weights = np.exp(scores - maximum[b])
            total[b] = weights.sum(axis=0, dtype=float)
            multiply(weights.T, pack(vision[rows].T), weighted[b])

    return work


def _short_prompt(M, keys, key_bias, values, bias, vision, residual, from_text, maximum, total, weighted):
    """Loop over blocks in C"""
    panels = _packed(keys), _packed(values)
    return lambda first, last: _attend_blocks(M, *panels, key_bias, bias, vision, residual, from_text, maximum, total,
                                              weighted, first, last)


def _packed(const float[:, :] w):
    """Panels of w [N, K]"""
    cdef Py_ssize_t rows = round_up(w.shape[0], PANEL)
    cdef float[::1] panels = np.empty(rows * w.shape[1], np.float32)
    pack_panels(&w[0, 0], w.strides[0] // 4, w.strides[1] // 4, w.shape[0], w.shape[1], 0, rows // PANEL, &panels[0])
    return panels


def _attend_blocks(Py_ssize_t M, const float[::1] keys, const float[::1] values, const float[::1] key_bias,
                   const float[::1] bias, const float[:, ::1] vision, const float[:, ::1] residual,
                   float[:, ::1] from_text, float[:, ::1] maximum, float[:, ::1] total, float[:, :, ::1] weighted,
                   Py_ssize_t first, Py_ssize_t last):
    cdef Py_ssize_t S = vision.shape[0], C = vision.shape[1], blocks = weighted.shape[0], N = weighted.shape[1]
    cdef Py_ssize_t b, start, stop
    cdef Text text = Text(C, M, N // M, &keys[0], &key_bias[0], &values[0], &bias[0])
    cdef float[::1] room = np.empty(room_for_block(S // blocks + 1, C, N), np.float32)
    with nogil:
        for b in range(first, last):
            start, stop = S * b // blocks, S * (b + 1) // blocks
            attend_block(&text, &vision[start, 0], &residual[start, 0] if residual.shape[0] else NULL, stop - start,
                         &from_text[start, 0], &maximum[b, 0], &total[b, 0], &weighted[b, 0, 0], &room[0])


def _sum_blocks(const floating[:, ::1] scale, const floating[:, :, ::1] weighted, floating[:, ::1] out,
                Py_ssize_t first, Py_ssize_t last):
    """Sum of `weighted` over the blocks, each times its `scale`, in rows first to last of `out`"""
    cdef Py_ssize_t n, b, c
    with nogil:
        for n in range(first, last):
            for c in range(out.shape[1]):
                out[n, c] = 0
            for b in range(scale.shape[0]):
                for c in range(out.shape[1]):
                    out[n, c] += scale[b, n] * weighted[b, n, c]
