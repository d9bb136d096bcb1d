// C (16,16) = A (16,16) @ B (16,16) + C with nvcuda::wmma, for the types that sm_80 has. A row-major, B column-major.
//
// nvcc -ptx -arch=compute_80 wmma.cu; tests/hopper.rs reads the PTX beside this file.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>
using namespace nvcuda;

template <class T, int K, class Element, class C>
__device__ void multiply(const Element* a, const Element* b, C* c) {
    __shared__ Element s[16 * K];
    for (int i = threadIdx.x; i < 16 * K; i += 32) s[i] = a[i];
    __syncwarp();
    wmma::fragment<wmma::matrix_a, 16, 16, K, T, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, 16, 16, K, T, wmma::col_major> fb;
    wmma::fragment<wmma::accumulator, 16, 16, K, C> fc;
    wmma::load_matrix_sync(fa, s, K);
    wmma::load_matrix_sync(fb, b, K);
    wmma::load_matrix_sync(fc, c, 16, wmma::mem_row_major);
    wmma::mma_sync(fc, fa, fb, fc);
    wmma::store_matrix_sync(c, fc, 16, wmma::mem_row_major);
}

extern "C" __global__ void wmma_f16(const half* a, const half* b, float* c) { multiply<half, 16>(a, b, c); }
extern "C" __global__ void wmma_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c) { multiply<__nv_bfloat16, 16>(a, b, c); }
extern "C" __global__ void wmma_tf32(const float* a, const float* b, float* c) { multiply<wmma::precision::tf32, 8>(a, b, c); }
extern "C" __global__ void wmma_s8(const signed char* a, const signed char* b, int* c) { multiply<signed char, 16>(a, b, c); }

extern "C" __global__ void wmma_f64(const double* a, const double* b, double* c) {
    wmma::fragment<wmma::matrix_a, 8, 8, 4, double, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, 8, 8, 4, double, wmma::col_major> fb;
    wmma::fragment<wmma::accumulator, 8, 8, 4, double> fc;
    wmma::load_matrix_sync(fa, a, 4);
    wmma::load_matrix_sync(fb, b, 4);
    wmma::load_matrix_sync(fc, c, 8, wmma::mem_row_major);
    wmma::mma_sync(fc, fa, fb, fc);
    wmma::store_matrix_sync(c, fc, 8, wmma::mem_row_major);
}
