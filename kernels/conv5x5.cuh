// The 5x5 convolution of one channel that conv5x5.cu and mask_head.cu share: lines of a map in shared memory, and sums that march down them.
#pragma once

#include "common.cuh"
#include "mma.cuh"  // cp_async_16, shared_address

// s_x = lines `row` to `row + lines` of a map `(S, S)`, zero outside it; 16 bytes at a time, so S % 4 == 0 and row even; s_x has room for
// an even number of lines.
// s_w = w (5, 5), then b. All kThreads threads of the block, which are synchronised at its end.
template <int kThreads>
__device__ __forceinline__ void stage(uint32_t* s_x, float (&s_w)[26], const bf16* map, const bf16* w, const bf16* b, int row, int lines, int S) {
    for (int e = threadIdx.x; e < (lines * S + 7) / 8; e += kThreads) {
        const int at = row * S + e * 8;
        const bool inside = at >= 0 && at < S * S;
        cp_async_16(shared_address(s_x + e * 4), map + (inside ? at : 0), inside ? 16 : 0);
    }
    cp_async_commit_group();
    if (threadIdx.x < 26) s_w[threadIdx.x] = __bfloat162float(threadIdx.x < 25 ? w[threadIdx.x] : *b);
    cp_async_wait_group<0>();
    __syncthreads();
}

// emit(r, s/2, {y[r,s], y[r,s+1]}) for r < rows and each even s < S, y[r,s] = b + sum_{u,v} w[u,v] * x[r+u,s+v-2], zero beside the lines; sums in the
// order u, v. A thread takes two columns down some rows: it reads each line once and holds the sums of the five rows that the line is in.
template <int kThreads, typename Emit>
__device__ __forceinline__ void convolve(const uint32_t* s_x, const float (&s_w)[26], int rows, int S, Emit emit) {
    float w[5][5];
#pragma unroll
    for (int i = 0; i < 25; ++i) w[i / 5][i % 5] = s_w[i];
    const int pairs = S / 2, most = max(kThreads / pairs, 1), run = (rows + most - 1) / most;
    for (int e = threadIdx.x; e / pairs * run < rows; e += kThreads) {
        const int pair = e % pairs, first = e / pairs * run, last = min(first + run, rows) + 4;  // lines
        const uint32_t* x = s_x + first * pairs + pair;
        float acc[5][2] = {};
        for (int line = first; line < last; line += 5) {
#pragma unroll
            for (int i = 0; i < 5; ++i, x += pairs) {  // row r is in acc[(r - first) % 5]
                if (line + i >= last) break;
                const float2 a = widen2(pair > 0 ? x[-1] : 0), b = widen2(x[0]), c = widen2(pair + 1 < pairs ? x[1] : 0);
                const float in[6] = {a.x, a.y, b.x, b.y, c.x, c.y};
                acc[i][0] = acc[i][1] = s_w[25];
#pragma unroll
                for (int u = 0; u < 5; ++u) {
#pragma unroll
                    for (int v = 0; v < 5; ++v) {
#pragma unroll
                        for (int k = 0; k < 2; ++k) acc[(i - u + 5) % 5][k] = fmaf(w[u][v], in[v + k], acc[(i - u + 5) % 5][k]);
                    }
                }
                const int r = line + i - 4;
                if (r >= first) emit(r, pair, make_float2(acc[(i + 1) % 5][0], acc[(i + 1) % 5][1]));
            }
        }
    }
}
