// Where DySample reads: the predicted offsets around their start positions.
//
//   y[n,k] = 0.25 * x[n,k] + init_pos[k]
//
//   y         (N, K)  f32, in pixels of the map that is sampled
//   x         (N, K)  bf16
//   init_pos  (K)     bf16
//
// Requires K % 8 == 0, gridDim.x == ceil(N*K/8 / kBlock). Product and sum are rounded each, as in the reference. Bytes: 6*N*K.

#include "common.cuh"

constexpr int kBlock = 256;  // == ops::ROW_BLOCK

extern "C" __global__ void __launch_bounds__(kBlock)
dysample_offset_bf16(float* y, const bf16* x, const bf16* init_pos, int N, int K) {
    const size_t at = (size_t(blockIdx.x) * kBlock + threadIdx.x) * 8;
    if (at >= size_t(N) * K) return;
    const float8 v = load8(x + at), p = load8(init_pos + at % K);
    float r_y[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) r_y[j] = __fadd_rn(__fmul_rn(0.25f, v.v[j]), p.v[j]);
    *reinterpret_cast<float4*>(y + at) = make_float4(r_y[0], r_y[1], r_y[2], r_y[3]);
    *reinterpret_cast<float4*>(y + at + 4) = make_float4(r_y[4], r_y[5], r_y[6], r_y[7]);
}
