// y = 1 / (1 + exp(-x)), elementwise.
//
//   y, x  (N)  f32
//
// Requires N % 4 == 0, gridDim.x == ceil(N/4 / kBlock). Bytes: 8*N.

#include "common.cuh"

constexpr int kBlock = 256;  // == ops::ROW_BLOCK

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

extern "C" __global__ void __launch_bounds__(kBlock)
sigmoid_f32(float* y, const float* x, int N) {
    const int i = (blockIdx.x * kBlock + threadIdx.x) * 4;
    if (i >= N) return;
    const float4 v = *reinterpret_cast<const float4*>(x + i);
    *reinterpret_cast<float4*>(y + i) = make_float4(sigmoid(v.x), sigmoid(v.y), sigmoid(v.z), sigmoid(v.w));
}
