// The mask decoder's activations a patch, laid out as an image.
//
//   y[q, P*i + u, P*j + v] = x[q, i*G + j, P*u + v]
//
//   y  (Q, G*P, G*P)    bf16
//   x  (Q, G*G, P*P)    bf16
//
// Requires (G*P) % 8 == 0, gridDim.x == ceil(Q*G*P*G*P/8 / kBlock). A thread writes eight pixels of a line: 16 bytes; what it reads is
// contiguous within a cell. Bytes: 4*Q*S*S. Source: RESDecoder.forward, the two permutes after conv1.

#include "common.cuh"

constexpr int kBlock = 256;  // == ops::ROW_BLOCK

extern "C" __global__ void __launch_bounds__(kBlock)
patches_to_pixels_bf16(bf16* y, const bf16* x, int Q, int G, int P) {
    const int S = G * P;
    const size_t at = (size_t(blockIdx.x) * kBlock + threadIdx.x) * 8;
    if (at >= size_t(Q) * S * S) return;
    const int q = at / (size_t(S) * S), row = at / S % S, first = at % S;
    const bf16* line = x + (size_t(q) * G + row / P) * G * P * P + row % P * P;
    uint32_t bits[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        const int col = first + k;
        bits[k] = reinterpret_cast<const uint16_t*>(line)[col / P * P * P + col % P];
    }
    store16(y + at, make_uint4(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16, bits[4] | bits[5] << 16,
                               bits[6] | bits[7] << 16));
}
