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
// Two kernels in order: stats cleared, masks made. A block goes down height*steps lines, `height` of p and one more at a time in shared memory, and makes all
// lines of the mask whose upper neighbour is among them; so p is stored nowhere, and each word of bits is written by one block. A warp makes 32 neighbouring
// bits at a time, down its lines; words are gathered in shared memory, over x, and stored side by side. Every statistic is an integer: blocks add to
// it in any order with the same result. f32 sums in the order u, v; coordinates and values are rounded as the reference rounds them.
// mask_head_bf16: S % 4 == 0, `height` even, and at least 6 where steps > 1, gridDim == (ceil(S/(height*steps)), Q), dynamic shared memory for
// (height + 6, S) bf16 and (height + 1, S) f32. Bytes: 2*Q*S*S and five lines more a block, from L2, and a bit a pixel.

#include <climits>

#include "conv5x5.cuh"

constexpr int kBlock = 256;  // == ops::mask_head::BLOCK
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
mask_head_clear(int* stats, int Q) {
    const int i = blockIdx.x * kBlock + threadIdx.x;
    if (i < Q * kStats) stats[i] = i % kStats == 1 || i % kStats == 2 ? INT_MAX : i % kStats == 3 || i % kStats == 4 ? -1 : 0;
}

extern "C" __global__ void __launch_bounds__(kBlock, 3)
mask_head_bf16(unsigned* bits, int* stats, float* p, const bf16* x, const bf16* w, const bf16* b, const int* masks, int S, int height, int steps) {
    constexpr int kWarps = kBlock / 32;
    extern __shared__ __align__(16) uint32_t s_x[];  // height + 6 lines of x, of which bits take the room of the first `height`; then p
    __shared__ float s_w[26];
    __shared__ int s_mask[3], s_set[kWarps][5];
    __shared__ unsigned long long s_sum[kWarps];
    float2* s_p2 = reinterpret_cast<float2*>(s_x) + (height + 6) * S / 4;
    const float* s_p = reinterpret_cast<float*>(s_p2);
    const int q = blockIdx.y, begin = blockIdx.x * height * steps, end = min(S, begin + height * steps);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x >= 32 && threadIdx.x < 35) s_mask[threadIdx.x - 32] = masks[3 * q + threadIdx.x - 32];
    bool nan = false;
    int area = 0, left = INT_MAX, top = INT_MAX, right = -1, bottom = -1;
    unsigned long long sum = 0;
    for (int row0 = begin; row0 < end; row0 += height) {
        const int kept = row0 > begin ? 6 : 0;  // lines of x that the step before had read
        for (int e = threadIdx.x; e < kept * S / 8; e += kBlock) {
            store16(s_x + e * 4, load16(s_x + height * S / 2 + e * 4));
        }
        __syncthreads();  // where they were, others are read
        stage<kBlock>(s_x + kept * S / 2, s_w, x + size_t(q) * S * S, w, b, row0 - 2 + kept, height + (row0 + height < end ? 6 : 5) - kept, S);
        convolve<kBlock>(s_x, s_w, min(height + 1, S - row0), S, [&](int r, int pair, float2 y) {
            y.x = 1.f / (1.f + expf(-y.x)), y.y = 1.f / (1.f + expf(-y.y));
            nan |= y.x != y.x || y.y != y.y;
            s_p2[r * (S / 2) + pair] = y;
            if (p && r < height) reinterpret_cast<float2*>(p)[(size_t(q) * S + row0 + r) * (S / 2) + pair] = y;
        });
        __syncthreads();

        const int H = s_mask[1], W = s_mask[2], words = (W + 31) / 32;
        const float row_scale = float(S) / float(H), col_scale = float(S) / float(W);
        const int r0 = first_at(row0, row_scale, S, H), r1 = first_at(row0 + height, row_scale, S, H);
        // As many words at a time as there is room for.
        const int room = height * S / 2, columns = min(words, room), rows = room / columns;
        for (int part = 0; part < words; part += columns) {
            const int width = min(columns, words - part), runs = max(kWarps / width, 1);  // of lines, where there are few words
            for (int first = r0; first < r1; first += rows) {
                const int last = min(first + rows, r1), run = (last - first + runs - 1) / runs;
                for (int e = warp; e < width * runs; e += kWarps) {
                    const int i = e % width, c = (part + i) * 32 + lane;
                    const Tap x = tap(min(c, W - 1), col_scale, S);
                    auto across = [&](int row) { return mix(s_p[(row - row0) * S + x.low], s_p[(row - row0) * S + x.high], x.weight); };
                    unsigned any = 0;
                    int at = -1;
                    float above = 0.f, below = 0.f;
                    for (int r = first + e / width * run; r < min(first + (e / width + 1) * run, last); ++r) {
                        const Tap y = tap(r, row_scale, S);
                        if (y.low != at) at = y.low, above = across(y.low), below = across(y.high);
                        const float v = mix(above, below, y.weight);
                        const bool inside = c < W && v >= 0.5f;
                        const unsigned set = __ballot_sync(0xffffffff, inside);
                        if (inside) sum += (unsigned long long)(v * 1073741824.f);
                        if (set) any |= set, area += __popc(set), top = min(top, r), bottom = max(bottom, r);
                        if (lane == 0) s_x[(r - first) * width + i] = set;
                    }
                    if (any) left = min(left, (part + i) * 32 + __ffs(any) - 1), right = max(right, (part + i) * 32 + 31 - __clz(any));
                }
                __syncthreads();
                if (width == words) {  // neighbours in `bits`, too: whole sectors a warp
                    unsigned* out = bits + s_mask[0] + size_t(first) * words;
                    const int shift = reinterpret_cast<size_t>(out) / 4 % 8;
                    for (int e = int(threadIdx.x) - shift; e < (last - first) * words; e += kBlock) {
                        if (e >= 0) out[e] = s_x[e];
                    }
                } else {
                    for (int e = threadIdx.x; e < (last - first) * width; e += kBlock) {
                        bits[s_mask[0] + size_t(first + e / width) * words + part + e % width] = s_x[e];
                    }
                }
                __syncthreads();
            }
        }
    }
    nan = __syncthreads_or(nan);
    sum = warp_sum(sum);
    if (lane == 0) {
        s_set[warp][0] = area, s_set[warp][1] = left, s_set[warp][2] = top, s_set[warp][3] = right, s_set[warp][4] = bottom;
        s_sum[warp] = sum;
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 1; i < kWarps; ++i) {
        area += s_set[i][0], left = min(left, s_set[i][1]), top = min(top, s_set[i][2]), right = max(right, s_set[i][3]);
        bottom = max(bottom, s_set[i][4]), sum += s_sum[i];
    }
    int* stat = stats + q * kStats;
    if (nan) atomicOr(&stat[5], 1);
    if (area == 0) return;
    atomicAdd(&stat[0], area);
    atomicMin(&stat[1], left);
    atomicMin(&stat[2], top);
    atomicMax(&stat[3], right);
    atomicMax(&stat[4], bottom);
    atomicAdd(reinterpret_cast<unsigned long long*>(&stat[6]), sum);
}
