// Causal attention of packed sequences over ranges of the K/V cache.
//
//   y[t] = softmax(q[t] k^T / sqrt(HD)) v over the keys that row t of a segment sees: two earlier ranges in full, and its own range up to itself
//
//   y, q      (T, NH, HD)       bf16
//   k, v      (NKV, CAP, HD)    bf16, one layer of the cache; NH/NKV query heads read one K/V head
//   segments  (S, 7)            i32: first row, rows; first K/V row and length of two earlier ranges; first K/V row of its own
//
// Requires gridDim == (T*(NH/NKV)/kRows + S, NKV), kShared bytes of dynamic shared memory. Segments are data: a block finds its segment by
// walking the list, and one past the last tile does nothing. A tile is kRows of the segment's rows times the heads that share a K/V head, so
// that short texts fill it and each block of keys is read once for all of them. Blocks of keys begin where their range begins; so a row's
// bits do not depend on the rest of the batch. See attention.cuh. FLOPs 4*NH*HD*(keys seen by all rows).

#include "attention.cuh"

template <int HD, int kFragM>
__device__ __forceinline__ void attention_ranges(bf16* y, const bf16* q, const bf16* k, const bf16* v, const int* segments, int S,
                                                 int NH, int NKV, int CAP) {
    extern __shared__ __align__(256) char smem[];
    using F = Flash<HD, kFragM>;
    const int group = NH / NKV, kv_head = blockIdx.y;
    const int* segment = segments;
    int tile = blockIdx.x;
    for (int s = 0;; ++s, segment += 7) {
        if (s == S) return;
        const int tiles = (segment[1] * group + F::kRows - 1) / F::kRows;
        if (tile < tiles) break;
        tile -= tiles;
    }
    const int row0 = segment[0], rows = segment[1] * group, first = tile * F::kRows;
    const int own = segment[6], begin[2] = {segment[2], segment[4]}, length[2] = {segment[3], segment[5]};
    const int first_t = first / group, last_t = (min(first + F::kRows, rows) - 1) / group;
    const int blocks0 = (length[0] + kKeys - 1) / kKeys, blocks1 = blocks0 + (length[1] + kKeys - 1) / kKeys;
    const int blocks = blocks1 + (last_t + kKeys) / kKeys;

    F f;
    f.base = shared_address(smem);
    const size_t head = size_t(kv_head) * CAP * HD;
    // Block i: its first K/V row, how many keys its range has from there on, and the first key's place in the own range.
    struct Keys {
        int row, left, at;
    };
    auto keys_of = [&](int i) -> Keys {
        if (i < blocks0) return {begin[0] + i * kKeys, length[0] - i * kKeys, -1};
        if (i < blocks1) return {begin[1] + (i - blocks0) * kKeys, length[1] - (i - blocks0) * kKeys, -1};
        const int at = (i - blocks1) * kKeys;
        return {own + at, last_t + 1 - at, at};
    };
    const bf16 *k_at = k + head + F::column(), *v_at = v + head + F::column();
    auto fetch = [&](int i) {  // any block: rows past its range's last are the last again
        const Keys b = keys_of(i);
        auto key = [&](int n) { return size_t(b.row + min(F::row() + n * F::kStep, b.left - 1)) * HD; };
        F::template copy<kKeys>(f.keys(i % 2), [&](int n) { return k_at + key(n); });
        F::template copy<kKeys>(f.values(i % 2), [&](int n) { return v_at + key(n); });
        cp_async_commit_group();
    };
    auto at = [&](int r) { return (size_t(row0 + (first + r) / group) * NH + kv_head * group + (first + r) % group) * HD; };
    F::template copy<F::kRows>(f.base, [&](int i) { return q + at(min(F::row() + i * F::kStep, rows - 1 - first)) + F::column(); });
    cp_async_commit_group();
    fetch(0);
    cp_async_wait_group<1>();
    __syncthreads();
    f.begin();

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int limit[kFragM][2];
    for (int i = 0; i < blocks;) {
        const Keys b = keys_of(i);
        // Blocks from this one on that every row sees whole; all but the last are followed by their like.
        const int whole = (b.at < 0 ? b.left : min(b.left, first_t + 1 - b.at)) / kKeys;
        const bf16 *k_next = k_at + size_t(b.row + kKeys + F::row()) * HD, *v_next = v_at + size_t(b.row + kKeys + F::row()) * HD;
        for (int end = i + whole - 1; i < end; ++i) {
            cp_async_wait_group<0>();
            __syncthreads();  // block i is there, and the other slot has been used by all
            F::template copy<kKeys>(f.keys(1 - i % 2), [&](int n) { return k_next + n * F::kStep * HD; });
            F::template copy<kKeys>(f.values(1 - i % 2), [&](int n) { return v_next + n * F::kStep * HD; });
            cp_async_commit_group();
            k_next += kKeys * HD, v_next += kKeys * HD;
            f.template step<false>(i % 2, limit);
        }
        cp_async_wait_group<0>();
        __syncthreads();
        if (i + 1 < blocks) fetch(i + 1);
        const Keys last = keys_of(i);
#pragma unroll
        for (int m = 0; m < kFragM; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int t = (first + (warp * kFragM + m) * 16 + half * 8 + lane / 4) / group;
                limit[m][half] = last.at < 0 ? last.left : min(last.left, t + 1 - last.at);
            }
        }
        f.template step<true>(i % 2, limit);
        ++i;
    }
    f.finish(smem, [&](int r) -> bf16* { return first + r < rows ? y + at(r) : nullptr; });
}

#define INSTANCE(HD, kFragM)                                                                                              \
    extern "C" __global__ void __launch_bounds__(kThreads) attention_ranges_bf16_hd##HD(                                  \
        bf16* y, const bf16* q, const bf16* k, const bf16* v, const int* segments, int S, int NH, int NKV, int CAP) {     \
        attention_ranges<HD, kFragM>(y, q, k, v, segments, S, NH, NKV, CAP);                                              \
    }
INSTANCE(128, 1)
