// Twins of minigdino/network/deformable.py: one block per query, one thread per channel. Neighbouring threads read
// neighbouring elements.
#include "sampling.cuh"

// image [H, W, M, D], xy [Q, M, P, 2] -> out [Q, M, P, D]
template <typename T>
__global__ void __launch_bounds__(1024) bilinear(const T *image, const T *xy, int H, int W, int M, int D, int P,
                                                 T *out) {
    const long long q = blockIdx.x;
    for (int i = threadIdx.x; i < M * P * D; i += blockDim.x) {
        const int m = i / (P * D), p = i / D % P, d = i % D;
        const T *point = xy + ((q * M + m) * P + p) * 2;
        T total = 0;
        add_sample(image + m * D + d, H, W, M * D, point[0] * W - T(0.5), point[1] * H - T(0.5), T(1), total);
        out[q * M * P * D + i] = total;
    }
}

struct Sizes {  // rows and columns of every level
    int of[32][2];
};

// value [S, M, D], sizes [L, 2], references [Q, R], offsets [Q, M, L, P, 2], scores [Q, M, L*P] -> out [Q, M*D]
//
// Rows of offsets and scores may have any stride, for column slices. The _step arguments are these strides in elements.
template <typename T>
__global__ void __launch_bounds__(1024)
    deform_attn(const T *value, Sizes sizes, const T *references, const T *offsets, const T *scores, int M, int D,
                int L, int P, int R, long long offsets_step, long long scores_step, T *out) {
    const long long q = blockIdx.x;
    const int LP = L * P;
    const T *reference = references + q * R;
    for (int i = threadIdx.x; i < M * D; i += blockDim.x) {
        const int m = i / D;
        const T *score = scores + q * scores_step + m * LP;
        T maximum = score[0], sum = 0, total = 0;
        for (int j = 1; j < LP; j++) maximum = score[j] > maximum ? score[j] : maximum;
        for (int j = 0; j < LP; j++) sum += exp(score[j] - maximum);
        const T *image = value + i;
        for (int l = 0; l < L; l++) {
            const int H = sizes.of[l][0], W = sizes.of[l][1];
            for (int p = 0; p < P; p++) {
                const T *offset = offsets + q * offsets_step + (m * LP + l * P + p) * 2;
                T x, y;  // as in `sampling_locations`
                if (R == 2) {
                    x = reference[0] + offset[0] / W;
                    y = reference[1] + offset[1] / H;
                } else {
                    x = reference[0] + offset[0] / P * reference[2] * T(0.5);
                    y = reference[1] + offset[1] / P * reference[3] * T(0.5);
                }
                const T weight = exp(score[l * P + p] - maximum) / sum;
                add_sample(image, H, W, M * D, x * W - T(0.5), y * H - T(0.5), weight, total);
            }
            image += (long long)H * W * M * D;
        }
        out[q * M * D + i] = total;
    }
}
