// 5x5 convolution of one channel, zero padding.
//
//   y[q,r,s] = b + sum_{u,v} w[u,v] * x[q, r+u-2, s+v-2]
//
//   y  (Q, S, S)  f32
//   x  (Q, S, S)  bf16
//   w  (5, 5)     bf16
//   b  (1)        bf16
//
// Requires S % 4 == 0, an even `height`, gridDim == (ceil(S/height), Q), dynamic shared memory for (height + 4, S) bf16. f32 sums in the order u, v.
// A block makes `height` whole lines; see conv5x5.cuh. Bytes: (4 + 2*(height + 4)/height)*Q*S*S, the lines that blocks share from L2.

#include "conv5x5.cuh"

constexpr int kBlock = 256;  // == ops::conv5x5::BLOCK

extern "C" __global__ void __launch_bounds__(kBlock)
conv5x5_bf16(float* y, const bf16* x, const bf16* w, const bf16* b, int S, int height) {
    extern __shared__ __align__(16) uint32_t s_x[];
    __shared__ float s_w[26];
    const int row0 = blockIdx.x * height;
    const size_t map = size_t(blockIdx.y) * S * S;
    stage<kBlock>(s_x, s_w, x + map, w, b, row0 - 2, height + 4, S);
    float2* out = reinterpret_cast<float2*>(y + map + size_t(row0) * S);
    convolve<kBlock>(s_x, s_w, min(height, S - row0), S, [&](int r, int pair, float2 y) { out[r * (S / 2) + pair] = y; });
}
