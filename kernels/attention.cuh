// Flash attention's inner part, for attention.cu and attention_ranges.cu: softmax(q k^T / sqrt(HD)) v over blocks of keys, online.
//
// A block of four warps holds kRows queries, 16*kFragM a warp. Keys and values come kKeys at a time, each through one slot of shared memory
// that cp.async fills while the other is used. Queries stay in registers where they fit (HD 64), else in shared memory.
//
// A row's weights are 2^(score*kScale - scale), where `scale` makes the largest weight of its first block 2^-64. A later score may outgrow that:
// while every weight stays below one nothing else changes, as floats keep their relative precision (zero are those below 2^-62 of the
// largest); else the row is rescaled, so that its largest weight is 2^-64 again. That no exponent has reached zero is seen in the AND of
// their signs, three operands an instruction: a block of keys without a rescale costs an FFMA, an ex2, a sum and half an AND a score,
// and no maximum. Sums are f32; weights are rounded to bf16 for the product with v. A row's bits depend on its own keys and their blocks alone.
//
// Blocks that every query sees whole take the path without a mask; with one, groups of 16 keys that no row of the warp sees are passed over.
//
// A row of shared memory holds HD elements in chunks of 16 bytes; chunk c of row r lies at place c ^ r%8, so that eight rows of one chunk
// (ldmatrix) touch every bank once.
#pragma once

#include "common.cuh"
#include "mma.cuh"

constexpr int kWarps = 4, kThreads = 32 * kWarps;

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

template <int HD, int kFragM, int kKeys_>
struct Flash {
    static constexpr int kKeys = kKeys_, kRows = kWarps * 16 * kFragM, kChunks = HD / 8, kRowBytes = HD * 2;
    static constexpr int kShared = (kRows + 2 * kKeys) * kRowBytes;  // queries, keys, values
    static constexpr bool kHeld = HD == 64;                          // whether registers hold the queries
    static_assert(HD == 64 || HD == 128, "the scale is that of these head sizes");
    static constexpr float kScale = (HD == 64 ? 0.125f : 0.08838835f) * 1.44269504f;  // log2(e) / sqrt(HD)
    static constexpr float kRoom = 64.f;  // powers of two by which a row's scores may grow before it is rescaled

    float o[kFragM][HD / 8][4];
    float scale[kFragM][2], sum[kFragM][2];  // of rows lane/4 and lane/4 + 8; the scale's exponent
    int scaled;                              // 0 before the first block, then -1
    uint32_t q[kFragM][HD / 16][4];
    uint32_t base;  // shared memory: queries, keys, values

    __device__ __forceinline__ static uint32_t place(int row, int chunk) {
        return row * kRowBytes + (chunk ^ row % 8) * 16;
    }
    __device__ __forceinline__ uint32_t keys() const { return base + kRows * kRowBytes; }
    __device__ __forceinline__ uint32_t values() const { return keys() + kKeys * kRowBytes; }

    // The thread's chunk of every kStep-th row.
    static constexpr int kStep = kThreads / kChunks;
    static_assert(kStep % 8 == 0 && kKeys % kStep == 0, "the swizzle of a thread's rows is one");
    __device__ __forceinline__ static int row() { return threadIdx.x / kChunks; }
    __device__ __forceinline__ static int column() { return threadIdx.x % kChunks * 8; }

    // Copies kCount rows; `from(i)` is the address of the thread's chunk in its i-th row, row() + i*kStep.
    template <int kCount, class From>
    __device__ __forceinline__ static void copy(uint32_t to, From from) {
        to += place(row(), threadIdx.x % kChunks);
#pragma unroll
        for (int i = 0; i < kCount / kStep; ++i) cp_async_16(to + i * kStep * kRowBytes, from(i));
        cp_async_commit_group();
    }

    // What was copied has landed, and what it replaces next has been used by all.
    __device__ __forceinline__ static void landed() {
        cp_async_wait_group<0>();
        __syncthreads();
    }

    // Rows are aligned to their size, so that the swizzled place of another chunk differs in bits of the address alone.
    __device__ __forceinline__ void load_q(uint32_t (&a)[4], int m, int k) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        ldmatrix_x4(a, ((base + place(warp * kFragM * 16 + lane % 16, lane / 16)) ^ k * 32) + m * 16 * kRowBytes);
    }

    // After the queries have landed.
    __device__ __forceinline__ void begin() {
#pragma unroll
        for (int m = 0; m < kFragM; ++m) {
#pragma unroll
            for (int k = 0; k < HD / 16; ++k) {
                if (kHeld) load_q(q[m][k], m, k);
            }
#pragma unroll
            for (int n = 0; n < HD / 8; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) o[m][n][e] = 0.f;
            }
            scale[m][0] = scale[m][1] = sum[m][0] = sum[m][1] = 0.f;
        }
        scaled = 0;
    }

    // Rows with an exponent that has reached zero, and in the first block all rows, get a scale that makes their largest one -kRoom. It
    // does not matter whether another row of the warp needs it: one that does not is changed by zero, and by a factor of one.
    __device__ __forceinline__ void rescale(float (&s)[kFragM][kKeys / 8][4]) {
        float shrink[kFragM][2];
#pragma unroll
        for (int m = 0; m < kFragM; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float t = -INFINITY;
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n) t = fmaxf(t, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                t = fmaxf(t, __shfl_xor_sync(0xffffffff, t, 1));
                t = fmaxf(t, __shfl_xor_sync(0xffffffff, t, 2));
                const float grown = scaled && t < 0.f ? 0.f : t + kRoom;
                scale[m][half] += grown;
                shrink[m][half] = ex2(-grown);
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n) s[m][n][2 * half] -= grown, s[m][n][2 * half + 1] -= grown;
            }
        }
        if (!scaled) {  // there is no sum yet
            scaled = -1;
            return;
        }
#pragma unroll
        for (int m = 0; m < kFragM; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                sum[m][half] *= shrink[m][half];
#pragma unroll
                for (int n = 0; n < HD / 8; ++n) o[m][n][2 * half] *= shrink[m][half], o[m][n][2 * half + 1] *= shrink[m][half];
            }
        }
    }

    // One block of keys; with kMasked, row `half` of fragment m sees the first limit[m][half] of them, the warp's rows at most `left`. Every
    // row sees a key of its first block. `between()` is called when the keys have been used, before the values are.
    template <bool kMasked, class Between>
    __device__ __forceinline__ void step(int left, const int (&limit)[kFragM][2], Between between) {
        const int lane = threadIdx.x % 32;
        const uint32_t k_at = keys() + place(lane / 16 * 8 + lane % 8, lane / 8 % 2);
        const uint32_t v_at = values() + place(lane % 16, lane / 16);
        float s[kFragM][kKeys / 8][4] = {};
#pragma unroll
        for (int k = 0; k < HD / 16; ++k) {
            if (!kHeld) {
#pragma unroll
                for (int m = 0; m < kFragM; ++m) load_q(q[m][0], m, k);
            }
#pragma unroll
            for (int n = 0; n < kKeys / 16; ++n) {
                if (kMasked && n * 16 >= left) continue;
                uint32_t b[4];
                ldmatrix_x4(b, (k_at ^ k * 32) + n * 16 * kRowBytes);
#pragma unroll
                for (int m = 0; m < kFragM; ++m) {
                    mma_m16n8k16(s[m][2 * n], q[m][kHeld ? k : 0], b[0], b[1]);
                    mma_m16n8k16(s[m][2 * n + 1], q[m][kHeld ? k : 0], b[2], b[3]);
                }
            }
        }
        int signs = scaled;  // negative while no exponent has reached zero; the first block is always scaled
#pragma unroll
        for (int m = 0; m < kFragM; ++m) {
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    float& v = s[m][n][e];
                    v = fmaf(v, kScale, -scale[m][e / 2]);
                    if (kMasked && n * 8 + lane % 4 * 2 + e % 2 >= limit[m][e / 2]) v = -INFINITY;
                    signs &= __float_as_int(v);
                }
            }
        }
        if (__builtin_expect(__any_sync(0xffffffff, signs >= 0), 0)) rescale(s);
        between();
#pragma unroll
        for (int k = 0; k < kKeys / 16; ++k) {
            if (kMasked && kHeld && k * 16 >= left) continue;  // (HD 128: one jump more and ptxas spills)
            uint32_t p[kFragM][4];
#pragma unroll
            for (int m = 0; m < kFragM; ++m) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {  // the accumulator's layout of two neighbouring fragments is that of one left operand
                    float(&pair)[4] = s[m][2 * k + i / 2];
                    const int half = i % 2;
                    const float a = ex2(pair[2 * half]), b = ex2(pair[2 * half + 1]);
                    sum[m][half] += a;
                    sum[m][half] += b;
                    p[m][i] = narrow2(a, b);
                }
            }
#pragma unroll
            for (int n = 0; n < HD / 16; ++n) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, (v_at ^ n * 32) + k * 16 * kRowBytes);
#pragma unroll
                for (int m = 0; m < kFragM; ++m) {
                    mma_m16n8k16(o[m][2 * n], p[m], b[0], b[1]);
                    mma_m16n8k16(o[m][2 * n + 1], p[m], b[2], b[3]);
                }
            }
        }
    }

    // Stores the rows; `to(row)` is where a row goes, or null for one that nobody asked for. A warp uses its own rows of shared memory.
    template <class To>
    __device__ __forceinline__ void finish(char* smem, To to) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        __syncwarp();
#pragma unroll
        for (int m = 0; m < kFragM; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float total = sum[m][half];
                total += __shfl_xor_sync(0xffffffff, total, 1);
                total += __shfl_xor_sync(0xffffffff, total, 2);
                const float share = 1.f / total;
                const int row = (warp * kFragM + m) * 16 + half * 8 + lane / 4;
#pragma unroll
                for (int n = 0; n < HD / 8; ++n) {
                    *reinterpret_cast<uint32_t*>(smem + place(row, n) + lane % 4 * 4) =
                        narrow2(o[m][n][2 * half] * share, o[m][n][2 * half + 1] * share);
                }
            }
        }
        __syncwarp();
#pragma unroll 4
        for (int e = lane; e < 16 * kFragM * kChunks; e += 32) {
            const int row = warp * kFragM * 16 + e / kChunks, chunk = e % kChunks;
            if (bf16* at = to(row)) store16(at + chunk * 8, load16(smem + place(row, chunk)));
        }
    }
};
