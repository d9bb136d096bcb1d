// Matrix product with what follows it.
//
//   v = x @ w^T + b          y = v | gelu(v) | relu(v) | y + v | y + ls*v      matmul_bf16_*
//   y = silu(x @ w^T) * (x @ w3^T)                                             matmul_silu_mul_bf16_*
//   y = x @ w^T + b                                                            matmul_f32_*
//
//   y      (M, N)  bf16 (f32 for matmul_f32_*); y + v in place
//   x      (M, K)  bf16
//   w, w3  (N, K)  bf16, as checkpoints hold them
//   b, ls  (N)     bf16 or null
//   parts  f32     matmul_bf16_*: room for sums of parts of K: of gridDim.y times the rows and columns of all blocks; null for one part
//
// Requires K % 8 == 0, part % 64 == 0 or part >= K, gridDim.x == (tall + low tiles of M) * ceil(N/kBlockN), for SwiGLU ceil(2*N/kBlockN);
// gridDim.y == ceil(K/part). f32 sums. v is rounded to bf16 before a residual is added, as the model does; gelu is the exact one (erf), on f32.
//
// Rows that do not fill a tile are made by blocks of its `Low` tile, so that M is rounded up to few rows more.
//
// Where K has several parts, of `part` columns each, every part of a tile has a block of its own, so that few tiles fill a GPU. Each leaves its
// sums in `parts`; the one that is last to do so adds them up, part after part: the bits do not depend on which that is, nor on M.
//
// SwiGLU reads rows of w and w3 in alternating groups of eight into one tile, so that a thread's neighbouring fragments hold gate and up of the
// same columns; the weights stay as they are. Results pass through shared memory and are stored 16 bytes at a time (where N % 8 == 0).
// The tile engine is matmul.cuh; ops/matmul.rs picks the tile. FLOPs 2*M*N*K. Bytes at least 2*(M*K + N*K + M*N), and for each part of
// several 8*M*N, mostly in L2.

#include "epilogue.cuh"
#include "matmul.cuh"

using Tile128x256 = Tile<128, 256, 2, 4, 4>;
using Low128x256 = Tile<64, 256, 1, 8, 4>;
using Tile128x128 = Tile<128, 128, 2, 2, 4>;
using Low128x128 = Tile<32, 128, 1, 4, 4>;
using Tile64x64 = Tile<64, 64, 2, 2, 5>;
using Tile32x64 = Tile<32, 64, 2, 2, 6>;
using Low64x64 = Tile<32, 64, 2, 2, 5>;
using Low32x64 = Tile32x64;

constexpr int kMostTiles = 16384;  // == ops::matmul::MOST_TILES
// By tile, how many parts have left their sums; 0 between launches, of which one at a time runs: a loaded module has one compute stream.
__device__ unsigned arrived[kMostTiles];

// Leaves `acc` in memory as the block's part of its tile: the first part's sums lie at `sums`, the next one's `stride` elements behind, a thread's
// fragments beside those of its neighbours. In the block that is the last of the tile `acc` becomes the sum over the parts; false in the others.
template <class T>
__device__ __forceinline__ bool sum_parts(float (&acc)[T::kFragM][T::kFragN][4], float* sums, size_t stride) {
    auto at = [&](int part, int i, int j) {
        return reinterpret_cast<float4*>(sums + part * stride) + (i * T::kFragN + j) * T::kThreads + threadIdx.x;
    };
#pragma unroll
    for (int i = 0; i < T::kFragM; ++i) {
#pragma unroll
        for (int j = 0; j < T::kFragN; ++j) {
            *at(blockIdx.y, i, j) = make_float4(acc[i][j][0], acc[i][j][1], acc[i][j][2], acc[i][j][3]);
        }
    }
    // The sums of all threads are there for whoever sees the count that follows.
    __threadfence();
    __syncthreads();
    bool last = false;
    if (threadIdx.x == 0) last = atomicInc(&arrived[blockIdx.x], gridDim.y - 1) == gridDim.y - 1;
    if (!__syncthreads_or(last)) return false;
    __threadfence();
#pragma unroll
    for (int i = 0; i < T::kFragM; ++i) {
#pragma unroll
        for (int j = 0; j < T::kFragN; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) acc[i][j][e] = 0.f;
        }
    }
#pragma unroll 1
    for (int part = 0; part < gridDim.y; ++part) {
#pragma unroll
        for (int i = 0; i < T::kFragM; ++i) {
#pragma unroll
            for (int j = 0; j < T::kFragN; ++j) {
                const float4 v = __ldcg(at(part, i, j));
                acc[i][j][0] += v.x, acc[i][j][1] += v.y, acc[i][j][2] += v.z, acc[i][j][3] += v.w;
            }
        }
    }
    return true;
}

// How many tiles the rows of y take, whole ones and low ones; == ops::matmul::Tile::rows.
struct Tiles {
    int tall, low;
};
template <class T, class Low>
__device__ __forceinline__ Tiles tiles_of(int M) {
    const int tall = M / T::kBlockM, low = (M % T::kBlockM + Low::kBlockM - 1) / Low::kBlockM;
    if (tall == 0 || low * Low::kBlockM >= T::kBlockM) return {tall + (low > 0), 0};
    return {tall, low};
}

// The rows of y from m0 on and its columns from n0 on that a tile holds; rows of all tiles: `tile_rows`.
template <class T, int kKind, class TileRows>
__device__ __forceinline__ void matmul_tile(void* y_, const bf16* x, const bf16* w, const bf16* w3, const bf16* b, const bf16* ls, int M,
                                            int N, int K, int then, float* parts, int part, int m0, int n0, TileRows tile_rows) {
    extern __shared__ __align__(128) char smem[];
    constexpr bool kSwiGlu = kKind == kSiluMul;
    const int k0 = kKind == kBf16 ? blockIdx.y * part : 0;
    const int row = threadIdx.x / 4;
    constexpr int kStep = T::kThreads / 4;
    const int chunk = k0 + threadIdx.x % 4 * 8;
    Rows<T::kRowsM> a_rows;
    Rows<T::kRowsN> b_rows;
#pragma unroll
    for (int i = 0; i < T::kRowsM; ++i) a_rows.at[i] = x + size_t(min(m0 + row + i * kStep, M - 1)) * K + chunk;
#pragma unroll
    for (int i = 0; i < T::kRowsN; ++i) {
        const int r = row + i * kStep, n = kSwiGlu ? n0 + r / 16 * 8 + r % 8 : n0 + r;
        b_rows.at[i] = (kSwiGlu && r / 8 % 2 ? w3 : w) + size_t(min(n, N - 1)) * K + chunk;
    }
    float acc[T::kFragM][T::kFragN][4] = {};
    multiply<T>(acc, smem, kKind == kBf16 ? min(part, K - k0) : K, a_rows, b_rows);
    if (kKind == kBf16 && gridDim.y > 1) {
        // A part's sums: as many columns as tiles have, row of tiles after row of tiles.
        const size_t width = (N + T::kBlockN - 1) / T::kBlockN * T::kBlockN;
        if (!sum_parts<T>(acc, parts + m0 * width + n0 * T::kBlockM, tile_rows() * width)) return;
    }

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp / T::kWarpsN * T::kWarpM, warp_n = warp % T::kWarpsN * T::kWarpN;
    if (kKind == kF32) {
        float* y = static_cast<float*>(y_);
#pragma unroll
        for (int i = 0; i < T::kFragM; ++i) {
#pragma unroll
            for (int j = 0; j < T::kFragN; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int m = m0 + warp_m + i * 16 + lane / 4 + e / 2 * 8, n = n0 + warp_n + j * 8 + lane % 4 * 2 + e % 2;
                    if (m < M && n < N) y[size_t(m) * N + n] = acc[i][j][e] + (b ? __bfloat162float(b[n]) : 0.f);
                }
            }
        }
        return;
    }

    // The warp's part of v, in bf16, through its own piece of shared memory.
    constexpr int kFrags = kSwiGlu ? T::kFragN / 2 : T::kFragN, kWidth = kFrags * 8;
    bf16* s_v = reinterpret_cast<bf16*>(smem) + warp * T::kWarpM * kWidth;
    // Chunk c of row r lies where neither the fragments' stores nor the reads of whole rows meet in a bank.
    constexpr int kChunks = kWidth / 8;
    static_assert(kChunks <= 8, "a row is at most 128 bytes");
    auto staged = [](int r, int c) { return r * kWidth + (c ^ r / (8 / kChunks) % kChunks) * 8; };
    const int out_n = n0 + (kSwiGlu ? warp_n / 2 : warp_n);
#pragma unroll
    for (int j = 0; j < kFrags; ++j) {
        const int col = j * 8 + lane % 4 * 2, n = out_n + col;
        float b0 = 0.f, b1 = 0.f;
        if (!kSwiGlu && b) {
            b0 = n < N ? __bfloat162float(b[n]) : 0.f;
            b1 = n + 1 < N ? __bfloat162float(b[n + 1]) : 0.f;
        }
#pragma unroll
        for (int i = 0; i < T::kFragM; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float v0, v1;
                if constexpr (kSwiGlu) {
                    const float *gate = acc[i][2 * j] + 2 * half, *up = acc[i][2 * j + 1] + 2 * half;
                    v0 = silu_mul(gate[0], up[0]), v1 = silu_mul(gate[1], up[1]);
                } else {
                    v0 = activate(acc[i][j][2 * half] + b0, then), v1 = activate(acc[i][j][2 * half + 1] + b1, then);
                }
                const int at = staged(i * 16 + half * 8 + lane / 4, j) + lane % 4 * 2;
                *reinterpret_cast<uint32_t*>(s_v + at) = narrow2(v0, v1);
            }
        }
    }
    __syncwarp();
    bf16* y = static_cast<bf16*>(y_);
    if (N % 8 == 0) {
#pragma unroll 4
        for (int e = lane; e < T::kWarpM * kChunks; e += 32) {
            const int r = e / kChunks, c = e % kChunks, m = m0 + warp_m + r, n = out_n + c * 8;
            if (m >= M || n >= N) continue;
            store_result(y + size_t(m) * N + n, load16(s_v + staged(r, c)), ls ? ls + n : nullptr, then);
        }
    } else {
        for (int e = lane; e < T::kWarpM * kWidth; e += 32) {
            const int r = e / kWidth, c = e % kWidth, m = m0 + warp_m + r, n = out_n + c;
            if (m >= M || n >= N) continue;
            store_result(y + size_t(m) * N + n, s_v[staged(r, c / 8) + c % 8], ls ? ls + n : nullptr, then);
        }
    }
}

template <class T, class Low, int kKind>
__device__ __forceinline__ void matmul(void* y, const bf16* x, const bf16* w, const bf16* w3, const bf16* b, const bf16* ls, int M, int N,
                                       int K, int then, float* parts, int part) {
    static_assert(T::kThreads == Low::kThreads && T::kBlockN == Low::kBlockN && T::kShared >= Low::kShared, "one launch has both");
    constexpr int kOutN = kKind == kSiluMul ? T::kBlockN / 2 : T::kBlockN;  // columns of y in a tile
    const Tiles tiles = tiles_of<T, Low>(M);
    const Place place = tile_place(blockIdx.x, tiles.tall + tiles.low, (N + kOutN - 1) / kOutN);
    auto tile_rows = [&] {
        const Tiles again = tiles_of<T, Low>(M);  // not kept in registers meanwhile
        return again.tall * T::kBlockM + again.low * Low::kBlockM;
    };
    const int n0 = place.n * kOutN;
    if (T::kBlockM == Low::kBlockM || place.m < tiles.tall) {
        const int m0 = place.m * T::kBlockM;
        matmul_tile<T, kKind>(y, x, w, w3, b, ls, M, N, K, then, parts, part, m0, n0, tile_rows);
    } else {
        const int m0 = tiles.tall * T::kBlockM + (place.m - tiles.tall) * Low::kBlockM;
        matmul_tile<Low, kKind>(y, x, w, w3, b, ls, M, N, K, then, parts, part, m0, n0, tile_rows);
    }
}

// On sm_100 ptxas aims at more blocks a multiprocessor, for which it spills registers.
#if __CUDA_ARCH__ == 1000
#define BOUNDS(threads) __launch_bounds__(threads, 1)
#else
#define BOUNDS(threads) __launch_bounds__(threads)
#endif

#define INSTANCE(tile)                                                                                                        \
    extern "C" __global__ void BOUNDS(Tile##tile::kThreads) matmul_bf16_##tile(                                               \
        bf16* y, const bf16* x, const bf16* w, const bf16* b, const bf16* ls, int M, int N, int K, int then, float* parts,    \
        int part) {                                                                                                           \
        matmul<Tile##tile, Low##tile, kBf16>(y, x, w, nullptr, b, ls, M, N, K, then, parts, part);                            \
    }                                                                                                                         \
    extern "C" __global__ void __launch_bounds__(Tile##tile::kThreads) matmul_silu_mul_bf16_##tile(                           \
        bf16* y, const bf16* x, const bf16* w, const bf16* w3, int M, int N, int K) {                                         \
        matmul<Tile##tile, Low##tile, kSiluMul>(y, x, w, w3, nullptr, nullptr, M, N, K, kStore, nullptr, K);                  \
    }                                                                                                                         \
    extern "C" __global__ void __launch_bounds__(Tile##tile::kThreads) matmul_f32_##tile(                                     \
        float* y, const bf16* x, const bf16* w, const bf16* b, int M, int N, int K) {                                         \
        matmul<Tile##tile, Low##tile, kF32>(y, x, w, nullptr, b, nullptr, M, N, K, kStore, nullptr, K);                       \
    }
INSTANCE(128x256)
INSTANCE(128x128)
INSTANCE(64x64)
INSTANCE(32x64)
