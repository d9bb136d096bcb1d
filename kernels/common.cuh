// What every kernel uses: bf16 values read and written eight at a time, sums over a warp and over a block.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

using bf16 = __nv_bfloat16;

struct float8 {
    float v[8];
};

// Two bf16 in a register as two floats.
__device__ __forceinline__ float2 widen2(uint32_t bits) {
    return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}

// Two floats rounded to bf16 in a register, the first in the low half.
__device__ __forceinline__ uint32_t narrow2(float lo, float hi) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(lo, hi);
    return reinterpret_cast<const uint32_t&>(pair);
}

// max.NaN and min.NaN: fmaxf and fminf give the number where one is NaN, and a broken model would pass for a working one.
__device__ __forceinline__ float max_nan(float a, float b) {
    float d;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
    return d;
}

__device__ __forceinline__ float min_nan(float a, float b) {
    float d;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
    return d;
}

__device__ __forceinline__ float round_bf16(float v) { return __bfloat162float(__float2bfloat16_rn(v)); }

__device__ __forceinline__ float8 widen8(uint4 bits) {
    const float2 a = widen2(bits.x), b = widen2(bits.y), c = widen2(bits.z), d = widen2(bits.w);
    return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}

__device__ __forceinline__ uint4 narrow8(const float8& x) {
    return make_uint4(narrow2(x.v[0], x.v[1]), narrow2(x.v[2], x.v[3]), narrow2(x.v[4], x.v[5]),
                      narrow2(x.v[6], x.v[7]));
}

// 16 bytes at a multiple of 16.
__device__ __forceinline__ uint4 load16(const void* p) { return *static_cast<const uint4*>(p); }
__device__ __forceinline__ void store16(void* p, uint4 bits) { *static_cast<uint4*>(p) = bits; }

__device__ __forceinline__ float8 load8(const bf16* p) { return widen8(load16(p)); }
__device__ __forceinline__ void store8(bf16* p, const float8& x) { store16(p, narrow8(x)); }

// The sum over the warp's lanes, in every lane.
template <typename T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffff, v, d);
    return v;
}

// The sum over the threads of a block of whole warps, at most 32, in every thread. `s_sums` is used again only after a barrier.
__device__ __forceinline__ float block_sum(float v, float* s_sums) {
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) s_sums[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = 0.f;
    for (int w = 0; w < blockDim.x / 32; ++w) sum += s_sums[w];
    return sum;
}
