/* Matrix products in float32 by tile instructions (AMX), for one thread.

A tile product multiplies bfloat16 numbers and sums in float32. So each float32 is split into parts, bfloat16 numbers
whose sum it is: x = x0 + x1 + x2, each part at most 2**-8 of the one before. With three parts, six of the nine products
of two numbers are summed: x0 w0 + x1 w0 + x0 w1 + x1 w1 + x2 w0 + x0 w2. The other three are together at most 2**-23
of x w, about the rounding error of float32. Two parts and three products give about 16 bits, one part gives bfloat16.

Tile instructions treat numbers below 2**-126 as 0. So a row of X whose largest magnitude is far from 1 is multiplied by
a power of two while it is packed, and its sums by the inverse (`is_normal`). Infinity has no parts: `infinite_row`
computes such rows. W is packed in parts only if all its rows are normal.

A tile here is a register of the processor, not the tile of product.h.

A block of Y has BLOCK x BLOCK elements, in four tiles. X and W are packed in the order in which a block reads them:
    X [M / BLOCK][K / STEP][parts][2 tiles][16 rows][16 pairs of channels]
    W [N / BLOCK][K / STEP][parts][2 tiles][16 pairs of channels][16 rows]
Channel c and channel c + 16 of a step form a pair: these are the pairs that a vector operation makes.

As in product.h, every element of Y is summed in a fixed order, which does not depend on the other rows of X. */

/* The compiler emits tile instructions in this file only, in functions with the attribute USES_TILES. The caller asks
whether the processor has them. */
#if defined(EMULATE_TILES)
#define HAS_TILES 1
#define ARE_EMULATED 1
#define USES_TILES
#include "tiles_emulated.h"
#elif defined(__AVX512BW__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>)
#define HAS_TILES 1
#define USES_TILES __attribute__((target("amx-tile,amx-bf16")))
#include <immintrin.h>
#endif
#endif
#ifndef HAS_TILES
#define HAS_TILES 0
#endif
#ifndef ARE_EMULATED
#define ARE_EMULATED 0
#endif

typedef unsigned short bfloat16;

enum {
    BLOCK = 32, /* rows and columns of Y in four tiles */
    STEP = 32,  /* channels of a tile */
};

/* A packed W, from the first block and step that are used. A whole block has `depth` steps. `w` is the same part of W
before packing. */
typedef struct {
    const bfloat16 *blocks;
    Index depth;
    const float *w;
    Index w_stride, channel_stride;
} Blocks;

#if HAS_TILES
typedef float floats16 __attribute__((vector_size(64)));
typedef float floats16_in_memory __attribute__((vector_size(64), aligned(4), may_alias));
typedef unsigned bits16 __attribute__((vector_size(64), may_alias));

enum {
    TILE = 512, /* bfloat16 numbers of a tile */
    ROOM = 3 << 16, /* bfloat16 numbers of X packed at a time: they stay in the L2 cache while all of W is read */
    MIN_ROWS = 128, /* rows of X packed at a time, unless X has fewer; with fewer, rereading W costs more */
    MAX_ROWS = 512,
};

/* Limits of the largest absolute value of a normal row, as bits: 2**-45 and 2**55. Within them, no sum of 65,536
products overflows, and no part that affects the accuracy of float32 is below 2**-126. */
enum { SMALL = (127 - 45) << 23, LARGE = (127 + 55) << 23 };

INLINE int is_normal(unsigned largest) { return !largest || (largest >= SMALL && largest <= LARGE); }

INLINE bits16 larger(bits16 a, bits16 b) {
    bits16 a_is_larger = (bits16)(a > b);
    return (a & a_is_larger) | (b & ~a_is_larger);
}

INLINE unsigned largest_of_bits(bits16 values) {
    unsigned most = 0;
    for (int i = 0; i < 16; i++) most = values[i] > most ? values[i] : most;
    return most;
}

/* STEP channels times scale -> parts [parts][16 pairs], each rounded to nearest; `largest` collects the absolute values
as bits. `scale` is a constant in the usual case. */
INLINE void split(const float *x, float scale, int parts, bits16 *out, bits16 *largest) {
    floats16 low = *(const floats16_in_memory *)x, high = *(const floats16_in_memory *)(x + 16);
    if (scale != 1) low *= scale, high *= scale;
    *largest = larger(*largest, larger((bits16)low & 0x7fffffff, (bits16)high & 0x7fffffff));
    UNROLL for (int p = 0; p < parts; p++) {
        bits16 low_part = ((bits16)low + 0x8000) & 0xffff0000, high_part = ((bits16)high + 0x8000) & 0xffff0000;
        out[p] = low_part >> 16 | high_part;
        low -= (floats16)low_part;
        high -= (floats16)high_part;
    }
}

/* Pack one row into row `row` of a block. Returns the bits of its largest absolute value. */
INLINE unsigned pack_row(const float *x, Index channel_stride, Index K, float scale, int parts, Index row,
                         bfloat16 *tiles) {
    bfloat16 *to = tiles + row / 16 * TILE + row % 16 * STEP;
    bits16 largest = {0}, pieces[3];
    for (Index k = 0; k < K; k += STEP) {
        float copy[STEP];
        const float *from = x + k;
        if (channel_stride != 1 || K - k < STEP) {
            Index n = K - k < STEP ? K - k : STEP;
            for (Index c = 0; c < n; c++) copy[c] = x[(k + c) * channel_stride];
            for (Index c = n; c < STEP; c++) copy[c] = 0;
            from = copy;
        }
        split(from, scale, parts, pieces, &largest);
        UNROLL for (int p = 0; p < parts; p++) *(bits16 *)(to + p * 2 * TILE) = pieces[p];
        to += parts * 2 * TILE;
    }
    return largest_of_bits(largest);
}

/* Zero rows `first` to BLOCK of tiles, which belong to no row of X or W */
static void pack_zeros(Index first, Index K, int parts, bfloat16 *tiles) {
    for (Index k = 0; k < K; k += STEP)
        for (int p = 0; p < parts; p++, tiles += 2 * TILE)
            for (Index row = first; row < BLOCK; row++) memset(tiles + row * STEP, 0, STEP * sizeof(bfloat16));
}

static void transpose(unsigned *tile) {
    unsigned copy[256];
    memcpy(copy, tile, sizeof copy);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) tile[j * 16 + i] = copy[i * 16 + j];
}

/* Configure all eight tiles of this thread: 16 rows of 64 bytes */
USES_TILES static void start_tiles(void) {
    /* A constant: GCC before 14 assumes that only the first 8 bytes are read, and could drop assignments to others. */
    static const struct {
        unsigned char palette, row, unused[14];
        unsigned short bytes[16];
        unsigned char rows[16];
    } shape = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shape);
}

static Index steps_of(Index K) { return (K + STEP - 1) / STEP; }

/* W [N, K] -> its blocks first to last. Returns whether all rows are normal. */
INLINE int pack_parts(const float *w, Index w_stride, Index channel_stride, Index N, Index K, int parts, Index first,
                       Index last, bfloat16 *blocks) {
    Index size = steps_of(K) * parts * 2 * TILE;
    int normal = 1;
    for (Index b = first; b < last; b++) {
        bfloat16 *block = blocks + b * size;
        Index rows = N - b * BLOCK < BLOCK ? N - b * BLOCK : BLOCK;
        for (Index j = 0; j < rows; j++)
            normal &= is_normal(pack_row(w + (b * BLOCK + j) * w_stride, channel_stride, K, 1, parts, j, block));
        if (rows < BLOCK) pack_zeros(rows, K, parts, block);
        for (Index t = 0; t < size; t += TILE) transpose((unsigned *)(block + t));
    }
    return normal;
}

static int pack_blocks(const float *w, Index w_stride, Index channel_stride, Index N, Index K, int parts, Index first,
                       Index last, bfloat16 *blocks) {
    return parts == 1 ? pack_parts(w, w_stride, channel_stride, N, K, 1, first, last, blocks)
         : parts == 2 ? pack_parts(w, w_stride, channel_stride, N, K, 2, first, last, blocks)
                      : pack_parts(w, w_stride, channel_stride, N, K, 3, first, last, blocks);
}

#define LOAD_X(part) \
    _tile_loadd(4, x + (part)*2 * TILE, 64); \
    _tile_loadd(5, x + ((part)*2 + 1) * TILE, 64);
#define LOAD_W(part) \
    _tile_loadd(6, w + (part)*2 * TILE, 64); \
    _tile_loadd(7, w + ((part)*2 + 1) * TILE, 64);
#define MULTIPLY \
    _tile_dpbf16ps(0, 4, 6); \
    _tile_dpbf16ps(1, 4, 7); \
    _tile_dpbf16ps(2, 5, 6); \
    _tile_dpbf16ps(3, 5, 7);

/* A block whose sums are computed, but not yet written: to Y or, if `packed` is not NULL, in parts to one step of the
next product's X. Pointers are to the first element of the block. */
typedef struct {
    const float *sums;
    Index rows, columns;
    float *y;
    Index y_stride;
    int add;
    Epilogue epilogue;
    bfloat16 *packed;
    bits16 *largest; /* [rows], collects the absolute values that are packed */
} Unfinished;

/* Y = sums, Y + sums if `add`, and the epilogue, in rows first to last of a block */
INLINE void finish_rows(const Unfinished *block, Index columns, Index first, Index last) {
    const float *bias = block->epilogue.bias, *residual = block->epilogue.residual, *erfc = block->epilogue.erfc;
    int relu = block->epilogue.relu, add = block->add;
    if (residual) residual += first * block->epilogue.residual_stride;
    for (Index i = first; i < last; i++) {
        const float *sums = block->sums + i * BLOCK;
        float *y = block->y + i * block->y_stride;
        Index j = 0;
        for (; j + LANES <= columns; j += LANES) {
            vector sum = load(sums + j);
            if (add) sum = load(y + j) + sum;
            if (bias) sum += load(bias + j);
            if (residual) sum += load(residual + j);
            if (relu) sum = relu_of(sum);
            store(y + j, erfc ? gelu_of(sum, erfc) : sum);
        }
        float *rest = y + j;
        for (; j < columns; j++) {
            float sum = add ? y[j] + sums[j] : sums[j];
            if (bias) sum += bias[j];
            if (residual) sum += residual[j];
            y[j] = relu && sum < 0 ? 0 : sum; /* NaN stays NaN */
        }
        if (erfc) activate(rest, y + columns - rest, 0, erfc, rest);
        if (residual) residual += block->epilogue.residual_stride;
    }
}

/* The same in parts, for a block with all columns */
INLINE void pack_finished(const Unfinished *block, int parts, Index first, Index last) {
    const float *bias = block->epilogue.bias, *erfc = block->epilogue.erfc;
    for (Index i = first; i < last; i++) {
        float row[BLOCK];
        bits16 pieces[3];
        bfloat16 *to = block->packed + i / 16 * TILE + i % 16 * STEP;
        UNROLL for (Index j = 0; j < BLOCK; j += LANES) {
            vector sum = load(block->sums + i * BLOCK + j) + load(bias + j);
            store(row + j, erfc ? gelu_of(sum, erfc) : relu_of(sum));
        }
        split(row, 1, parts, pieces, block->largest + i);
        UNROLL for (int p = 0; p < parts; p++) *(bits16 *)(to + p * 2 * TILE) = pieces[p];
    }
}

INLINE void finish_some(const Unfinished *block, int parts, Index first, Index last) {
    if (block->packed)
        pack_finished(block, parts, first, last);
    else if (block->columns == BLOCK)
        finish_rows(block, BLOCK, first, last);
    else
        finish_rows(block, block->columns, first, last);
}

/* sums [BLOCK, BLOCK] = one block of X times one block of W. The smallest products are summed first. Each LOAD loads
only the tiles that change. Between steps, rows of the block before are written: both kinds of instructions overlap. */
USES_TILES
INLINE void multiply_block(const bfloat16 *x, const bfloat16 *w, Index steps, int parts, float *sums,
                           const Unfinished *before) {
    Index finished = 0;
    __asm__ volatile("" ::: "memory"); /* GCC assumes that tile loads read no memory, so x and w must be written here */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (Index s = 0; s < steps; s++) {
        Index last = (s + 1) * before->rows / steps;
        if (parts == 3) {
            LOAD_X(0) LOAD_W(2) MULTIPLY LOAD_W(1) MULTIPLY LOAD_X(1) MULTIPLY LOAD_W(0) MULTIPLY
            LOAD_X(2) MULTIPLY LOAD_X(0) MULTIPLY
        } else if (parts == 2) {
            LOAD_X(0) LOAD_W(1) MULTIPLY LOAD_W(0) MULTIPLY LOAD_X(1) MULTIPLY
        } else {
            LOAD_X(0) LOAD_W(0) MULTIPLY
        }
        finish_some(before, parts, finished, last);
        finished = last;
        x += parts * 2 * TILE;
        w += parts * 2 * TILE;
    }
    _tile_stored(0, sums, BLOCK * sizeof(float));
    _tile_stored(1, sums + 16, BLOCK * sizeof(float));
    _tile_stored(2, sums + 16 * BLOCK, BLOCK * sizeof(float));
    _tile_stored(3, sums + 16 * BLOCK + 16, BLOCK * sizeof(float));
}

/* Pack a row of X. Returns the factor of its sums: 1, another power of two if it was scaled, or NaN if it has infinity
or NaN. */
INLINE float pack_scaled(const float *x, Index channel_stride, Index K, int parts, Index row, bfloat16 *tiles) {
    unsigned largest = pack_row(x, channel_stride, K, 1, parts, row, tiles);
    if (is_normal(largest)) return 1;
    int exponent = (int)(largest >> 23) - 127;
    if (exponent == 128) return __builtin_nanf("");
    pack_row(x, channel_stride, K, __builtin_ldexpf(1, -exponent), parts, row, tiles);
    return __builtin_ldexpf(1, exponent);
}

/* One row of sums [N] for a row of X with infinity or NaN. No sum is finite then, so finite channels do not matter. */
static void infinite_row(const float *x, Index channel_stride, const float *w, Index w_stride, Index w_channel_stride,
                         Index N, Index K, float *sums) {
    for (Index n = 0; n < N; n++) sums[n] = 0;
    for (Index k = 0; k < K; k++) {
        float channel = x[k * channel_stride];
        if (channel - channel == 0) continue; /* finite */
        for (Index n = 0; n < N; n++) sums[n] += channel * w[n * w_stride + k * w_channel_stride];
        if (channel != channel) return; /* after NaN, all are NaN */
    }
}

/* Prefetch n floats into the L2 cache; `write` is a constant */
INLINE void prefetch(const float *x, Index n, int write) {
    for (Index i = 0; i < n; i += 16) __builtin_prefetch(x + i, write, 2);
}

static Index rows_at_a_time(Index M, Index K, int parts) {
    Index rows = ROOM / (steps_of(K) * STEP * parts * BLOCK) * BLOCK, most = (M + BLOCK - 1) / BLOCK * BLOCK;
    if (rows < MIN_ROWS) rows = MIN_ROWS;
    if (rows > MAX_ROWS) rows = MAX_ROWS;
    return rows > most ? most : rows;
}

USES_TILES
INLINE void multiply_blocks(const float *x, Index x_stride, Index channel_stride, const Blocks *w, int parts, Index M,
                            Index N, Index K, float *y, Index y_stride, int add, const Epilogue *epilogue,
                            bfloat16 *room) {
    Index steps = steps_of(K), size = steps * parts * 2 * TILE, at_a_time = rows_at_a_time(M, K, parts);
    float sums[2][BLOCK * BLOCK] __attribute__((aligned(64)));
    int turn = 0;
    Unfinished before = {.rows = 0, .columns = BLOCK, .y_stride = y_stride, .add = add, .epilogue = *epilogue};
    for (Index m0 = 0; m0 < M; m0 += at_a_time) {
        Index m1 = M - m0 < at_a_time ? M : m0 + at_a_time;
        float factors[MAX_ROWS];
        for (Index m = m0; m < m1; m++)
            factors[m - m0] = pack_scaled(x + m * x_stride, channel_stride, K, parts, (m - m0) % BLOCK,
                                          room + (m - m0) / BLOCK * size);
        if ((m1 - m0) % BLOCK) pack_zeros((m1 - m0) % BLOCK, K, parts, room + (m1 - m0) / BLOCK * size);
        /* Rows that are packed and written next: each block prefetches some, so that packing does not wait for them */
        Index next = m1, end = M - m1 < at_a_time ? M : m1 + at_a_time;
        Index blocks = (m1 - m0 + BLOCK - 1) / BLOCK * ((N + BLOCK - 1) / BLOCK);
        for (Index n = 0; n < N; n += BLOCK)
            for (Index m = m0; m < m1; m += BLOCK, turn = !turn) {
                for (Index until = next + (end - next) / blocks--; next < until; next++) {
                    prefetch(x + next * x_stride, channel_stride == 1 ? K : 0, 0);
                    prefetch(y + next * y_stride, N, 1);
                    if (epilogue->residual) prefetch(epilogue->residual + next * epilogue->residual_stride, N, 0);
                }
                multiply_block(room + (m - m0) / BLOCK * size,
                               w->blocks + n / BLOCK * w->depth * parts * 2 * TILE, steps, parts, sums[turn], &before);
                before.sums = sums[turn];
                before.rows = m1 - m < BLOCK ? m1 - m : BLOCK;
                before.columns = N - n < BLOCK ? N - n : BLOCK;
                before.y = y + m * y_stride + n;
                if (epilogue->bias) before.epilogue.bias = epilogue->bias + n;
                if (epilogue->residual)
                    before.epilogue.residual = epilogue->residual + m * epilogue->residual_stride + n;
                for (Index i = 0; i < before.rows; i++) {
                    float factor = factors[m - m0 + i], *row = sums[turn] + i * BLOCK;
                    if (factor != factor)
                        infinite_row(x + (m + i) * x_stride, channel_stride, w->w + n * w->w_stride, w->w_stride,
                                     w->channel_stride, before.columns, K, row);
                    else if (factor != 1)
                        for (Index j = 0; j < BLOCK; j++) row[j] *= factor;
                }
            }
    }
    finish_some(&before, parts, 0, before.rows);
}

/* Y [M, C] = activation(X [M, C] W1^T + bias) W2^T, plus the epilogue; W1 [F, C], W2 [C, F], F a multiple of BLOCK.
`chunk` hidden channels are computed at a time and stay in parts in the cache, so Y is summed in the same order as by
`multiply_blocks` on such chunks. Returns 0, with Y undefined, if a row of X or of the hidden layer is not normal. */
USES_TILES
INLINE int feed_forward_blocks(const float *x, Index x_stride, Index channel_stride, const Blocks *w1, const Blocks *w2,
                               int parts, Index M, Index C, Index F, Index chunk, float *y, Index y_stride,
                               const Epilogue *hidden, const Epilogue *epilogue, bfloat16 *room) {
    Index blocks = (M + BLOCK - 1) / BLOCK, steps = steps_of(C), size = parts * 2 * TILE, x_size = steps * size;
    Index chunk_size = chunk / STEP * size;
    bfloat16 *packed = room + blocks * x_size;
    bits16 *largest = (bits16 *)(packed + blocks * chunk_size);
    float sums[2][BLOCK * BLOCK] __attribute__((aligned(64)));
    int turn = 0;
    for (Index m = 0; m < M; m++)
        if (!is_normal(pack_row(x + m * x_stride, channel_stride, C, 1, parts, m % BLOCK, room + m / BLOCK * x_size)))
            return 0;
    if (M % BLOCK) pack_zeros(M % BLOCK, C, parts, room + M / BLOCK * x_size);
    for (Index f0 = 0; f0 < F; f0 += chunk) {
        Index f1 = f0 + chunk < F ? f0 + chunk : F;
        Unfinished before = {.rows = 0};
        memset(largest, 0, blocks * BLOCK * sizeof *largest);
        for (Index f = f0; f < f1; f += BLOCK)
            for (Index b = 0; b < blocks; b++, turn = !turn) {
                multiply_block(room + b * x_size, w1->blocks + f / BLOCK * x_size, steps, parts, sums[turn], &before);
                before = (Unfinished){.sums = sums[turn], .rows = BLOCK, .epilogue = *hidden,
                                      .packed = packed + b * chunk_size + (f - f0) / STEP * size,
                                      .largest = largest + b * BLOCK};
                before.epilogue.bias += f;
            }
        finish_some(&before, parts, 0, before.rows);
        for (Index m = 0; m < M; m++)
            if (!is_normal(largest_of_bits(largest[m]))) return 0;
        before.rows = 0;
        for (Index n = 0; n < C; n += BLOCK)
            for (Index b = 0; b < blocks; b++, turn = !turn) {
                multiply_block(packed + b * chunk_size, w2->blocks + (n / BLOCK * w2->depth + f0 / STEP) * size,
                               (f1 - f0) / STEP, parts, sums[turn], &before);
                before = (Unfinished){.sums = sums[turn], .rows = M - b * BLOCK < BLOCK ? M - b * BLOCK : BLOCK,
                                      .columns = C - n < BLOCK ? C - n : BLOCK, .y = y + b * BLOCK * y_stride + n,
                                      .y_stride = y_stride, .add = f0 > 0};
                if (f1 < F) continue;
                before.epilogue = *epilogue;
                if (epilogue->bias) before.epilogue.bias += n;
                if (epilogue->residual) before.epilogue.residual += b * BLOCK * epilogue->residual_stride + n;
            }
        finish_some(&before, parts, 0, before.rows);
    }
    return 1;
}

#define PARTS(n) \
    case n: multiply_blocks(x, x_stride, channel_stride, w, n, M, N, K, y, y_stride, add, epilogue, room); break;

/* Y [M, N] = X [M, K] W^T, or Y + X W^T if `add`, plus the epilogue. `room` has `room_for` numbers at a cache line. */
USES_TILES
static void multiply_tiles(const float *x, Index x_stride, Index channel_stride, const Blocks *w, int parts, Index M,
                           Index N, Index K, float *y, Index y_stride, int add, const Epilogue *epilogue, void *room) {
    start_tiles();
    switch (parts) { PARTS(1) PARTS(2) PARTS(3) }
    _tile_release();
}

static Index room_for(Index M, Index K, int parts) { return rows_at_a_time(M, K, parts) * steps_of(K) * STEP * parts; }

#define FEED_FORWARD(n) \
    case n: \
        normal = feed_forward_blocks(x, x_stride, channel_stride, w1, w2, n, M, C, F, chunk, y, y_stride, hidden, \
                                     epilogue, room); \
        break;

/* `feed_forward_blocks`. `room` has `room_for_feed_forward` numbers at a cache line. */
USES_TILES
static int feed_forward_tiles(const float *x, Index x_stride, Index channel_stride, const Blocks *w1, const Blocks *w2,
                              int parts, Index M, Index C, Index F, Index chunk, float *y, Index y_stride,
                              const Epilogue *hidden, const Epilogue *epilogue, void *room) {
    int normal = 0;
    start_tiles();
    switch (parts) { FEED_FORWARD(1) FEED_FORWARD(2) FEED_FORWARD(3) }
    _tile_release();
    return normal;
}

static Index room_for_feed_forward(Index M, Index C, Index chunk, int parts) {
    Index rows = (M + BLOCK - 1) / BLOCK * BLOCK;
    return rows * ((steps_of(C) * STEP + chunk) * parts + (Index)(sizeof(bits16) / sizeof(bfloat16)));
}

#else /* for compilers and processors without tiles; never called */
static int pack_blocks(const float *w, Index w_stride, Index channel_stride, Index N, Index K, int parts, Index first,
                       Index last, bfloat16 *blocks) {
    return 0;
}
static void multiply_tiles(const float *x, Index x_stride, Index channel_stride, const Blocks *w, int parts, Index M,
                           Index N, Index K, float *y, Index y_stride, int add, const Epilogue *epilogue, void *room) {
}
static Index room_for(Index M, Index K, int parts) { return 0; }
static int feed_forward_tiles(const float *x, Index x_stride, Index channel_stride, const Blocks *w1, const Blocks *w2,
                              int parts, Index M, Index C, Index F, Index chunk, float *y, Index y_stride,
                              const Epilogue *hidden, const Epilogue *epilogue, void *room) {
    return 0;
}
static Index room_for_feed_forward(Index M, Index C, Index chunk, int parts) { return 0; }
#endif
