// Pictures to rows of patches: Pillow's BICUBIC from any size to S x S, normalised, in the order in which the patch matmul reads.
//
//   lines[h,i,c]  = clip((2^21 + sum_j across[j,i] * source[h, first(i)+j, c]) >> 22)
//   pixel[o,i,c]  = clip((2^21 + sum_j down[j,o] * lines[first(o)+j, i, c]) >> 22), o and i of S
//   y[b*G*G + r*G + s, (c*P + u)*P + v] = (pixel[P*r+u, P*s+v, c]/255 - mean[c]) / std[c], and zeros behind a row's 3*P*P
//
//   y         (B*G*G, K)     bf16, S = G*P
//   lines     bytes, room for (H, S, 3) of each picture
//   source    bytes, (H, W, 3) of each picture, each from a multiple of 16 on
//   tables    i32: for a resize of n samples to S the first sample of each result (S), then weights (taps, S), zeros where there is none
//   pictures  (B, 8)  i32: source's first byte / 16, H, W, first line of `lines`, across: first element of its table, taps; down: likewise
//
// Bits are those of src/image/resize.rs, which makes the tables: integers from there to the pixel, then f32 with every step rounded.
// preprocess_across: gridDim == (ceil(most H/kLines), ceil(S/kColumns), B). A block makes kLines x kColumns results; a line's pixels come
// kChunk at a time through shared memory, read 16 bytes at a time, and results go through it too, stored 4 bytes at a time. preprocess_down: gridDim == (ceil(G/kPatches), G, B), dynamic
// shared memory for kPatches rows of y; a thread makes four neighbouring bytes of some lines of its row of patches. Requires S % 4 == 0,
// K % 8 == 0, a source that can be read up to a multiple of 16.
// Bytes: B*(3*H*W + 2*3*H*S + 2*G*G*K), the lines from L2 where they fit. Bytes are gathered from shared memory at the resize's step, and scattered
// to the patches' planes: there banks do conflict (tests/kernel_traffic.rs).

#include "common.cuh"

constexpr int kBlock = 256;                            // == ops::preprocess::BLOCK
constexpr int kLines = 16, kColumns = 64;              // == ops::preprocess::{LINES, COLUMNS}
constexpr int kPatches = 8;                            // == ops::preprocess::PATCHES
constexpr int kChunk = 256, kChunkBytes = kChunk * 3 + 16;  // pixels of a line at a time; bytes, wherever they begin in 16
constexpr int kFields = 8;
constexpr int kBits = 22;

__device__ __forceinline__ int clip(int sum) { return min(max(sum >> kBits, 0), 255); }

extern "C" __global__ void __launch_bounds__(kBlock)
preprocess_across(uint8_t* lines, const uint8_t* source, const int* tables, const int* pictures, int S) {
    constexpr int kRows = kLines * kColumns / kBlock;  // of a thread
    __shared__ __align__(16) uint8_t s_x[kLines][kChunkBytes], s_y[kLines][kColumns * 3];
    const int* picture = pictures + blockIdx.z * kFields;
    const int H = picture[1], W = picture[2], line0 = blockIdx.x * kLines;
    if (line0 >= H) return;
    const uint8_t* x = source + size_t(picture[0]) * 16;
    const int *first = tables + picture[4], *weights = first + S, taps = picture[5];
    const int column0 = blockIdx.y * kColumns, last = min(column0 + kColumns, S) - 1;
    const int column = min(column0 + int(threadIdx.x) % kColumns, last), row0 = threadIdx.x / kColumns * kRows;
    const int begin = first[column], end = min(first[last] + taps, W);
    int acc[kRows][3];
#pragma unroll
    for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = acc[r][2] = 1 << (kBits - 1);
    for (int from = first[column0]; from < end; from += kChunk) {
        __syncthreads();  // the chunk before has been used by all
        for (int e = threadIdx.x; e < kLines * (kChunkBytes / 16); e += kBlock) {
            const int l = e / (kChunkBytes / 16), piece = e % (kChunkBytes / 16);
            if (piece * 16 >= (end - from) * 3 + 15) continue;  // behind what is read, wherever it begins in 16 bytes
            const size_t at = (size_t(min(line0 + l, H - 1)) * W + from) * 3 / 16 * 16 + piece * 16;
            if (at < size_t(H) * W * 3) store16(&s_x[l][piece * 16], load16(x + at));
        }
        __syncthreads();
        const int j1 = min(min(taps, from + kChunk - begin), W - begin);
        for (int j = max(from - begin, 0); j < j1; ++j) {
            const int w = weights[j * S + column];
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                const int shift = (size_t(min(line0 + row0 + r, H - 1)) * W + from) * 3 % 16;
                const uint8_t* p = &s_x[row0 + r][shift + (begin + j - from) * 3];
#pragma unroll
                for (int c = 0; c < 3; ++c) acc[r][c] += w * p[c];
            }
        }
    }
    if (column0 + int(threadIdx.x) % kColumns <= last) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int c = 0; c < 3; ++c) s_y[row0 + r][(column - column0) * 3 + c] = clip(acc[r][c]);
        }
    }
    __syncthreads();
    const int words = (last + 1 - column0) * 3 / 4;  // whole ones, as S % 4 == 0
    for (int e = threadIdx.x; e < kLines * words; e += kBlock) {
        const int l = e / words, w = e % words;
        if (line0 + l >= H) break;
        uint8_t* to = lines + (size_t(picture[3] + line0 + l) * S + column0) * 3;
        reinterpret_cast<uint32_t*>(to)[w] = reinterpret_cast<const uint32_t*>(s_y[l])[w];
    }
}

extern "C" __global__ void __launch_bounds__(kBlock)
preprocess_down_bf16(bf16* y, const uint8_t* lines, const int* tables, const int* pictures, int G, int P, int K) {
    extern __shared__ __align__(16) bf16 s_y[];  // (kPatches, K)
    const int* picture = pictures + blockIdx.z * kFields;
    const int H = picture[1], S = G * P, s0 = blockIdx.x * kPatches, patches = min(kPatches, G - s0);
    const int *first = tables + picture[6], *weights = first + S, taps = picture[7];
    const uint8_t* x = lines + size_t(picture[3]) * S * 3 + s0 * P * 3;
    const int quads = patches * P * 3 / 4;  // of a line; P * 3 * patches % 4 == 0
    for (int e = threadIdx.x; e < P * quads; e += kBlock) {
        const int u = e / quads, quad = e % quads, o = blockIdx.y * P + u;
        int acc[4] = {1 << (kBits - 1), 1 << (kBits - 1), 1 << (kBits - 1), 1 << (kBits - 1)};
        const int begin = first[o], count = min(taps, H - begin);
        for (int j = 0; j < count; ++j) {
            const uchar4 p = *reinterpret_cast<const uchar4*>(x + size_t(begin + j) * S * 3 + quad * 4);
            const int w = weights[j * S + o];
            acc[0] += w * p.x, acc[1] += w * p.y, acc[2] += w * p.z, acc[3] += w * p.w;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int at = quad * 4 + i, c = at % 3, column = at / 3;
            const float mean = c == 0 ? 0.485f : c == 1 ? 0.456f : 0.406f, std = c == 0 ? 0.229f : c == 1 ? 0.224f : 0.225f;
            const float v = __fdiv_rn(__fsub_rn(__fdiv_rn(float(clip(acc[i])), 255.f), mean), std);
            s_y[column / P * K + (c * P + u) * P + column % P] = __float2bfloat16_rn(v);
        }
    }
    const int used = 3 * P * P;
    for (int e = threadIdx.x; e < patches * (K - used); e += kBlock) {
        s_y[e / (K - used) * K + used + e % (K - used)] = __float2bfloat16_rn(0.f);
    }
    __syncthreads();
    const size_t row = (size_t(blockIdx.z) * G + blockIdx.y) * G + s0;
    for (int e = threadIdx.x * 8; e < patches * K; e += kBlock * 8) store16(y + row * K + e, load16(s_y + e));
}
