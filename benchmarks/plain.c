/* A straightforward deformable attention, for comparison in benchmarks/loops.py. The compiler vectorises the loop over
   channels. Sampling locations and attention weights are inputs. */
#include <math.h>

void plain(const float *restrict value, const long *restrict sizes, long L, const float *restrict locations,
           const float *restrict weights, float *restrict out, long M, long P, long first, long last)
{
    enum { D = 32 };
    for (long q = first; q < last; q++)
        for (long m = 0; m < M; m++) {
            float total[D] = {0};
            const float *image = value + m * D;
            for (long l = 0; l < L; l++) {
                const long H = sizes[2 * l], W = sizes[2 * l + 1];
                for (long p = 0; p < P; p++) {
                    const long i = ((q * M + m) * L + l) * P + p;
                    const float x = locations[2 * i] * W - 0.5f, y = locations[2 * i + 1] * H - 0.5f;
                    const long left = (long)floorf(x), top = (long)floorf(y);
                    for (long row = top; row < top + 2; row++)
                        for (long col = left; col < left + 2; col++)
                            if (row >= 0 && row < H && col >= 0 && col < W) {
                                const float w = weights[i] * (1 - fabsf(x - col)) * (1 - fabsf(y - row));
                                const float *pixel = image + (row * W + col) * M * D;
                                for (long d = 0; d < D; d++)
                                    total[d] += w * pixel[d];
                            }
                }
                image += H * W * M * D;
            }
            for (long d = 0; d < D; d++)
                out[(q * M + m) * D + d] = total[d];
        }
}
