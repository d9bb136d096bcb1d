// 3x3 convolution with folded BatchNorm and ReLU, as an implicit matrix product.
//
//   y[q, r*G + s, o] = relu(b[o] + sum_{u,v,d} w[o,u,v,d] * x[q, (r+u-1)*G + (s+v-1), d]), zero outside the map
//
//   y  (Q*G*G, O)     bf16
//   x  (Q*G*G, D)     bf16
//   w  (O, 3, 3, D)   bf16, the BatchNorm folded in at load
//   b  (O)            f32, likewise
//
// Requires D % 8 == 0, gridDim.x == ceil(Q*G*G/kBlockM) * ceil(O/kBlockN). The rows of the matrix product are made while they are copied to
// shared memory: column (u*3 + v)*D + d of row (q,r,s) is x at (r+u-1, s+v-1), zeros outside the map. The tile engine is matmul.cuh: the
// bits do not depend on the tile, which ops/conv3x3.rs picks.
// FLOPs 18*Q*G*G*D*O. Bytes at least 2*(Q*G*G*(D + O) + 9*D*O).

#include "matmul.cuh"

using Tile128x128 = Tile<128, 128, 2, 2, 4>;
using Tile128x64 = Tile<128, 64, 4, 1, 4>;

// Rows of the matrix that is multiplied, made as they are copied: as Rows in matmul.cuh. A row's columns are contiguous in x along the three
// taps of a line.
template <int kCount>
struct Patches {
    const bf16* x[kCount];  // at the row's first tap
    unsigned taps[kCount];  // bit u*3 + v: whether the row's tap lies in the map
    int tap, d;                // the next column is tap*D + d,
    int at;                    // this far behind the first tap
    int D, line;               // elements from the end of a line of taps to the next

    __device__ __forceinline__ void copy(int i, uint32_t to, bool inside) const {
        cp_async_16(to, x[i] + at, inside && (taps[i] >> tap & 1) ? 16 : 0);
    }
    __device__ __forceinline__ void move(int columns) {
        d += columns, at += columns;
        while (d >= D) {
            d -= D, ++tap;
            if (tap == 3 || tap == 6) at += line;
        }
    }
    __device__ __forceinline__ void advance() { move(kBlockK); }
};

template <class T>
__device__ __forceinline__ void conv3x3(bf16* y, const bf16* x, const bf16* w, const float* b, int M, int G, int D, int O) {
    extern __shared__ __align__(128) char smem[];
    const int K = 9 * D;
    const Place place = tile_place(blockIdx.x, (M + T::kBlockM - 1) / T::kBlockM, (O + T::kBlockN - 1) / T::kBlockN);
    const int m0 = place.m * T::kBlockM, n0 = place.n * T::kBlockN;
    const int row = threadIdx.x / 4;
    constexpr int kStep = T::kThreads / 4;
    const int chunk = threadIdx.x % 4 * 8;
    Patches<T::kRowsM> a_rows;
    Rows<T::kRowsN> b_rows;
#pragma unroll
    for (int i = 0; i < T::kRowsM; ++i) {
        const int m = min(m0 + row + i * kStep, M - 1), r = m / G % G, s = m % G;
        a_rows.x[i] = x + (ptrdiff_t(m) - G - 1) * D;
        const unsigned columns = (s > 0) | 2 | (s < G - 1) << 2;
        a_rows.taps[i] = (r > 0 ? columns : 0) | columns << 3 | (r < G - 1 ? columns << 6 : 0);
    }
    a_rows.tap = a_rows.d = a_rows.at = 0, a_rows.D = D, a_rows.line = (G - 3) * D;
    a_rows.move(chunk);
#pragma unroll
    for (int i = 0; i < T::kRowsN; ++i) b_rows.at[i] = w + size_t(min(n0 + row + i * kStep, O - 1)) * K + chunk;
    float acc[T::kFragM][T::kFragN][4] = {};
    multiply<T>(acc, smem, K, a_rows, b_rows);

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = m0 + warp / T::kWarpsN * T::kWarpM, warp_n = n0 + warp % T::kWarpsN * T::kWarpN;
#pragma unroll
    for (int i = 0; i < T::kFragM; ++i) {
#pragma unroll
        for (int j = 0; j < T::kFragN; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int m = warp_m + i * 16 + lane / 4 + e / 2 * 8, n = warp_n + j * 8 + lane % 4 * 2 + e % 2;
                if (m < M && n < O) y[size_t(m) * O + n] = __float2bfloat16_rn(fmaxf(acc[i][j][e] + b[n], 0.f));
            }
        }
    }
}

// On sm_90 ptxas aims at three blocks a multiprocessor, for which it spills a register.
#if __CUDA_ARCH__ == 900
#define BOUNDS(threads) __launch_bounds__(threads, 2)
#else
#define BOUNDS(threads) __launch_bounds__(threads)
#endif

#define INSTANCE(tile)                                                                                        \
    extern "C" __global__ void BOUNDS(Tile##tile::kThreads) conv3x3_bf16_##tile(                              \
        bf16* y, const bf16* x, const bf16* w, const float* b, int M, int G, int D, int O) {                  \
        conv3x3<Tile##tile>(y, x, w, b, M, G, D, O);                                                          \
    }
INSTANCE(128x128)
INSTANCE(128x64)
