// The class token and the patches, with the position embedding.
//
//   y[b,0] = class + position[0],  y[b,1+n] = patches[b,n] + position[1+n]
//
//   y                (B, 1+N, C)  bf16
//   patches          (B*N, C)     bf16
//   class_embedding  (C)          bf16
//   position         (1+N, C)     bf16
//
// Requires C % 8 == 0, gridDim == (B*(1+N), ceil(C/8 / kBlock)), tokens == 1+N. Bytes: 4*B*N*C + 2*N*C.

#include "common.cuh"

constexpr int kBlock = 256;  // == ops::ROW_BLOCK

extern "C" __global__ void __launch_bounds__(kBlock)
vit_tokens_bf16(bf16* y, const bf16* patches, const bf16* class_embedding, const bf16* position, int C, int tokens) {
    const int c = (blockIdx.y * kBlock + threadIdx.x) * 8;
    if (c >= C) return;
    const int b = blockIdx.x / tokens, t = blockIdx.x % tokens;
    const bf16* x = t == 0 ? class_embedding : patches + (size_t(b) * (tokens - 1) + t - 1) * C;
    float8 v = load8(x + c);
    const float8 p = load8(position + size_t(t) * C + c);
#pragma unroll
    for (int j = 0; j < 8; ++j) v.v[j] += p.v[j];
    store8(y + size_t(blockIdx.x) * C + c, v);
}
