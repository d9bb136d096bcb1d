// What conv5x5.cu and mask_head.cu read of a map and of the 5x5 convolution's weights.
#pragma once

#include "common.cuh"

// s_x[i][j] = x[row0 + i - 2, col0 + j - 2] of one map `(S, S)`, zero outside it, two columns at a time, S and kCols even; s_w = w `(5, 5)`.
// All kThreads threads of the block; the caller synchronises.
template <int kThreads, int kRows, int kCols>
__device__ __forceinline__ void stage(float (&s_x)[kRows][kCols], float (&s_w)[25], const bf16* x, const bf16* w, int row0, int col0, int S) {
    for (int e = threadIdx.x; e < kRows * kCols / 2; e += kThreads) {
        const int i = e / (kCols / 2), j = e % (kCols / 2) * 2, row = row0 + i - 2, col = col0 + j - 2;
        const bool inside = row >= 0 && row < S && col >= 0 && col < S;
        const uint32_t pair = inside ? *reinterpret_cast<const uint32_t*>(x + size_t(row) * S + col) : 0;
        *reinterpret_cast<float2*>(&s_x[i][j]) = widen2(pair);
    }
    if (threadIdx.x < 25) s_w[threadIdx.x] = __bfloat162float(w[threadIdx.x]);
}
