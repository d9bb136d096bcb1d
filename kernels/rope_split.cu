// q, k and v out of the fused projection; q and k rotated; k and v into their rows of the cache.
//
//   qkv[t] = for each K/V head g: its NH/NKV query heads, k, v, each HD wide
//   q[t, h] = rotate(query head h), K[g, kv_rows[t]] = rotate(k of g), V[g, kv_rows[t]] = v of g
//   rotate(x)[i] = x[i] cos - x[i + HD/2] sin, rotate(x)[i + HD/2] = x[i + HD/2] cos + x[i] sin, at angle positions[t] * inv_freq[i]
//
//   q          (T, NH, HD)                 bf16, or null: only K and V are written
//   k, v       (NKV, CAP, HD)              bf16, one layer of the cache
//   qkv        (T, (NH + 2*NKV)*HD)        bf16
//   positions  (T)                         i32
//   kv_rows    (T)                         i32, below CAP
//   inv_freq   (HD/2)                      f32
//
// Requires HD % 16 == 0, HD <= 2*kBlock, gridDim.x == T. Angles and rotation in f32, rounded once; sine and cosine are the accurate ones, as
// positions reach tens of thousands. One block a row; a thread rotates eight pairs. Bytes: 4*T*(NH + 2*NKV)*HD.
// Source: apply_rotary_pos_emb and InternLM2Attention.forward, modeling_internlm2.py.

#include "common.cuh"

constexpr int kBlock = 256;  // == ops::rope_split::BLOCK

extern "C" __global__ void __launch_bounds__(kBlock)
rope_split_bf16(bf16* q, bf16* k, bf16* v, const bf16* qkv, const int* positions, const int* kv_rows,
                const float* inv_freq, int NH, int NKV, int HD, int CAP) {
    __shared__ float s_cos[kBlock], s_sin[kBlock];
    const int t = blockIdx.x, half = HD / 2;
    if (threadIdx.x < half) {
        const float angle = positions[t] * inv_freq[threadIdx.x];
        __builtin_assume(fabsf(angle) < 1e5f);  // positions stay far below; above, sincosf has an array in local memory
        sincosf(angle, &s_sin[threadIdx.x], &s_cos[threadIdx.x]);
    }
    __syncthreads();
    const int group = NH / NKV, slots = NKV * (group + 2), units = half / 8;
    const bf16* row = qkv + size_t(t) * slots * HD;
    const size_t kv_row = kv_rows[t];
    for (int e = threadIdx.x; e < slots * units; e += kBlock) {
        const int slot = e / units, i = e % units * 8, g = slot / (group + 2), j = slot % (group + 2);
        const bf16* x = row + slot * HD + i;
        if (j == group + 1) {
            bf16* to = v + (g * size_t(CAP) + kv_row) * HD + i;
            store16(to, load16(x));
            store16(to + half, load16(x + half));
            continue;
        }
        if (j < group && !q) continue;
        bf16* to = j < group ? q + (size_t(t) * NH + g * group + j) * HD + i : k + (g * size_t(CAP) + kv_row) * HD + i;
        const float8 a = load8(x), b = load8(x + half);
        float8 lo, hi;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            const float c = s_cos[i + n], s = s_sin[i + n];
            lo.v[n] = a.v[n] * c - b.v[n] * s;
            hi.v[n] = b.v[n] * c + a.v[n] * s;
        }
        store8(to, lo);
        store8(to + half, hi);
    }
}
