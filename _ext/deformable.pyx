# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Twins of minigdino/network/deformable.py: the queries are divided among threads.

`deform_attn` samples in its own loop. `bilinear` runs where the reference of deformable attention runs, such as in a
trace of its steps.
"""

import numpy as np

from cython cimport floating
from libc.stdlib cimport calloc, free
from _ext.sampling cimport add_pixels, find_pixels
from _ext.vectors cimport LANES, softmax_row

from minigdino._ext.checks import check_arrays, check_levels, contiguous
from minigdino._ext.pool import for_rows


def _bilinear_rows(const floating[:, :, :, ::1] image, const floating[:, :, :, ::1] xy, floating[:, :, :, ::1] out,
                   Py_ssize_t first, Py_ssize_t last):
    cdef Py_ssize_t M = image.shape[2], D = image.shape[3], P = xy.shape[2]
    cdef Py_ssize_t q, m, i, block
    cdef int p, n
    cdef floating[LANES] x, y, one, H, W
    cdef floating[4 * LANES] corner_weight
    cdef int[LANES] start
    cdef int[4 * LANES] index
    with nogil:
        for p in range(LANES):
            x[p] = y[p] = start[p] = 0
            one[p] = 1
            H[p] = <floating> image.shape[0]
            W[p] = <floating> image.shape[1]
        for q in range(first, last):
            for m in range(M):
                for block in range((P + LANES - 1) // LANES):
                    i = block * LANES
                    n = <int> min(P - i, <Py_ssize_t> LANES)
                    for p in range(n):
                        x[p] = xy[q, m, i + p, 0] * W[p] - <floating> 0.5
                        y[p] = xy[q, m, i + p, 1] * H[p] - <floating> 0.5
                    find_pixels(x, y, one, H, W, start, index, corner_weight)
                    for p in range(n):
                        add_pixels(&image[0, 0, m, 0], M * D, D, index, corner_weight, p, &out[q, m, i + p, 0])


def bilinear(image, xy):
    """image [H, W, M, D], xy [Q, M, P, 2] -> [Q, M, P, D]"""
    H, W, M, D, Q, P = check_arrays("bilinear", "image [H, W, M, D], xy [Q, M, P, 2]", image, xy)
    out = np.zeros((Q, M, P, D), image.dtype)
    if out.size and image.size:
        check_levels("bilinear", [(H, W)], 1, H * W)
        arrays = contiguous(image), contiguous(xy)
        for_rows(lambda first, last: _bilinear_rows(*arrays, out, first, last), Q)
    return out


cdef enum:
    USUAL_D = 32  # channels per head of the published models; a loop of constant length is twice as fast


cdef inline void add_points(const floating *image, Py_ssize_t step, Py_ssize_t D, const int *index,
                            const floating *corner_weight, int n, floating *total) noexcept nogil:
    """total [D] += the samples at the first n points of `find_pixels`"""
    cdef int p
    for p in range(n):
        add_pixels(image, step, D, index, corner_weight, p, total)


def _deform_attn_rows(const floating[:, :, ::1] value, const floating[:, ::1] sizes, const int[::1] starts,
                      const floating[:, ::1] references, const floating[:, :] offsets, const floating[:, :] scores,
                      floating[:, :, ::1] out, int P, Py_ssize_t first, Py_ssize_t last):
    """Queries first to last. sizes [2, N]: rows and columns of each point's level; starts [N]: its first pixel's index

    N is L*P plus padding, so that every block of LANES points is complete.
    """
    cdef Py_ssize_t M = value.shape[1], D = value.shape[2], R = references.shape[1], N = starts.shape[0]
    cdef Py_ssize_t LP = scores.shape[1] // M, q, m, i, d, block
    cdef int p, n
    cdef floating[LANES] x, y, dx, dy
    cdef floating[4 * LANES] corner_weight
    cdef floating[USUAL_D] sums
    cdef int[4 * LANES] index
    cdef const floating *reference
    cdef const floating *H
    cdef const floating *W
    cdef const floating *offset
    cdef floating *weight = <floating *> calloc(N, sizeof(floating))
    if weight == NULL:
        raise MemoryError("deform_attn")
    with nogil:
        for p in range(LANES):
            dx[p] = dy[p] = 0
        for q in range(first, last):
            reference = &references[q, 0]
            for m in range(M):
                softmax_row(&scores[q, m * LP], weight, LP)
                for d in range(USUAL_D):
                    sums[d] = 0
                if D != USUAL_D:
                    for d in range(D):
                        out[q, m, d] = 0
                for block in range((LP + LANES - 1) // LANES):
                    i = block * LANES
                    n = <int> min(LP - i, <Py_ssize_t> LANES)
                    H = &sizes[0, i]
                    W = &sizes[1, i]
                    offset = &offsets[q, (m * LP + i) * 2]
                    for p in range(n):
                        dx[p] = offset[2 * p]
                        dy[p] = offset[2 * p + 1]
                    for p in range(LANES):  # as in minigdino/network/deformable.py's `sampling_locations`
                        if R == 2:
                            x[p] = reference[0] + dx[p] / W[p]
                            y[p] = reference[1] + dy[p] / H[p]
                        else:
                            x[p] = reference[0] + dx[p] / P * reference[2] * <floating> 0.5
                            y[p] = reference[1] + dy[p] / P * reference[3] * <floating> 0.5
                        x[p] = x[p] * W[p] - <floating> 0.5
                        y[p] = y[p] * H[p] - <floating> 0.5
                    find_pixels(x, y, weight + i, H, W, &starts[i], index, corner_weight)
                    if D == USUAL_D:
                        add_points(&value[0, m, 0], M * USUAL_D, USUAL_D, index, corner_weight, n, sums)
                    else:
                        add_points(&value[0, m, 0], M * D, D, index, corner_weight, n, &out[q, m, 0])
                if D == USUAL_D:
                    for d in range(USUAL_D):
                        out[q, m, d] = sums[d]
    free(weight)


def deform_attn(value, sizes, references, offsets, scores):
    """value [S, M, D], sizes ((H, W), ...), references [Q, R], offsets [Q, M, L, P, 2], scores [Q, M, L*P]
    -> [Q, M*D]"""
    S, M, D, Q, R, L, P = check_arrays(
        "deform_attn", "value [S, M, D], references [Q, R], offsets [Q, M, L, P, 2], scores [Q, M, L*P]",
        value, references, offsets, scores)
    if R not in (2, 4):
        raise ValueError(f"deform_attn: references {references.shape} do not fit: expected 2 or 4 coordinates each")
    levels = check_levels("deform_attn", sizes, L, S)
    if not L * P:
        return np.zeros((Q, M * D), value.dtype)
    out = np.empty((Q, M, D), value.dtype)
    if out.size:
        pixels = [H * W for H, W in levels]
        points, starts = np.ones((2, L * P + LANES - 1), value.dtype), np.zeros(L * P + LANES - 1, np.int32)
        points[:, :L * P] = np.transpose(levels).repeat(P, axis=1)
        starts[:L * P] = (np.cumsum(pixels) - pixels).repeat(P)
        arrays = contiguous(value), points, starts, contiguous(references), _rows_of(offsets, Q), _rows_of(scores, Q)
        for_rows(lambda first, last: _deform_attn_rows(*arrays, out, P, first, last), Q)
    return out.reshape(Q, M * D)


def _rows_of(array, n):
    """[n, ...] -> [n, elements of a row] with contiguous rows and any row stride, such as a column slice"""
    rows = array.reshape(n, -1)
    return rows if rows.strides[1] == rows.itemsize and rows.flags.aligned else contiguous(rows)
