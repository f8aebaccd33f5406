/* Vectors of float32, as the compiler has them (GCC and Clang): LANES elements, one register of the processor. */

#ifndef MINIGDINO_VECTORS_H
#define MINIGDINO_VECTORS_H

#include <stddef.h>
#include <string.h>

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX2__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

typedef ptrdiff_t Index; /* an index or a stride, in elements */
typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float in_memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias)); /* at any element */
typedef int integers __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

INLINE Index round_up(Index n, Index multiple) { return (n + multiple - 1) / multiple * multiple; }

INLINE vector load(const float *x) { return *(const in_memory *)x; }

INLINE void store(float *y, vector x) { *(in_memory *)y = x; }

/* The first n < LANES elements; the others are 0 */
INLINE vector load_some(const float *x, Index n) {
    float lane[LANES] = {0};
    memcpy(lane, x, n * sizeof(float));
    return load(lane);
}

INLINE void store_some(float *y, vector x, Index n) {
    float lane[LANES];
    store(lane, x);
    memcpy(y, lane, n * sizeof(float));
}

INLINE vector choose(integers condition, vector a, vector b) {
    return (vector)(((integers)a & condition) | ((integers)b & ~condition));
}

INLINE vector absolute(vector x) { return (vector)((integers)x & 0x7fffffff); }

/* If one of the two is NaN, b */
INLINE vector maximum(vector a, vector b) { return choose(a > b, a, b); }

INLINE float sum_of(vector x) {
    float lane[LANES];
    store(lane, x);
    UNROLL for (int half = LANES / 2; half; half /= 2)
        UNROLL for (int j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

INLINE float largest_of(vector x) {
    float lane[LANES];
    store(lane, x);
    UNROLL for (int half = LANES / 2; half; half /= 2)
        UNROLL for (int j = 0; j < half; j++) lane[j] = lane[j] > lane[j + half] ? lane[j] : lane[j + half];
    return lane[0];
}

/* {a[0], b[0], a[1], b[1], ...}, and the same of the upper halves */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (integers){__VA_ARGS__})
#endif
#if defined(__AVX512F__)
#define LOWER(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define UPPER(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif defined(__AVX2__)
#define LOWER(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define UPPER(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define LOWER(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define UPPER(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#endif

/* Transpose LANES x LANES elements. A round interleaves the rows of the first half with those of the second, which
rotates the bits of every index (row, column) by one. */
INLINE void transpose_vectors(vector *rows) {
    UNROLL for (int round = 1; round < LANES; round *= 2) {
        vector mixed[LANES];
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = LOWER(rows[i], rows[i + LANES / 2]);
            mixed[2 * i + 1] = UPPER(rows[i], rows[i + LANES / 2]);
        }
        UNROLL for (int i = 0; i < LANES; i++) rows[i] = mixed[i];
    }
}

/* The sum of each of LANES vectors. Like `sum_of`, this adds the upper half of a vector to the lower half. */
INLINE vector sum_of_each(vector *x) {
    UNROLL for (int n = LANES / 2; n; n /= 2)
        UNROLL for (int i = 0; i < n; i++) x[i] = LOWER(x[i], x[i + n]) + UPPER(x[i], x[i + n]);
    return x[0];
}

INLINE vector largest_of_each(vector *x) {
    UNROLL for (int n = LANES / 2; n; n /= 2)
        UNROLL for (int i = 0; i < n; i++) x[i] = maximum(LOWER(x[i], x[i + n]), UPPER(x[i], x[i + n]));
    return x[0];
}

/* exp(x) for x <= 0: 2**n * exp(r), where |r| <= ln(2)/2 and exp(r) is a Taylor polynomial of degree 6. The relative
error is below 3e-7, the absolute error below 1.7e-7. A result below the smallest normal float is 0. */
INLINE vector exp_negative(vector x) {
    vector clamped = choose(x < -88, (vector){0} - 88, x); /* NaN stays NaN */
    integers n = __builtin_convertvector(clamped * 1.44269504f - 0.5f, integers);
    vector whole = __builtin_convertvector(n, vector);
    /* ln(2) in two parts, which keeps the rounding error of n * ln(2) small */
    vector r = (clamped - whole * 0.693145752f) - whole * 1.42860677e-6f;
    vector p = 1 + r * (1 + r * (0.5f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f))))));
    return p * (vector)((n + 127) << 23);
}

INLINE vector relu_of(vector x) { return (vector)((integers)x & ~(x < 0)); } /* NaN stays NaN */

/* GELU: x times the standard normal distribution function. `erfc` [9] is from erfc.py. */
INLINE vector gelu_of(vector x, const float *erfc) {
    vector z = absolute(x) * 0.7071067811865476f, t = 1 / (1 + 0.5f * z), polynomial = (vector){0} + erfc[8];
    UNROLL for (int i = 7; i >= 0; i--) polynomial = polynomial * t + erfc[i];
    vector tail = 0.5f * t * exp_negative(-z * z) * polynomial;
    return x * choose(x < 0, tail, 1 - tail);
}

#endif
