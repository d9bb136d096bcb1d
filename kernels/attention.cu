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
    extern __shared__ __align__(256) char smem[];
    using F = Flash<HD, kFragM>;
    F f;
    f.base = shared_address(smem);
    const int first = blockIdx.x * F::kRows, head = blockIdx.y * HD, item = blockIdx.z;
    const bf16* q_at = q + size_t(item) * Tq * q_stride + head + F::column();
    const bf16* k_at = k + size_t(item) * Tk * k_stride + head + F::column();
    const bf16* v_at = v + size_t(item) * Tk * v_stride + head + F::column();
    auto fetch = [&](int block) {  // any block: rows past the last are the last again
        auto key = [&](int i) { return size_t(min(block * kKeys + F::row() + i * F::kStep, Tk - 1)); };
        F::template copy<kKeys>(f.keys(block % 2), [&](int i) { return k_at + key(i) * k_stride; });
        F::template copy<kKeys>(f.values(block % 2), [&](int i) { return v_at + key(i) * v_stride; });
        cp_async_commit_group();
    };
    F::template copy<F::kRows>(f.base, [&](int i) { return q_at + size_t(min(first + F::row() + i * F::kStep, Tq - 1)) * q_stride; });
    cp_async_commit_group();
    fetch(0);
    cp_async_wait_group<1>();
    __syncthreads();
    f.begin();

    const int full = Tk / kKeys, blocks = (Tk + kKeys - 1) / kKeys;
    const bf16 *k_next = k_at + size_t(kKeys + F::row()) * k_stride, *v_next = v_at + size_t(kKeys + F::row()) * v_stride;
    int k_rows[kKeys / F::kStep], v_rows[kKeys / F::kStep];
#pragma unroll
    for (int n = 0; n < kKeys / F::kStep; ++n) k_rows[n] = n * F::kStep * k_stride, v_rows[n] = n * F::kStep * v_stride;
    int limit[kFragM][2];
    int i = 0;
    for (; i + 1 < full; ++i) {  // block i and the next are whole
        cp_async_wait_group<0>();
        __syncthreads();  // block i is there, and the other slot has been used by all
        F::template copy<kKeys>(f.keys(1 - i % 2), [&](int n) { return element(k_next, k_rows[n]); });
        F::template copy<kKeys>(f.values(1 - i % 2), [&](int n) { return element(v_next, v_rows[n]); });
        cp_async_commit_group();
        k_next += size_t(kKeys) * k_stride, v_next += size_t(kKeys) * v_stride;
        f.template step<false>(i % 2, limit);
    }
    for (; i < blocks; ++i) {
        cp_async_wait_group<0>();
        __syncthreads();
        if (i + 1 < blocks) fetch(i + 1);
#pragma unroll
        for (int m = 0; m < kFragM; ++m) limit[m][0] = limit[m][1] = Tk - i * kKeys;
        f.template step<true>(i % 2, limit);
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
