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
// shared memory: column (u*3 + v)*D + d of row (q,r,s) is x at (r+u-1, s+v-1), zeros outside the map. The tile engine is matmul.cuh.
// FLOPs 18*Q*G*G*D*O. Bytes at least 2*(Q*G*G*(D + O) + 9*D*O).

#include "matmul.cuh"

using T = Tile<128, 64, 4, 1, 4>;  // == ops::conv3x3's

extern "C" __global__ void __launch_bounds__(T::kThreads)
conv3x3_bf16(bf16* y, const bf16* x, const bf16* w, const float* b, int M, int G, int D, int O) {
    extern __shared__ __align__(128) char smem[];
    const int K = 9 * D;
    const Place place = tile_place(blockIdx.x, (M + T::kBlockM - 1) / T::kBlockM, (O + T::kBlockN - 1) / T::kBlockN);
    const int m0 = place.m * T::kBlockM, n0 = place.n * T::kBlockN;
    const int row = threadIdx.x / 4;
    constexpr int kStep = T::kThreads / 4;
    const bf16 *r_x[T::kRowsM], *r_w[T::kRowsN];
    int r_row[T::kRowsM], r_col[T::kRowsM];
#pragma unroll
    for (int i = 0; i < T::kRowsM; ++i) {
        const int m = min(m0 + row + i * kStep, M - 1);
        r_x[i] = x + size_t(m) * D;
        r_row[i] = m / G % G, r_col[i] = m % G;
    }
#pragma unroll
    for (int i = 0; i < T::kRowsN; ++i) r_w[i] = w + size_t(min(n0 + row + i * kStep, O - 1)) * K;
    float acc[T::kFragM][T::kFragN][4] = {};
    multiply<T>(
        acc, smem, K,
        [&](int i, int k, uint32_t to) {
            const int tap = k / D, u = tap / 3 - 1, v = tap % 3 - 1;
            const bool inside = unsigned(r_row[i] + u) < unsigned(G) && unsigned(r_col[i] + v) < unsigned(G) && k < K;
            cp_async_16(to, r_x[i] + (inside ? (u * G + v) * D + k - tap * D : 0), inside ? 16 : 0);
        },
        [&](int i, int k, uint32_t to) { cp_async_16(to, r_w[i] + k, k < K ? 16 : 0); });

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < T::kFragM; ++i) {
#pragma unroll
        for (int j = 0; j < T::kFragN; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int m = m0 + warp * T::kWarpM + i * 16 + lane / 4 + e / 2 * 8, n = n0 + j * 8 + lane % 4 * 2 + e % 2;
                if (m < M && n < O) y[size_t(m) * O + n] = __float2bfloat16_rn(fmaxf(acc[i][j][e] + b[n], 0.f));
            }
        }
    }
}
