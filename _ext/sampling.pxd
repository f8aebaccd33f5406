# cython: language_level=3
"""Bilinear sampling of LANES points, in two steps.

`find_pixels` computes the four neighbouring pixels of every point and their weights, with one point per vector lane.
`add_pixels` adds the sample at one point, with one channel per lane. As in minigdino/network/deformable.py, pixels
outside the map count as zero.
"""

from cython cimport floating
from _ext.vectors cimport LANES


cdef inline floating clamp(floating x, floating low, floating high) noexcept nogil:
    """x limited to [low, high]. NaN becomes low, so it is never cast to an integer"""
    cdef floating above = x if x > low else low
    return above if above < high else high


cdef inline void find_pixels(const floating *x, const floating *y, const floating *weight, const floating *H,
                             const floating *W, const int *start, int *index, floating *corner_weight) noexcept nogil:
    """Indices and weights of the four pixels around each of LANES points.

    Point p lies at column x[p] and row y[p] of a map with H[p] rows and W[p] columns, whose first pixel has index
    start[p]. index and corner_weight [4, LANES] list the top left, top right, bottom left and bottom right pixel. The
    bilinear weights are multiplied by weight[p]. Outside the map, the index is clamped and the weight set to 0.
    """
    cdef int p, left, top, right, bottom, cols
    cdef floating point_weight, col, row, l, t, dx, dy, west, east, north, south
    for p in range(LANES):
        point_weight = weight[p] if (x[p] > -1) & (x[p] < W[p]) & (y[p] > -1) & (y[p] < H[p]) else <floating> 0
        col = clamp(x[p], <floating> -1, W[p])
        row = clamp(y[p], <floating> -1, H[p])
        l = <floating> <int> col  # rounds towards zero; the floor follows
        t = <floating> <int> row
        l = l - <floating> 1 if col < l else l
        t = t - <floating> 1 if row < t else t
        dx = col - l
        dy = row - t
        west = point_weight * (<floating> 1 - dx) if l >= 0 else <floating> 0
        east = point_weight * dx if l + 1 < W[p] else <floating> 0
        north = <floating> 1 - dy if t >= 0 else <floating> 0
        south = dy if t + 1 < H[p] else <floating> 0
        corner_weight[p] = west * north
        corner_weight[LANES + p] = east * north
        corner_weight[2 * LANES + p] = west * south
        corner_weight[3 * LANES + p] = east * south
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
                            const floating *corner_weight, int p, floating *total) noexcept nogil:
    """total [D] += the sample at point p of `find_pixels`; step is the distance of two pixels in elements"""
    cdef Py_ssize_t d
    cdef const floating *p00 = image + index[p] * step
    cdef const floating *p01 = image + index[LANES + p] * step
    cdef const floating *p10 = image + index[2 * LANES + p] * step
    cdef const floating *p11 = image + index[3 * LANES + p] * step
    cdef floating w00 = corner_weight[p], w01 = corner_weight[LANES + p]
    cdef floating w10 = corner_weight[2 * LANES + p], w11 = corner_weight[3 * LANES + p]
    for d in range(D):
        total[d] += w00 * p00[d] + w01 * p01[d] + (w10 * p10[d] + w11 * p11[d])
