/* Matrix products in bfloat16, summed in float32, by dot products of pairs (AVX512-BF16), for one thread.

X and W are packed as one part, in the blocks of tiles.h. A row of a packed W has one pair of channels for each of 16
rows: the operand of a dot product. A row of Y adds such rows, each with one of its own pairs in all lanes. Sums stay in
registers.

Dot products of pairs take numbers below 2**-126 as 0, as tiles do, so rows of X are scaled in the same way.

Every element of Y is summed in a fixed order, which does not depend on the other rows of X. */

#include "product.h"

#if HAS_TILES

#if ARE_EMULATED
#define USES_PAIRS
INLINE floats16 number(bits16 x) { return (floats16)(x & (bits16)((x & 0x7f800000) != 0)); }

/* sums + the products of both halves of each pair. Unlike the processor, this does not flush subnormal sums to 0. */
INLINE floats16 add_pairs(floats16 sums, bits16 x, bits16 w) {
    sums += number(x & 0xffff0000) * number(w & 0xffff0000);
    return sums + number(x << 16) * number(w << 16);
}
#else
/* The compiler emits these instructions in functions with this attribute only, as tiles.h does for tiles */
#define USES_PAIRS __attribute__((target("avx512bf16")))
USES_PAIRS INLINE floats16 add_pairs(floats16 sums, bits16 x, bits16 w) {
    return (floats16)_mm512_dpbf16_ps((__m512)sums, (__m512bh)x, (__m512bh)w);
}
#endif

typedef unsigned unsigned_in_memory __attribute__((may_alias));

enum { PAIR_ROWS = 8 }; /* rows of Y whose sums are in registers: two vectors each, enough to hide the latency */

/* sums [PAIR_ROWS, BLOCK] = rows of a block of X times one block of W. x is at the first of these rows. */
USES_PAIRS INLINE void multiply_rows(const bfloat16 *x, const bfloat16 *w, Index steps, float *sums) {
    floats16 totals[PAIR_ROWS][2];
    UNROLL for (int i = 0; i < PAIR_ROWS; i++) totals[i][0] = totals[i][1] = (floats16){0};
    for (Index s = 0; s < steps; s++, x += 2 * TILE, w += 2 * TILE)
        for (int p = 0; p < STEP / 2; p++) {
            bits16 left = *(const bits16 *)(w + p * STEP), right = *(const bits16 *)(w + TILE + p * STEP);
            UNROLL for (int i = 0; i < PAIR_ROWS; i++) {
                bits16 pair = (bits16){0} + *(const unsigned_in_memory *)(x + i * STEP + 2 * p);
                totals[i][0] = add_pairs(totals[i][0], pair, left);
                totals[i][1] = add_pairs(totals[i][1], pair, right);
            }
        }
    UNROLL for (int i = 0; i < PAIR_ROWS; i++)
        UNROLL for (int v = 0; v < 2; v++) *(floats16_in_memory *)(sums + i * BLOCK + v * 16) = totals[i][v];
}

/* Y [M, N] = X [M, K] W^T, or Y + X W^T if `add`, plus the epilogue. W is packed as one part. `room` has `room_for`
numbers at a cache line. */
USES_PAIRS
static void multiply_pairs(const float *x, Index x_stride, Index channel_stride, const Blocks *w, Index M, Index N,
                           Index K, float *y, Index y_stride, int add, const Epilogue *epilogue, bfloat16 *room) {
    Index steps = steps_of(K), size = steps * 2 * TILE, at_a_time = rows_at_a_time(M, K, 1);
    float sums[BLOCK * BLOCK] __attribute__((aligned(64))), factors[MAX_ROWS];
    for (Index m0 = 0; m0 < M; m0 += at_a_time) {
        Index m1 = M - m0 < at_a_time ? M : m0 + at_a_time;
        for (Index m = m0; m < m1; m++)
            factors[m - m0] = pack_scaled(x + m * x_stride, channel_stride, K, 1, (m - m0) % BLOCK,
                                          room + (m - m0) / BLOCK * size);
        for (Index n = 0; n < N; n += BLOCK)
            for (Index m = m0; m < m1; m += BLOCK) {
                const bfloat16 *rows = room + (m - m0) / BLOCK * size;
                const bfloat16 *columns = w->blocks + n / BLOCK * w->depth * 2 * TILE;
                Unfinished block = {sums, m1 - m < BLOCK ? m1 - m : BLOCK, N - n < BLOCK ? N - n : BLOCK,
                                    y + m * y_stride + n, y_stride, add, *epilogue};
                if (epilogue->bias) block.epilogue.bias += n;
                if (epilogue->residual) block.epilogue.residual += m * epilogue->residual_stride + n;
                for (Index i = 0; i < block.rows; i += PAIR_ROWS) /* sums of rows that were not packed are not used */
                    multiply_rows(rows + i / 16 * TILE + i % 16 * STEP, columns, steps, sums + i * BLOCK);
                for (Index i = 0; i < block.rows; i++) {
                    float factor = factors[m - m0 + i], *row = sums + i * BLOCK;
                    if (factor != factor)
                        infinite_row(x + (m + i) * x_stride, channel_stride, w->w + n * w->w_stride, w->w_stride,
                                     w->channel_stride, block.columns, K, row);
                    else if (factor != 1)
                        for (Index j = 0; j < BLOCK; j++) row[j] *= factor;
                }
                finish_some(&block, 1, 0, block.rows);
            }
    }
}

#else /* never called */
static void multiply_pairs(const float *x, Index x_stride, Index channel_stride, const Blocks *w, Index M, Index N,
                           Index K, float *y, Index y_stride, int add, const Epilogue *epilogue, bfloat16 *room) {
}
#endif
