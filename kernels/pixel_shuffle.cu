// Four pixels of a map side by side: half the sides, four times the channels.
//
//   y[b, r*(G/2) + s] = x[b, (2r,2s) | (2r,2s+1) | (2r+1,2s) | (2r+1,2s+1)]
//
//   y  (B*G*G/4, 4*C)  bf16
//   x  (B*G*G, C)      bf16
//
// Requires C % 8 == 0, G even, gridDim == (B*G*G, ceil(C/8 / kBlock)): a block a pixel of x. A copy. Bytes: 4*B*G*G*C.
// Source: InternVLChatModel.pixel_shuffle, ps_version v2.

#include "common.cuh"

constexpr int kBlock = 256;  // == ops::ROW_BLOCK

extern "C" __global__ void __launch_bounds__(kBlock)
pixel_shuffle_bf16(bf16* y, const bf16* x, int C, int G) {
    const int c = (blockIdx.y * kBlock + threadIdx.x) * 8;
    if (c >= C) return;
    const int pixel = blockIdx.x, b = pixel / (G * G), row = pixel / G % G, col = pixel % G;
    const size_t cell = (size_t(b) * (G / 2) + row / 2) * (G / 2) + col / 2;
    const int quarter = row % 2 * 2 + col % 2;
    store16(y + (cell * 4 + quarter) * C + c, load16(x + size_t(pixel) * C + c));
}
