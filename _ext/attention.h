/* Scaled dot-product attention in float32, for one thread, in blocks of query rows whose scores stay in the cache.

A query row has the same result in any block. */

#include "product.h"

enum { QUERY_ROWS = 4 * 12 }; /* per block: a multiple of TILE_ROWS */

/* Matrix [rows, channels] with any strides, in elements */
typedef struct {
    const float *start;
    Index row_stride, channel_stride;
} Matrix;

/* Keys [T, D] and values [T, D] of a head, packed in panels */
static void pack_head(Matrix keys, Matrix values, Index T, Index D, float *key_panels, float *value_panels) {
    pack_panels(keys.start, keys.row_stride, keys.channel_stride, T, D, 0, round_up(T, PANEL) / PANEL, key_panels);
    pack_panels(values.start, values.channel_stride, values.row_stride, D, T, 0, round_up(D, PANEL) / PANEL,
                value_panels);
}

/* scores [rows, T] -> exp(scores - maximum of the row) in place, and 1 / their sum for each row. hidden [rows, T] is
-inf where it replaces a score, else 0; it may be NULL. */
static void exp_rows(float *scores, Index rows, Index T, Index stride, const float *hidden, float *scale) {
    Index last = round_up(T, LANES);
    for (Index i = 0; i < rows; i++, scores += stride) {
        for (Index t = T; t < last; t++) scores[t] = -__builtin_inff(); /* fills the last vector with weights of 0 */
        if (hidden)
            for (Index t = 0; t < T; t++) scores[t] = hidden[i * T + t] < 0 ? hidden[i * T + t] : scores[t];
        vector top = load(scores), sum = {0};
        for (Index t = LANES; t < last; t += LANES) top = maximum(load(scores + t), top);
        top = (vector){0} + largest_of(top);
        for (Index t = 0; t < last; t += LANES) {
            vector weight = exp_negative(load(scores + t) - top);
            store(scores + t, weight);
            sum += weight;
        }
        scale[i] = 1 / sum_of(sum);
    }
}

/* y [rows, D] for at most QUERY_ROWS queries [rows, D] of a head. Results are divided by the sum of the weights, not
weights: there are fewer results. `scores` has QUERY_ROWS * round_up(T, PANEL) elements. */
static void attend_rows(Matrix queries, Index rows, Index T, Index D, const float *key_panels,
                        const float *value_panels, const float *hidden, float *y, Index y_stride, float *scores) {
    Epilogue none = {NULL, NULL, 0, 0};
    Index stride = round_up(T, PANEL);
    float scale[QUERY_ROWS];
    multiply_panels(queries.start, queries.row_stride, queries.channel_stride, key_panels, D, rows, stride, D,
                    scores, stride, 0, &none); /* whole panels, which is faster */
    exp_rows(scores, rows, T, stride, hidden, scale);
    multiply_panels(scores, stride, 1, value_panels, T, rows, D, T, y, y_stride, 0, &none);
    for (Index i = 0; i < rows; i++)
        for (Index d = 0; d < D; d++) y[i * y_stride + d] *= scale[i];
}
