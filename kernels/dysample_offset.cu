// Where DySample reads: the predicted offsets around their start positions.
//
//   y[n,k] = 0.25 * x[n,k] + init_pos[k]
//
//   y         (N, K)  f32, in pixels of the map that is sampled
//   x         (N, K)  bf16
//   init_pos  (K)     bf16
//
// Requires K % 4 == 0, gridDim.x == ceil(N*K/4 / kBlock), dynamic shared memory for init_pos, which a block reads once. Product and sum are rounded
// each, as in the reference. A thread makes four, 16 bytes: with eight, each of its stores would fill half a sector. Bytes: 6*N*K.

#include "common.cuh"

constexpr int kBlock = 256;  // == ops::ROW_BLOCK

extern "C" __global__ void __launch_bounds__(kBlock)
dysample_offset_bf16(float* y, const bf16* x, const bf16* init_pos, int N, int K) {
    extern __shared__ uint2 s_pos[];
    for (int e = threadIdx.x; e < K / 4; e += kBlock) s_pos[e] = reinterpret_cast<const uint2*>(init_pos)[e];
    __syncthreads();
    const size_t at = (size_t(blockIdx.x) * kBlock + threadIdx.x) * 4;
    if (at >= size_t(N) * K) return;
    const uint2 v = *reinterpret_cast<const uint2*>(x + at), p = s_pos[at % K / 4];
    const float2 v0 = widen2(v.x), v1 = widen2(v.y), p0 = widen2(p.x), p1 = widen2(p.y);
    auto moved = [](float v, float p) { return __fadd_rn(__fmul_rn(0.25f, v), p); };
    *reinterpret_cast<float4*>(y + at) =
        make_float4(moved(v0.x, p0.x), moved(v0.y, p0.y), moved(v1.x, p1.x), moved(v1.y, p1.y));
}
