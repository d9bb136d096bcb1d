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
//
// Requires K % 8 == 0 and gridDim.x == ceil(M/kBlockM) * ceil(N/kBlockN), for SwiGLU ceil(2*N/kBlockN). f32 sums. v is rounded to bf16
// before a residual is added, as the model does; gelu is the exact one (erf), on f32.
//
// SwiGLU reads rows of w and w3 in alternating groups of eight into one tile, so that a thread's neighbouring fragments hold gate and up of the
// same columns; the weights stay as they are. Results pass through shared memory and are stored 16 bytes at a time (where N % 8 == 0).
// The tile engine is matmul.cuh; ops/matmul.rs picks the tile. FLOPs 2*M*N*K. Bytes at least 2*(M*K + N*K + M*N).

#include "matmul.cuh"

using Tile128x256 = Tile<128, 256, 2, 4, 4>;
using Tile128x128 = Tile<128, 128, 2, 2, 4>;
using Tile64x64 = Tile<64, 64, 2, 2, 5>;
using Tile32x64 = Tile<32, 64, 2, 2, 6>;

// What is done to v; == ops::matmul's.
enum Then { kStore, kGelu, kRelu, kResidual };
enum Kind { kBf16, kSiluMul, kF32 };

template <class T, int kKind>
__device__ __forceinline__ void matmul(void* y_, const bf16* x, const bf16* w, const bf16* w3, const bf16* b, const bf16* ls,
                                       int M, int N, int K, int then) {
    extern __shared__ __align__(128) char smem[];
    constexpr bool kSwiGlu = kKind == kSiluMul;
    constexpr int kOutN = kSwiGlu ? T::kBlockN / 2 : T::kBlockN;  // columns of y in the tile
    const Place place = tile_place(blockIdx.x, (M + T::kBlockM - 1) / T::kBlockM, (N + kOutN - 1) / kOutN);
    const int m0 = place.m * T::kBlockM, n0 = place.n * kOutN;

    const int row = threadIdx.x / 4;
    constexpr int kStep = T::kThreads / 4;
    const int chunk = threadIdx.x % 4 * 8;
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
    multiply<T>(acc, smem, K, a_rows, b_rows);

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
                    v0 = gate[0] / (1.f + expf(-gate[0])) * up[0];
                    v1 = gate[1] / (1.f + expf(-gate[1])) * up[1];
                } else {
                    v0 = acc[i][j][2 * half] + b0, v1 = acc[i][j][2 * half + 1] + b1;
                    if (then == kGelu) {
                        v0 = 0.5f * v0 * (1.f + erff(v0 * 0.70710678f));
                        v1 = 0.5f * v1 * (1.f + erff(v1 * 0.70710678f));
                    } else if (then == kRelu) {
                        v0 = fmaxf(v0, 0.f), v1 = fmaxf(v1, 0.f);
                    }
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
            uint4 v = load16(s_v + staged(r, c));
            bf16* to = y + size_t(m) * N + n;
            if (then == kResidual) {
                float8 sum = load8(to);
                const float8 add = widen8(v);
                if (ls) {
                    const float8 scale = load8(ls + n);
#pragma unroll
                    for (int k = 0; k < 8; ++k) sum.v[k] += scale.v[k] * add.v[k];
                } else {
#pragma unroll
                    for (int k = 0; k < 8; ++k) sum.v[k] += add.v[k];
                }
                v = narrow8(sum);
            }
            store16(to, v);
        }
    } else {
        for (int e = lane; e < T::kWarpM * kWidth; e += 32) {
            const int r = e / kWidth, c = e % kWidth, m = m0 + warp_m + r, n = out_n + c;
            if (m >= M || n >= N) continue;
            bf16* to = y + size_t(m) * N + n;
            float v = __bfloat162float(s_v[staged(r, c / 8) + c % 8]);
            if (then == kResidual) v = __bfloat162float(*to) + (ls ? __bfloat162float(ls[n]) * v : v);
            *to = __float2bfloat16_rn(v);
        }
    }
}

#define INSTANCE(tile)                                                                                              \
    extern "C" __global__ void __launch_bounds__(Tile##tile::kThreads) matmul_bf16_##tile(                          \
        bf16* y, const bf16* x, const bf16* w, const bf16* b, const bf16* ls, int M, int N, int K, int then) {      \
        matmul<Tile##tile, kBf16>(y, x, w, nullptr, b, ls, M, N, K, then);                                          \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(Tile##tile::kThreads) matmul_silu_mul_bf16_##tile(                 \
        bf16* y, const bf16* x, const bf16* w, const bf16* w3, int M, int N, int K) {                               \
        matmul<Tile##tile, kSiluMul>(y, x, w, w3, nullptr, nullptr, M, N, K, kStore);                               \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(Tile##tile::kThreads) matmul_f32_##tile(                           \
        float* y, const bf16* x, const bf16* w, const bf16* b, int M, int N, int K) {                               \
        matmul<Tile##tile, kF32>(y, x, w, nullptr, b, nullptr, M, N, K, kStore);                                    \
    }
INSTANCE(128x256)
INSTANCE(128x128)
INSTANCE(64x64)
INSTANCE(32x64)
