// LayerNorm over the last dimension, alone or of a sum.
//
//   v[n,c] = x[n,c]                            r null
//          | x[n,c] + r[n,c]                   image_of null
//          | x[image_of[q]*P + p, c] + r[q,c]  n = q*P + p
//          | x shuffled                        G not 0: row n is a cell's four pixels side by side, as in pixel_shuffle.cu
//   y[n,c] = (v[n,c] - mean) * rsqrt(var + eps) * w[c] + b[c]
//
//   y         (N, C)  bf16, rows `y_stride` elements apart
//   x         (N, C), with image_of (B*P, C), with G (4*N, C/4)  bf16
//   r         (N, C), with image_of (Q, C)    bf16 or null
//   image_of  (Q)     i32 or null
//   w, b      (C)     bf16
//
// Requires C % 8 == 0 (with G C % 32 == 0, G even), C <= 8 * kVectors * blockDim.x, y_stride % 8 == 0, gridDim.x == N, whole warps. The sum, the moments and the
// result are f32, rounded once at the end; the variance is that of the differences from the mean, in a second pass over registers.
//
// One block a row, the row in registers: it is read once. Bytes: 4*N*C, with r 6*N*C. Memory bound.

#include "common.cuh"

template <int kVectors>
__device__ void layernorm(bf16* y, int y_stride, const bf16* x, const bf16* r, const int* image_of, int P,
                          const bf16* w, const bf16* b, int C, float eps, int G) {
    __shared__ float s_sums[2][8];
    const int n = blockIdx.x;
    size_t x_row = n, r_row = n;
    if (image_of) {
        r_row = n / P;
        x_row = size_t(image_of[r_row]) * P + n % P;
    }
    // The address of eight elements of the row, from c on.
    auto at = [&](int c) {
        if (!G) return x + x_row * C + c;
        const int half = G / 2, width = C / 4, quarter = c / width;
        const int row = n / half % half * 2 + quarter / 2, col = n % half * 2 + quarter % 2;
        return x + ((size_t(n) / (half * half) * G + row) * G + col) * width + c % width;
    };
    float8 r_v[kVectors];
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
        const int c = (i * blockDim.x + threadIdx.x) * 8;
        if (c < C) {
            r_v[i] = load8(at(c));
            if (r) {
                const float8 add = load8(r + r_row * C + c);
#pragma unroll
                for (int j = 0; j < 8; ++j) r_v[i].v[j] += add.v[j];
            }
#pragma unroll
            for (int j = 0; j < 8; ++j) sum += r_v[i].v[j];
        }
    }
    const float mean = block_sum(sum, s_sums[0]) / C;
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
        if ((i * blockDim.x + threadIdx.x) * 8 < C) {
#pragma unroll
            for (int j = 0; j < 8; ++j) squares += (r_v[i].v[j] - mean) * (r_v[i].v[j] - mean);
        }
    }
    const float rstd = rsqrtf(block_sum(squares, s_sums[1]) / C + eps);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
        const int c = (i * blockDim.x + threadIdx.x) * 8;
        if (c < C) {
            const float8 r_w = load8(w + c), r_b = load8(b + c);
            float8 r_y;
#pragma unroll
            for (int j = 0; j < 8; ++j) r_y.v[j] = (r_v[i].v[j] - mean) * rstd * r_w.v[j] + r_b.v[j];
            store8(y + size_t(n) * y_stride + c, r_y);
        }
    }
}

#define INSTANCE(kVectors)                                                                             \
    extern "C" __global__ void __launch_bounds__(256) layernorm_bf16_v##kVectors(                      \
        bf16* y, int y_stride, const bf16* x, const bf16* r, const int* image_of, int P, const bf16* w, \
        const bf16* b, int C, float eps, int G) {                                                      \
        layernorm<kVectors>(y, y_stride, x, r, image_of, P, w, b, C, eps, G);                          \
    }
INSTANCE(1)
INSTANCE(2)
INSTANCE(4)
INSTANCE(8)
