// Twins of minigdino/network/ops.py: one block per row; neighbouring threads read neighbouring elements.
#include "blocks.cuh"

// x [N, C], residual [N, C] or null, weight [C], bias [C] -> out [N, C]
template <typename T>
__global__ void __launch_bounds__(1024)
    add_norm(const T *x, const T *residual, const T *weight, const T *bias, T eps, int C, T *out) {
    const long long row = (long long)blockIdx.x * C;
    T sum = 0, squares = 0;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        const T a = residual ? x[row + c] + residual[row + c] : x[row + c];
        out[row + c] = a;
        sum += a;
    }
    const T mean = total(sum) / C;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        const T centred = out[row + c] - mean;
        squares += centred * centred;
    }
    const T scale = 1 / sqrt(total(squares) / C + eps);
    for (int c = threadIdx.x; c < C; c += blockDim.x)
        out[row + c] = (out[row + c] - mean) * scale * weight[c] + bias[c];
}

// x [N, G*D], weight [G*D], bias [G*D] -> out [N, G*D]; one block per group. The long sums are in double precision
template <typename T>
__global__ void __launch_bounds__(1024)
    group_norm(const T *x, const T *weight, const T *bias, double eps, int N, int G, int D, T *out) {
    const int first = blockIdx.x * D, n = N * D;
    const long long C = G * D;
    double sum = 0, squares = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i / D * C + first + i % D];
    const double mean = total(sum) / n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const double centred = x[i / D * C + first + i % D] - mean;
        squares += centred * centred;
    }
    const T centre = T(mean), scale = T(1 / sqrt(total(squares) / n + eps));
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const int c = first + i % D;
        out[i / D * C + c] = (x[i / D * C + c] - centre) * scale * weight[c] + bias[c];
    }
}

// x [A, n, C] -> out [A, n, C], softmax along n; one block for each of the A*C slices
template <typename T>
__global__ void __launch_bounds__(1024) softmax(const T *x, int n, int C, T *out) {
    const long long first = (long long)(blockIdx.x / C) * n * C + blockIdx.x % C;
    T maximum = x[first], sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const T a = x[first + (long long)i * C];
        maximum = a > maximum ? a : maximum;
    }
    maximum = largest(maximum);
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        const T e = exp(x[first + (long long)i * C] - maximum);
        out[first + (long long)i * C] = e;
        sum += e;
    }
    sum = total(sum);
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[first + (long long)i * C] /= sum;
}

// x [N, C], bias [C] or null -> out [N, C]
template <typename T>
__global__ void __launch_bounds__(1024) relu(const T *x, const T *bias, int C, T *out) {
    const long long row = (long long)blockIdx.x * C;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        const T a = bias ? x[row + c] + bias[c] : x[row + c];
        out[row + c] = a < 0 ? T(0) : a;  // not a > 0: NaN stays NaN
    }
}

template <typename T>
struct Polynomial {  // ERFC of erfc.py
    T of[9];
};

// x [N, C], bias [C] or null -> out [N, C]
template <typename T>
__global__ void __launch_bounds__(1024) gelu(const T *x, const T *bias, Polynomial<T> erfc, int C, T *out) {
    const long long row = (long long)blockIdx.x * C;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        const T a = bias ? x[row + c] + bias[c] : x[row + c];
        const T z = fabs(a) * T(0.7071067811865476), t = 1 / (1 + T(0.5) * z);
        T polynomial = erfc.of[8];
        for (int i = 7; i >= 0; i--) polynomial = polynomial * t + erfc.of[i];
        const T tail = T(0.5) * t * exp(-z * z) * polynomial;
        out[row + c] = a * (a < 0 ? tail : 1 - tail);
    }
}
