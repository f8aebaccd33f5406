// Sums and maxima over a warp or a block; every thread gets the result. Blocks consist of whole warps.

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
    __syncthreads();  // until every thread has read the result of the previous call
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
    T maximum = part[0];
    for (int warp = 1; warp < blockDim.x / WARP; warp++) maximum = part[warp] > maximum ? part[warp] : maximum;
    return maximum;
}
