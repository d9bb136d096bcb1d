// Probabilities to each source picture's size, thresholded; the mean probability inside each mask.
//
//   y[masks[q].at + r*w + s] = value >= 0.5, value = bilinear resize (align_corners=False) of x[q] to (h, w) at (r, s)
//   score[q] = mean of the values that are, 0 where none is
//
//   y      bytes, room for all masks
//   score  (Q)        f32
//   sums   (Q, 2)     u64: number of the mask's pixels; sum of their values in units of 2^-30
//   x      (Q, S, S)  f32
//   masks  (Q, 3)     i32: first element of y, h, w
//
// Three kernels in order: sums cleared, masks made, scores from the sums. Coordinates and values are rounded as the reference rounds
// them, so that the mask has its bits. The sums are integers: blocks add to them in any order with the same result.
//
// resize_mask_f32: gridDim == (ceil(len(y) / kPixels), Q); blocks past a mask's end do nothing. Bytes: a byte a pixel, 4*Q*S*S.

#include "common.cuh"

constexpr int kBlock = 256;      // == ops::resize_mask::BLOCK
constexpr int kPixels = 16384;   // of a block; == ops::resize_mask::PIXELS

struct Tap {
    int low, high;
    float weight;  // of high
};

__device__ __forceinline__ Tap tap(int i, float scale, int size) {
    const float at = fmaxf(__fsub_rn(__fmul_rn(i + 0.5f, scale), 0.5f), 0.f);
    const int low = min(int(at), size - 1);
    return {low, min(low + 1, size - 1), at - low};
}

// a*(1-f) + b*f, each operation rounded.
__device__ __forceinline__ float mix(float a, float b, float f) {
    return __fadd_rn(__fmul_rn(a, 1.f - f), __fmul_rn(b, f));
}

extern "C" __global__ void __launch_bounds__(kBlock)
resize_mask_clear(unsigned long long* sums, int n) {
    const int i = blockIdx.x * kBlock + threadIdx.x;
    if (i < n) sums[i] = 0;
}

extern "C" __global__ void __launch_bounds__(kBlock)
resize_mask_f32(uint8_t* y, unsigned long long* sums, const float* x, const int* masks, int S) {
    const int q = blockIdx.y, h = masks[3 * q + 1], w = masks[3 * q + 2];
    const size_t first = size_t(blockIdx.x) * kPixels, pixels = size_t(h) * w;
    if (first >= pixels) return;
    const float* image = x + size_t(q) * S * S;
    uint8_t* out = y + masks[3 * q];
    const float row_scale = float(S) / float(h), col_scale = float(S) / float(w);
    unsigned count = 0;
    unsigned long long sum = 0;
    const size_t end = min(first + kPixels, pixels);
    for (size_t p = first + threadIdx.x; p < end; p += kBlock) {
        const Tap r = tap(p / w, row_scale, S), c = tap(p % w, col_scale, S);
        const float* top = image + size_t(r.low) * S;
        const float* bottom = image + size_t(r.high) * S;
        const float v = mix(mix(top[c.low], top[c.high], c.weight), mix(bottom[c.low], bottom[c.high], c.weight), r.weight);
        const bool inside = v >= 0.5f;
        out[p] = inside;
        count += inside;
        if (inside) sum += (unsigned long long)(v * 1073741824.f);
    }
    __shared__ unsigned s_count[kBlock / 32];
    __shared__ unsigned long long s_sum[kBlock / 32];
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        count += __shfl_xor_sync(0xffffffff, count, d);
        sum += __shfl_xor_sync(0xffffffff, sum, d);
    }
    if (threadIdx.x % 32 == 0) {
        s_count[threadIdx.x / 32] = count;
        s_sum[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < kBlock / 32; ++i) {
            count += s_count[i];
            sum += s_sum[i];
        }
        atomicAdd(&sums[2 * q], (unsigned long long)count);
        atomicAdd(&sums[2 * q + 1], sum);
    }
}

extern "C" __global__ void __launch_bounds__(kBlock)
resize_mask_score(float* score, const unsigned long long* sums, int Q) {
    const int q = blockIdx.x * kBlock + threadIdx.x;
    if (q >= Q) return;
    const double count = sums[2 * q], sum = sums[2 * q + 1] / 1073741824.0;
    score[q] = count > 0 ? float(sum / count) : 0.f;
}
