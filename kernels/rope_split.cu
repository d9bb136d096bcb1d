// q, k and v out of the fused projection; q and k rotated; k and v into their rows of the cache, or of its pages.
//
//   qkv[t] = for each K/V head g: its NH/NKV query heads, k, v, each HD wide
//   q[t, h] = rotate(query head h), K[g, row of t] = rotate(k of g), V[g, row of t] = v of g
//   rotate(x)[i] = x[i] cos - x[i + HD/2] sin, rotate(x)[i + HD/2] = x[i + HD/2] cos + x[i] sin, at angle positions[t] * inv_freq[i]
//
//   q          (T, NH, HD)                 bf16, or null: only K and V are written
//   k, v       (NKV, CAP, HD)              bf16, one layer of the cache; paged (PAGES, NKV, kPage, HD)
//   qkv        (T, (NH + 2*NKV)*HD)        bf16
//   positions  (T)                         i32
//   kv_rows    (T)                         i32, below CAP
//   seq        (T)                         i32, paged: the row's slot, or -1 for a row that has no place: its k and v go nowhere
//   pages      (S, MAX_PAGES)              i32, paged: position p of slot s is row p % kPage of page pages[s, p / kPage]
//   inv_freq   (HD/2)                      f32; paged (S, HD/2)
//
// Requires HD % 16 == 0, HD <= 2*kBlock, gridDim.x == T. Angles and rotation in f32, rounded once; sine and cosine are the accurate ones, as
// positions reach tens of thousands. One block a row; a thread rotates eight pairs, whose sines and cosines it reads four at a time: the first four of
// every eight stand side by side, and so do the others, so that neighbouring threads touch every bank once. Bytes: 4*T*(NH + 2*NKV)*HD.
// Source: apply_rotary_pos_emb and InternLM2Attention.forward, modeling_internlm2.py.

#include "common.cuh"

constexpr int kBlock = 256;  // == ops::rope_split::BLOCK
constexpr int kPage = 64;    // == ops::PAGE
constexpr int kHalf = kBlock / 2 + 16;  // floats from the first fours to the others

// Where the i-th sine or cosine stands.
__device__ __forceinline__ int place(int i) { return i / 4 % 2 * kHalf + i / 8 * 4 + i % 4; }

// Head g's k and v of the row go to kv_at + g*kv_stride; nowhere if kv_at is negative.
__device__ __forceinline__ void rope_split(bf16* q, bf16* k, bf16* v, const bf16* qkv, int position, const float* inv_freq,
                                           int64_t kv_at, int64_t kv_stride, int NH, int NKV, int HD) {
    __shared__ __align__(16) float s_cos[2 * kHalf], s_sin[2 * kHalf];
    const int t = blockIdx.x, half = HD / 2;
    if (threadIdx.x < half) {
        const float angle = position * inv_freq[threadIdx.x];
        __builtin_assume(fabsf(angle) < 1e5f);  // ops/rope_split.rs sees to it; above, sincosf has an array in local memory
        sincosf(angle, &s_sin[place(threadIdx.x)], &s_cos[place(threadIdx.x)]);
    }
    __syncthreads();
    const int group = NH / NKV, slots = NKV * (group + 2), units = half / 8;
    const bf16* row = qkv + size_t(t) * slots * HD;
    for (int e = threadIdx.x; e < slots * units; e += kBlock) {
        const int slot = e / units, i = e % units * 8, g = slot / (group + 2), j = slot % (group + 2);
        const bf16* x = row + slot * HD + i;
        if (j < group ? !q : kv_at < 0) continue;
        const int64_t to_kv = kv_at + g * kv_stride + i;
        if (j == group + 1) {
            store16(v + to_kv, load16(x));
            store16(v + to_kv + half, load16(x + half));
            continue;
        }
        bf16* to = j < group ? q + (size_t(t) * NH + g * group + j) * HD + i : k + to_kv;
        const float8 a = load8(x), b = load8(x + half);
        float8 lo, hi;
#pragma unroll
        for (int n = 0; n < 8; n += 4) {
            const float4 cos4 = *reinterpret_cast<const float4*>(&s_cos[place(i + n)]);
            const float4 sin4 = *reinterpret_cast<const float4*>(&s_sin[place(i + n)]);
            const float c[4] = {cos4.x, cos4.y, cos4.z, cos4.w}, s[4] = {sin4.x, sin4.y, sin4.z, sin4.w};
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                lo.v[n + k] = a.v[n + k] * c[k] - b.v[n + k] * s[k];
                hi.v[n + k] = b.v[n + k] * c[k] + a.v[n + k] * s[k];
            }
        }
        store8(to, lo);
        store8(to + half, hi);
    }
}

extern "C" __global__ void __launch_bounds__(kBlock)
rope_split_bf16(bf16* q, bf16* k, bf16* v, const bf16* qkv, const int* positions, const int* kv_rows,
                const float* inv_freq, int CAP, int NH, int NKV, int HD) {
    const int t = blockIdx.x;
    rope_split(q, k, v, qkv, positions[t], inv_freq, int64_t(kv_rows[t]) * HD, int64_t(CAP) * HD, NH, NKV, HD);
}

extern "C" __global__ void __launch_bounds__(kBlock)
rope_split_paged_bf16(bf16* q, bf16* k, bf16* v, const bf16* qkv, const int* seq, const int* positions, const int* pages,
                      const float* inv_freq, int MAX_PAGES, int NH, int NKV, int HD) {
    const int t = blockIdx.x, slot = seq[t], position = positions[t];
    int64_t kv_at = -1;
    if (slot >= 0) {
        const int64_t page = pages[size_t(slot) * MAX_PAGES + position / kPage];
        kv_at = (page * NKV * kPage + position % kPage) * HD;
    }
    rope_split(q, k, v, qkv, position, inv_freq + size_t(max(slot, 0)) * (HD / 2), kv_at, int64_t(kPage) * HD, NH, NKV, HD);
}
