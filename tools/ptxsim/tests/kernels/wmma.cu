// y = x @ w^T through nvcuda::wmma, a warp a tile.
//
//   y[m,n] = sum_k x[m,k] * w[n,k]
//
//   wmma_f16:  x, w f16, y f32, tiles of 16 x 16 x 16      wmma_bf16: x, w bf16, y f32, tiles of 32 x 8 x 16
//   wmma_s8:   x, w s8, y s32, tiles of 8 x 32 x 16        wmma_tf32: x, w f32 rounded to tf32, y f32, 16 x 16 x 8
//
// Requires M, N and K to be multiples of the tile, gridDim = (N / tile n, M / tile m), blocks of one warp.

#include <mma.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using namespace nvcuda::wmma;

template <int kM, int kN, int kK, class Element, class In, class Out>
__device__ void gemm(Out* y, const In* x, const In* w, int N, int K) {
    const int m0 = blockIdx.y * kM, n0 = blockIdx.x * kN;
    fragment<accumulator, kM, kN, kK, Out> acc;
    fill_fragment(acc, Out(0));
    for (int k = 0; k < K; k += kK) {
        fragment<matrix_a, kM, kN, kK, Element, row_major> a;
        fragment<matrix_b, kM, kN, kK, Element, col_major> b;
        load_matrix_sync(a, x + m0 * K + k, K);
        load_matrix_sync(b, w + n0 * K + k, K);
        if constexpr (sizeof(In) == 4) {
            for (auto& v : a.x) v = __float_to_tf32(v);
            for (auto& v : b.x) v = __float_to_tf32(v);
        }
        mma_sync(acc, a, b, acc);
    }
    store_matrix_sync(y + m0 * N + n0, acc, N, mem_row_major);
}

extern "C" __global__ void wmma_f16(float* y, const __half* x, const __half* w, int N, int K) { gemm<16, 16, 16, __half>(y, x, w, N, K); }
extern "C" __global__ void wmma_bf16(float* y, const __nv_bfloat16* x, const __nv_bfloat16* w, int N, int K) {
    gemm<32, 8, 16, __nv_bfloat16>(y, x, w, N, K);
}
extern "C" __global__ void wmma_s8(int* y, const signed char* x, const signed char* w, int N, int K) { gemm<8, 32, 16, signed char>(y, x, w, N, K); }
extern "C" __global__ void wmma_tf32(float* y, const float* x, const float* w, int N, int K) { gemm<16, 16, 8, precision::tf32>(y, x, w, N, K); }
