# cython: language_level=3
"""Bilinear sampling of a few points in two steps: where they fall among the pixels, with a point in each lane of a vector;
then what lies there, with a channel in each. The out-of-image rule is minigdino/network/deformable.py's: outside is zero.
"""

from cython cimport floating
from _ext.vectors cimport LANES


cdef inline floating clamp(floating x, floating low, floating high) noexcept nogil:
    """x within [low, high]; NaN becomes low, so that no cast may see it"""
    cdef floating above = x if x > low else low
    return above if above < high else high


cdef inline void find_pixels(const floating *x, const floating *y, const floating *weight, const floating *H,
                             const floating *W, const int *start, int *index, floating *share) noexcept nogil:
    """Points [LANES] at column x and row y of maps of H rows and W columns, whose first pixel is number `start`.

    index [4, LANES]: the pixels left above, right above, left below, right below; share [4, LANES]: what each counts if
    the point counts `weight`. A pixel outside has no share, and one inside is named in its place.
    """
    cdef int p, left, top, right, bottom, cols
    cdef floating near, col, row, l, t, dx, dy, west, east, north, south
    for p in range(LANES):
        near = weight[p] if (x[p] > -1) & (x[p] < W[p]) & (y[p] > -1) & (y[p] < H[p]) else <floating> 0
        col = clamp(x[p], <floating> -1, W[p])
        row = clamp(y[p], <floating> -1, H[p])
        l = <floating> <int> col  # towards zero, and then down
        t = <floating> <int> row
        l = l - <floating> 1 if col < l else l
        t = t - <floating> 1 if row < t else t
        dx = col - l
        dy = row - t
        west = near * (<floating> 1 - dx) if l >= 0 else <floating> 0
        east = near * dx if l + 1 < W[p] else <floating> 0
        north = <floating> 1 - dy if t >= 0 else <floating> 0
        south = dy if t + 1 < H[p] else <floating> 0
        share[p] = west * north
        share[LANES + p] = east * north
        share[2 * LANES + p] = west * south
        share[3 * LANES + p] = east * south
        cols = <int> W[p]
        left = <int> clamp(l, <floating> 0, W[p] - 1)
        right = <int> clamp(l + 1, <floating> 0, W[p] - 1)
        top = start[p] + cols * <int> clamp(t, <floating> 0, H[p] - 1)
        bottom = start[p] + cols * <int> clamp(t + 1, <floating> 0, H[p] - 1)
        index[p] = top + left
        index[LANES + p] = top + right
        index[2 * LANES + p] = bottom + left
        index[3 * LANES + p] = bottom + right


cdef inline void add_pixels(const floating *image, Py_ssize_t step, Py_ssize_t D, const int *index,
                            const floating *share, int p, floating *total) noexcept nogil:
    """total [D] += point p of what `find_pixels` found, in an image whose pixels lie `step` numbers apart"""
    cdef Py_ssize_t d
    cdef const floating *p00 = image + index[p] * step
    cdef const floating *p01 = image + index[LANES + p] * step
    cdef const floating *p10 = image + index[2 * LANES + p] * step
    cdef const floating *p11 = image + index[3 * LANES + p] * step
    cdef floating w00 = share[p], w01 = share[LANES + p], w10 = share[2 * LANES + p], w11 = share[3 * LANES + p]
    for d in range(D):
        total[d] += w00 * p00[d] + w01 * p01[d] + (w10 * p10[d] + w11 * p11[d])
