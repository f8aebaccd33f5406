/* Attention within a window of K pixels, for one head of D channels and one thread, in float32.

Both products are those of product.h. Queries are processed TILE_ROWS at a time, so keys, values and scores stay in the
L1 cache. KP is K rounded up to whole vectors; columns beyond K have weight 0. If only one key is left over, as of 7 x 7
pixels, it is not worth a vector: its scores are computed apart. */

#include "product.h"

typedef struct {
    const float *qkv, *qkv_bias, *position_bias; /* [H*W, 3, M, D], [3, M, D] and [M, K, KP], -inf beyond K */
    const float *zeros;                          /* [3, M, D], the projections of a padding token without their bias */
    float *out;                                  /* [H*W, M, D] */
    Index M, D, K;
} Map;

typedef struct {
    Index *pixels;  /* [K], indices on the map, -1 for a padding token */
    Index *queries; /* [n_queries], indices of the pixels that are not padding */
    Index n_queries;
    float *regions; /* [KP], of the shifted map */
    int masked;     /* whether there is more than one region */
} Window;

/* The query of head m; key and value are M*D and 2*M*D elements further */
INLINE const float *pixel(const Map *map, const Window *window, Index m, Index i) {
    Index at = window->pixels[i];
    return (at < 0 ? map->zeros : map->qkv + at * 3 * map->M * map->D) + m * map->D;
}

/* y [n] = (x [n] + bias [n]) * factor */
INLINE void add_bias(const float *x, const float *bias, float factor, Index n, float *y) {
    Index whole = n - n % LANES;
    for (Index i = 0; i < whole; i += LANES) store(y + i, (load(x + i) + load(bias + i)) * factor);
    for (Index i = whole; i < n; i++) y[i] = (x[i] + bias[i]) * factor;
}

/* y [n] = x [n] * factor */
INLINE void multiply_by(float factor, const float *x, Index n, float *y) {
    Index whole = n - n % LANES;
    for (Index i = 0; i < whole; i += LANES) store(y + i, load(x + i) * factor);
    for (Index i = whole; i < n; i++) y[i] = x[i] * factor;
}

/* The inner product of last_key [D] and each query [n, D], n <= LANES */
INLINE vector scores_of_last(const float *q, const float *last_key, Index n, Index D) {
    vector sums[LANES] = {{0}};
    for (Index i = 0; i < n; i++)
        UNROLL for (Index d = 0; d < D; d += LANES) sums[i] += load(q + i * D + d) * load(last_key + d);
    return sum_of_each(sums);
}

/* scores [n, KP], n <= LANES, of some queries -> exp(scores + position bias + mask - their maximum). totals [LANES] are
the sums of the rows. The mask is -100 where the regions of query and key differ. If columns < K, `last` has the scores
of the last key. */
INLINE void exp_of_scores(float *scores, vector last, const float *position_bias, const Window *window,
                          const Index *queries, Index n, Index K, Index columns, float *totals) {
    Index KP = round_up(K, LANES);
    int masked = window->masked; /* a copy, which no store can change */
    vector largest[LANES] = {{0}}, sums[LANES] = {{0}}, zero = {0};
    float most[LANES], of_last[LANES] = {0};
    for (Index i = 0; i < n; i++) {
        const float *bias = position_bias + queries[i] * KP;
        float region = window->regions[queries[i]];
        largest[i] = zero - __builtin_inff();
        UNROLL for (Index j = 0; j < columns; j += LANES) {
            vector score = load(scores + i * KP + j) + load(bias + j);
            if (masked) score += choose(load(window->regions + j) == region, zero, zero - 100);
            largest[i] = maximum(score, largest[i]);
            store(scores + i * KP + j, score);
        }
        if (columns < K) of_last[i] = bias[columns] - (window->regions[columns] == region ? 0 : 100);
    }
    vector maximums = largest_of_each(largest);
    if (columns < K) {
        last += load(of_last);
        maximums = maximum(last, maximums);
    }
    store(most, maximums);
    for (Index i = 0; i < n; i++)
        UNROLL for (Index j = 0; j < columns; j += LANES) {
            vector weight = exp_negative(load(scores + i * KP + j) - most[i]);
            sums[i] += weight;
            store(scores + i * KP + j, weight);
        }
    vector total = sum_of_each(sums);
    if (columns < K) {
        vector weight = exp_negative(last - maximums);
        total += weight;
        store(of_last, weight);
        for (Index i = 0; i < n; i++) scores[i * KP + columns] = of_last[i];
    }
    store(totals, total);
}

/* The first `columns` keys, in panels: whole blocks of LANES x LANES elements, then the others one by one */
INLINE void store_keys(const Map *map, const Window *window, Index m, Index columns, Index D, float *keys) {
    Index C = map->M * D, pixels = columns - columns % LANES, channels = D - D % LANES;
    const float *bias = map->qkv_bias + C + m * D;
    for (Index i = 0; i < pixels; i += LANES)
        for (Index d = 0; d < channels; d += LANES) {
            float *to = keys + i / PANEL * PANEL * D + d * PANEL + i % PANEL;
            vector block[LANES];
            UNROLL for (int j = 0; j < LANES; j++)
                block[j] = load(pixel(map, window, m, i + j) + C + d) + load(bias + d);
            transpose_vectors(block);
            UNROLL for (int j = 0; j < LANES; j++) store(to + j * PANEL, block[j]);
        }
    for (Index i = 0; i < columns; i++)
        for (Index d = i < pixels ? channels : 0; d < D; d++)
            keys[i / PANEL * PANEL * D + d * PANEL + i % PANEL] = pixel(map, window, m, i)[C + d] + bias[d];
}

/* scores [n, KP] = q [n, D] keys^T, n <= TILE_ROWS, for a number of columns that is a multiple of LANES */
static void multiply_keys(const float *q, const float *keys, Index n, Index columns, Index D, float *scores,
                          Index KP) {
    Index whole = columns - columns % PANEL;
    for (Index j = 0; j < whole; j += PANEL) wide_tile(n, q, D, 1, keys + j * D, D, scores + j, KP, 0, NULL);
    if (whole < columns) tile_of(n, 1, q, D, 1, keys + whole * D, D, scores + whole, KP, 0, NULL);
}

/* Elements of the buffer of `attend`, which starts as zeros */
static Index room_to_attend(Index K, Index D) {
    return round_up(K, PANEL) * D + K * round_up(D, PANEL) + TILE_ROWS * (round_up(K, LANES) + 2 * D) + D;
}

INLINE void attend_as(const Map *map, const Window *window, Index m, Index K, Index D, float *room) {
    const Epilogue none = {NULL};
    Index C = map->M * D, KP = round_up(K, LANES), has_last = K % LANES == 1 && D % LANES == 0, columns = K - has_last;
    const float *bias = map->qkv_bias + m * D, *position_bias = map->position_bias + m * K * KP;
    float *keys = room, *values = keys + round_up(K, PANEL) * D, *scores = values + K * round_up(D, PANEL);
    float *q = scores + TILE_ROWS * KP, *attended = q + TILE_ROWS * D, *last_key = attended + TILE_ROWS * D;
    float scale = 1 / __builtin_sqrtf(D);
    store_keys(map, window, m, columns, D, keys);
    if (has_last) add_bias(pixel(map, window, m, columns) + C, bias + C, 1, D, last_key);
    for (Index d = 0; d < D; d += PANEL)
        for (Index i = 0; i < K; i++)
            add_bias(pixel(map, window, m, i) + 2 * C + d, bias + 2 * C + d, 1, D - d < PANEL ? D - d : PANEL,
                     values + d * K + i * PANEL);
    for (Index first = 0; first < window->n_queries; first += TILE_ROWS) {
        const Index *queries = window->queries + first;
        Index n = window->n_queries - first < TILE_ROWS ? window->n_queries - first : TILE_ROWS;
        float totals[TILE_ROWS + LANES];
        for (Index i = 0; i < n; i++) add_bias(pixel(map, window, m, queries[i]), bias, scale, D, q + i * D);
        multiply_keys(q, keys, n, has_last ? columns : KP, D, scores, KP);
        for (Index i = 0; i < n; i += LANES) {
            Index some = n - i < LANES ? n - i : LANES;
            vector last = {0};
            if (has_last) last = scores_of_last(q + i * D, last_key, some, D);
            exp_of_scores(scores + i * KP, last, position_bias, window, queries + i, some, K, columns, totals + i);
        }
        multiply_panels(scores, KP, 1, values, K, n, D, K, attended, D, 0, &none);
        for (Index i = 0; i < n; i++)
            multiply_by(1 / totals[i], attended + i * D, D, map->out + window->pixels[queries[i]] * C + m * D);
    }
}

/* Head m of a window. In the usual sizes, loops have a constant length. */
static void attend(const Map *map, const Window *window, Index m, float *room) {
    enum { USUAL_K = 49, USUAL_D = 32 };
    if (map->K == USUAL_K && map->D == USUAL_D)
        attend_as(map, window, m, USUAL_K, USUAL_D, room);
    else
        attend_as(map, window, m, map->K, map->D, room);
}
