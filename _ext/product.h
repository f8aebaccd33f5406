/* Matrix products in float32, for one thread: Y = X W^T, plus a bias and a residual, then an activation.

Every element of Y is summed in a fixed order, which does not depend on the other rows of X: in `multiply_panels` as one
chain of multiply-adds per DEPTH channels, in `multiply_few` as one partial sum per vector lane. So a product has the
same bits for any division of its rows, and so for any number of threads.

`multiply_panels` computes tiles of TILE_ROWS x PANEL elements, whose sums stay in registers. W is first packed in
panels of PANEL rows, in the order in which a tile reads it. `multiply_few` is for a few rows of X, for which packing W
would cost more than it saves. It reads W in place.

The sizes of a tile follow from the number of vector registers. A block of W has DEPTH channels and BLOCK_WEIGHTS
elements. It stays in the L2 cache while all rows of X are multiplied by it, BLOCK_ROWS at a time: enough to use a panel
several times, and few enough to write Y soon in whole rows, since the memory is slow to take narrow columns. */

#ifndef MINIGDINO_PRODUCT_H
#define MINIGDINO_PRODUCT_H

#include "vectors.h"

#if defined(__AVX512F__)
enum { TILE_ROWS = 12, FEW_ROWS = 6, FEW_COLUMNS = 4, BLOCK_WEIGHTS = 3 << 16, BLOCK_ROWS = 48 };
#elif defined(__AVX2__)
enum { TILE_ROWS = 6, FEW_ROWS = 4, FEW_COLUMNS = 2, BLOCK_WEIGHTS = 1 << 17, BLOCK_ROWS = 96 };
#elif defined(__aarch64__)
enum { TILE_ROWS = 12, FEW_ROWS = 4, FEW_COLUMNS = 4, BLOCK_WEIGHTS = 1 << 17, BLOCK_ROWS = 96 };
#else
enum { TILE_ROWS = 4, FEW_ROWS = 3, FEW_COLUMNS = 3, BLOCK_WEIGHTS = 1 << 17, BLOCK_ROWS = 96 };
#endif
enum { PANEL = 2 * LANES, DEPTH = 512 }; /* DEPTH is the same everywhere, so AVX2 and AVX-512 sum in the same order */

/* What follows the sums of a product: bias [N] and residual [M, N], which may be NULL, and ReLU or GELU. `erfc` is the
ERFC [9] of erfc.py for GELU, else NULL. */
typedef struct {
    const float *bias, *residual;
    Index residual_stride;
    int relu;
    const float *erfc;
} Epilogue;

/* y [n] = ReLU or GELU of x [n], which may be y; erfc as in Epilogue */
static void activate(const float *x, Index n, int relu, const float *erfc, float *y) {
    for (Index i = 0; i < n; i += LANES) {
        vector value = n - i < LANES ? load_some(x + i, n - i) : load(x + i);
        if (relu) value = relu_of(value);
        if (erfc) value = gelu_of(value, erfc);
        if (n - i < LANES)
            store_some(y + i, value, n - i);
        else
            store(y + i, value);
    }
}

/* Y [rows, vectors * LANES] = X W^T over `depth` channels, or Y + X W^T if `add`. W is a packed panel; epilogue may be
NULL, and its GELU is left to the caller. rows and vectors are constants where this is inlined, so all sums are in
registers. */
INLINE void tile(int rows, int vectors, const float *x, Index x_stride, Index channel_stride, const float *panel,
                 Index depth, float *y, Index y_stride, int add, const Epilogue *epilogue) {
    vector sums[TILE_ROWS][2];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < vectors; v++) sums[i][v] = (vector){0};
    for (Index k = 0; k < depth; k++) {
        vector w[2];
        UNROLL for (int v = 0; v < vectors; v++) w[v] = load(panel + v * LANES);
        UNROLL for (int i = 0; i < rows; i++)
            UNROLL for (int v = 0; v < vectors; v++) sums[i][v] += x[i * x_stride] * w[v];
        panel += PANEL;
        x += channel_stride;
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < vectors; v++) {
            float *to = y + i * y_stride + v * LANES;
            vector sum = add ? load(to) + sums[i][v] : sums[i][v];
            if (epilogue) {
                if (epilogue->bias) sum += load(epilogue->bias + v * LANES);
                if (epilogue->residual) sum += load(epilogue->residual + i * epilogue->residual_stride + v * LANES);
                if (epilogue->relu) sum = relu_of(sum);
            }
            store(to, sum);
        }
}

#define TILE(n) case n: tile(n, vectors, x, x_stride, channel_stride, panel, depth, y, y_stride, add, epilogue); break;

/* `tile` for 1 to TILE_ROWS rows */
INLINE void tile_of(int rows, int vectors, const float *x, Index x_stride, Index channel_stride, const float *panel,
                    Index depth, float *y, Index y_stride, int add, const Epilogue *epilogue) {
    switch (rows) {
        TILE(1) TILE(2) TILE(3) TILE(4)
#if defined(__AVX2__) || defined(__aarch64__)
        TILE(5) TILE(6)
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
        TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)
#endif
    }
}

static void wide_tile(int rows, const float *x, Index x_stride, Index channel_stride, const float *panel,
                      Index depth, float *y, Index y_stride, int add, const Epilogue *epilogue) {
    if (channel_stride == 1) /* a constant, which saves an addition per channel */
        tile_of(rows, 2, x, x_stride, 1, panel, depth, y, y_stride, add, epilogue);
    else
        tile_of(rows, 2, x, x_stride, channel_stride, panel, depth, y, y_stride, add, epilogue);
}

/* The last columns of a product, fewer than PANEL. They are computed in a buffer that has room for a whole panel. */
static void edge_tile(int rows, const float *x, Index x_stride, Index channel_stride, const float *panel,
                      Index depth, float *y, Index y_stride, Index columns, int add, const Epilogue *epilogue) {
    float sums[TILE_ROWS * PANEL], bias[PANEL], residual[TILE_ROWS * PANEL];
    Epilogue whole = {.residual_stride = PANEL};
    size_t bytes = columns * sizeof(float);
    if (add)
        for (int i = 0; i < rows; i++) memcpy(sums + i * PANEL, y + i * y_stride, bytes);
    if (epilogue) {
        whole.relu = epilogue->relu;
        if (epilogue->bias) whole.bias = memcpy(bias, epilogue->bias, bytes);
        if (epilogue->residual) {
            for (int i = 0; i < rows; i++)
                memcpy(residual + i * PANEL, epilogue->residual + i * epilogue->residual_stride, bytes);
            whole.residual = residual;
        }
    }
    if (columns > LANES)
        tile_of(rows, 2, x, x_stride, channel_stride, panel, depth, sums, PANEL, add, epilogue ? &whole : NULL);
    else
        tile_of(rows, 1, x, x_stride, channel_stride, panel, depth, sums, PANEL, add, epilogue ? &whole : NULL);
    for (int i = 0; i < rows; i++) memcpy(y + i * y_stride, sums + i * PANEL, bytes);
}

/* W [N, K] -> panels first to last, each [K, PANEL]. Rows beyond N become zeros. */
static void pack_panels(const float *w, Index w_stride, Index channel_stride, Index N, Index K, Index first,
                        Index last, float *panels) {
    for (Index p = first; p < last; p++) {
        const float *rows = w + p * PANEL * w_stride;
        float *panel = panels + p * K * PANEL;
        Index n = N - p * PANEL < PANEL ? N - p * PANEL : PANEL;
        if (n < PANEL) memset(panel, 0, K * PANEL * sizeof(float));
        for (Index k0 = 0; k0 < K; k0 += LANES) { /* in blocks, which reads and writes whole cache lines */
            Index k1 = k0 + LANES < K ? k0 + LANES : K;
            for (Index j = 0; j < n; j++) __builtin_prefetch(rows + j * w_stride + k1 * channel_stride);
            for (Index k = k0; k < k1; k++)
                for (Index j = 0; j < n; j++) panel[k * PANEL + j] = rows[j * w_stride + k * channel_stride];
        }
    }
}

/* Y [rows, columns] as in `tile`, for up to PANEL columns and with the whole epilogue */
static void any_tile(int rows, const float *x, Index x_stride, Index channel_stride, const float *panel, Index depth,
                     float *y, Index y_stride, Index columns, int add, const Epilogue *epilogue) {
    if (columns == PANEL)
        wide_tile(rows, x, x_stride, channel_stride, panel, depth, y, y_stride, add, epilogue);
    else
        edge_tile(rows, x, x_stride, channel_stride, panel, depth, y, y_stride, columns, add, epilogue);
    if (epilogue && epilogue->erfc)
        for (int i = 0; i < rows; i++) activate(y + i * y_stride, columns, 0, epilogue->erfc, y + i * y_stride);
}

/* Y [M, N] as in `multiply_panels`, over `depth` <= DEPTH channels, for N <= BLOCK_WEIGHTS / depth */
static void multiply_panel_block(const float *x, Index x_stride, Index channel_stride, const float *panels,
                                 Index panel_depth, Index M, Index N, Index depth, float *y, Index y_stride, int add,
                                 const Epilogue *epilogue) {
    for (Index m0 = 0; m0 < M; m0 += BLOCK_ROWS) {
        Index m1 = m0 + BLOCK_ROWS < M ? m0 + BLOCK_ROWS : M;
        for (Index n = 0; n < N; n += PANEL)
            for (Index m = m0; m < m1; m += TILE_ROWS) {
                Epilogue part;
                if (epilogue) {
                    part = *epilogue;
                    if (part.bias) part.bias += n;
                    if (part.residual) part.residual += m * part.residual_stride + n;
                }
                any_tile((int)(m1 - m < TILE_ROWS ? m1 - m : TILE_ROWS), x + m * x_stride, x_stride, channel_stride,
                         panels + n * panel_depth, depth, y + m * y_stride + n, y_stride, N - n < PANEL ? N - n : PANEL,
                         add, epilogue ? &part : NULL);
            }
    }
}

/* Y [M, N] = X [M, K] W^T, or Y + X W^T if `add`. W [N, K] is packed; a panel has panel_depth >= K channels, of which
the first K from `panels` on are used. */
static void multiply_panels(const float *x, Index x_stride, Index channel_stride, const float *panels,
                            Index panel_depth, Index M, Index N, Index K, float *y, Index y_stride, int add,
                            const Epilogue *epilogue) {
    Index k = 0;
    do { /* once for K = 0 */
        Index depth = K - k < DEPTH ? K - k : DEPTH, width = BLOCK_WEIGHTS / (depth ? depth : 1) / PANEL * PANEL;
        for (Index n = 0; n < N; n += width) {
            Epilogue part = *epilogue;
            if (part.bias) part.bias += n;
            if (part.residual) part.residual += n;
            multiply_panel_block(x + k * channel_stride, x_stride, channel_stride, panels + n * panel_depth + k * PANEL,
                                 panel_depth, M, N - n < width ? N - n : width, depth, y + n, y_stride, add || k,
                                 k + depth == K ? &part : NULL);
        }
        k += depth;
    } while (k < K);
}

/* Y [rows, columns] = X [rows, K] W^T, W [columns, K]; both with contiguous rows */
INLINE void dot_products(int rows, int columns, const float *x, Index x_stride, const float *w, Index w_stride,
                         Index K, float *y, Index y_stride) {
    vector sums[FEW_ROWS][FEW_COLUMNS];
    Index whole = K - K % LANES;
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < columns; j++) sums[i][j] = (vector){0};
    for (Index k = 0; k < whole; k += LANES) {
        vector weights[FEW_COLUMNS];
        UNROLL for (int j = 0; j < columns; j++) weights[j] = load(w + j * w_stride + k);
        UNROLL for (int i = 0; i < rows; i++) {
            vector xs = load(x + i * x_stride + k);
            UNROLL for (int j = 0; j < columns; j++) sums[i][j] += xs * weights[j];
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < columns; j++) {
            float sum = sum_of(sums[i][j]);
            for (Index k = whole; k < K; k++) sum += x[i * x_stride + k] * w[j * w_stride + k];
            y[i * y_stride + j] = sum;
        }
}

#define DOTS(n) case n: dot_products(n, columns, x, x_stride, w, w_stride, K, y, y_stride); break;

/* `dot_products` for 1 to FEW_ROWS rows */
INLINE void dot_products_of(int rows, int columns, const float *x, Index x_stride, const float *w, Index w_stride,
                            Index K, float *y, Index y_stride) {
    switch (rows) {
        DOTS(1) DOTS(2) DOTS(3)
#if defined(__AVX2__) || defined(__aarch64__)
        DOTS(4)
#endif
#if defined(__AVX512F__)
        DOTS(5) DOTS(6)
#endif
    }
}

/* Y [M, N] = X [M, K] W^T, W [N, K], for few rows of X: every row of W is read once */
static void multiply_few(const float *x, Index x_stride, const float *w, Index w_stride, Index M, Index N, Index K,
                         float *y, Index y_stride) {
    for (Index n = 0; n < N;) {
        int columns = N - n >= FEW_COLUMNS ? FEW_COLUMNS : 1;
        for (Index m = 0; m < M; m += FEW_ROWS) {
            int rows = (int)(M - m < FEW_ROWS ? M - m : FEW_ROWS);
            const float *from = x + m * x_stride, *weights = w + n * w_stride;
            float *to = y + m * y_stride + n;
            if (columns == FEW_COLUMNS)
                dot_products_of(rows, FEW_COLUMNS, from, x_stride, weights, w_stride, K, to, y_stride);
            else
                dot_products_of(rows, 1, from, x_stride, weights, w_stride, K, to, y_stride);
        }
        n += columns;
    }
}

#include "tiles.h"

#endif
