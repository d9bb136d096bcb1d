// y = x @ w^T on the tensor cores.
//
//   y[m,n] = bf16(sum_k x[m,k] * w[n,k])
//
//   y (M, N), x (M, K), w (N, K)  bf16, contiguous
//
// Requires K % 8 == 0 and N % 2 == 0, 16-byte aligned x and w, gridDim = (ceil(N / 128), ceil(M / 128)) and kSmem bytes
// of dynamic shared memory. Sums in f32.
//
// A block computes a tile of 128 x 128, each of its 8 warps 64 x 32 of it, in steps of 32 along K. Tiles arrive through
// cp.async, kStages - 1 steps ahead; rows and columns past the edge arrive as zeros. A row of a tile is 64 bytes, four
// chunks of 16; chunk c of row r lies at c ^ (r / 2 % 4), so that the 8 rows an ldmatrix reads meet all 32 banks once.

#include "ptx.cuh"

constexpr int kBlock = 256, kTile = 128, kStep = 32, kStages = 4;
constexpr int kTileBytes = kTile * kStep * 2;
constexpr int kSmem = 2 * kStages * kTileBytes;
static_assert(kSmem <= 99 * 1024, "what every GPU since sm_86 has");

__device__ int swizzle(int row, int chunk) { return row * 64 + ((chunk ^ (row / 2 % 4)) * 16); }

// Rows [row0, row0 + 128) and columns [k0, k0 + 32) of a (rows, K) matrix.
__device__ void load_tile(uint32_t s_tile, const bf16* g, int row0, int rows, int k0, int K) {
#pragma unroll
    for (int i = 0; i < kTile * 4 / kBlock; ++i) {
        const int r = i * (kBlock / 4) + threadIdx.x / 4, c = threadIdx.x % 4;
        const bool inside = row0 + r < rows && k0 + c * 8 < K;
        const bf16* src = inside ? g + size_t(row0 + r) * K + k0 + c * 8 : g;
        cp_async16(s_tile + swizzle(r, c), src, inside ? 16 : 0);
    }
}

extern "C" __global__ void __launch_bounds__(kBlock)
gemm_bf16(bf16* y, const bf16* x, const bf16* w, int M, int N, int K) {
    extern __shared__ __align__(128) unsigned char s_tiles[];
    const uint32_t s_x = smem(s_tiles), s_w = s_x + kStages * kTileBytes;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp % 2 * 64, warp_n = warp / 2 * 32;
    const int m0 = blockIdx.y * kTile, n0 = blockIdx.x * kTile;
    const int steps = (K + kStep - 1) / kStep;

    float acc[4][4][4] = {};
    for (int s = 0; s < kStages - 1; ++s) {
        if (s < steps) {
            load_tile(s_x + s * kTileBytes, x, m0, M, s * kStep, K);
            load_tile(s_w + s * kTileBytes, w, n0, N, s * kStep, K);
        }
        cp_async_commit();
    }
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<kStages - 2>();
        __syncthreads();  // this step's tiles are there for all, and the slot that is filled next has been read by all
        const int ahead = step + kStages - 1;
        if (ahead < steps) {
            load_tile(s_x + ahead % kStages * kTileBytes, x, m0, M, ahead * kStep, K);
            load_tile(s_w + ahead % kStages * kTileBytes, w, n0, N, ahead * kStep, K);
        }
        cp_async_commit();  // also when empty: the count of groups is what the wait goes by

        const uint32_t t_x = s_x + step % kStages * kTileBytes, t_w = s_w + step % kStages * kTileBytes;
#pragma unroll
        for (int k = 0; k < kStep / 16; ++k) {
            uint32_t a[4][4], b[2][4];
            // Matrices of A: rows 0-7 and 8-15, then the same at k + 8. Of B: n 0-7 at k and k + 8, then n 8-15.
            for (int i = 0; i < 4; ++i) ldmatrix_x4(a[i], t_x + swizzle(warp_m + i * 16 + lane % 16, k * 2 + lane / 16));
            for (int j = 0; j < 2; ++j) ldmatrix_x4(b[j], t_w + swizzle(warp_n + j * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) mma_m16n8k16(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int m = m0 + warp_m + i * 16 + h * 8 + lane / 4, n = n0 + warp_n + j * 8 + lane % 4 * 2;
                if (m < M && n < N)
                    *reinterpret_cast<__nv_bfloat162*>(y + size_t(m) * N + n) = __floats2bfloat162_rn(acc[i][j][h * 2], acc[i][j][h * 2 + 1]);
            }
}
