// The place of each row's largest value, the first of equal ones.
//
//   y[n] = argmax_c x[n,c]
//
//   y  (N)     i32
//   x  (N, C)  f32
//
// Requires gridDim.x == N. A NaN is never the largest; a row without a number above -inf gives 0. One block a row. Bytes: 4*N*C.

#include "common.cuh"

constexpr int kBlock = 1024;  // == ops::argmax::BLOCK

struct __align__(8) Best {
    float value;
    int at;
};

// The larger; of equal ones that which stands first.
__device__ __forceinline__ Best better(Best a, Best b) {
    return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a;
}

__device__ __forceinline__ Best warp_best(Best v) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        v = better(v, {__shfl_xor_sync(0xffffffff, v.value, d), __shfl_xor_sync(0xffffffff, v.at, d)});
    }
    return v;
}

extern "C" __global__ void __launch_bounds__(kBlock)
argmax_f32(int* y, const float* x, int C) {
    __shared__ Best s_best[kBlock / 32];
    const float* row = x + size_t(blockIdx.x) * C;
    Best best = {-INFINITY, 0};
    for (int c = threadIdx.x; c < C; c += kBlock) {
        if (row[c] > best.value) best = {row[c], c};
    }
    best = warp_best(best);
    if (threadIdx.x % 32 == 0) s_best[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x < 32) {
        best = warp_best(s_best[threadIdx.x]);
        if (threadIdx.x == 0) y[blockIdx.x] = best.value == -INFINITY ? 0 : best.at;
    }
}
