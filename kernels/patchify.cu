// Pixels as rows of patches: what a convolution of stride P reads, as a matmul's rows.
//
//   y[b*G*G + i*G + j, (c*P + u)*P + v] = x[b, c, P*i + u, P*j + v], and zeros behind a row's channels*P*P
//
//   y  (B*G*G, K)               bf16
//   x  (B, channels, G*P, G*P)  f32
//
// Requires K % 8 == 0, K >= channels*P*P, gridDim == (ceil(G/kPatches), G, B), kPatches*K*2 bytes of dynamic shared memory.
// A block reads whole lines of kPatches patches beside each other and writes their rows 16 bytes at a time.
// Bytes: 4*B*channels*S*S + 2*B*G*G*K.

#include "common.cuh"

constexpr int kBlock = 256;   // == ops::patchify::BLOCK
constexpr int kPatches = 8;   // == ops::patchify::PATCHES

extern "C" __global__ void __launch_bounds__(kBlock)
patchify_bf16(bf16* y, const float* x, int channels, int G, int P, int K) {
    extern __shared__ __align__(16) bf16 s_y[];  // (kPatches, K)
    const int first = blockIdx.x * kPatches, i = blockIdx.y, b = blockIdx.z, S = G * P;
    const int patches = min(kPatches, G - first), used = channels * P * P;
    const int width = patches * P;
    for (int e = threadIdx.x; e < channels * P * width; e += kBlock) {
        const int line = e / width, col = e % width;  // line = c*P + u
        const int c = line / P, u = line % P;
        const float v = x[((size_t(b) * channels + c) * S + i * P + u) * S + first * P + col];
        s_y[col / P * K + line * P + col % P] = __float2bfloat16_rn(v);
    }
    for (int e = threadIdx.x; e < patches * (K - used); e += kBlock) {
        s_y[e / (K - used) * K + used + e % (K - used)] = __float2bfloat16_rn(0.f);
    }
    __syncthreads();
    const size_t row = (size_t(b) * G + i) * G + first;
    for (int e = threadIdx.x * 8; e < patches * K; e += kBlock * 8) {
        store16(y + row * K + e, load16(s_y + e));
    }
}
