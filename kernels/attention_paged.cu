// Causal attention of packed rows over K/V pages, for prompts: many rows a sequence.
//
//   y[t] = softmax(q[t] k^T / sqrt(HD)) v over the keys of slot seq[t] at positions 0 to positions[t]; zero where seq[t] is -1
//
//   y, q       (T, NH, HD)                bf16
//   k, v       (PAGES, NKV, kKeys, HD)    bf16, one layer; NH/NKV query heads read one K/V head
//   seq        (T)                        i32, the row's slot or -1; rows of a slot that stand together have ascending positions
//   positions  (T)                        i32
//   pages      (S, MAX_PAGES)             i32, position p of slot s is row p % kKeys of page pages[s, p / kKeys]
//
// Requires gridDim == (ceil(T*(NH/NKV) / kRows), NKV), kShared bytes of dynamic shared memory. A tile is kRows of the rows times the heads that
// share a K/V head. It takes its sequences in turn: rows of others see none of their keys. Keys and values come a page at a time through two slots
// of shared memory, filled by cp.async while the other is used; keys behind the last one that is seen are not read. The bits are those
// of attention_decode.cu: see attention_paged.cuh. FLOPs 4*NH*HD*(keys seen by all rows).

#include "attention_paged.cuh"

template <int HD>
__device__ __forceinline__ void attention_paged(bf16* y, const bf16* q, const bf16* k, const bf16* v, const int* seq,
                                                const int* positions, const int* pages, int T, int NH, int NKV,
                                                int MAX_PAGES) {
    extern __shared__ __align__(256) char smem[];
    constexpr int kRows = 16 * kWarps;
    using S = Slots<HD, kRows>;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = NH / NKV, kv_head = blockIdx.y;
    const int first = blockIdx.x * kRows, total = T * group;
    const int first_t = first / group, last_t = (min(first + kRows, total) - 1) / group;
    const uint32_t base = shared_address(smem);
    auto at = [&](int r) { return (size_t((first + r) / group) * NH + kv_head * group + (first + r) % group) * HD; };
#pragma unroll
    for (int n = 0; n < kRows; n += S::kStep) {
        const int r = S::row() + n;
        cp_async_16(base + S::place(r, S::chunk()), q + at(min(r, total - 1 - first)) + S::chunk() * 8);
    }
    cp_async_commit_group();

    // Where the lane's fragment rows lie; the place of another chunk differs in bits of the address alone.
    const uint32_t q_at = base + S::place(warp * 16 + lane % 16, lane / 16);
    const uint32_t k_at = S::place(lane / 16 * 8 + lane % 8, lane / 8 % 2), v_at = S::place(lane % 16, lane / 16);

    Sums<HD / 8> whole, span;
    whole.clear();
    for (int t = first_t, end; t <= last_t; t = end) {  // rows t to end are one sequence's
        const int sequence = seq[t];
        for (end = t + 1; end <= last_t && seq[end] == sequence;) ++end;
        if (sequence < 0) continue;
        const int* page = pages + size_t(sequence) * MAX_PAGES;
        const int seen = positions[end - 1] + 1, all_see = t == first_t && end == last_t + 1 ? positions[t] + 1 : 0;
        int row_sees[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row_t = (first + warp * 16 + half * 8 + lane / 4) / group;
            row_sees[half] = t <= row_t && row_t < end ? positions[row_t] + 1 : 0;
        }
        auto fetch = [&](int i) { S::fetch(base, i % 2, k, v, page[i], kv_head, NKV, seen - i * kKeys); };
        __syncthreads();  // the sequence before is done with the slots
        fetch(0);
        const int count = (seen + kKeys - 1) / kKeys;
        for (int i = 0; i < count; ++i) {
            if (i % kSpanPages == 0) span.clear();
            cp_async_wait_group<0>();
            __syncthreads();  // page i is there, and the other slot has been used by all
            if (i + 1 < count) fetch(i + 1);
            float s[kKeys / 8][4] = {};
#pragma unroll
            for (int c = 0; c < HD / 16; ++c) {
                uint32_t a[4];
                ldmatrix_x4(a, q_at ^ c * 32);
#pragma unroll
                for (int n = 0; n < kKeys / 16; ++n) {
                    uint32_t b[4];
                    ldmatrix_x4(b, ((S::keys(base, i % 2) + k_at) ^ c * 32) + n * 16 * S::kRowBytes);
                    mma_m16n8k16(s[2 * n], a, b[0], b[1]);
                    mma_m16n8k16(s[2 * n + 1], a, b[2], b[3]);
                }
            }
            uint32_t p[kKeys / 16][4];
            const int limit[2] = {row_sees[0] - i * kKeys, row_sees[1] - i * kKeys};
            if ((i + 1) * kKeys <= all_see) {
                soften<HD, false>(span, s, limit, p);
            } else {
                soften<HD, true>(span, s, limit, p);
            }
#pragma unroll
            for (int c = 0; c < kKeys / 16; ++c) {
#pragma unroll
                for (int n = 0; n < HD / 16; ++n) {
                    uint32_t b[4];
                    ldmatrix_x4_trans(b, ((S::values(base, i % 2) + v_at) ^ n * 32) + c * 16 * S::kRowBytes);
                    mma_m16n8k16(span.o[2 * n], p[c], b[0], b[1]);
                    mma_m16n8k16(span.o[2 * n + 1], p[c], b[2], b[3]);
                }
            }
            if (i % kSpanPages == kSpanPages - 1 || i + 1 == count) add_span<HD>(whole, span);
        }
    }

    // Through the warp's own rows of shared memory.
    cp_async_wait_group<0>();
    __syncthreads();  // where no row had a key, the queries of all threads have landed only now
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float share = whole.sum[half] > 0.f ? 1.f / whole.sum[half] : 0.f;
        const int row = warp * 16 + half * 8 + lane / 4;
#pragma unroll
        for (int n = 0; n < HD / 8; ++n) {
            *reinterpret_cast<uint32_t*>(smem + S::place(row, n) + lane % 4 * 4) =
                narrow2(whole.o[n][2 * half] * share, whole.o[n][2 * half + 1] * share);
        }
    }
    __syncwarp();
#pragma unroll 4
    for (int e = lane; e < 16 * S::kChunks; e += 32) {
        const int row = warp * 16 + e / S::kChunks, chunk = e % S::kChunks;
        if (first + row < total) store16(y + at(row) + chunk * 8, load16(smem + S::place(row, chunk)));
    }
}

#define INSTANCE(HD)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(kThreads) attention_paged_bf16_hd##HD(                                   \
        bf16* y, const bf16* q, const bf16* k, const bf16* v, const int* seq, const int* positions, const int* pages,     \
        int T, int NH, int NKV, int MAX_PAGES) {                                                                          \
        attention_paged<HD>(y, q, k, v, seq, positions, pages, T, NH, NKV, MAX_PAGES);                                    \
    }
INSTANCE(128)
