// The tile engine of matmul.cu and conv3x3.cu: acc = a (kBlockM, K) @ b (kBlockN, K)^T on tensor cores, bf16 in, f32 sums.
//
// Tiles of kBlockK columns of a and b go through kStages slots of shared memory, filled by cp.async while earlier ones are multiplied; the
// fragments of the next 16 columns are read while those of the last 16 are multiplied. A row of a slot is 64 bytes: four chunks of 16,
// of which row r holds chunk c at place c ^ (r/2 % 4), so that eight rows of one chunk (ldmatrix), and two whole rows (cp.async), touch
// every bank once.
//
// An element's sum runs over k in steps of 16, ascending, in one accumulator, whatever the tile: its bits do not depend on the tile, on M, or
// on what else is in the batch. Rows past the end of a or b read the last row again and are not stored; columns past K are zeros.
#pragma once

#include "common.cuh"
#include "mma.cuh"

constexpr int kBlockK = 32;

template <int kBlockM_, int kBlockN_, int kWarpsM_, int kWarpsN_, int kStages_>
struct Tile {
    static constexpr int kBlockM = kBlockM_, kBlockN = kBlockN_, kStages = kStages_;
    static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
    static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
    static constexpr int kWarpM = kBlockM / kWarpsM, kWarpN = kBlockN / kWarpsN;
    static constexpr int kFragM = kWarpM / 16, kFragN = kWarpN / 8;
    static constexpr int kRowsM = kBlockM * 4 / kThreads, kRowsN = kBlockN * 4 / kThreads;  // chunks a thread copies
    static constexpr int kSlot = (kBlockM + kBlockN) * kBlockK * 2;                         // bytes
    static constexpr int kStaging = kBlockM * kBlockN * 2;                                  // bytes of results
    static constexpr int kShared = kStages * kSlot > kStaging ? kStages * kSlot : kStaging;
    static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0, "fragments are 16 rows, and 16 columns a load");
    static_assert(kBlockM * 4 % kThreads == 0 && kBlockN * 4 % kThreads == 0, "every thread copies as many rows");
};

// Chunk `threadIdx.x % 4` of the thread's rows of an operand, tile after tile.
template <int kCount>
struct Rows {
    const bf16* at[kCount];  // in the tile that is copied next

    // The i-th row's chunk, or zeros.
    __device__ __forceinline__ void copy(int i, uint32_t to, bool inside) const { cp_async_16(to, at[i], inside ? 16 : 0); }
    __device__ __forceinline__ void advance() {
#pragma unroll
        for (int i = 0; i < kCount; ++i) at[i] += kBlockK;
    }
};

// Multiplies; `a` and `b` copy as Rows does, `inside` saying whether their columns are below K.
template <class T, class A, class B>
__device__ __forceinline__ void multiply(float (&acc)[T::kFragM][T::kFragN][4], char* smem, int K, A a_rows, B b_rows) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp / T::kWarpsN * T::kWarpM, warp_n = warp % T::kWarpsN * T::kWarpN;
    const uint32_t base = shared_address(smem);

    // Where the thread's chunks go in a slot: rows threadIdx.x/4 + i*kThreads/4, all with the same swizzle as kThreads/4 % 8 == 0.
    const int row = threadIdx.x / 4, chunk = threadIdx.x % 4;
    const uint32_t to = base + row * 64 + (chunk ^ (row / 2 % 4)) * 16;
    constexpr int kRowStep = T::kThreads / 4 * 64;

    // Where the lane's fragment rows lie: `a` rows lane%16, chunk lane/16; `b` rows lane/16*8 + lane%8, chunk lane/8%2.
    const int a_row = lane % 16, b_row = lane / 16 * 8 + lane % 8;
    uint32_t a_at[2], b_at[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        a_at[j] = base + (warp_m + a_row) * 64 + ((2 * j + lane / 16) ^ (a_row / 2 % 4)) * 16;
        b_at[j] = base + (T::kBlockM + warp_n + b_row) * 64 + ((2 * j + lane / 8 % 2) ^ (b_row / 2 % 4)) * 16;
    }
    auto copy = [&](int tile, uint32_t slot) {
        const bool inside = tile * kBlockK + chunk * 8 < K;
#pragma unroll
        for (int i = 0; i < T::kRowsM; ++i) a_rows.copy(i, to + slot + i * kRowStep, inside);
#pragma unroll
        for (int i = 0; i < T::kRowsN; ++i) b_rows.copy(i, to + slot + T::kBlockM * 64 + i * kRowStep, inside);
        a_rows.advance(), b_rows.advance();
    };
    uint32_t a[2][T::kFragM][4], b[2][T::kFragN / 2][4];
    auto read = [&](int j, uint32_t slot) {
#pragma unroll
        for (int m = 0; m < T::kFragM; ++m) ldmatrix_x4(a[j][m], a_at[j] + slot + m * 16 * 64);
#pragma unroll
        for (int n = 0; n < T::kFragN / 2; ++n) ldmatrix_x4(b[j][n], b_at[j] + slot + n * 16 * 64);
    };
    auto multiply = [&](int j) {
#pragma unroll
        for (int m = 0; m < T::kFragM; ++m) {
#pragma unroll
            for (int n = 0; n < T::kFragN; ++n) {
                mma_m16n8k16(acc[m][n], a[j][m], b[j][n / 2][n % 2 * 2], b[j][n / 2][n % 2 * 2 + 1]);
            }
        }
    };

    const int tiles = (K + kBlockK - 1) / kBlockK;
#pragma unroll
    for (int s = 0; s < T::kStages - 1; ++s) {
        copy(s, s * T::kSlot);
        cp_async_commit_group();
    }
    cp_async_wait_group<T::kStages - 2>();
    __syncthreads();
    read(0, 0);
    uint32_t slot = 0, fill = (T::kStages - 1) * T::kSlot;
#pragma unroll 2
    for (int tile = 0; tile < tiles; ++tile) {
        read(1, slot);
        // The slot that is filled was last read before the barrier below, in the round before.
        copy(tile + T::kStages - 1, fill);  // past the last tile: zeros, which nobody multiplies
        cp_async_commit_group();
        multiply(0);
        fill = slot;
        slot = slot + T::kSlot == T::kStages * T::kSlot ? 0 : slot + T::kSlot;
        cp_async_wait_group<T::kStages - 2>();
        __syncthreads();
        read(0, slot);
        multiply(1);
    }
    cp_async_wait_group<0>();
    __syncthreads();  // shared memory is free for the epilogue
}

// The tile of block `index` of tiles_m * tiles_n: down groups of kGroup rows of tiles, so that the blocks that run together read
// few tiles of both operands.
struct Place {
    int m, n;
};
__device__ __forceinline__ Place tile_place(int index, int tiles_m, int tiles_n) {
    constexpr int kGroup = 16;
    const int group = index / (kGroup * tiles_n), within = index % (kGroup * tiles_n);
    const int rows = min(tiles_m - group * kGroup, kGroup);
    return {group * kGroup + within % rows, within / rows};
}
