# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Matrix products, from which the other twins are built. The arithmetic is in product.h.

BLAS is not used. Its threads belong to the process: a forward pass would have to change their number, and the last bit
of a result would depend on it.

Only float32 has loops of its own. float64, which the tests use, is computed by NumPy, without BLAS.
"""

from math import prod

import numpy as np

from minigdino._ext.checks import check_arrays, contiguous
from minigdino._ext.cpus import count
from minigdino._ext.erfc import ERFC
from minigdino._ext.instruction_sets import pairs, tiles
from minigdino._ext.pool import for_rows
from minigdino._ext.precision import parts

cdef extern from "product.h":
    enum: PANEL
    ctypedef struct Epilogue:
        const float *bias
        const float *residual
        Py_ssize_t residual_stride
        bint relu
        const float *erfc
    void pack_panels(const float *w, Py_ssize_t w_stride, Py_ssize_t channel_stride, Py_ssize_t N, Py_ssize_t K,
                     Py_ssize_t first, Py_ssize_t last, float *panels) nogil
    void multiply_panels(const float *x, Py_ssize_t x_stride, Py_ssize_t channel_stride, const float *panels,
                         Py_ssize_t panel_depth, Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, float *y,
                         Py_ssize_t y_stride, bint add, const Epilogue *epilogue) nogil
    void multiply_few(const float *x, Py_ssize_t x_stride, const float *w, Py_ssize_t w_stride, Py_ssize_t M,
                      Py_ssize_t N, Py_ssize_t K, float *y, Py_ssize_t y_stride) nogil
    void c_activate "activate" (const float *x, Py_ssize_t n, bint relu, const float *erfc, float *y) nogil
    enum: BLOCK  # rows of W in a block
    enum: STEP  # channels in a step
    bint HAS_TILES  # whether the compiler knows tile instructions
    bint ARE_EMULATED
    ctypedef unsigned short bfloat16
    ctypedef struct Blocks:
        const bfloat16 *blocks
        Py_ssize_t depth
        const float *w
        Py_ssize_t w_stride
        Py_ssize_t channel_stride
    int pack_blocks(const float *w, Py_ssize_t w_stride, Py_ssize_t channel_stride, Py_ssize_t N, Py_ssize_t K,
                    int parts, Py_ssize_t first, Py_ssize_t last, bfloat16 *blocks) nogil
    void multiply_tiles(const float *x, Py_ssize_t x_stride, Py_ssize_t channel_stride, const Blocks *w, int parts,
                        Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, float *y, Py_ssize_t y_stride, bint add,
                        const Epilogue *epilogue, void *room) nogil
    Py_ssize_t room_for(Py_ssize_t M, Py_ssize_t K, int parts) nogil
    bint feed_forward_tiles(const float *x, Py_ssize_t x_stride, Py_ssize_t channel_stride, const Blocks *w1,
                            const Blocks *w2, int parts, Py_ssize_t M, Py_ssize_t C, Py_ssize_t F, Py_ssize_t chunk,
                            float *y, Py_ssize_t y_stride, const Epilogue *hidden, const Epilogue *epilogue,
                            void *room) nogil
    Py_ssize_t room_for_feed_forward(Py_ssize_t M, Py_ssize_t C, Py_ssize_t chunk, int parts) nogil

cdef extern from "pairs.h":
    void multiply_pairs(const float *x, Py_ssize_t x_stride, Py_ssize_t channel_stride, const Blocks *w, Py_ssize_t M,
                        Py_ssize_t N, Py_ssize_t K, float *y, Py_ssize_t y_stride, bint add, const Epilogue *epilogue,
                        bfloat16 *room) nogil

are_emulated = ARE_EMULATED
uses_tiles = HAS_TILES and (ARE_EMULATED or tiles())
uses_pairs = HAS_TILES and pairs()  # for one part, if there are no tiles
MAX_FLOAT_ROWS = 96  # rows of X; for so few, splitting W into parts costs more than it saves
MIN_IN_PARTS = 64  # rows and channels of W; for fewer, splitting X costs more than it saves
LINE = 64  # bytes of a cache line
MAX_UNPACKED_ROWS = 16  # rows of X; for so few, packing W costs more than it saves
MAX_PANEL_ROWS = 256  # rows of X; for so few, each range packs its own panels, which then stay in its cache
PANEL_ROWS = 4 * PANEL  # rows of W that are packed at a time there
MIN_WEIGHTS = 1 << 16  # elements of W per range, in loops that read each of them once
MIN_MULTIPLICATIONS = 1 << 22  # per range of rows
PIECE_ROWS, PIECE_COLUMNS = 96, 32  # of a product that is divided both ways; pieces are multiples of them

cdef const float[::1] ERFC32 = np.array(ERFC, np.float32)


cdef class Packed:
    """W [N, K] in the order in which `multiply` reads it: blocks of `parts` bfloat16 parts, or panels. In float64, W"""
    cdef readonly Py_ssize_t N, K
    cdef readonly int parts  # 0 for panels
    cdef float[::1] panels
    cdef unsigned short[::1] blocks
    cdef object w


def pack(w, in_parts=True):
    """W [N, K] -> Packed. in_parts: whether W may be split into parts, if there are instructions that multiply them"""
    cdef Packed packed = Packed()
    cdef int n_parts = parts.get()
    packed.N, packed.K = check_arrays("product", "w [N, K]", w)
    packed.w = w = _aligned(w)
    if w.dtype != np.float32:
        return packed
    if in_parts and min(packed.N, packed.K) >= MIN_IN_PARTS and (uses_tiles or (uses_pairs and n_parts == 1)):
        n_blocks, normal = _ceil(packed.N, BLOCK), []
        packed.blocks = _empty(n_blocks * BLOCK * _ceil(packed.K, STEP) * STEP * n_parts, np.uint16)
        for_rows(lambda first, last: normal.append(_pack_blocks(w, packed, n_parts, first, last)), n_blocks,
                 1 + MIN_WEIGHTS // (BLOCK * packed.K))
        if all(normal):
            packed.parts = n_parts
            return packed
    n_panels = _ceil(packed.N, PANEL)
    packed.panels = _empty(n_panels * PANEL * packed.K, np.float32)
    if w.size:
        for_rows(lambda first, last: _pack(w, packed, first, last), n_panels,
                 1 + MIN_WEIGHTS // (PANEL * packed.K))
    return packed


def _pack_blocks(const float[:, :] w, Packed packed, int n_parts, Py_ssize_t first, Py_ssize_t last):
    with nogil:
        normal = pack_blocks(&w[0, 0], w.strides[0] // 4, w.strides[1] // 4, w.shape[0], w.shape[1], n_parts, first,
                             last, &packed.blocks[0])
    return normal


def _pack(const float[:, :] w, Packed packed, Py_ssize_t first, Py_ssize_t last):
    with nogil:
        pack_panels(&w[0, 0], w.strides[0] // 4, w.strides[1] // 4, w.shape[0], w.shape[1], first, last,
                    &packed.panels[0])


def multiply(x, Packed packed, y, bias=None, residual=None, activation=None, first=0, first_channel=0, add=False):
    """Y = activation(X W^T + bias + residual) in this thread, or activation(Y + X W^T + ...) if `add`: x [M, K],
    y [M, N], bias [N], residual [M, N]; activation is "relu", "gelu" or None

    W is packed[first:first + N, first_channel:first_channel + K]. `first` is a multiple of PANEL. If W is packed in
    parts, `first` is a multiple of BLOCK and `first_channel` one of STEP. The rows of y and residual are contiguous; x
    may have any strides.
    """
    check_arrays("product", "y [M, N], x [M, K], bias? [N], residual? [M, N]", y, x, bias, residual)
    cdef Py_ssize_t N = y.shape[1]
    cdef Py_ssize_t K = x.shape[1]
    if not 0 <= first <= packed.N - N or not 0 <= first_channel <= packed.K - K or (packed.parts and not K):
        raise ValueError(f"product: expected w with {first} + {N} rows and {first_channel} + {K} channels; got "
                         f"{(packed.N, packed.K)}")
    multiple, channels = BLOCK if packed.parts else PANEL, STEP if packed.parts else 1
    if first % multiple or first_channel % channels:
        raise ValueError(f"product: expected first to be a multiple of {multiple}, and first_channel of {channels}; "
                         f"got {first} and {first_channel}")
    if y.dtype != np.float32:
        _multiply_in_numpy(x, packed.w[first:first + N, first_channel:first_channel + K], y, bias, residual, activation,
                           add)
    elif y.size:
        _multiply(_aligned(x), packed, y, bias, residual, activation, first, first_channel, add)


cdef Epilogue _epilogue(const float[::1] bias, const float[:, :] residual, activation):
    cdef Epilogue epilogue = Epilogue(NULL, NULL, 0, activation == "relu", NULL)
    if activation == "gelu":
        epilogue.erfc = &ERFC32[0]
    if bias is not None:
        epilogue.bias = &bias[0]
    if residual is not None:
        epilogue.residual = &residual[0, 0]
        epilogue.residual_stride = residual.strides[0] // 4
    return epilogue


def _multiply(const float[:, :] x, Packed packed, float[:, :] y, const float[::1] bias, const float[:, :] residual,
              activation, Py_ssize_t first, Py_ssize_t first_channel, bint add):
    cdef Epilogue epilogue = _epilogue(bias, residual, activation)
    if y.strides[1] != 4 or (residual is not None and residual.strides[1] != 4):
        raise ValueError("product: expected y and residual with contiguous rows")
    if packed.parts:
        _multiply_in_parts(x, packed, y, &epilogue, first, first_channel, add)
        return
    with nogil:
        multiply_panels(&x[0, 0] if x.shape[1] else NULL, x.strides[0] // 4, x.strides[1] // 4,
                        &packed.panels[first * packed.K + first_channel * PANEL], packed.K, x.shape[0], y.shape[1],
                        x.shape[1], &y[0, 0], y.strides[0] // 4, add, &epilogue)


cdef Blocks _blocks(Packed packed, Py_ssize_t first, Py_ssize_t first_channel):
    cdef const float[:, :] w = packed.w
    cdef Py_ssize_t depth = _ceil(packed.K, STEP)
    return Blocks(&packed.blocks[(first * depth + first_channel) * BLOCK * packed.parts], depth,
                  &w[first, first_channel], w.strides[0] // 4, w.strides[1] // 4)


cdef _multiply_in_parts(const float[:, :] x, Packed packed, float[:, :] y, const Epilogue *epilogue, Py_ssize_t first,
                        Py_ssize_t first_channel, bint add):
    cdef Blocks blocks = _blocks(packed, first, first_channel)
    cdef unsigned short[::1] room = _empty(room_for(x.shape[0], x.shape[1], packed.parts), np.uint16)
    cdef bint by_tiles = uses_tiles
    with nogil:
        if by_tiles:
            multiply_tiles(&x[0, 0], x.strides[0] // 4, x.strides[1] // 4, &blocks, packed.parts, x.shape[0],
                           y.shape[1], x.shape[1], &y[0, 0], y.strides[0] // 4, add, epilogue, &room[0])
        else:
            multiply_pairs(&x[0, 0], x.strides[0] // 4, x.strides[1] // 4, &blocks, x.shape[0], y.shape[1], x.shape[1],
                           &y[0, 0], y.strides[0] // 4, add, epilogue, &room[0])


def feed_forward_in_parts(x, Packed w1, Packed w2, y, bias1, bias2, residual, activation, chunk):
    """Y = activation(X W1^T + bias1) W2^T + bias2 + residual in this thread; the hidden layer stays in parts

    `chunk` hidden channels are computed at a time, a multiple of BLOCK. y and residual have contiguous rows.

    Returns:
        False if y must be computed by `multiply` on such chunks: without tiles, or if a row of x or of the hidden layer
        is not normal (see tiles.h). The normal rows of y then get the same bits.
    """
    return bool(uses_tiles and w1.parts and w2.parts and w1.N % BLOCK == 0 and y.size and _feed_forward_in_parts(
        _aligned(x), w1, w2, y, bias1, bias2, residual, activation, chunk))


def _feed_forward_in_parts(const float[:, :] x, Packed w1, Packed w2, float[:, :] y, const float[::1] bias1,
                           const float[::1] bias2, const float[:, :] residual, activation, Py_ssize_t chunk):
    cdef Blocks first = _blocks(w1, 0, 0), second = _blocks(w2, 0, 0)
    cdef Epilogue hidden = _epilogue(bias1, None, activation), epilogue = _epilogue(bias2, residual, None)
    cdef unsigned short[::1] room = _empty(room_for_feed_forward(x.shape[0], x.shape[1], chunk, w1.parts), np.uint16)
    cdef bint done
    with nogil:
        done = feed_forward_tiles(&x[0, 0], x.strides[0] // 4, x.strides[1] // 4, &first, &second, w1.parts,
                                  x.shape[0], x.shape[1], w1.N, chunk, &y[0, 0], y.strides[0] // 4, &hidden, &epilogue,
                                  &room[0])
    return done


def _multiply_in_numpy(x, w, y, bias, residual, activation, add):
    total = np.einsum("mk,nk->mn", x, w)  # not x @ w.T: some versions of OpenBLAS are wrong in several threads
    for term in (y if add else None, bias, residual):
        total = total if term is None else total + term
    y[...] = _activated(total, activation)


def activate(x, y, activation):
    """y = activation(x), both contiguous and of the same shape; they may be the same array"""
    if x.dtype == np.float32:
        _activate(x.reshape(-1), y.reshape(-1), activation)
    else:
        y[...] = _activated(x, activation)


def _activate(const float[::1] x, float[::1] y, activation):
    cdef Epilogue epilogue = _epilogue(None, None, activation)
    with nogil:
        c_activate(&x[0], x.shape[0], epilogue.relu, epilogue.erfc, &y[0])


def _activated(x, activation):
    """As in minigdino/network/ops.py"""
    if activation == "relu":
        return np.maximum(x, 0)
    if activation == "gelu":
        z = np.abs(x) * 0.5**0.5
        t = 1 / (1 + 0.5 * z)
        tail = 0.5 * t * np.exp(-z * z) * np.polyval(np.array(ERFC[::-1], x.dtype), t)
        return x * np.where(x < 0, tail, 1 - tail)
    return x


def product(x, w, bias=None, residual=None, activation=None):
    """activation(X W^T + bias + residual), in all threads: x [M, K], w [N, K], bias [N], residual [M, N] -> [M, N]"""
    M, K, N = check_arrays("product", "x [M, K], w [N, K], bias? [N], residual? [M, N]", x, w, bias, residual)
    y = np.empty((M, N), x.dtype)
    if M <= MAX_UNPACKED_ROWS and x.dtype == np.float32 and _has_contiguous_rows(x) and _has_contiguous_rows(w):
        if y.size:
            for_rows(lambda first, last: _few(x, w, y, first, last), N, 1 + MIN_WEIGHTS // (K + 1))
        for term in (bias, residual):
            y = y if term is None else np.add(y, term, out=y)
        if activation and y.size:
            activate(y, y, activation)
        return y
    residual = None if residual is None else contiguous(residual)
    bias = None if bias is None else contiguous(bias)
    if M <= MAX_PANEL_ROWS:

        def columns(first, last):
            for n in range(first * PANEL_ROWS, min(last * PANEL_ROWS, N), PANEL_ROWS):
                part = slice(n, n + PANEL_ROWS)
                multiply(x, pack(w[part], M > MAX_FLOAT_ROWS), y[:, part], None if bias is None else bias[part],
                         None if residual is None else residual[:, part], activation)

        for_rows(columns, _ceil(N, PANEL_ROWS))
        return y
    packed = pack(w)
    for_rows(lambda first, last: multiply(x[first:last], packed, y[first:last], bias,
                                          None if residual is None else residual[first:last], activation),
             M, 1 + MIN_MULTIPLICATIONS // (K * N + 1))
    return y


def multiply_in_pieces(x, packed, y, bias=None, residual=None, activation=None, chunk=None):
    """`multiply` in all threads, for too few rows: columns are divided, too. `chunk` channels are summed at a time"""
    M, N = y.shape
    if not y.size:
        return
    n = _ceil(M, PIECE_ROWS)
    width = _ceil(_ceil(N, PIECE_COLUMNS), _ceil(2 * count(), n)) * PIECE_COLUMNS
    K = x.shape[1]
    chunk = chunk or K

    def work(first, last):
        for c in range(first // n, _ceil(last, n)):
            rows = slice(max(first - c * n, 0) * PIECE_ROWS, min(last - c * n, n) * PIECE_ROWS)
            columns = slice(c * width, (c + 1) * width)
            end = (None if bias is None else bias[columns], None if residual is None else residual[rows, columns],
                   activation)
            for k in range(0, K, chunk):
                multiply(x[rows, k:k + chunk], packed, y[rows, columns], *(end if k + chunk >= K else ()),
                         first=c * width, first_channel=k, add=k > 0)

    for_rows(work, n * _ceil(N, width))


def _few(const float[:, :] x, const float[:, :] w, float[:, :] y, Py_ssize_t first, Py_ssize_t last):
    """Columns first to last of y"""
    with nogil:
        multiply_few(&x[0, 0], x.strides[0] // 4, &w[first, 0], w.strides[0] // 4, x.shape[0], last - first,
                     x.shape[1], &y[0, first], y.strides[0] // 4)


def matmul(a, b):
    """a [..., N, I], b [..., I, O] -> [..., N, O]"""
    shape, N, I, O = check_arrays("matmul", "a [..., N, I], b [..., I, O]", a, b)
    n = prod(shape)
    left, right, y = a.reshape(n, N, I), b.reshape(n, I, O).swapaxes(1, 2), np.empty((n, N, O), a.dtype)

    def work(first, last):
        for i in range(first, last):
            y[i] = product(left[i], right[i])

    for_rows(work, n)
    return y.reshape(*shape, N, O)


def _has_contiguous_rows(a):
    return a.flags.aligned and a.strides[1] == a.itemsize


def _aligned(a):
    return a if a.flags.aligned else a.copy()


def _ceil(Py_ssize_t n, Py_ssize_t k):
    return (n + k - 1) // k


def _empty(n, dtype):
    """Array [n] that starts at a cache line, so that no vector and no row of a tile crosses one"""
    room = np.empty(n * np.dtype(dtype).itemsize + LINE, np.uint8)
    first = -room.ctypes.data % LINE
    return room[first:first + n * np.dtype(dtype).itemsize].view(dtype)
