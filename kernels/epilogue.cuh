// What matmul.cu and matmul_small.cu do with a product before it is stored: the same steps, and so the same bits.
#pragma once

#include "common.cuh"

// What is done to v; == ops::matmul's.
enum Then { kStore, kGelu, kRelu, kResidual };
enum Kind { kBf16, kSiluMul, kF32 };

// What comes before rounding, in f32; gelu is the exact one (erf), relu keeps NaN.
__device__ __forceinline__ float activate(float v, int then) {
    if (then == kGelu) return 0.5f * v * (1.f + erff(v * 0.70710678f));
    return then == kRelu ? max_nan(v, 0.f) : v;
}

__device__ __forceinline__ float silu_mul(float gate, float up) { return gate / (1.f + expf(-gate)) * up; }

// y = v, or y + v, or y + ls*v, for eight columns, of which `ls` (null: ones) is given the first.
__device__ __forceinline__ void store_result(bf16* y, uint4 v, const bf16* ls, int then) {
    if (then == kResidual) {
        float8 sum = load8(y);
        const float8 add = widen8(v);
        if (ls) {
            const float8 scale = load8(ls);
#pragma unroll
            for (int k = 0; k < 8; ++k) sum.v[k] += scale.v[k] * add.v[k];
        } else {
#pragma unroll
            for (int k = 0; k < 8; ++k) sum.v[k] += add.v[k];
        }
        v = narrow8(sum);
    }
    store16(y, v);
}

// The same for one column.
__device__ __forceinline__ void store_result(bf16* y, bf16 v, const bf16* ls, int then) {
    if (then == kResidual) {
        const float add = __bfloat162float(v);
        v = __float2bfloat16_rn(__bfloat162float(*y) + (ls ? __bfloat162float(*ls) * add : add));
    }
    *y = v;
}
