# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The twins of minigdino/deformable.py as loops: same names, same zeros outside, queries shared among threads."""

import numpy as np

from cython cimport floating
from libc.stdlib cimport free, malloc
from _ext.sampling cimport add_sample
from _ext.vectors cimport softmax_row

from minigdino._ext.checks import contiguous, same_dtype
from minigdino._ext.threads import for_rows


def _bilinear_rows(const floating[:, :, :, ::1] image, const floating[:, :, :, ::1] xy, floating[:, :, :, ::1] out,
                   Py_ssize_t first, Py_ssize_t last):
    cdef Py_ssize_t H = image.shape[0], W = image.shape[1], M = image.shape[2], D = image.shape[3], P = xy.shape[2]
    cdef Py_ssize_t q, m, p
    with nogil:
        for q in range(first, last):
            for m in range(M):
                for p in range(P):
                    add_sample(&image[0, 0, m, 0], H, W, M * D, D, xy[q, m, p, 0] * W - <floating> 0.5,
                               xy[q, m, p, 1] * H - <floating> 0.5, <floating> 1, &out[q, m, p, 0])


def bilinear(image, xy):
    """image [H, W, M, D], xy [Q, M, P, 2] -> [Q, M, P, D]"""
    dtype = same_dtype(image, xy)
    if image.ndim != 4 or xy.ndim != 4 or xy.shape[1] != image.shape[2] or xy.shape[3] != 2:
        raise ValueError(f"bilinear: image {image.shape} and xy {xy.shape} do not fit together")
    out = np.zeros((*xy.shape[:3], image.shape[3]), dtype)
    if out.size and image.size:
        arrays = contiguous(image), contiguous(xy)
        for_rows(lambda first, last: _bilinear_rows(*arrays, out, first, last), len(xy))
    return out


cdef enum:
    USUAL = 32  # channels of a head in every published model: a number the compiler knows makes the loops twice as fast


cdef inline void add_level(const floating *image, Py_ssize_t H, Py_ssize_t W, Py_ssize_t MD, Py_ssize_t D,
                           const floating *at, Py_ssize_t R, const floating *offset, const floating *weight,
                           Py_ssize_t P, floating *total) noexcept nogil:
    """The P points of one head on one level around `at` [R]; minigdino/deformable.py's `sampling_locations` first"""
    cdef Py_ssize_t p
    cdef floating x, y
    for p in range(P):
        if R == 2:
            x = at[0] + offset[2 * p] / W
            y = at[1] + offset[2 * p + 1] / H
        else:
            x = at[0] + offset[2 * p] / P * at[2] * <floating> 0.5
            y = at[1] + offset[2 * p + 1] / P * at[3] * <floating> 0.5
        add_sample(image, H, W, MD, D, x * W - <floating> 0.5, y * H - <floating> 0.5, weight[p], total)


def _deform_attn_rows(const floating[:, :, ::1] value, const Py_ssize_t[:, ::1] sizes,
                      const floating[:, ::1] references, const floating[:, :] offsets, const floating[:, :] scores,
                      floating[:, :, ::1] out, Py_ssize_t first, Py_ssize_t last):
    cdef Py_ssize_t M = value.shape[1], D = value.shape[2], L = sizes.shape[0], R = references.shape[1]
    cdef Py_ssize_t LP = scores.shape[1] // M, P = LP // L
    cdef Py_ssize_t q, m, l, d, H, W
    cdef const floating *image
    cdef const floating *offset
    cdef floating *weight = <floating *> malloc((LP + D) * sizeof(floating))
    cdef floating *total = weight + LP
    if weight == NULL:
        raise MemoryError("deform_attn")
    with nogil:
        for q in range(first, last):
            for m in range(M):
                softmax_row(&scores[q, m * LP], weight, LP)
                for d in range(D):
                    total[d] = 0
                image = &value[0, m, 0]
                for l in range(L):
                    H = sizes[l, 0]
                    W = sizes[l, 1]
                    offset = &offsets[q, (m * LP + l * P) * 2]
                    if D == USUAL:
                        add_level(image, H, W, M * USUAL, USUAL, &references[q, 0], R, offset, weight + l * P, P, total)
                    else:
                        add_level(image, H, W, M * D, D, &references[q, 0], R, offset, weight + l * P, P, total)
                    image += H * W * M * D
                for d in range(D):
                    out[q, m, d] = total[d]
    free(weight)


def deform_attn(value, sizes, references, offsets, scores):
    """value [S, M, D], sizes ((H, W), ...), references [Q, R], offsets [Q, M, L, P, 2], scores [Q, M, L*P] -> [Q, M*D]"""
    dtype = same_dtype(value, references, offsets, scores)
    Q, M, L, P, _ = offsets.shape
    at = np.array(sizes, np.intp).reshape(-1, 2)
    if (value.shape[1] != M or references.shape not in ((Q, 2), (Q, 4)) or offsets.shape != (Q, M, L, P, 2)
            or scores.shape != (Q, M, L * P) or at.shape != (L, 2)
            or (at < 0).any() or at.prod(axis=1).sum() != len(value)):
        raise ValueError(f"deform_attn: value {value.shape}, sizes {sizes}, references {references.shape}, offsets "
                         f"{offsets.shape} and scores {scores.shape} do not fit together")
    out = np.zeros((Q, M, value.shape[2]), dtype)
    if out.size and L * P:
        arrays = contiguous(value), at, contiguous(references), _rows_of(offsets, Q), _rows_of(scores, Q)
        for_rows(lambda first, last: _deform_attn_rows(*arrays, out, first, last), Q)
    return out.reshape(Q, M * value.shape[2])


def _rows_of(array, n):
    """[n, ...] -> [n, numbers of a row], where rows may lie apart, as in a slice of one wide product, but are whole."""
    rows = array.reshape(n, -1)
    return rows if rows.strides[1] == rows.itemsize and rows.flags.aligned else contiguous(rows)
