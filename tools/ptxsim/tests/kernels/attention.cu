// Attention over one head size, with the softmax taken online.
//
//   y[h,t] = sum_u p[t,u] * v[h,u],   p[t,:] = softmax_u(q[h,t] . k[h,u] * scale)
//
//   y, q, k, v  (NH, T, 64)  bf16, contiguous
//   scale       f32; the caller has multiplied it by log2(e): the softmax is taken in powers of two
//
// Requires gridDim = (ceil(T / 64), NH), 16-byte aligned operands, kSmem bytes of dynamic shared memory. Scores, maxima
// and sums in f32; the probabilities are rounded to bf16 for the product with v.
//
// A block does 64 queries of a head, 16 a warp, over tiles of 64 keys; K and V of the next tile arrive through cp.async
// while this one is worked on. Rows of 128 bytes; chunk c of row r lies at c ^ (r % 8).

#include "ptx.cuh"

constexpr int kBlock = 128, kRows = 64, kHead = 64;
constexpr int kTileBytes = kRows * kHead * 2;
constexpr int kSmem = 5 * kTileBytes;  // q, two of k, two of v
static_assert(kSmem <= 99 * 1024, "what every GPU since sm_86 has");

__device__ int swizzle(int row, int chunk) { return row * 128 + ((chunk ^ (row % 8)) * 16); }

__device__ void load_tile(uint32_t s_tile, const bf16* g, int t0, int T) {
#pragma unroll
    for (int i = 0; i < kRows * 8 / kBlock; ++i) {
        const int r = i * (kBlock / 8) + threadIdx.x / 8, c = threadIdx.x % 8;
        const bool inside = t0 + r < T;
        cp_async16(s_tile + swizzle(r, c), inside ? g + size_t(t0 + r) * kHead + c * 8 : g, inside ? 16 : 0);
    }
}

__device__ uint32_t pack(float lo, float hi) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    return reinterpret_cast<const uint32_t&>(v);
}

extern "C" __global__ void __launch_bounds__(kBlock)
attention_bf16(bf16* y, const bf16* q, const bf16* k, const bf16* v, int T, float scale) {
    extern __shared__ __align__(128) unsigned char s_tiles[];
    const uint32_t s_q = smem(s_tiles), s_k = s_q + kTileBytes, s_v = s_k + 2 * kTileBytes;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int t0 = blockIdx.x * kRows;
    const size_t head = size_t(blockIdx.y) * T * kHead;
    const int tiles = (T + kRows - 1) / kRows;

    load_tile(s_q, q + head, t0, T);
    load_tile(s_k, k + head, 0, T);
    load_tile(s_v, v + head, 0, T);
    cp_async_commit();

    uint32_t r_q[4][4];
    float acc[8][4] = {};
    float row_max[2] = {-INFINITY, -INFINITY}, row_sum[2] = {0.f, 0.f};  // of rows lane / 4 and lane / 4 + 8

    for (int tile = 0; tile < tiles; ++tile) {
        const int slot = tile % 2, u0 = tile * kRows;
        cp_async_wait<0>();
        __syncthreads();  // this tile is there for all, and the other slot has been read by all
        if (tile + 1 < tiles) {
            load_tile(s_k + (slot ^ 1) * kTileBytes, k + head, u0 + kRows, T);
            load_tile(s_v + (slot ^ 1) * kTileBytes, v + head, u0 + kRows, T);
            cp_async_commit();
        }
        if (tile == 0)
#pragma unroll
            for (int i = 0; i < 4; ++i) ldmatrix_x4(r_q[i], s_q + swizzle(warp * 16 + lane % 16, i * 2 + lane / 16));

        float s[8][4] = {};
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                uint32_t b[4];
                ldmatrix_x4(b, s_k + slot * kTileBytes + swizzle(j * 16 + lane / 16 * 8 + lane % 8, i * 2 + lane / 8 % 2));
                mma_m16n8k16(s[j * 2], r_q[i], b[0], b[1]);
                mma_m16n8k16(s[j * 2 + 1], r_q[i], b[2], b[3]);
            }
        if (u0 + kRows > T)  // keys past the end
#pragma unroll
            for (int j = 0; j < 8; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    if (u0 + j * 8 + lane % 4 * 2 + e % 2 >= T) s[j][e] = -INFINITY;

#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float m = row_max[h];
#pragma unroll
            for (int j = 0; j < 8; ++j) m = fmaxf(m, fmaxf(s[j][h * 2], s[j][h * 2 + 1]));
            m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 1));
            m = fmaxf(m, __shfl_xor_sync(0xffffffff, m, 2));
            const float fade = exp2f((row_max[h] - m) * scale), shift = m * scale;  // a tile has a key: m is finite
            row_max[h] = m;
            row_sum[h] *= fade;
#pragma unroll
            for (int j = 0; j < 8; ++j)
#pragma unroll
                for (int e = h * 2; e < h * 2 + 2; ++e) {
                    s[j][e] = exp2f(fmaf(s[j][e], scale, -shift));
                    row_sum[h] += s[j][e];
                    acc[j][e] *= fade;
                }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // 16 keys: what came out of the first product is laid out as the second takes it
            const uint32_t a[4] = {pack(s[i * 2][0], s[i * 2][1]), pack(s[i * 2][2], s[i * 2][3]),
                                   pack(s[i * 2 + 1][0], s[i * 2 + 1][1]), pack(s[i * 2 + 1][2], s[i * 2 + 1][3])};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, s_v + slot * kTileBytes + swizzle(i * 16 + lane % 16, j * 2 + lane / 16));
                mma_m16n8k16(acc[j * 2], a, b[0], b[1]);
                mma_m16n8k16(acc[j * 2 + 1], a, b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float sum = row_sum[h];
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
        const int t = t0 + warp * 16 + h * 8 + lane / 4;
        if (t < T)
#pragma unroll
            for (int j = 0; j < 8; ++j)
                *reinterpret_cast<uint32_t*>(y + head + size_t(t) * kHead + j * 8 + lane % 4 * 2) =
                    pack(acc[j][h * 2] / sum, acc[j][h * 2 + 1] / sum);
    }
}
