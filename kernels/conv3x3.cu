// 3x3 convolution with folded BatchNorm and ReLU, as an implicit matrix product, whose channels are the P x P pixels of a cell.
//
//   y[q, P*r + u, P*s + v] = relu(b[o] + sum_{i,j,d} w[o,i,j,d] * x[q, (r+i-1)*G + (s+j-1), d]), o = P*u + v, zero outside the map
//
//   y  (Q, G*P, G*P)      bf16
//   x  (Q*G*G, D)         bf16
//   w  (P*P, 3, 3, D)     bf16, the BatchNorm folded in at load
//   b  (P*P)              f32, likewise
//
// Requires D % 8 == 0, P even and at most the tile's width, G*P % 8 == 0, gridDim.x == ceil(Q*G*G/kBlockM) * ceil(P/lines), lines = kBlockN/P. The
// rows of the matrix product are made while they are copied to shared memory: column (i*3 + j)*D + d of row (q,r,s) is x at (r+i-1, s+j-1),
// zeros outside the map. The tile engine is matmul.cuh: the bits do not depend on the tile, which ops/conv3x3.rs picks. A tile is whole lines of
// pixels of its cells: `lines` of the P. They are laid out in shared memory as they stand in y, and stored 16 bytes at a time.
// FLOPs 18*Q*G*G*D*P*P. Bytes at least 2*(Q*G*G*(D + P*P) + 9*D*P*P).
// Source: RESDecoder.conv1 and the two permutes after it.

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
__device__ __forceinline__ void conv3x3(bf16* y, const bf16* x, const bf16* w, const float* b, int M, int G, int D, int P) {
    extern __shared__ __align__(128) char smem[];
    const int K = 9 * D, O = P * P, lines = T::kBlockN / P;
    const Place place = tile_place(blockIdx.x, (M + T::kBlockM - 1) / T::kBlockM, (P + lines - 1) / lines);
    const int m0 = place.m * T::kBlockM, u0 = place.n * lines, n0 = u0 * P;
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

    // Line u of the tile: the pixels of its cells side by side, then 16 bytes that spread the lines over the banks.
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp / T::kWarpsN * T::kWarpM, warp_n = warp % T::kWarpsN * T::kWarpN;
    const int line = T::kBlockM * P + 8;
    bf16* s_y = reinterpret_cast<bf16*>(smem);
#pragma unroll
    for (int j = 0; j < T::kFragN; ++j) {
        const int n = warp_n + j * 8 + lane % 4 * 2, u = n / P;
        if (n0 + n >= O || u >= lines) continue;
        const float b0 = b[n0 + n], b1 = b[n0 + n + 1];
        bf16* at = s_y + u * line + n % P + (warp_m + lane / 4) * P;
#pragma unroll
        for (int i = 0; i < T::kFragM; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                *reinterpret_cast<uint32_t*>(at + (i * 16 + half * 8) * P) =
                    narrow2(max_nan(acc[i][j][2 * half] + b0, 0.f), max_nan(acc[i][j][2 * half + 1] + b1, 0.f));
            }
        }
    }
    __syncthreads();
    // Pixel c of the cells' lines, counted from the first cell of all, is pixel c % S of line c / S of cells. S and a tile's pixels are multiples of 8.
    const int S = G * P, pixels = min(M - m0, T::kBlockM) * P / 8, most = min(lines, P - u0);
    for (int e = threadIdx.x; e < most * pixels; e += T::kThreads) {
        const int u = e / pixels, chunk = e % pixels * 8;
        const size_t c = size_t(m0) * P + chunk;
        store16(y + (c / S * P + u0 + u) * S + c % S, load16(s_y + u * line + chunk));
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
        bf16* y, const bf16* x, const bf16* w, const float* b, int M, int G, int D, int P) {                  \
        conv3x3<Tile##tile>(y, x, w, b, M, G, D, P);                                                          \
    }
INSTANCE(128x128)
INSTANCE(128x64)
