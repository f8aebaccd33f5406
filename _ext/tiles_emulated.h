/* The tile instructions that tiles.h uses, in C: for tests on processors without them, and for sanitizers. Unlike the
processor, this does not flush subnormal sums to 0. */

static __thread float emulated_tiles[8][16][16];

#define _tile_loadconfig(shape) ((void)(shape))
#define _tile_release() ((void)0)
#define _tile_zero(t) memset(emulated_tiles[t], 0, sizeof emulated_tiles[t])
#define _tile_loadd(t, from, stride) \
    for (int i = 0; i < 16; i++) memcpy(emulated_tiles[t][i], (const char *)(from) + i * (stride), 64)
#define _tile_stored(t, to, stride) \
    for (int i = 0; i < 16; i++) memcpy((char *)(to) + i * (stride), emulated_tiles[t][i], 64)
#define _tile_dpbf16ps(sums, x, w) emulated_products(emulated_tiles[sums], emulated_tiles[x], emulated_tiles[w])

/* 32 bfloat16 numbers as floats. Like the processor, this takes subnormal numbers as 0. */
static void numbers_of(const float row[16], float numbers[32]) {
    for (int i = 0; i < 16; i++)
        for (int half = 0; half < 2; half++) {
            unsigned bits;
            memcpy(&bits, row + i, sizeof bits);
            bits = half ? bits & 0xffff0000 : bits << 16;
            if (!(bits & 0x7f800000)) bits = 0;
            memcpy(numbers + 2 * i + half, &bits, sizeof bits);
        }
}

static void emulated_products(float sums[16][16], float x[16][16], float w[16][16]) {
    float left[16][32], right[16][32];
    for (int i = 0; i < 16; i++) {
        numbers_of(x[i], left[i]);
        numbers_of(w[i], right[i]);
    }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 16; j++)
                for (int half = 0; half < 2; half++) sums[i][j] += left[i][2 * k + half] * right[k][2 * j + half];
}
