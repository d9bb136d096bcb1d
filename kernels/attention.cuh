// Flash attention's inner part, for attention.cu and attention_ranges.cu: softmax(q k^T / sqrt(HD)) v over blocks of keys, online.
//
// A block of four warps holds kRows queries, 16*kFragM a warp, in registers. Keys and values come kKeys at a time through two slots of shared
// memory, filled by cp.async while the other is used. The largest score and the sum of a row are kept in f32; the scale is folded into
// the exponent, which costs one FFMA and one ex2; probabilities are rounded to bf16 for the product with v. A block of keys that every
// query sees takes the path without a mask. A row's bits depend on its own keys and their blocks alone.
//
// A row of shared memory holds HD elements in chunks of 16 bytes; chunk c of row r lies at place c ^ r%8, so that eight rows of one chunk
// (ldmatrix) touch every bank once.
#pragma once

#include "common.cuh"
#include "mma.cuh"

constexpr int kWarps = 4, kThreads = 32 * kWarps, kKeys = 64;

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

template <int HD, int kFragM>
struct Flash {
    static constexpr int kRows = kWarps * 16 * kFragM, kChunks = HD / 8, kRowBytes = HD * 2;
    static constexpr int kSlot = kKeys * kRowBytes;                          // bytes of a block's keys, or values
    static constexpr int kShared = kRows * kRowBytes + 4 * kSlot;            // queries; two slots of each

    float o[kFragM][HD / 8][4];
    float largest[kFragM][2], sum[kFragM][2];  // of rows lane/4 and lane/4 + 8
    uint32_t q[kFragM][HD / 16][4];
    uint32_t base;  // shared memory: queries, then keys of slot 0 and 1, then values

    __device__ __forceinline__ static uint32_t place(int row, int chunk) {
        return row * kRowBytes + (chunk ^ row % 8) * 16;
    }
    __device__ __forceinline__ uint32_t keys(int slot) const { return base + kRows * kRowBytes + slot * kSlot; }
    __device__ __forceinline__ uint32_t values(int slot) const { return keys(slot) + 2 * kSlot; }

    // The thread's chunk of every kStep-th row.
    static constexpr int kStep = kThreads / kChunks;
    static_assert(kStep % 8 == 0, "the swizzle of a thread's rows is one");
    __device__ __forceinline__ static int row() { return threadIdx.x / kChunks; }
    __device__ __forceinline__ static int column() { return threadIdx.x % kChunks * 8; }

    // Copies kCount rows; `from(i)` is the address of the thread's chunk in its i-th row, row() + i*kStep.
    template <int kCount, class From>
    __device__ __forceinline__ static void copy(uint32_t to, From from) {
        to += place(row(), threadIdx.x % kChunks);
#pragma unroll
        for (int i = 0; i < kCount / kStep; ++i) cp_async_16(to + i * kStep * kRowBytes, from(i));
    }

    // After the queries have landed.
    __device__ __forceinline__ void begin() {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int m = 0; m < kFragM; ++m) {
#pragma unroll
            for (int k = 0; k < HD / 16; ++k) {
                ldmatrix_x4(q[m][k], base + place((warp * kFragM + m) * 16 + lane % 16, 2 * k + lane / 16));
            }
#pragma unroll
            for (int n = 0; n < HD / 8; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) o[m][n][e] = 0.f;
            }
            largest[m][0] = largest[m][1] = -INFINITY;
            sum[m][0] = sum[m][1] = 0.f;
        }
    }

    // One block of keys; with kMasked, row `half` of fragment m sees the first limit[m][half] of them. Some block before or this one must
    // show every row a key.
    template <bool kMasked>
    __device__ __forceinline__ void step(int slot, const int (&limit)[kFragM][2]) {
        static_assert(HD == 64 || HD == 128, "the scale is that of these head sizes");
        constexpr float kScale = (HD == 64 ? 0.125f : 0.08838835f) * 1.44269504f;  // log2(e) / sqrt(HD)
        const int lane = threadIdx.x % 32;
        // Rows are aligned to their size, so that the swizzled place of another chunk differs in bits of the address alone.
        const uint32_t k_at = keys(slot) + place(lane / 16 * 8 + lane % 8, lane / 8 % 2);
        const uint32_t v_at = values(slot) + place(lane % 16, lane / 16);
        float s[kFragM][kKeys / 8][4] = {};
#pragma unroll
        for (int k = 0; k < HD / 16; ++k) {
#pragma unroll
            for (int n = 0; n < kKeys / 16; ++n) {
                uint32_t b[4];
                ldmatrix_x4(b, (k_at ^ k * 32) + n * 16 * kRowBytes);
#pragma unroll
                for (int m = 0; m < kFragM; ++m) {
                    mma_m16n8k16(s[m][2 * n], q[m][k], b[0], b[1]);
                    mma_m16n8k16(s[m][2 * n + 1], q[m][k], b[2], b[3]);
                }
            }
        }
        uint32_t p[kFragM][kKeys / 16][4];
#pragma unroll
        for (int m = 0; m < kFragM; ++m) {
            if (kMasked) {
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        if (n * 8 + lane % 4 * 2 + e % 2 >= limit[m][e / 2]) s[m][n][e] = -INFINITY;
                    }
                }
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float top = largest[m][half];
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n) top = fmaxf(top, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
                top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
                const float scaled = top * kScale, shrink = ex2(fmaf(largest[m][half], kScale, -scaled));
                const bool grew = top > largest[m][half];
                largest[m][half] = top;
                float total = sum[m][half] * shrink;
#pragma unroll
                for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                    for (int e = 2 * half; e < 2 * half + 2; ++e) {
                        s[m][n][e] = ex2(fmaf(s[m][n][e], kScale, -scaled));
                        total += s[m][n][e];
                    }
                }
                sum[m][half] = total;
                // Rarely once the first blocks are past; a factor of one would change nothing.
                if (__any_sync(0xffffffff, grew)) {
#pragma unroll
                    for (int n = 0; n < HD / 8; ++n) {
                        o[m][n][2 * half] *= shrink;
                        o[m][n][2 * half + 1] *= shrink;
                    }
                }
            }
            // The accumulator's layout of two neighbouring fragments is that of one left operand.
#pragma unroll
            for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    p[m][k][i] = narrow2(s[m][2 * k + i / 2][i % 2 * 2], s[m][2 * k + i / 2][i % 2 * 2 + 1]);
                }
            }
        }
#pragma unroll
        for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
            for (int n = 0; n < HD / 16; ++n) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, (v_at ^ n * 32) + k * 16 * kRowBytes);
#pragma unroll
                for (int m = 0; m < kFragM; ++m) {
                    mma_m16n8k16(o[m][2 * n], p[m][k], b[0], b[1]);
                    mma_m16n8k16(o[m][2 * n + 1], p[m][k], b[2], b[3]);
                }
            }
        }
    }

    // Stores the rows; `to(row)` is where a row goes, or null for one that nobody asked for. A warp uses its own rows of shared memory.
    template <class To>
    __device__ __forceinline__ void finish(char* smem, To to) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
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
