/* Cross-attention of image and text in both directions, in float32, for one thread and a block of image tokens.

A block has S image tokens of C channels. N = M * T is the number of heads times that of text tokens. All its steps run
on rows that stay in the cache. The products are those of product.h. */

#include "product.h"

enum { ROWS = 3 * LANES }; /* image tokens at a time: a multiple of LANES and TILE_ROWS */

/* Softmax over the text tokens of each head: scores [rows, N] -> to_text [N, ROWS]. A vector has LANES image tokens. */
static void softmax_over_text(const float *scores, Index stride, Index rows, Index M, Index T, float *to_text) {
    for (Index s0 = 0; s0 < rows; s0 += LANES)
        for (Index m = 0; m < M; m++) {
            const float *from = scores + s0 * stride + m * T;
            float *to = to_text + m * T * ROWS + s0;
            Index n = rows - s0 < LANES ? rows - s0 : LANES;
            vector top = {0}, sum = {0};
            for (Index t = 0; t < T; t++) {
                float column[LANES] = {0};
                for (Index s = 0; s < n; s++) column[s] = from[s * stride + t];
                vector score = load(column);
                store(to + t * ROWS, score);
                top = t ? maximum(score, top) : score;
            }
            for (Index t = 0; t < T; t++) {
                vector weight = exp_negative(load(to + t * ROWS) - top);
                store(to + t * ROWS, weight);
                sum += weight;
            }
            vector scale = 1 / sum;
            for (Index t = 0; t < T; t++) store(to + t * ROWS, load(to + t * ROWS) * scale);
        }
}

/* scores [S, width] -> exp(scores - maximum) in place, and over the S image tokens maximum [N] and total [N] */
static void weights_over_image(float *scores, Index S, Index N, float *maxima, float *totals) {
    Index width = round_up(N, LANES);
    for (Index n = 0; n < N; n += LANES) {
        Index some = N - n < LANES ? N - n : LANES;
        vector top = load(scores + n), sum = {0};
        for (Index s = 1; s < S; s++) top = maximum(load(scores + s * width + n), top);
        for (Index s = 0; s < S; s++) {
            vector weight = exp_negative(load(scores + s * width + n) - top);
            store(scores + s * width + n, weight);
            sum += weight;
        }
        store_some(maxima + n, top, some);
        store_some(totals + n, sum, some);
    }
}

/* X [S, C] -> the panels of its transpose */
static void copy_to_panels(const float *x, Index S, Index C, float *panels) {
    for (Index c = 0; c < C; c += PANEL)
        for (Index s = 0; s < S; s++, panels += PANEL) {
            if (C - c < PANEL) memset(panels, 0, PANEL * sizeof(float));
            memcpy(panels, x + s * C + c, (C - c < PANEL ? C - c : PANEL) * sizeof(float));
        }
}

static Index room_for_block(Index S, Index C, Index N) {
    return S * round_up(N, LANES) + N * ROWS + S * round_up(C, PANEL);
}

/* The text of a call: keys [N, C] and values [C, N] in panels, key_bias [N], bias [C] */
typedef struct {
    Index C, M, T;
    const float *keys, *key_bias, *values, *bias;
} Text;

/* vision [S, C], residual [S, C] or NULL -> from_text [S, C], and of the softmax over these S image tokens, for each
text token: maximum [N], total [N] of exp(scores - maximum), and weighted [N, C], the sum of vision weighted by them.
`room` has `room_for_block` elements. */
static void attend_block(const Text *text, const float *vision, const float *residual, Index S, float *from_text,
                         float *maxima, float *totals, float *weighted, float *room) {
    Index C = text->C, N = text->M * text->T, width = round_up(N, LANES);
    float *scores = room, *to_text = scores + S * width, *panels = to_text + N * ROWS;
    Epilogue none = {NULL, NULL, 0, 0}, key_bias = {text->key_bias, NULL, 0, 0}, update = {text->bias, residual, C, 0};
    copy_to_panels(vision, S, C, panels); /* first, because it reads vision in the order of its memory */
    for (Index s = 0; s < S; s += ROWS) {
        Index rows = S - s < ROWS ? S - s : ROWS;
        float *table = scores + s * width;
        multiply_panels(vision + s * C, C, 1, text->keys, C, rows, N, C, table, width, 0, &key_bias);
        softmax_over_text(table, width, rows, text->M, text->T, to_text);
        multiply_panels(to_text, 1, ROWS, text->values, N, rows, C, N, from_text + s * C, C, 0, &update);
        if (residual) update.residual += rows * C;
    }
    weights_over_image(scores, S, N, maxima, totals);
    multiply_panels(scores, 1, width, panels, S, N, C, S, weighted, C, 0, &none);
}
