// The mask decoder's pixels to masks at each source picture's size: the last convolution, sigmoid, resize, threshold; bits, box, area and sum.
//
//   p[q]  = sigmoid(b + sum_{u,v} w[u,v] * x[q, r+u-2, s+v-2]), zero outside the map
//   value = bilinear resize (align_corners=False) of p[q] to (H, W)
//   bit s%32 of bits[masks[q].at + r*ceil(W/32) + s/32] = value[r,s] >= 0.5
//
//   bits   i32, room for all masks
//   stats  (Q, 8)     i32: pixels of the mask; first and last column and row that have one (x0, y0, x1, y1; INT_MAX, INT_MAX, -1, -1 where
//                     none has); whether a p is NaN; sum of the values that are set, in units of 2^-30, low and high half
//   p      (Q, S, S)  f32 or null: only where somebody asks
//   x      (Q, S, S)  bf16
//   w, b   (5, 5), (1)  bf16
//   masks  (Q, 3)     i32: first element of bits, H, W
//
// Two kernels in order: bits and stats cleared, masks made. A block makes kHeight x kWidth values of p, and one more line and column, in shared
// memory, and every result whose upper left neighbour is among them; so p is computed once and stored nowhere. A warp makes 32
// neighbouring bits and ORs them into their word, which blocks may share. Every statistic is an integer: blocks add to it in any order with the same result.
// The map is read two columns at a time. f32 sums in the order u, v; coordinates and values are rounded as the reference rounds them.
// mask_head_bf16: S % 2 == 0, gridDim == (ceil(S/kWidth), ceil(S/kHeight), Q). Bytes: 2*Q*S*S, and two times a bit a pixel (cleared, then set); the
// tiles' edges are read again from L2.

#include <climits>

#include "conv5x5.cuh"

constexpr int kBlock = 256;                // == ops::mask_head::BLOCK
constexpr int kWidth = 64, kHeight = 32;   // == ops::mask_head::{WIDTH, HEIGHT}
constexpr int kStats = 8;

struct Tap {
    int low, high;
    float weight;  // of high
};

__device__ __forceinline__ Tap tap(int i, float scale, int size) {
    const float at = fmaxf(__fsub_rn(__fmul_rn(i + 0.5f, scale), 0.5f), 0.f);
    const int low = min(int(at), size - 1);
    return {low, min(low + 1, size - 1), at - low};
}

// The first of n results whose lower neighbour is `low` or more.
__device__ __forceinline__ int first_at(int low, float scale, int size, int n) {
    int i = min(max(int((low + 0.5f) / scale - 0.5f), 0), n);
    while (i > 0 && tap(i - 1, scale, size).low >= low) --i;
    while (i < n && tap(i, scale, size).low < low) ++i;
    return i;
}

// a*(1-f) + b*f, each operation rounded.
__device__ __forceinline__ float mix(float a, float b, float f) {
    return __fadd_rn(__fmul_rn(a, 1.f - f), __fmul_rn(b, f));
}

extern "C" __global__ void __launch_bounds__(kBlock)
mask_head_clear(int* bits, int* stats, int words, int Q) {
    const int i = blockIdx.x * kBlock + threadIdx.x;
    if (i < words) bits[i] = 0;
    if (i < Q * kStats) stats[i] = i % kStats == 1 || i % kStats == 2 ? INT_MAX : i % kStats == 3 || i % kStats == 4 ? -1 : 0;
}

extern "C" __global__ void __launch_bounds__(kBlock)
mask_head_bf16(unsigned* bits, int* stats, float* p, const bf16* x, const bf16* w, const bf16* b, const int* masks, int S) {
    constexpr int kInRows = kHeight + 5, kInCols = kWidth + 6;  // two before, and three behind: one of them for the line more of p; even
    __shared__ __align__(8) float s_x[kInRows][kInCols], s_p[kHeight + 1][kWidth + 1], s_w[25];
    const int q = blockIdx.z, row0 = blockIdx.y * kHeight, col0 = blockIdx.x * kWidth;
    const bf16* image = x + size_t(q) * S * S;
    int* stat = stats + q * kStats;
    stage<kBlock>(s_x, s_w, image, w, row0, col0, S);
    const float bias = __bfloat162float(b[0]);
    __syncthreads();
    float r_w[5][5];
#pragma unroll
    for (int i = 0; i < 25; ++i) r_w[i / 5][i % 5] = s_w[i];
    constexpr int kWhole = (kHeight + 1) * kWidth;  // then the column more: so a warp's are neighbours
    for (int e = threadIdx.x; e < kWhole + kHeight + 1; e += kBlock) {
        const int i = e < kWhole ? e / kWidth : e - kWhole, j = e < kWhole ? e % kWidth : kWidth, row = row0 + i, col = col0 + j;
        float acc = bias;
#pragma unroll
        for (int u = 0; u < 5; ++u) {
#pragma unroll
            for (int v = 0; v < 5; ++v) acc = fmaf(r_w[u][v], s_x[i + u][j + v], acc);
        }
        const float value = 1.f / (1.f + expf(-acc));
        s_p[i][j] = value;
        if (row < S && col < S && i < kHeight && j < kWidth) {
            if (p) p[(size_t(q) * S + row) * S + col] = value;
            if (value != value) atomicOr(&stat[5], 1);
        }
    }
    __syncthreads();

    const int H = masks[3 * q + 1], W = masks[3 * q + 2], lane = threadIdx.x % 32;
    const float row_scale = float(S) / float(H), col_scale = float(S) / float(W);
    const int r0 = first_at(row0, row_scale, S, H), r1 = first_at(row0 + kHeight, row_scale, S, H);
    const int c0 = first_at(col0, col_scale, S, W), c1 = first_at(col0 + kWidth, col_scale, S, W);
    const int word0 = c0 / 32, words = c1 > c0 ? (c1 - 1) / 32 - word0 + 1 : 0;
    unsigned* out = bits + masks[3 * q];
    int area = 0, left = INT_MAX, top = INT_MAX, right = -1, bottom = -1;
    unsigned long long sum = 0;
    for (int e = threadIdx.x / 32; e < (r1 - r0) * words; e += kBlock / 32) {
        const int r = r0 + e / words, word = word0 + e % words, c = word * 32 + lane;
        bool inside = false;
        if (c >= c0 && c < c1) {
            const Tap y = tap(r, row_scale, S), x = tap(c, col_scale, S);
            const float *above = s_p[y.low - row0], *below = s_p[y.high - row0];
            const float v = mix(mix(above[x.low - col0], above[x.high - col0], x.weight),
                                mix(below[x.low - col0], below[x.high - col0], x.weight), y.weight);
            inside = v >= 0.5f;
            if (inside) {
                ++area, sum += (unsigned long long)(v * 1073741824.f);
                left = min(left, c), right = max(right, c), top = min(top, r), bottom = max(bottom, r);
            }
        }
        const unsigned set = __ballot_sync(0xffffffff, inside);
        if (lane == 0 && set) atomicOr(out + size_t(r) * ((W + 31) / 32) + word, set);
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        area += __shfl_xor_sync(0xffffffff, area, d);
        sum += __shfl_xor_sync(0xffffffff, sum, d);
        left = min(left, __shfl_xor_sync(0xffffffff, left, d));
        top = min(top, __shfl_xor_sync(0xffffffff, top, d));
        right = max(right, __shfl_xor_sync(0xffffffff, right, d));
        bottom = max(bottom, __shfl_xor_sync(0xffffffff, bottom, d));
    }
    if (lane == 0 && area > 0) {
        atomicAdd(&stat[0], area);
        atomicMin(&stat[1], left);
        atomicMin(&stat[2], top);
        atomicMax(&stat[3], right);
        atomicMax(&stat[4], bottom);
        atomicAdd(reinterpret_cast<unsigned long long*>(&stat[6]), sum);
    }
}
