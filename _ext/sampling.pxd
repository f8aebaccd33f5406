# cython: language_level=3
"""The one tap-by-tap sampler that bilinear.pyx and deform_attn.pyx share: minigdino/deformable.py's `bilinear`."""

from cython cimport floating
from libc.math cimport floor


cdef inline void add_sample(const floating *image, Py_ssize_t H, Py_ssize_t W, Py_ssize_t MD, Py_ssize_t D,
                            floating x, floating y, floating weight, floating *total) noexcept nogil:
    """total [D] += weight * image at column x, row y, of one head's channels; image [H, W, MD]"""
    cdef Py_ssize_t row, col, i, j, d, r0, c0
    cdef floating tent
    cdef const floating *pixel
    if not (x > -1 and x < W and y > -1 and y < H):  # nothing within reach; also true of NaN, which no cast may see
        return
    r0 = <Py_ssize_t> floor(y)
    c0 = <Py_ssize_t> floor(x)
    for i in range(2):
        for j in range(2):
            row = r0 + i
            col = c0 + j
            if 0 <= row < H and 0 <= col < W:
                tent = weight * (1 - abs(x - col)) * (1 - abs(y - row))
                pixel = image + (row * W + col) * MD
                for d in range(D):
                    total[d] += tent * pixel[d]
