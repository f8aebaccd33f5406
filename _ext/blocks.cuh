// Sums and maxima over threads that work together; every one of them gets the result. Blocks are whole warps.

constexpr int WARP = 32;

template <typename T>
__device__ T warp_total(T x) {
    for (int step = WARP / 2; step; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

template <typename T>
__device__ T warp_largest(T x) {
    for (int step = WARP / 2; step; step /= 2) {
        const T y = __shfl_xor_sync(0xffffffffu, x, step);
        x = y > x ? y : x;
    }
    return x;
}

template <typename T>
__device__ T total(T x) {
    __shared__ T part[WARP];  // one for each warp: a block has at most 1024 threads
    x = warp_total(x);
    __syncthreads();  // nobody still reads what the last call left there
    if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
    __syncthreads();
    T sum = part[0];
    for (int warp = 1; warp < blockDim.x / WARP; warp++) sum += part[warp];
    return sum;
}

template <typename T>
__device__ T largest(T x) {
    __shared__ T part[WARP];
    x = warp_largest(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) part[threadIdx.x / WARP] = x;
    __syncthreads();
    T most = part[0];
    for (int warp = 1; warp < blockDim.x / WARP; warp++) most = part[warp] > most ? part[warp] : most;
    return most;
}
