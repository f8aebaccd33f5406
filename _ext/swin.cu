// The twin of minigdino/network/swin.py's `attend_in_windows` as a kernel: each window is read where it lies in the map, so none
// is padded, shifted or cut. A block for each window and head, a warp for each query.
#include "blocks.cuh"

// qkv [H, W, 3, M, D], qkv_bias [3, M, D], position_bias [M, k*k, k*k] -> out [H, W, M, D]
//
// The softmax runs along with the sum it weighs (arXiv 1805.02867): `most` is the largest score so far, and what was
// summed is scaled down when a larger one comes. So nothing has to be kept of the scores, whatever k is.
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
        if (row >= H || col >= W) continue;  // nobody asks for what a padding token sees
        const int row_piece = (r >= rows - k) + (r >= rows - shift), col_piece = (c >= cols - k) + (c >= cols - shift);
        const T *q = qkv + ((long long)row * W + col) * 3 * step + m * D;
        const T *bias = position_bias + ((long long)m * K + i) * K;
        for (int first = 0; first < D; first += WARP) {
            const int channel = first + lane;  // of this thread, if there are so many
            T most = 0, share = 0, sum = 0;
            for (int rj = top, j = 0; rj < top + k; rj++) {
                const int row_j = (rj + shift) % rows;
                const bool row_apart = row_piece != (rj >= rows - k) + (rj >= rows - shift);
                for (int cj = left; cj < left + k; cj++, j++) {
                    const int col_j = cj + shift < cols ? cj + shift : cj + shift - cols;
                    const bool inside = row_j < H && col_j < W;  // of a padding token only the bias is there
                    const T *key = qkv + ((long long)row_j * W + col_j) * 3 * step + step + m * D, *v = key + step;
                    T product = 0;
                    for (int d = lane; d < D; d += WARP)
                        product += (q[d] + q_bias[d]) * scale * (inside ? key[d] + k_bias[d] : k_bias[d]);
                    T score = warp_total(product) + bias[j];
                    if (shift && (row_apart || col_piece != (cj >= cols - k) + (cj >= cols - shift))) score -= 100;
                    if (j == 0 || score > most) {
                        const T less = j == 0 ? 0 : exp(most - score);
                        share *= less;
                        sum *= less;
                        most = score;
                    }
                    const T weight = exp(score - most);
                    share += weight;
                    if (channel < D) sum += weight * (inside ? v[channel] + v_bias[channel] : v_bias[channel]);
                }
            }
            if (channel < D) out[((long long)row * W + col) * step + m * D + channel] = sum / share;
        }
    }
}
