# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""minigdino/deformable.py's `deform_attn` as loops: same names, same zeros outside, queries shared among threads."""

import numpy as np

from cython cimport floating
from _ext.sampling cimport add_sample

from minigdino._ext.checks import contiguous, same_dtype
from minigdino._ext.threads import for_rows


def _rows(const floating[:, :, ::1] value, const Py_ssize_t[:, ::1] sizes,
          const floating[:, :, :, :, ::1] locations, const floating[:, :, :, ::1] weights,
          floating[:, :, ::1] out, Py_ssize_t first, Py_ssize_t last):
    cdef Py_ssize_t M = value.shape[1], D = value.shape[2]
    cdef Py_ssize_t L = locations.shape[2], P = locations.shape[3]
    cdef Py_ssize_t q, m, l, p, H, W, start
    with nogil:
        for q in range(first, last):
            for m in range(M):
                start = 0
                for l in range(L):
                    H = sizes[l, 0]
                    W = sizes[l, 1]
                    for p in range(P):
                        add_sample(&value[start, m, 0], H, W, M * D, D,
                                   locations[q, m, l, p, 0] * W - <floating> 0.5,
                                   locations[q, m, l, p, 1] * H - <floating> 0.5,
                                   weights[q, m, l, p], &out[q, m, 0])
                    start = start + H * W


def forward(value, sizes, locations, weights):
    """value [S, M, D], sizes ((H, W), ...), locations [Q, M, L, P, 2], weights [Q, M, L, P] -> [Q, M*D]"""
    Q, M, L, P = weights.shape
    dtype = same_dtype(value, locations, weights)
    at = np.array(sizes, np.intp).reshape(-1, 2)
    if (value.shape[1] != M or locations.shape != (Q, M, L, P, 2) or at.shape != (L, 2)
            or (at < 0).any() or at.prod(axis=1).sum() != len(value)):
        raise ValueError(f"deform_attn: value {value.shape}, sizes {sizes}, locations {locations.shape} and "
                         f"weights {weights.shape} do not fit together")
    out = np.zeros((Q, M, value.shape[2]), dtype)
    if out.size:
        arrays = contiguous(value), at, contiguous(locations), contiguous(weights)
        for_rows(lambda first, last: _rows(*arrays, out, first, last), Q)
    return out.reshape(Q, M * value.shape[2])
