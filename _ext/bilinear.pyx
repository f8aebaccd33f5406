# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""minigdino/deformable.py's `bilinear` as loops: same names, same zeros outside, queries shared among threads."""

import numpy as np

from cython cimport floating
from _ext.sampling cimport add_sample

from minigdino._ext.checks import contiguous, same_dtype
from minigdino._ext.threads import for_rows


def _rows(const floating[:, :, :, ::1] image, const floating[:, :, :, ::1] xy, floating[:, :, :, ::1] out,
          Py_ssize_t first, Py_ssize_t last):
    cdef Py_ssize_t H = image.shape[0], W = image.shape[1], M = image.shape[2], D = image.shape[3], P = xy.shape[2]
    cdef Py_ssize_t q, m, p
    with nogil:
        for q in range(first, last):
            for m in range(M):
                for p in range(P):
                    add_sample(&image[0, 0, m, 0], H, W, M * D, D, xy[q, m, p, 0] * W - <floating> 0.5,
                               xy[q, m, p, 1] * H - <floating> 0.5, <floating> 1, &out[q, m, p, 0])


def forward(image, xy):
    """image [H, W, M, D], xy [Q, M, P, 2] -> [Q, M, P, D]"""
    dtype = same_dtype(image, xy)
    if image.ndim != 4 or xy.ndim != 4 or xy.shape[1] != image.shape[2] or xy.shape[3] != 2:
        raise ValueError(f"bilinear: image {image.shape} and xy {xy.shape} do not fit together")
    out = np.zeros((*xy.shape[:3], image.shape[3]), dtype)
    if out.size and image.size:
        arrays = contiguous(image), contiguous(xy)
        for_rows(lambda first, last: _rows(*arrays, out, first, last), len(xy))
    return out
