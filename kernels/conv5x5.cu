// 5x5 convolution of one channel, zero padding.
//
//   y[q,r,s] = b + sum_{u,v} w[u,v] * x[q, r+u-2, s+v-2]
//
//   y  (Q, S, S)  f32
//   x  (Q, S, S)  bf16
//   w  (5, 5)     bf16
//   b  (1)        bf16
//
// Requires S % 2 == 0, gridDim == (ceil(S/kWidth), ceil(S/kHeight), Q). f32 sums in the order u, v. A block makes kWidth x kHeight outputs from a tile
// in shared memory, which is read two columns at a time; a thread makes kRows outputs of one column, and reads each of its 5*(kRows+4) inputs once.
// Bytes: 6*Q*S*S, and the tiles' edges.

#include "conv5x5.cuh"

constexpr int kWidth = 64, kHeight = 32, kRows = 8;     // == ops::conv5x5::{WIDTH, HEIGHT}
constexpr int kBlock = kWidth * kHeight / kRows;        // == ops::conv5x5::BLOCK
constexpr int kTileWidth = kWidth + 4, kTileHeight = kHeight + 4;

extern "C" __global__ void __launch_bounds__(kBlock, 4)
conv5x5_bf16(float* y, const bf16* x, const bf16* w, const bf16* b, int S) {
    __shared__ __align__(8) float s_x[kTileHeight][kTileWidth], s_w[25];
    const int row0 = blockIdx.y * kHeight, col0 = blockIdx.x * kWidth;
    const size_t image = size_t(blockIdx.z) * S * S;
    stage<kBlock>(s_x, s_w, x + image, w, row0, col0, S);
    const float bias = __bfloat162float(b[0]);
    __syncthreads();
    float r_w[5][5];
#pragma unroll
    for (int i = 0; i < 25; ++i) r_w[i / 5][i % 5] = s_w[i];
    const int col = threadIdx.x % kWidth, first = threadIdx.x / kWidth * kRows;
    float acc[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) acc[k] = bias;
#pragma unroll
    for (int i = 0; i < kRows + 4; ++i) {
        float r_x[5];
#pragma unroll
        for (int v = 0; v < 5; ++v) r_x[v] = s_x[first + i][col + v];
#pragma unroll
        for (int u = 0; u < 5; ++u) {
            const int k = i - u;  // input line i is line u of output k's window
            if (k >= 0 && k < kRows) {
#pragma unroll
                for (int v = 0; v < 5; ++v) acc[k] += r_w[u][v] * r_x[v];
            }
        }
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
        const int row = row0 + first + k;
        if (row < S && col0 + col < S) y[image + size_t(row) * S + col0 + col] = acc[k];
    }
}
