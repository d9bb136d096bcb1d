// RMSNorm over the last dimension.
//
//   y[n,c] = w[c] * bf16(x[n,c] * rsqrt(mean_c(x[n,c]^2) + eps))
//
//   y, x   (N, C)  bf16; y may be x
//   w      (C)     bf16
//   eps            f32, added to the mean square
//
// Requires C % 8 == 0, C <= 8 * kVectors * blockDim.x, gridDim.x == N, whole warps. Sums in f32. Rounds to bf16 before the multiply
// by w, as the model does (InternLM2RMSNorm.forward, modeling_internlm2.py).
//
// One block a row, the row in registers: it is read once. Bytes: 4*N*C + 2*C. Memory bound.

#include "common.cuh"

template <int kVectors>
__device__ void rmsnorm(bf16* y, const bf16* x, const bf16* w, int C, float eps) {
    __shared__ float s_sums[8];
    const size_t row = size_t(blockIdx.x) * C;
    float8 r_x[kVectors];
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
        const int c = (i * blockDim.x + threadIdx.x) * 8;
        if (c < C) {
            r_x[i] = load8(x + row + c);
#pragma unroll
            for (int j = 0; j < 8; ++j) squares += r_x[i].v[j] * r_x[i].v[j];
        }
    }
    const float rstd = rsqrtf(block_sum(squares, s_sums) / C + eps);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
        const int c = (i * blockDim.x + threadIdx.x) * 8;
        if (c < C) {
            const float8 r_w = load8(w + c);
            float8 r_y;
#pragma unroll
            for (int j = 0; j < 8; ++j) r_y.v[j] = r_w.v[j] * round_bf16(r_x[i].v[j] * rstd);
            store8(y + row + c, r_y);
        }
    }
}

#define INSTANCE(kVectors)                                                                \
    extern "C" __global__ void __launch_bounds__(256) rmsnorm_bf16_v##kVectors(           \
        bf16* y, const bf16* x, const bf16* w, int C, float eps) {                        \
        rmsnorm<kVectors>(y, x, w, C, eps);                                               \
    }
INSTANCE(1)
INSTANCE(2)
INSTANCE(4)
INSTANCE(8)
