// Twin of minigdino/network/swin.py's `attend_in_windows`: windows are read in place, so no map is padded, shifted or
// partitioned. One block per window and head, one warp per query.
#include "blocks.cuh"

// qkv [H, W, 3, M, D], qkv_bias [3, M, D], position_bias [M, k*k, k*k] -> out [H, W, M, D]
//
// Online softmax (arXiv 1805.02867): `maximum` is the largest score so far. A larger score rescales the sums, so no row
// of scores is stored.
template <typename T>
__global__ void __launch_bounds__(1024)
    attend_in_windows(const T *qkv, const T *qkv_bias, const T *position_bias, int H, int W, int M, int D, int k,
                      int shift, T *out) {
    const int rows = (H + k - 1) / k * k, cols = (W + k - 1) / k * k, K = k * k, step = M * D;
    const int b = blockIdx.x / M, m = blockIdx.x % M, lane = threadIdx.x % WARP;
    const int top = b / (cols / k) * k, left = b % (cols / k) * k;  // of the window, after the shift
    const T *q_bias = qkv_bias + m * D, *k_bias = q_bias + step, *v_bias = k_bias + step;
    const T scale = 1 / sqrt(T(D));
    for (int i = threadIdx.x / WARP; i < K; i += blockDim.x / WARP) {
        const int r = top + i / k, c = left + i % k, row = (r + shift) % rows, col = (c + shift) % cols;
        if (row >= H || col >= W) continue;  // the result of a padding token is not used
        const int row_region = (r >= rows - k) + (r >= rows - shift);
        const int col_region = (c >= cols - k) + (c >= cols - shift);
        const T *q = qkv + ((long long)row * W + col) * 3 * step + m * D;
        const T *bias = position_bias + ((long long)m * K + i) * K;
        for (int first = 0; first < D; first += WARP) {
            const int channel = first + lane;  // of this thread; may exceed D
            T maximum = 0, total = 0, sum = 0;
            for (int rj = top, j = 0; rj < top + k; rj++) {
                const int row_j = (rj + shift) % rows;
                const bool row_apart = row_region != (rj >= rows - k) + (rj >= rows - shift);
                for (int cj = left; cj < left + k; cj++, j++) {
                    const int col_j = cj + shift < cols ? cj + shift : cj + shift - cols;
                    const bool inside = row_j < H && col_j < W;  // a padding token's projections are the biases
                    const T *key = qkv + ((long long)row_j * W + col_j) * 3 * step + step + m * D, *v = key + step;
                    T product = 0;
                    for (int d = lane; d < D; d += WARP)
                        product += (q[d] + q_bias[d]) * scale * (inside ? key[d] + k_bias[d] : k_bias[d]);
                    T score = warp_total(product) + bias[j];
                    if (shift && (row_apart || col_region != (cj >= cols - k) + (cj >= cols - shift))) score -= 100;
                    if (j == 0 || score > maximum) {
                        const T less = j == 0 ? 0 : exp(maximum - score);
                        total *= less;
                        sum *= less;
                        maximum = score;
                    }
                    const T weight = exp(score - maximum);
                    total += weight;
                    if (channel < D) sum += weight * (inside ? v[channel] + v_bias[channel] : v_bias[channel]);
                }
            }
            if (channel < D) out[((long long)row * W + col) * step + m * D + channel] = sum / total;
        }
    }
}
