// LayerNorm over the last dimension.
//
//   y[n,c] = bf16((x[n,c] - mean) * rstd * w[c] + b[c]),   rstd = 1 / sqrt(mean_c((x[n,c] - mean)^2) + eps)
//
//   y, x (N, C)  w, b (C)  bf16, 16-byte aligned
//
// Requires C % 8 == 0, C <= kBlock * 8, gridDim.x == N. A block keeps its row in registers, eight values a thread, reads
// it once, and takes mean and variance one after the other, in f32.

#include <cuda_bf16.h>

constexpr int kBlock = 128;

struct alignas(16) bf16x8 { __nv_bfloat162 v[4]; };

// The block's sum, in every thread.
__device__ float block_sum(float v) {
    __shared__ float s_sums[kBlock / 32];
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffff, v, d);
    if (threadIdx.x % 32 == 0) s_sums[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.f;
    for (int i = 0; i < kBlock / 32; ++i) v += s_sums[i];
    __syncthreads();  // s_sums is used again
    return v;
}

extern "C" __global__ void __launch_bounds__(kBlock)
layernorm_bf16(__nv_bfloat16* y, const __nv_bfloat16* x, const __nv_bfloat16* w, const __nv_bfloat16* b, int C, float eps) {
    const size_t row = size_t(blockIdx.x) * C;
    const int c = threadIdx.x * 8;
    const bool inside = c < C;

    float2 f[4] = {};
    if (inside) {
        const bf16x8 xv = *reinterpret_cast<const bf16x8*>(x + row + c);
        for (int i = 0; i < 4; ++i) f[i] = __bfloat1622float2(xv.v[i]);
    }
    float sum = 0.f;
    for (int i = 0; i < 4; ++i) sum += f[i].x + f[i].y;
    const float mean = block_sum(sum) / C;
    float squares = 0.f;
    if (inside)
        for (int i = 0; i < 4; ++i) {
            f[i].x -= mean, f[i].y -= mean;
            squares += f[i].x * f[i].x + f[i].y * f[i].y;
        }
    const float rstd = rsqrtf(block_sum(squares) / C + eps);
    if (inside) {
        const bf16x8 wv = *reinterpret_cast<const bf16x8*>(w + c), bv = *reinterpret_cast<const bf16x8*>(b + c);
        bf16x8 yv;
        for (int i = 0; i < 4; ++i) {
            const float2 wf = __bfloat1622float2(wv.v[i]), bf = __bfloat1622float2(bv.v[i]);
            yv.v[i] = __floats2bfloat162_rn(f[i].x * rstd * wf.x + bf.x, f[i].y * rstd * wf.y + bf.y);
        }
        *reinterpret_cast<bf16x8*>(y + row + c) = yv;
    }
}
