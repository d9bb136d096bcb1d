// Counts of byte values.
//
//   count[b] += |{ i : x[i] == b }|
//
//   count (256) u32, x (n) u8, 4-byte aligned; blocks of kBlock threads, any grid
//
// Each block counts in shared memory, with atomics, and adds its counts to the whole's: 256 global atomics a block.

#include <cstdint>

constexpr int kBlock = 256, kBins = 256;

extern "C" __global__ void __launch_bounds__(kBlock) histogram_u8(uint32_t* count, const uint8_t* x, int n) {
    __shared__ uint32_t s_count[kBins];
    for (int b = threadIdx.x; b < kBins; b += kBlock) s_count[b] = 0;
    __syncthreads();
    const uint32_t* words = reinterpret_cast<const uint32_t*>(x);
    for (int i = blockIdx.x * kBlock + threadIdx.x; i < n / 4; i += gridDim.x * kBlock) {
        const uint32_t w = words[i];
        for (int j = 0; j < 4; ++j) atomicAdd(&s_count[w >> (8 * j) & 255], 1);
    }
    if (blockIdx.x == 0 && threadIdx.x < n % 4) atomicAdd(&s_count[x[n / 4 * 4 + threadIdx.x]], 1);
    __syncthreads();
    for (int b = threadIdx.x; b < kBins; b += kBlock)
        if (s_count[b]) atomicAdd(&count[b], s_count[b]);
}
