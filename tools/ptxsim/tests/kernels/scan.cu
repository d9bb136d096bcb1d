// Inclusive prefix sums: y[i] = sum of x[0..=i], wrapping.
//
//   scan_block:   one block, n <= kBlock; Hillis and Steele's scan between two buffers in shared memory
//   scan_chained: any n in one launch; a tile of kBlock * 4 a block, in the order of tickets
//
//   y, x (n) u32; 16-byte aligned and n % 4 == 0 for scan_chained
//   ticket (1), state (tiles), aggregate (tiles), prefix (tiles) u32, zero before the launch
//
// The chained scan looks back (Merrill and Garland, 2016): a tile publishes its own sum (state 1), then looks at the
// tiles before it until one has its whole prefix (state 2). Tickets, not block indices, number the tiles: a tile's
// predecessors have started, so that the wait ends however the blocks are scheduled.

#include "ptx.cuh"

constexpr int kBlock = 256, kTile = kBlock * 4;

extern "C" __global__ void __launch_bounds__(kBlock) scan_block(uint32_t* y, const uint32_t* x, int n) {
    __shared__ uint32_t s_sum[2][kBlock];
    const int i = threadIdx.x;
    s_sum[0][i] = i < n ? x[i] : 0;
    __syncthreads();
    int from = 0;
    for (int d = 1; d < kBlock; d *= 2, from ^= 1) {
        s_sum[from ^ 1][i] = s_sum[from][i] + (i >= d ? s_sum[from][i - d] : 0);
        __syncthreads();
    }
    if (i < n) y[i] = s_sum[from][i];
}

__device__ uint32_t warp_scan(uint32_t v) {
    for (int d = 1; d < 32; d *= 2) {
        const uint32_t left = __shfl_up_sync(0xffffffff, v, d);
        if (threadIdx.x % 32 >= d) v += left;
    }
    return v;
}

extern "C" __global__ void __launch_bounds__(kBlock)
scan_chained(uint32_t* y, const uint32_t* x, int n, uint32_t* ticket, uint32_t* state, uint32_t* aggregate, uint32_t* prefix) {
    __shared__ uint32_t s_tile, s_before, s_warp[kBlock / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (threadIdx.x == 0) s_tile = atomicAdd(ticket, 1);
    __syncthreads();
    const uint32_t tile = s_tile;
    const int i = tile * kTile + threadIdx.x * 4;

    uint4 v = i < n ? *reinterpret_cast<const uint4*>(x + i) : uint4{};
    v.y += v.x, v.z += v.y, v.w += v.z;
    const uint32_t in_warp = warp_scan(v.w);
    if (lane == 31) s_warp[warp] = in_warp;
    __syncthreads();
    if (warp == 0) {
        const uint32_t sums = warp_scan(lane < kBlock / 32 ? s_warp[lane] : 0);
        if (lane < kBlock / 32) s_warp[lane] = sums;
        if (lane == kBlock / 32 - 1) {
            aggregate[tile] = sums;
            st_release(state + tile, 1);
            uint32_t before = 0;
            for (int t = int(tile) - 1; t >= 0;) {
                const uint32_t s = ld_acquire(state + t);
                if (s == 2) {
                    before += prefix[t];
                    break;
                }
                if (s == 1) before += aggregate[t--];
            }
            prefix[tile] = before + sums;
            st_release(state + tile, 2);
            s_before = before;
        }
    }
    __syncthreads();
    const uint32_t base = s_before + (warp > 0 ? s_warp[warp - 1] : 0) + in_warp - v.w;
    if (i < n) *reinterpret_cast<uint4*>(y + i) = uint4{base + v.x, base + v.y, base + v.z, base + v.w};
}
