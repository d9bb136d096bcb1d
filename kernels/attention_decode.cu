// Causal attention over K/V pages for decoding: few rows a sequence, the context split over blocks.
//
//   y[t] = softmax(q[t] k^T / sqrt(HD)) v over the keys of slot seq[t] at positions 0 to positions[t]; zero where seq[t] is -1
//
//   parts      (T, NH, SPANS, HD + 8)     f32, scratch: of kSpan keys the weighted sum of v, the largest score, the sum of weights; six unused.
//                                         SPANS = ceil(MAX_PAGES*kKeys / kSpan)
//   y, q, k, v, seq, positions, pages     as in attention_paged.cu
//
// First kernel: gridDim == (T, NKV, any), kShared bytes of dynamic shared memory, NH/NKV <= 16. Block (t, head, z) does spans z, z + gridDim.z, ...
// of up to 16/(NH/NKV) rows of one sequence that begin at t, all heads of the group: K and V are read once for them. Blocks whose row
// belongs to a block before, and those past the context, end at once. The warps share a page: 16 keys' scores each, which all then
// soften, and a quarter of v's columns each.
// Second kernel: a warp a row and head adds up the spans, in order. The split depends on positions alone, and the bits are those of
// attention_paged.cu. Bytes: K and V of the context once a sequence; parts add (NH/NKV)/64 of that twice.

#include "attention_paged.cuh"

template <int HD>
__device__ __forceinline__ void attention_decode(float* parts, const bf16* q, const bf16* k, const bf16* v, const int* seq,
                                                 const int* positions, const int* pages, int T, int NH, int NKV,
                                                 int MAX_PAGES) {
    constexpr int kRows = 16, kFrags = HD / 8 / kWarps;  // queries; fragments of v's columns of a warp
    using S = Slots<HD, kRows>;
    extern __shared__ __align__(256) char smem[];  // slots; scores
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = NH / NKV, kv_head = blockIdx.y;
    const int t = blockIdx.x, sequence = seq[t], most = kRows / group;
    if (sequence < 0) return;
    int before = 0, rows = 1;
    while (before < t && seq[t - before - 1] == sequence) ++before;
    if (before % most != 0) return;
    while (rows < most && t + rows < T && seq[t + rows] == sequence) ++rows;
    const int spans = positions[t + rows - 1] / kSpan + 1;
    if (blockIdx.z >= spans) return;

    const uint32_t base = shared_address(smem);
    float2* s_scores = reinterpret_cast<float2*>(smem + S::kShared);
    auto at = [&](int r) { return size_t(t + r / group) * NH + kv_head * group + r % group; };
    const int* page = pages + size_t(sequence) * MAX_PAGES;
    const int seen = positions[t + rows - 1] + 1, count = (seen + kKeys - 1) / kKeys;
    auto fetch = [&](int i, int id) { S::fetch(base, i % 2, k, v, id, kv_head, NKV, seen - i * kKeys); };
#pragma unroll
    for (int n = 0; n < kRows; n += S::kStep) {
        const int r = S::row() + n;
        cp_async_16(base + S::place(r, S::chunk()), q + at(min(r, rows * group - 1)) * HD + S::chunk() * 8,
                    r < rows * group ? 16 : 0);
    }
    cp_async_commit_group();
    fetch(blockIdx.z * kSpanPages, page[blockIdx.z * kSpanPages]);

    uint32_t a[HD / 16][4];
    int row_sees[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) row_sees[half] = positions[t + min((half * 8 + lane / 4) / group, rows - 1)] + 1;
    const uint32_t k_at = S::place(warp * 16 + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    const uint32_t v_at = S::place(lane % 16, lane / 16 + warp * (S::kChunks / kWarps));

    bool first = true;
    for (int part = blockIdx.z; part < spans; part += gridDim.z) {
        Sums<kFrags> span;
        span.clear();
        const int end = min((part + 1) * kSpanPages, count);
        const int ids = page[min(part * kSpanPages + lane % kSpanPages, count - 1)];
        for (int i = part * kSpanPages; i < end; ++i) {
            cp_async_wait_group<0>();
            __syncthreads();  // page i is there; the other slot and the scores have been used by all
            if (first) {
#pragma unroll
                for (int c = 0; c < HD / 16; ++c) ldmatrix_x4(a[c], base + S::place(lane % 16, 2 * c + lane / 16));
                first = false;
            }
            const int next_part = (part + gridDim.z) * kSpanPages;
            if (i + 1 < end) {
                fetch(i + 1, __shfl_sync(0xffffffff, ids, (i + 1) % kSpanPages));
            } else if (next_part < count) {
                fetch(next_part, page[next_part]);
            }
            float own[2][4] = {};
#pragma unroll
            for (int c = 0; c < HD / 16; ++c) {
                uint32_t b[4];
                ldmatrix_x4(b, (S::keys(base, i % 2) + k_at) ^ c * 32);
                mma_m16n8k16(own[0], a[c], b[0], b[1]);
                mma_m16n8k16(own[1], a[c], b[2], b[3]);
            }
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                s_scores[(warp * 4 + n) * 32 + lane] = make_float2(own[n / 2][n % 2 * 2], own[n / 2][n % 2 * 2 + 1]);
            }
            __syncthreads();
            float s[kKeys / 8][4];
#pragma unroll
            for (int n = 0; n < kKeys / 4; ++n) {
                const float2 pair = s_scores[n * 32 + lane];
                s[n / 2][n % 2 * 2] = pair.x, s[n / 2][n % 2 * 2 + 1] = pair.y;
            }
            uint32_t p[kKeys / 16][4];
            const int limit[2] = {row_sees[0] - i * kKeys, row_sees[1] - i * kKeys};
            soften<HD, true>(span, s, limit, p);
#pragma unroll
            for (int c = 0; c < kKeys / 16; ++c) {
#pragma unroll
                for (int n = 0; n < kFrags / 2; ++n) {
                    uint32_t b[4];
                    ldmatrix_x4_trans(b, ((S::values(base, i % 2) + v_at) ^ n * 32) + c * 16 * S::kRowBytes);
                    mma_m16n8k16(span.o[2 * n], p[c], b[0], b[1]);
                    mma_m16n8k16(span.o[2 * n + 1], p[c], b[2], b[3]);
                }
            }
        }
        const int SPANS = (MAX_PAGES + kSpanPages - 1) / kSpanPages;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            span.sum[half] += __shfl_xor_sync(0xffffffff, span.sum[half], 1);
            span.sum[half] += __shfl_xor_sync(0xffffffff, span.sum[half], 2);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int r = half * 8 + lane / 4;
            if (r >= rows * group) continue;
            float* into = parts + (at(r) * SPANS + part) * (HD + 8);
#pragma unroll
            for (int n = 0; n < kFrags; ++n) {
                // Written as it stands, the compiler splits the store; and no block of this multiprocessor reads it again.
                __stcg(reinterpret_cast<float2*>(into + (warp * kFrags + n) * 8 + lane % 4 * 2),
                       make_float2(span.o[n][2 * half], span.o[n][2 * half + 1]));
            }
            if (warp == 0 && lane % 4 == 0) {
                __stcg(reinterpret_cast<float2*>(into + HD), make_float2(span.largest[half], span.sum[half]));
            }
        }
    }
}

template <int HD>
__device__ __forceinline__ void attention_decode_sum(bf16* y, const float* parts, const int* seq, const int* positions, int T,
                                                     int NH, int MAX_PAGES) {
    static_assert(HD == 128, "four columns a lane");
    const int lane = threadIdx.x % 32, row_head = (blockIdx.x * blockDim.x + threadIdx.x) / 32, t = row_head / NH;
    if (t >= T) return;
    const int SPANS = (MAX_PAGES + kSpanPages - 1) / kSpanPages;
    const float* part = parts + size_t(row_head) * SPANS * (HD + 8);
    const int spans = seq[t] < 0 ? 0 : positions[t] / kSpan + 1;
    float4 o = make_float4(0.f, 0.f, 0.f, 0.f);
    float largest = kNothing, sum = 0.f;
    for (int i = 0; i < spans; ++i, part += HD + 8) {
        const float4 x = *reinterpret_cast<const float4*>(part + lane * 4);
        const float2 of = *reinterpret_cast<const float2*>(part + HD);
        const Shares<HD> shares(largest, of.x);
        largest = shares.top;
        sum = shares(sum, of.y);
        o = make_float4(shares(o.x, x.x), shares(o.y, x.y), shares(o.z, x.z), shares(o.w, x.w));
    }
    const float share = sum > 0.f ? 1.f / sum : 0.f;
    *reinterpret_cast<uint2*>(y + size_t(row_head) * HD + lane * 4) =
        make_uint2(narrow2(o.x * share, o.y * share), narrow2(o.z * share, o.w * share));
}

#define INSTANCE(HD)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(kThreads) attention_decode_bf16_hd##HD(                                  \
        float* parts, const bf16* q, const bf16* k, const bf16* v, const int* seq, const int* positions, const int* pages, \
        int T, int NH, int NKV, int MAX_PAGES) {                                                                          \
        attention_decode<HD>(parts, q, k, v, seq, positions, pages, T, NH, NKV, MAX_PAGES);                               \
    }                                                                                                                     \
    extern "C" __global__ void attention_decode_sum_bf16_hd##HD(bf16* y, const float* parts, const int* seq,              \
                                                                const int* positions, int T, int NH, int MAX_PAGES) {     \
        attention_decode_sum<HD>(y, parts, seq, positions, T, NH, MAX_PAGES);                                             \
    }
INSTANCE(128)
