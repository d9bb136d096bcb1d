// Sums and maxima of an array.
//
//   sum_f32:       y[0] = sum_i x[i], in one launch: the last block to finish adds the blocks' sums, in their order
//   sum_s32_redux: y[0] += sum_i x[i]   (redux.sync and one atomic a block)
//   argmax_f32:    y[0] = max over i of (order-preserving bits of x[i], ~i): the largest value, then the first index
//
//   x (n); partial (gridDim.x) f32; ticket (1) u32, zero before the launch and after it; y[0] of argmax zero before
//
// Blocks of kBlock threads, any grid.

#include <cstdint>

constexpr int kBlock = 256;

__device__ float warp_sum(float v) {
    for (int d = 16; d > 0; d /= 2) v += __shfl_down_sync(0xffffffff, v, d);
    return v;  // in lane 0
}

// The block's sum, in thread 0.
__device__ float block_sum(float v) {
    __shared__ float s_sums[kBlock / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    v = warp_sum(v);
    if (lane == 0) s_sums[warp] = v;
    __syncthreads();
    if (warp == 0) v = warp_sum(lane < kBlock / 32 ? s_sums[lane] : 0.f);
    __syncthreads();  // s_sums may be used again
    return v;
}

extern "C" __global__ void __launch_bounds__(kBlock) sum_f32(float* y, const float* x, int n, float* partial, unsigned* ticket) {
    __shared__ bool s_last;
    float v = 0.f;
    for (int i = blockIdx.x * kBlock + threadIdx.x; i < n; i += gridDim.x * kBlock) v += x[i];
    v = block_sum(v);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = v;
        __threadfence();  // the sum is seen by whoever sees the ticket
        s_last = atomicAdd(ticket, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!s_last) return;
    __threadfence();
    v = 0.f;
    for (int i = threadIdx.x; i < gridDim.x; i += kBlock) v += partial[i];
    v = block_sum(v);
    if (threadIdx.x == 0) {
        y[0] = v;
        *ticket = 0;
    }
}

extern "C" __global__ void __launch_bounds__(kBlock) sum_s32_redux(int* y, const int* x, int n) {
    __shared__ int s_sum;
    if (threadIdx.x == 0) s_sum = 0;
    __syncthreads();
    int v = 0;
    for (int i = blockIdx.x * kBlock + threadIdx.x; i < n; i += gridDim.x * kBlock) v += x[i];
    v = __reduce_add_sync(0xffffffff, v);
    if (threadIdx.x % 32 == 0) atomicAdd(&s_sum, v);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(y, s_sum);
}

extern "C" __global__ void __launch_bounds__(kBlock) argmax_f32(unsigned long long* y, const float* x, int n) {
    unsigned long long best = 0;
    for (int i = blockIdx.x * kBlock + threadIdx.x; i < n; i += gridDim.x * kBlock) {
        const uint32_t bits = __float_as_uint(x[i]);
        const uint32_t order = bits >> 31 ? ~bits : bits | 0x80000000u;
        const unsigned long long key = static_cast<unsigned long long>(order) << 32 | uint32_t(~i);
        best = key > best ? key : best;
    }
    for (int d = 16; d > 0; d /= 2) {
        const unsigned long long other = __shfl_xor_sync(0xffffffff, best, d);
        best = other > best ? other : best;
    }
    if (threadIdx.x % 32 == 0) atomicMax(y, best);
}
