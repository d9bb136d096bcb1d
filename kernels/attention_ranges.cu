// Causal attention of packed sequences over ranges of the K/V cache.
//
//   y[t] = softmax(q[t] k^T / sqrt(HD)) v over the keys that row t of a segment sees: two earlier ranges in full, and its own range up to itself
//
//   y, q      (T, NH, HD)       bf16
//   k, v      (NKV, CAP, HD)    bf16, one layer of the cache; NH/NKV query heads read one K/V head
//   segments  (S, 7)            i32: first row, rows; first K/V row and length of two earlier ranges; first K/V row of its own
//
// Requires gridDim == (T*group/kRows + S, NKV), group == NH/NKV, kShared bytes of dynamic shared memory and 32 for a segment. Segments are data: a block finds its segment by
// walking the list, and one past the last tile does nothing. A tile is kRows of the segment's rows times the heads that share a K/V head, so
// that short texts fill it and each block of keys is read once for all of them. Blocks of keys begin where their range begins; so a row's
// bits do not depend on the rest of the batch. See attention.cuh. FLOPs 4*NH*HD*(keys seen by all rows).

#include "attention.cuh"

template <int HD>
__device__ __forceinline__ void attention_ranges(bf16* y, const bf16* q, const bf16* k, const bf16* v, const int* segments, int S,
                                                 int group, int CAP) {
    extern __shared__ __align__(256) char smem[];
    constexpr int kFragM = 2, kKeys = 32;
    using F = Flash<HD, kFragM, kKeys>;
    const int kv_head = blockIdx.y, NH = group * gridDim.y;
    int* segment = reinterpret_cast<int*>(smem + F::kShared);
    int tile = blockIdx.x;
    for (int s = 0;; ++s, segments += 7) {
        if (s == S) return;
        const int tiles = (segments[1] * group + F::kRows - 1) / F::kRows;
        if (tile < tiles) break;
        tile -= tiles;
    }
    if (threadIdx.x < 7) segment[threadIdx.x] = segments[threadIdx.x];
    __syncthreads();
    const int first = tile * F::kRows;
    // The segment is read from shared memory where it is needed: registers are short.
    auto rows = [&] { return segment[1] * group; };
    auto last_t = [&] { return (min(first + F::kRows, rows()) - 1) / group; };

    F f;
    f.base = shared_address(smem);
    // Block i: its first K/V row, how many keys its range has from there on, and the first key's place in the own range (-1 in others).
    struct Keys {
        int row, left, at;
    };
    auto keys_of = [&](int i) -> Keys {
#pragma unroll 1
        for (int range = 2; range < 6; range += 2) {
            const int length = segment[range + 1], blocks = (length + kKeys - 1) / kKeys;
            if (i < blocks) return {segment[range] + i * kKeys, length - i * kKeys, -1};
            i -= blocks;
        }
        return {segment[6] + i * kKeys, last_t() + 1 - i * kKeys, i * kKeys};
    };
    const size_t head = size_t(kv_head) * CAP * HD + F::column();
    auto fetch = [&](uint32_t to, const bf16* from, Keys b) {  // rows past the range's last are the last again
        F::template copy<kKeys>(to, [&](int n) { return from + head + size_t(b.row + min(F::row() + n * F::kStep, b.left - 1)) * HD; });
    };
    auto at = [&](int r) {
        return (size_t(segment[0] + (first + r) / group) * NH + kv_head * group + (first + r) % group) * HD;
    };
    F::template copy<F::kRows>(f.base, [&](int i) { return q + at(min(F::row() + i * F::kStep, rows() - 1 - first)) + F::column(); });
    fetch(f.keys(), k, keys_of(0));
    F::landed();
    f.begin();

    int limit[kFragM][2];
    Keys b;
    int i = 0;
    do {
        b = keys_of(i);
        // Blocks from this one on that every row sees whole; all but the last are followed by their like.
        const int whole = (b.at < 0 ? b.left : min(b.left, first / group + 1 - b.at)) / kKeys;
        const bf16* k_next = k + head + size_t(b.row + kKeys + F::row()) * HD;
        const bf16* v_next = v + head + size_t(b.row + F::row()) * HD;
        for (const int end = i + whole - 1; i < end; ++i) {
            F::landed();
            F::template copy<kKeys>(f.values(), [&](int n) { return v_next + n * F::kStep * HD; });
            f.template step<false>(kKeys, limit, [&] {
                F::landed();
                F::template copy<kKeys>(f.keys(), [&](int n) { return k_next + n * F::kStep * HD; });
            });
            k_next += kKeys * HD, v_next += kKeys * HD;
        }
        F::landed();
        b = keys_of(i++);
        fetch(f.values(), v, b);
        const int lane = threadIdx.x % 32, warp_row = first + threadIdx.x / 32 * 16 * kFragM;
        auto seen = [&](int r) { return b.at < 0 ? b.left : min(b.left, r / group + 1 - b.at); };
#pragma unroll
        for (int m = 0; m < kFragM; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) limit[m][half] = seen(warp_row + m * 16 + half * 8 + lane / 4);
        }
        const bool more = b.at < 0 || b.left > kKeys;
        f.template step<true>(seen(warp_row + 16 * kFragM - 1), limit, [&] {
            F::landed();
            if (more) fetch(f.keys(), k, keys_of(i));
        });
        if (!more) break;
    } while (true);
    f.finish(smem, [&](int r) -> bf16* { return first + r < rows() ? y + at(r) : nullptr; });
}

#define INSTANCE(HD)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(kThreads) attention_ranges_bf16_hd##HD(                                  \
        bf16* y, const bf16* q, const bf16* k, const bf16* v, const int* segments, int S, int group, int CAP) {           \
        attention_ranges<HD>(y, q, k, v, segments, S, group, CAP);                                                        \
    }
INSTANCE(128)
