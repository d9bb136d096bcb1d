// One pass of a stable radix sort of u32 keys, by the byte at `shift`; four passes sort.
//
//   radix_count:   count[d, block] = |{ i in the block's tile : digit(x[i]) == d }|
//   radix_scan:    count becomes its own exclusive prefix sum, in place; one block
//   radix_scatter: y[count[d, block] + rank of i among the tile's keys of digit d] = x[i]
//
//   y, x (n) u32; count (256, blocks) u32, n <= blocks * kTile
//
// In radix_scatter a warp takes its quarter of the tile 32 keys at a time; __match_any_sync finds the lanes of equal
// digit, whose ranks follow the lane, and the warps' counts are added up in shared memory, in the order of the tile.

#include <cstdint>

constexpr int kBlock = 128, kWarps = kBlock / 32, kRounds = 4, kTile = kBlock * kRounds, kDigits = 256;

extern "C" __global__ void __launch_bounds__(kBlock) radix_count(uint32_t* count, const uint32_t* x, int n, int shift) {
    __shared__ uint32_t s_count[kDigits];
    for (int d = threadIdx.x; d < kDigits; d += kBlock) s_count[d] = 0;
    __syncthreads();
    for (int i = blockIdx.x * kTile + threadIdx.x; i < min(n, int(blockIdx.x + 1) * kTile); i += kBlock)
        atomicAdd(&s_count[x[i] >> shift & 255], 1);
    __syncthreads();
    for (int d = threadIdx.x; d < kDigits; d += kBlock) count[d * gridDim.x + blockIdx.x] = s_count[d];
}

extern "C" __global__ void __launch_bounds__(kBlock) radix_scan(uint32_t* count, int n) {
    __shared__ uint32_t s_sum[kBlock];
    uint32_t before = 0;
    for (int i0 = 0; i0 < n; i0 += kBlock) {
        const int i = i0 + threadIdx.x;
        const uint32_t own = i < n ? count[i] : 0;
        s_sum[threadIdx.x] = own;
        __syncthreads();
        for (int d = 1; d < kBlock; d *= 2) {
            const uint32_t left = threadIdx.x >= d ? s_sum[threadIdx.x - d] : 0;
            __syncthreads();
            s_sum[threadIdx.x] += left;
            __syncthreads();
        }
        if (i < n) count[i] = before + s_sum[threadIdx.x] - own;
        before += s_sum[kBlock - 1];
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(kBlock) radix_scatter(uint32_t* y, const uint32_t* x, const uint32_t* count, int n, int shift) {
    __shared__ uint32_t s_count[kWarps][kDigits];  // keys of a digit seen by a warp; then where its first goes
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int d = lane; d < kDigits; d += 32) s_count[warp][d] = 0;
    __syncwarp();
    const int first = blockIdx.x * kTile + warp * (32 * kRounds) + lane;
    uint32_t rank[kRounds];
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
        const int i = first + round * 32;
        const unsigned valid = __ballot_sync(0xffffffff, i < n);
        if (i < n) {
            const uint32_t digit = x[i] >> shift & 255;
            const unsigned same = __match_any_sync(valid, digit);
            const int leader = __ffs(same) - 1;
            uint32_t base = 0;
            if (lane == leader) {
                base = s_count[warp][digit];
                s_count[warp][digit] = base + __popc(same);
            }
            base = __shfl_sync(same, base, leader);
            rank[round] = base + __popc(same & ((1u << lane) - 1));
        }
        __syncwarp();
    }
    __syncthreads();
    for (int d = threadIdx.x; d < kDigits; d += kBlock) {
        uint32_t at = count[d * gridDim.x + blockIdx.x];
        for (int w = 0; w < kWarps; ++w) {
            const uint32_t own = s_count[w][d];
            s_count[w][d] = at;
            at += own;
        }
    }
    __syncthreads();
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
        const int i = first + round * 32;
        if (i < n) y[s_count[warp][x[i] >> shift & 255] + rank[round]] = x[i];
    }
}
