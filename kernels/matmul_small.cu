// matmul.cu's products for at most 16 rows of x, as decoding has them: the weights stream through once, at the speed of memory.
//
//   y = epilogue(x @ w^T + b), x first normalised if `norm` is given: x[m,k] = norm[k] * bf16(x[m,k] * rsqrt(mean_k(x[m,k]^2) + eps))
//
//   y      (M, N)  bf16, or f32 (matmul_small_f32)
//   x      (M, K)  bf16
//   w, w3  (N, K)  bf16; w3 for matmul_small_silu_mul alone
//   b, ls  (N)     bf16 or null
//   norm   (K)     bf16 or null
//
// Requires 1 <= M <= 16, K % 8 == 0, part % 64 == 0 or part >= K, gridDim.x == ceil(N / (8*kWarps)), kShared bytes of dynamic shared memory. Epilogues and rounding are
// those of matmul.cu and rmsnorm.cu, and so are the bits: an element's sum runs over k in steps of 16, ascending, in one accumulator for each
// part of K, of `part` columns, and then over the parts.
//
// A warp makes eight columns of y: its weight rows come in tiles of 64 columns through kStages slots of shared memory that no other warp
// touches, so that warps never wait for each other's weights. x comes in pieces of kPiece columns through two buffers that the block
// shares, a barrier a piece: read into registers a piece ahead, normalised, stored. Rows past M read the last one and are not stored.
// A row of a slot is 128 bytes, of x 512; chunk c of 16 bytes of row r lies at place c ^ r%8: no bank conflicts.
// Bytes: 2*N*K of weights, each read once in 16-byte accesses, and x once a block (twice with `norm`), from L2: (1 + norm)*M/(8*kWarps) of that.

#include "epilogue.cuh"
#include "mma.cuh"

constexpr int kRows = 16;             // == ops::SMALL_ROWS
constexpr int kTile = 64, kPiece = 256;

template <int kWarps, int kKind>
struct Small {
    static constexpr bool kSwiGlu = kKind == kSiluMul;
    static constexpr int kThreads = 32 * kWarps, kBlockN = 8 * kWarps;
    static constexpr int kFrags = kSwiGlu ? 2 : 1;                    // fragments of eight weight rows: gate and up
    static constexpr int kStages = kSwiGlu ? 4 : 6, kSlot = kFrags * 8 * kTile * 2;
    static constexpr int kRing = kWarps * kStages * kSlot, kBuffer = kRows * kPiece * 2;
    static constexpr int kShared = kRing + 2 * kBuffer + kRows * 8 * 4;  // == ops::matmul_small::smem
    static constexpr int kOwnRows = kRows / kWarps;                   // rows of x that a warp brings in
};

template <int kWarps, int kKind>
__device__ __forceinline__ void matmul_small(void* y_, const bf16* x, const bf16* w, const bf16* w3, const bf16* b, const bf16* ls,
                                             const bf16* norm, float eps, int M, int N, int K, int then, int part) {
    using S = Small<kWarps, kKind>;
    extern __shared__ __align__(512) char smem[];  // the warps' slots; two buffers of x; sums
    auto s_sums = reinterpret_cast<float(*)[8]>(smem + S::kRing + 2 * S::kBuffer);  // of squares, by row and warp of rmsnorm.cu
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n0 = blockIdx.x * S::kBlockN + warp * 8;
    const uint32_t ring = shared_address(smem) + warp * S::kStages * S::kSlot, buffers = shared_address(smem) + S::kRing;
    const int tiles = (K + kTile - 1) / kTile, pieces = (K + kPiece - 1) / kPiece;

    // Weights: rows lane/8 and lane/8 + 4, chunk lane%8 of a tile, tile after tile; zeros past N and K, without reading.
    const uint32_t to = ring + lane / 8 * 128 + (lane % 8 ^ lane / 8) * 16;
    const bf16* from[S::kFrags][2];
    bool inside[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = n0 + lane / 8 + 4 * i;
        inside[i] = row < N;
#pragma unroll
        for (int f = 0; f < S::kFrags; ++f) from[f][i] = (f ? w3 : w) + size_t(min(row, N - 1)) * K;
    }
    int next_k = lane % 8 * 8;
    auto fetch = [&](int slot) {
#pragma unroll
        for (int f = 0; f < S::kFrags; ++f) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {  // the swizzle of row + 4 differs in one bit
                cp_async_16((to ^ i * 64) + slot * S::kSlot + f * 1024 + i * 512, from[f][i] + next_k,
                            inside[i] && next_k < K ? 16 : 0);
            }
        }
        next_k += kTile;
        cp_async_commit_group();
    };
#pragma unroll
    for (int s = 0; s < S::kStages - 1; ++s) fetch(s);

    // x: rows warp, warp + kWarps, ... of a piece, a chunk a lane.
    uint4 r_x[S::kOwnRows];
    float rstd[S::kOwnRows];
    auto load = [&](int piece) {
        const int k = piece * kPiece + lane * 8;
#pragma unroll
        for (int i = 0; i < S::kOwnRows; ++i) {
            const int m = warp + i * kWarps;
            r_x[i] = m < M && k < K ? load16(x + size_t(m) * K + k) : make_uint4(0, 0, 0, 0);
        }
    };
    auto store = [&](int piece) {
        const int k = piece * kPiece + lane * 8;
#pragma unroll
        for (int i = 0; i < S::kOwnRows; ++i) {
            const int m = warp + i * kWarps;
            if (m >= M) continue;
            if (norm && k < K) {
                const float8 scale = load8(norm + k);
                float8 v = widen8(r_x[i]);
#pragma unroll
                for (int j = 0; j < 8; ++j) v.v[j] = scale.v[j] * round_bf16(v.v[j] * rstd[i]);
                r_x[i] = narrow8(v);
            }
            store16(smem + S::kRing + piece % 2 * S::kBuffer + m * kPiece * 2 + (lane ^ m % 8) * 16, r_x[i]);
        }
    };
    load(0);
    if (norm) {
        // As rmsnorm.cu sums a row: in as many threads as its block would have.
        const int threads = min((K / 8 + 31) / 32 * 32, 256);
        for (int m = 0; m < M; ++m) {
            for (int v = warp; v < threads / 32; v += kWarps) {
                float squares = 0.f;
                for (int k = (v * 32 + lane) * 8; k < K; k += threads * 8) {
                    const float8 r = load8(x + size_t(m) * K + k);
#pragma unroll
                    for (int j = 0; j < 8; ++j) squares = fmaf(r.v[j], r.v[j], squares);
                }
                squares = warp_sum(squares);
                if (lane == 0) s_sums[m][v] = squares;
            }
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < S::kOwnRows; ++i) {
            float sum = 0.f;
            if (warp + i * kWarps < M) {
                for (int v = 0; v < threads / 32; ++v) sum += s_sums[warp + i * kWarps][v];
            }
            rstd[i] = rsqrtf(sum / K + eps);
        }
    }
    store(0);

    // Where the lane's fragment rows lie: of x row lane%16, chunk lane/16; of a slot row lane%8, chunk lane/8.
    const int x_row = min(lane % 16, M - 1);
    const uint32_t x_at = buffers + x_row * kPiece * 2 + (lane / 16 ^ x_row % 8) * 16;
    const uint32_t w_at = ring + lane % 8 * 128 + (lane / 8 ^ lane % 8) * 16;
    float acc[S::kFrags][4] = {}, sum[4] = {};  // of the part, of those before
    int until = part;
    int slot = 0, fill = S::kStages - 1;
    for (int piece = 0; piece < pieces; ++piece) {
        __syncthreads();  // the piece is there, and the other buffer has been used by all
        if (piece + 1 < pieces) load(piece + 1);
#pragma unroll
        for (int j = 0; j < kPiece / kTile; ++j) {
            const int tile = piece * (kPiece / kTile) + j;
            if (tile >= tiles) break;
            cp_async_wait_group<S::kStages - 2>();
            __syncwarp();  // the tile is there, and the slot that is filled next has been used by all lanes
            fetch(fill);  // past the last tile: zeros, which nobody multiplies
            uint32_t weights[S::kFrags][2][4];
#pragma unroll
            for (int f = 0; f < S::kFrags; ++f) {
#pragma unroll
                for (int h = 0; h < 2; ++h) ldmatrix_x4(weights[f][h], (w_at ^ h * 64) + slot * S::kSlot + f * 1024);
            }
#pragma unroll
            for (int c = 0; c < kTile / 16; ++c) {
                uint32_t a[4];
                ldmatrix_x4(a, (x_at ^ (j * 4 + c) * 32) + piece % 2 * S::kBuffer);
#pragma unroll
                for (int f = 0; f < S::kFrags; ++f) mma_m16n8k16(acc[f], a, weights[f][c / 2][c % 2 * 2], weights[f][c / 2][c % 2 * 2 + 1]);
            }
            fill = slot;
            slot = slot + 1 == S::kStages ? 0 : slot + 1;
            if (j == 1 && piece + 1 < pieces) store(piece + 1);
            if (kKind == kBf16 && (until -= kTile) == 0 && part < K) {
#pragma unroll
                for (int e = 0; e < 4; ++e) sum[e] += acc[0][e], acc[0][e] = 0.f;
                until = part;
            }
        }
    }
    cp_async_wait_group<0>();
    if (kKind == kBf16 && part < K) {
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[0][e] += sum[e];
    }

    if (kKind == kF32) {
        float* y = static_cast<float*>(y_);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int m = lane / 4 + e / 2 * 8, n = n0 + lane % 4 * 2 + e % 2;
            if (m < M && n < N) y[size_t(m) * N + n] = acc[0][e] + (b ? __bfloat162float(b[n]) : 0.f);
        }
        return;
    }
    // In bf16 through shared memory, so that rows of the block are stored 16 bytes at a time.
    __syncthreads();
    bf16* s_v = reinterpret_cast<bf16*>(smem);
    auto staged = [](int m, int c) { return m * S::kBlockN + (c ^ m / (8 / kWarps) % kWarps) * 8; };
    const int n = n0 + lane % 4 * 2;
    float b0 = 0.f, b1 = 0.f;
    if (!S::kSwiGlu && b) {
        b0 = n < N ? __bfloat162float(b[n]) : 0.f;
        b1 = n + 1 < N ? __bfloat162float(b[n + 1]) : 0.f;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float v0, v1;
        if constexpr (S::kSwiGlu) {
            const float *gate = acc[0] + 2 * half, *up = acc[1] + 2 * half;
            v0 = silu_mul(gate[0], up[0]), v1 = silu_mul(gate[1], up[1]);
        } else {
            v0 = activate(acc[0][2 * half] + b0, then), v1 = activate(acc[0][2 * half + 1] + b1, then);
        }
        *reinterpret_cast<uint32_t*>(s_v + staged(half * 8 + lane / 4, warp) + lane % 4 * 2) = narrow2(v0, v1);
    }
    __syncthreads();
    bf16* y = static_cast<bf16*>(y_);
    const int block_n = blockIdx.x * S::kBlockN;
    if (N % 8 == 0) {
        for (int e = threadIdx.x; e < M * kWarps; e += S::kThreads) {
            const int m = e / kWarps, c = e % kWarps, col = block_n + c * 8;
            if (col >= N) continue;
            store_result(y + size_t(m) * N + col, load16(s_v + staged(m, c)), ls ? ls + col : nullptr, then);
        }
    } else {
        for (int e = threadIdx.x; e < M * S::kBlockN; e += S::kThreads) {
            const int m = e / S::kBlockN, c = e % S::kBlockN, col = block_n + c;
            if (col >= N) continue;
            store_result(y + size_t(m) * N + col, s_v[staged(m, c / 8) + c % 8], ls ? ls + col : nullptr, then);
        }
    }
}

// On sm_100 ptxas aims at seven blocks of 128 threads a multiprocessor, for which it spills a register.
#if __CUDA_ARCH__ == 1000
#define BOUNDS(threads) __launch_bounds__(threads, 640 / (threads))
#else
#define BOUNDS(threads) __launch_bounds__(threads)
#endif

#define INSTANCE(columns)                                                                                                \
    extern "C" __global__ void __launch_bounds__(columns * 4) matmul_small_bf16_##columns(                               \
        bf16* y, const bf16* x, const bf16* w, const bf16* b, const bf16* ls, const bf16* norm, float eps, int M, int N, \
        int K, int then, int part) {                                                                                     \
        matmul_small<columns / 8, kBf16>(y, x, w, nullptr, b, ls, norm, eps, M, N, K, then, part);                       \
    }                                                                                                                    \
    extern "C" __global__ void BOUNDS(columns * 4) matmul_small_silu_mul_bf16_##columns(                                 \
        bf16* y, const bf16* x, const bf16* w, const bf16* w3, const bf16* norm, float eps, int M, int N, int K) {       \
        matmul_small<columns / 8, kSiluMul>(y, x, w, w3, nullptr, nullptr, norm, eps, M, N, K, kStore, K);               \
    }                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(columns * 4) matmul_small_f32_##columns(                                \
        float* y, const bf16* x, const bf16* w, const bf16* b, const bf16* norm, float eps, int M, int N, int K) {       \
        matmul_small<columns / 8, kF32>(y, x, w, nullptr, b, nullptr, norm, eps, M, N, K, kStore, K);                    \
    }
INSTANCE(64)
INSTANCE(32)
