// What attention_paged.cu and attention_decode.cu share, so that a row gets the same bits from both: the softmax of a span of keys, and the sum of
// spans.
//
// Keys lie in pages of kKeys; kSpanPages pages from position 0 on are a span. Within a span scores are added up page after page with the
// largest one so far taken off (flash attention); spans are added up in order. Both in f32; scale folded into the exponent. A row's bits
// depend on its own keys alone: a page of which it sees nothing changes nothing.
#pragma once

#include "common.cuh"
#include "mma.cuh"

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kKeys = 64;                                  // == ops::PAGE
constexpr int kSpanPages = 4, kSpan = kSpanPages * kKeys;  // == ops::attention_decode::SPAN
constexpr float kNothing = -1e30f;                         // the largest score of no key

// log2(e) / sqrt(HD)
template <int HD>
constexpr float kScaleLog2 = (HD == 64 ? 0.125f : 0.08838835f) * 1.44269504f;

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Shared memory: kRows queries, then keys of slots 0 and 1, then their values. A row holds HD elements in chunks of 16 bytes; chunk c of row
// r lies at place c ^ r%8, so that eight rows of one chunk (ldmatrix) touch every bank once.
template <int HD, int kRows>
struct Slots {
    static constexpr int kChunks = HD / 8, kRowBytes = HD * 2, kSlot = kKeys * kRowBytes;
    static constexpr int kShared = kRows * kRowBytes + 4 * kSlot;
    static constexpr int kStep = kThreads / kChunks;  // a thread copies its chunk of every kStep-th row
    static_assert(kStep % 8 == 0, "the swizzle of a thread's rows is one");

    __device__ __forceinline__ static uint32_t place(int row, int chunk) { return row * kRowBytes + (chunk ^ row % 8) * 16; }
    __device__ __forceinline__ static uint32_t keys(uint32_t base, int slot) { return base + kRows * kRowBytes + slot * kSlot; }
    __device__ __forceinline__ static uint32_t values(uint32_t base, int slot) { return keys(base, slot) + 2 * kSlot; }
    __device__ __forceinline__ static int row() { return threadIdx.x / kChunks; }
    __device__ __forceinline__ static int chunk() { return threadIdx.x % kChunks; }

    // Copies keys and values of page `page`, head `head`; of those from `left` on zeros, without reading them.
    __device__ __forceinline__ static void fetch(uint32_t base, int slot, const bf16* k, const bf16* v, int page, int head, int NKV,
                                                 int left) {
        const size_t from = ((size_t(page) * NKV + head) * kKeys + row()) * HD + chunk() * 8;
        const uint32_t to = place(row(), chunk());
#pragma unroll
        for (int n = 0; n < kKeys; n += kStep) {
            const int bytes = row() + n < left ? 16 : 0;
            cp_async_16(keys(base, slot) + to + n * kRowBytes, k + from + n * HD, bytes);
            cp_async_16(values(base, slot) + to + n * kRowBytes, v + from + n * HD, bytes);
        }
        cp_async_commit_group();
    }
};

// Rows lane/4 and lane/4 + 8 of a fragment of 16: the largest score, the sum of exponentials, their sum weighted by kFrags*8 columns of v.
template <int kFrags>
struct Sums {
    float o[kFrags][4], largest[2], sum[2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int n = 0; n < kFrags; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) o[n][e] = 0.f;
        }
        largest[0] = largest[1] = kNothing;
        sum[0] = sum[1] = 0.f;
    }
};

// How sums a and b of two sets of keys come together: a's share of the new scale, and b's.
template <int HD>
struct Shares {
    float top, a, b;
    __device__ __forceinline__ Shares(float largest_a, float largest_b) {
        top = fmaxf(largest_a, largest_b);
        a = ex2(__fmul_rn(largest_a - top, kScaleLog2<HD>));
        b = ex2(__fmul_rn(largest_b - top, kScaleLog2<HD>));
    }
    __device__ __forceinline__ float operator()(float x_a, float x_b) const { return fmaf(x_a, a, __fmul_rn(x_b, b)); }
};

// Adds the span to the whole. `sum` of the span is per lane: the four lanes of a row are added here.
template <int HD, int kFrags>
__device__ __forceinline__ void add_span(Sums<kFrags>& whole, const Sums<kFrags>& span) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float sum = span.sum[half];
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
        const Shares<HD> shares(whole.largest[half], span.largest[half]);
        whole.largest[half] = shares.top;
        whole.sum[half] = shares(whole.sum[half], sum);
#pragma unroll
        for (int n = 0; n < kFrags; ++n) {
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; ++e) whole.o[n][e] = shares(whole.o[n][e], span.o[n][e]);
        }
    }
}

// Scores of a page, (16, kKeys), to probabilities in bf16 as left operands of p @ v; what the span holds is put on the new scale. With
// kMasked, row `half` sees the first limit[half] keys of the page.
template <int HD, bool kMasked, int kFrags>
__device__ __forceinline__ void soften(Sums<kFrags>& span, float (&s)[kKeys / 8][4], const int (&limit)[2],
                                       uint32_t (&p)[kKeys / 16][4]) {
    constexpr float kScale = kScaleLog2<HD>;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float top = span.largest[half];
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; ++e) {
                if (kMasked && n * 8 + lane % 4 * 2 + e % 2 >= limit[half]) s[n][e] = -INFINITY;
                top = fmaxf(top, s[n][e]);
            }
        }
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
        const float scaled = __fmul_rn(top, kScale);
        const bool grew = top > span.largest[half];
        // Exactly one where it did not grow: then it does not matter whether another row of the warp did.
        const float shrink = grew ? ex2(fmaf(span.largest[half], kScale, -scaled)) : 1.f;
        span.largest[half] = top;
        float total = 0.f;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; ++e) {
                s[n][e] = ex2(fmaf(s[n][e], kScale, -scaled));
                total += s[n][e];
            }
        }
        span.sum[half] = fmaf(span.sum[half], shrink, total);
        if (__any_sync(0xffffffff, grew)) {  // a factor of one would change nothing
#pragma unroll
            for (int n = 0; n < kFrags; ++n) {
                span.o[n][2 * half] *= shrink;
                span.o[n][2 * half + 1] *= shrink;
            }
        }
    }
    // The accumulator's layout of two neighbouring fragments is that of one left operand.
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) p[k][i] = narrow2(s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]);
    }
}
