// The column of each row's largest product, without the products in memory: the most likely token of a hidden state.
//
//   y[m] = argmax_n (x @ w^T)[m,n], the first of equal ones
//
//   y        (M)            i32
//   partial  (tiles, M, 2)  each tile of columns' largest product, f32, and its column, i32
//   x        (M, K)         bf16
//   w        (N, K)         bf16
//
// Requires K % 8 == 0, gridDim.x == ceil(M/kBlockM) * ceil(N/kBlockN), tiles == ceil(N/kBlockN). Products are those of matmul_f32, bit for bit,
// compared as argmax.cu compares: a NaN is never the largest, and a row without a number above -inf gives 0. Two kernels in order: products
// reduced in a tile, tiles reduced. The tile engine is matmul.cuh. FLOPs 2*M*N*K. Bytes at least 2*(M*K + N*K), and 16*M*tiles.

#include "matmul.cuh"

using Tile128x128 = Tile<128, 128, 2, 2, 4>;
using Tile32x64 = Tile<32, 64, 2, 2, 6>;

struct Best {
    float value;
    int at;
};

// The larger; of equal ones that which stands first.
__device__ __forceinline__ Best better(Best a, Best b) {
    return b.value > a.value || (b.value == a.value && b.at < a.at) ? b : a;
}

__device__ __forceinline__ Best beside(Best v, int distance) {
    return better(v, {__shfl_xor_sync(0xffffffff, v.value, distance), __shfl_xor_sync(0xffffffff, v.at, distance)});
}

template <class T>
__device__ __forceinline__ void matmul_argmax(Best* partial, const bf16* x, const bf16* w, int M, int N, int K) {
    extern __shared__ __align__(128) char smem[];
    const Place place = tile_place(blockIdx.x, (M + T::kBlockM - 1) / T::kBlockM, (N + T::kBlockN - 1) / T::kBlockN);
    const int m0 = place.m * T::kBlockM, n0 = place.n * T::kBlockN, row = threadIdx.x / 4, chunk = threadIdx.x % 4 * 8;
    constexpr int kStep = T::kThreads / 4;
    Rows<T::kRowsM> a_rows;
    Rows<T::kRowsN> b_rows;
#pragma unroll
    for (int i = 0; i < T::kRowsM; ++i) a_rows.at[i] = x + size_t(min(m0 + row + i * kStep, M - 1)) * K + chunk;
#pragma unroll
    for (int i = 0; i < T::kRowsN; ++i) b_rows.at[i] = w + size_t(min(n0 + row + i * kStep, N - 1)) * K + chunk;
    float acc[T::kFragM][T::kFragN][4] = {};
    multiply<T>(acc, smem, K, a_rows, b_rows);

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp / T::kWarpsN * T::kWarpM, warp_n = warp % T::kWarpsN;
    Best* s_best = reinterpret_cast<Best*>(smem);  // (kWarpsN, kBlockM)
#pragma unroll
    for (int i = 0; i < T::kFragM; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            Best best = {-INFINITY, 0};
#pragma unroll
            for (int j = 0; j < T::kFragN; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int n = n0 + warp_n * T::kWarpN + j * 8 + lane % 4 * 2 + e;
                    const float v = acc[i][j][2 * half + e];
                    if (n < N && v > best.value) best = {v, n};
                }
            }
            best = beside(beside(best, 1), 2);
            if (lane % 4 == 0) s_best[warp_n * T::kBlockM + warp_m + i * 16 + half * 8 + lane / 4] = best;
        }
    }
    __syncthreads();
    const int m = m0 + threadIdx.x;
    if (threadIdx.x < T::kBlockM && m < M) {
        Best best = s_best[threadIdx.x];
#pragma unroll
        for (int i = 1; i < T::kWarpsN; ++i) best = better(best, s_best[i * T::kBlockM + threadIdx.x]);
        partial[size_t(place.n) * M + m] = best;
    }
}

#define INSTANCE(tile)                                                                                    \
    extern "C" __global__ void __launch_bounds__(Tile##tile::kThreads) matmul_argmax_bf16_##tile(         \
        Best* partial, const bf16* x, const bf16* w, int M, int N, int K) {                               \
        matmul_argmax<Tile##tile>(partial, x, w, M, N, K);                                                \
    }
INSTANCE(128x128)
INSTANCE(32x64)

constexpr int kBlock = 256;  // == ops::matmul_argmax::BLOCK

// gridDim.x == M.
extern "C" __global__ void __launch_bounds__(kBlock)
matmul_argmax_tiles(int* y, const Best* partial, int M, int tiles) {
    __shared__ Best s_best[kBlock / 32];
    Best best = {-INFINITY, 0};
    for (int t = threadIdx.x; t < tiles; t += kBlock) best = better(best, partial[size_t(t) * M + blockIdx.x]);
#pragma unroll
    for (int d = 16; d > 0; d /= 2) best = beside(best, d);
    if (threadIdx.x % 32 == 0) s_best[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < kBlock / 32; ++i) best = better(best, s_best[i]);
        y[blockIdx.x] = best.value == -INFINITY ? 0 : best.at;
    }
}
