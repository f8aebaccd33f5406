/* Matrix products in float32, for one thread: Y = X W^T, plus a bias, a residual and ReLU.

Every element of Y is one chain of multiply-adds over the channels, in blocks of DEPTH channels. The chain does not
depend on the other rows of X. So a product has the same bits for any division of its rows, and so for any number of
threads.

`multiply_panels` computes tiles of TILE_ROWS x PANEL elements, whose sums stay in registers. W is first packed in panels of
PANEL rows, in the order in which a tile reads it. `multiply_few` is for fewer rows of X than packing pays for: it reads
W as it is, once.

The vectors are those of the compiler (GCC and Clang). The sizes of a tile follow from the number of vector registers. */

#include <stddef.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16, TILE_ROWS = 12, FEW_ROWS = 6, FEW_COLUMNS = 4 };
#elif defined(__AVX2__)
enum { LANES = 8, TILE_ROWS = 6, FEW_ROWS = 4, FEW_COLUMNS = 2 };
#elif defined(__aarch64__)
enum { LANES = 4, TILE_ROWS = 12, FEW_ROWS = 4, FEW_COLUMNS = 4 };
#else
enum { LANES = 4, TILE_ROWS = 4, FEW_ROWS = 3, FEW_COLUMNS = 3 };
#endif
enum {
    PANEL = 2 * LANES,
    DEPTH = 256,                 /* channels per block: a panel of this depth stays in the nearest cache */
    BLOCK_ROWS = 16 * TILE_ROWS, /* rows of X whose block stays in the second cache while all panels are read */
};

typedef ptrdiff_t Index; /* of elements, and the distance of two of them */
typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float in_memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias)); /* at any element */
typedef int integers __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE vector load(const float *x) { return *(const in_memory *)x; }

INLINE void store(float *y, vector x) { *(in_memory *)y = x; }

INLINE vector relu_of(vector x) { return (vector)((integers)x & ~(x < (vector){0})); /* NaN stays NaN */ }

/* What a product adds to its sums. bias [N] and residual [M, N] may be NULL. */
typedef struct {
    const float *bias, *residual;
    Index residual_step;
    int relu;
} Epilogue;

/* Y [rows, vectors * LANES] = X W^T over `depth` channels, or Y + X W^T if `add`. W is a packed panel; finish may be
NULL. rows and vectors are constants where this is inlined, so all sums are in registers. */
INLINE void tile(int rows, int vectors, const float *x, Index x_step, Index channel_step, const float *panel, Index depth,
                 float *y, Index y_step, int add, const Epilogue *finish) {
    vector sums[TILE_ROWS][2];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < vectors; v++) sums[i][v] = (vector){0};
    for (Index k = 0; k < depth; k++) {
        vector w[2];
        UNROLL for (int v = 0; v < vectors; v++) w[v] = load(panel + v * LANES);
        UNROLL for (int i = 0; i < rows; i++)
            UNROLL for (int v = 0; v < vectors; v++) sums[i][v] += x[i * x_step] * w[v];
        panel += PANEL;
        x += channel_step;
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < vectors; v++) {
            float *to = y + i * y_step + v * LANES;
            vector sum = add ? load(to) + sums[i][v] : sums[i][v];
            if (finish) {
                if (finish->bias) sum += load(finish->bias + v * LANES);
                if (finish->residual) sum += load(finish->residual + i * finish->residual_step + v * LANES);
                if (finish->relu) sum = relu_of(sum);
            }
            store(to, sum);
        }
}

#define ROWS(n) case n: tile(n, vectors, x, x_step, channel_step, panel, depth, y, y_step, add, finish); break;

/* `tile` for 1 to TILE_ROWS rows */
INLINE void tile_of(int rows, int vectors, const float *x, Index x_step, Index channel_step, const float *panel,
                    Index depth, float *y, Index y_step, int add, const Epilogue *finish) {
    switch (rows) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4)
#if defined(__AVX2__) || defined(__aarch64__)
        ROWS(5) ROWS(6)
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
        ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif
    }
}

static void wide_tile(int rows, const float *x, Index x_step, Index channel_step, const float *panel, Index depth,
                      float *y, Index y_step, int add, const Epilogue *finish) {
    if (channel_step == 1) /* a constant, which saves an addition per channel */
        tile_of(rows, 2, x, x_step, 1, panel, depth, y, y_step, add, finish);
    else
        tile_of(rows, 2, x, x_step, channel_step, panel, depth, y, y_step, add, finish);
}

/* The last columns of a product, fewer than PANEL. They are computed in a buffer that has room for a whole panel. */
static void edge_tile(int rows, const float *x, Index x_step, Index channel_step, const float *panel, Index depth,
                      float *y, Index y_step, Index columns, int add, const Epilogue *finish) {
    float sums[TILE_ROWS * PANEL], bias[PANEL], residual[TILE_ROWS * PANEL];
    Epilogue whole = {NULL, NULL, PANEL, 0};
    size_t bytes = columns * sizeof(float);
    if (add)
        for (int i = 0; i < rows; i++) memcpy(sums + i * PANEL, y + i * y_step, bytes);
    if (finish) {
        whole.relu = finish->relu;
        if (finish->bias) whole.bias = memcpy(bias, finish->bias, bytes);
        if (finish->residual) {
            for (int i = 0; i < rows; i++)
                memcpy(residual + i * PANEL, finish->residual + i * finish->residual_step, bytes);
            whole.residual = residual;
        }
    }
    if (columns > LANES)
        tile_of(rows, 2, x, x_step, channel_step, panel, depth, sums, PANEL, add, finish ? &whole : NULL);
    else
        tile_of(rows, 1, x, x_step, channel_step, panel, depth, sums, PANEL, add, finish ? &whole : NULL);
    for (int i = 0; i < rows; i++) memcpy(y + i * y_step, sums + i * PANEL, bytes);
}

/* W [N, K] -> panels first to last, each [K, PANEL]. Rows beyond N become zeros. */
static void pack_panels(const float *w, Index w_step, Index channel_step, Index N, Index K, Index first, Index last,
                        float *panels) {
    for (Index p = first; p < last; p++) {
        const float *rows = w + p * PANEL * w_step;
        float *panel = panels + p * K * PANEL;
        Index n = N - p * PANEL < PANEL ? N - p * PANEL : PANEL;
        if (n < PANEL) memset(panel, 0, K * PANEL * sizeof(float));
        for (Index k0 = 0; k0 < K; k0 += LANES) { /* in blocks, which reads and writes whole cache lines */
            Index k1 = k0 + LANES < K ? k0 + LANES : K;
            for (Index k = k0; k < k1; k++)
                for (Index j = 0; j < n; j++) panel[k * PANEL + j] = rows[j * w_step + k * channel_step];
        }
    }
}

/* Y [M, N] = X [M, K] W^T, or Y + X W^T if `add`. W [N, K] is packed; a panel has panel_depth >= K channels, of which the
first K from `panels` on are used. */
static void multiply_panels(const float *x, Index x_step, Index channel_step, const float *panels, Index panel_depth, Index M,
                     Index N, Index K, float *y, Index y_step, int add, const Epilogue *finish) {
    for (Index m0 = 0; m0 < M; m0 += BLOCK_ROWS) {
        Index m1 = m0 + BLOCK_ROWS < M ? m0 + BLOCK_ROWS : M, k0 = 0;
        do { /* once for K = 0 */
            Index depth = K - k0 < DEPTH ? K - k0 : DEPTH;
            for (Index n0 = 0; n0 < N; n0 += PANEL) {
                const float *panel = panels + n0 * panel_depth + k0 * PANEL;
                for (Index m = m0; m < m1; m += TILE_ROWS) {
                    int rows = (int)(m1 - m < TILE_ROWS ? m1 - m : TILE_ROWS);
                    const float *from = x + m * x_step + k0 * channel_step;
                    float *to = y + m * y_step + n0;
                    Epilogue part = *finish, *last = k0 + depth == K ? &part : NULL;
                    if (part.bias) part.bias += n0;
                    if (part.residual) part.residual += m * part.residual_step + n0;
                    if (N - n0 >= PANEL)
                        wide_tile(rows, from, x_step, channel_step, panel, depth, to, y_step, add || k0, last);
                    else
                        edge_tile(rows, from, x_step, channel_step, panel, depth, to, y_step, N - n0, add || k0, last);
                }
            }
            k0 += depth;
        } while (k0 < K);
    }
}

INLINE float sum_of_vector(vector x) {
    float lane[LANES];
    store(lane, x);
    for (int half = LANES / 2; half; half /= 2)
        for (int j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

/* Y [rows, columns] = X [rows, K] W^T, W [columns, K]; both with contiguous rows */
INLINE void dot_products(int rows, int columns, const float *x, Index x_step, const float *w, Index w_step, Index K,
                         float *y, Index y_step) {
    vector sums[FEW_ROWS][FEW_COLUMNS];
    Index whole = K - K % LANES;
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < columns; j++) sums[i][j] = (vector){0};
    for (Index k = 0; k < whole; k += LANES) {
        vector weights[FEW_COLUMNS];
        UNROLL for (int j = 0; j < columns; j++) weights[j] = load(w + j * w_step + k);
        UNROLL for (int i = 0; i < rows; i++) {
            vector xs = load(x + i * x_step + k);
            UNROLL for (int j = 0; j < columns; j++) sums[i][j] += xs * weights[j];
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < columns; j++) {
            float sum = sum_of_vector(sums[i][j]);
            for (Index k = whole; k < K; k++) sum += x[i * x_step + k] * w[j * w_step + k];
            y[i * y_step + j] = sum;
        }
}

#define FEW(n) case n: dot_products(n, columns, x, x_step, w, w_step, K, y, y_step); break;

/* `dot_products` for 1 to FEW_ROWS rows */
INLINE void dot_products_of(int rows, int columns, const float *x, Index x_step, const float *w, Index w_step, Index K,
                            float *y, Index y_step) {
    switch (rows) {
        FEW(1) FEW(2) FEW(3)
#if defined(__AVX2__) || defined(__aarch64__)
        FEW(4)
#endif
#if defined(__AVX512F__)
        FEW(5) FEW(6)
#endif
    }
}

/* Y [M, N] = X [M, K] W^T, W [N, K], for few rows of X: every row of W is read once */
static void multiply_few(const float *x, Index x_step, const float *w, Index w_step, Index M, Index N, Index K, float *y,
                         Index y_step) {
    for (Index n = 0; n < N;) {
        int columns = N - n >= FEW_COLUMNS ? FEW_COLUMNS : 1;
        for (Index m = 0; m < M; m += FEW_ROWS) {
            int rows = (int)(M - m < FEW_ROWS ? M - m : FEW_ROWS);
            const float *from = x + m * x_step, *weights = w + n * w_step;
            float *to = y + m * y_step + n;
            if (columns == FEW_COLUMNS)
                dot_products_of(rows, FEW_COLUMNS, from, x_step, weights, w_step, K, to, y_step);
            else
                dot_products_of(rows, 1, from, x_step, weights, w_step, K, to, y_step);
        }
        n += columns;
    }
}
