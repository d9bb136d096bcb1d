// Softmax attention without a mask.
//
//   y = softmax(q k^T / sqrt(HD)) v, each head and each item on its own
//
//   y        (B*Tq, NH*HD)  bf16, rows y_stride elements apart
//   q        (B*Tq, NH*HD)  bf16, likewise q_stride: columns of the fused projection
//   k, v     (B*Tk, NH*HD)  bf16, likewise k_stride, v_stride
//
// Requires Tk >= 1, strides and addresses that are multiples of 8 elements, gridDim == (ceil(Tq/kRows), NH, B), kShared bytes of dynamic shared
// memory. Scores, sums and the result in f32, probabilities in bf16: see attention.cuh. Only the last block of keys is masked.
// FLOPs 4*B*NH*Tq*Tk*HD. Bytes at least 4*B*(Tq + Tk)*NH*HD; k and v are read once by each block of queries, from L2.

#include "attention.cuh"

template <int HD, int kFragM>
__device__ __forceinline__ void attention(bf16* y, int y_stride, const bf16* q, int q_stride, const bf16* k, int k_stride,
                                          const bf16* v, int v_stride, int Tq, int Tk) {
    extern __shared__ __align__(128) char smem[];
    using F = Flash<HD, kFragM>;
    F f;
    f.base = shared_address(smem);
    const int first = blockIdx.x * F::kRows, head = blockIdx.y * HD, item = blockIdx.z;
    const bf16* q_head = q + size_t(item) * Tq * q_stride + head;
    const bf16* k_head = k + size_t(item) * Tk * k_stride + head;
    const bf16* v_head = v + size_t(item) * Tk * v_stride + head;
    auto fetch = [&](int block, int slot) {
        F::template copy<kKeys>(f.keys(slot), [&](int r) { return k_head + size_t(min(block * kKeys + r, Tk - 1)) * k_stride; });
        F::template copy<kKeys>(f.values(slot), [&](int r) { return v_head + size_t(min(block * kKeys + r, Tk - 1)) * v_stride; });
        cp_async_commit_group();
    };
    F::template copy<F::kRows>(f.base, [&](int r) { return q_head + size_t(min(first + r, Tq - 1)) * q_stride; });
    cp_async_commit_group();
    fetch(0, 0);
    cp_async_wait_group<1>();
    __syncthreads();
    f.begin();

    const int full = Tk / kKeys, rest = Tk % kKeys, blocks = full + (rest > 0);
    int limit[kFragM][2];
#pragma unroll
    for (int m = 0; m < kFragM; ++m) limit[m][0] = limit[m][1] = rest;
    for (int i = 0; i < full; ++i) {
        cp_async_wait_group<0>();
        __syncthreads();  // block i is there, and the other slot has been used by all
        if (i + 1 < blocks) fetch(i + 1, (i + 1) % 2);
        f.template step<false>(i % 2, limit);
    }
    if (rest) {
        cp_async_wait_group<0>();
        __syncthreads();
        f.template step<true>(full % 2, limit);
    }
    bf16* y_head = y + size_t(item) * Tq * y_stride + head;
    f.finish(smem, [&](int r) -> bf16* { return first + r < Tq ? y_head + size_t(first + r) * y_stride : nullptr; });
}

#define INSTANCE(HD, kFragM)                                                                                        \
    extern "C" __global__ void __launch_bounds__(kThreads) attention_bf16_hd##HD(                                   \
        bf16* y, int y_stride, const bf16* q, int q_stride, const bf16* k, int k_stride, const bf16* v, int v_stride, \
        int Tq, int Tk) {                                                                                           \
        attention<HD, kFragM>(y, y_stride, q, q_stride, k, k_stride, v, v_stride, Tq, Tk);                          \
    }
INSTANCE(64, 2)
INSTANCE(128, 1)
