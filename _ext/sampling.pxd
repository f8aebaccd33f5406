# cython: language_level=3
"""The one sampler that bilinear.pyx and deform_attn.pyx share: minigdino/deformable.py's `bilinear`."""

from cython cimport floating
from libc.math cimport floor


cdef inline void add_sample(const floating *image, Py_ssize_t H, Py_ssize_t W, Py_ssize_t MD, Py_ssize_t D,
                            floating x, floating y, floating weight, floating *total) noexcept nogil:
    """total [D] += weight * image at column x, row y, of one head's channels; image [H, W, MD]

    The four pixels around the point are added in one pass. One outside the image weighs nothing, and any pixel inside
    is read in its place.
    """
    cdef Py_ssize_t d, top, left, bottom, right
    cdef floating dx, dy, w00, w01, w10, w11
    cdef const floating *p00
    cdef const floating *p01
    cdef const floating *p10
    cdef const floating *p11
    if not (x > -1 and x < W and y > -1 and y < H):  # nothing within reach; also true of NaN, which no cast may see
        return
    top = <Py_ssize_t> floor(y)
    left = <Py_ssize_t> floor(x)
    dy = y - top
    dx = x - left
    w00 = weight * (<floating> 1 - dx) * (<floating> 1 - dy)
    w01 = weight * dx * (<floating> 1 - dy)
    w10 = weight * (<floating> 1 - dx) * dy
    w11 = weight * dx * dy
    bottom = top + 1
    right = left + 1
    if top < 0:
        top = w00 = w01 = 0
    if left < 0:
        left = w00 = w10 = 0
    if bottom == H:
        bottom = top
        w10 = w11 = 0
    if right == W:
        right = left
        w01 = w11 = 0
    p00 = image + (top * W + left) * MD
    p01 = image + (top * W + right) * MD
    p10 = image + (bottom * W + left) * MD
    p11 = image + (bottom * W + right) * MD
    for d in range(D):
        total[d] += w00 * p00[d] + w01 * p01[d] + (w10 * p10[d] + w11 * p11[d])
