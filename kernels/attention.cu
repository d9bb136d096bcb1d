// Softmax attention without a mask.
//
//   y = softmax(q k^T / sqrt(HD)) v, each head and each item on its own
//
//   y        (B*Tq, NH*HD)  bf16, rows y_stride elements apart
//   q        (B*Tq, NH*HD)  bf16, likewise q_stride: columns of the fused projection
//   k, v     (B*Tk, NH*HD)  bf16, likewise kv_stride
//
// Requires Tk >= 1, strides and addresses that are multiples of 8 elements, gridDim == (ceil(Tq/kRows), NH, B), kShared bytes of dynamic shared
// memory. Scores, sums and the result in f32, probabilities in bf16: see attention.cuh. Only the last block of keys is masked.
// FLOPs 4*B*NH*Tq*Tk*HD. Bytes at least 4*B*(Tq + Tk)*NH*HD; k and v are read once by each block of queries, from L2.

#include "attention.cuh"

template <int HD, int kKeys>
__device__ __forceinline__ void attention(bf16* y, int y_stride, const bf16* q, int q_stride, const bf16* k, const bf16* v,
                                          int kv_stride, int Tq, int Tk) {
    extern __shared__ __align__(256) char smem[];
    constexpr int kFragM = 2;
    using F = Flash<HD, kFragM, kKeys>;
    F f;
    f.base = shared_address(smem);
    const int first = blockIdx.x * F::kRows, head = blockIdx.y * HD, item = blockIdx.z;
    const bf16* q_at = q + size_t(item) * Tq * q_stride + head + F::column();
    const size_t keys_at = size_t(item) * Tk * kv_stride + head + F::column();
    auto fetch = [&](uint32_t to, const bf16* from, int block) {  // any block: rows past the last are the last again
        F::template copy<kKeys>(to, [&](int i) {
            return from + keys_at + size_t(min(block * kKeys + F::row() + i * F::kStep, Tk - 1)) * kv_stride;
        });
    };
    F::template copy<F::kRows>(f.base, [&](int i) { return q_at + size_t(min(first + F::row() + i * F::kStep, Tq - 1)) * q_stride; });
    fetch(f.keys(), k, 0);
    F::landed();
    f.begin();

    const int full = Tk / kKeys, blocks = (Tk + kKeys - 1) / kKeys;
    const size_t rows = size_t(F::kStep) * kv_stride;  // between the rows of a thread
    int limit[kFragM][2];
    int i = 0;
    for (; i + 1 < full; ++i) {  // block i and the next are whole
        auto whole = [&](uint32_t to, const bf16* from, int block) {
            from += keys_at + size_t(block * kKeys + F::row()) * kv_stride;
            F::template copy<kKeys>(to, [&](int n) { return from + n * rows; });
        };
        F::landed();
        whole(f.values(), v, i);
        f.template step<false>(kKeys, limit, [&] {
            F::landed();
            whole(f.keys(), k, i + 1);
        });
    }
    for (; i < blocks; ++i) {
        F::landed();
        fetch(f.values(), v, i);
        const int left = Tk - i * kKeys;
#pragma unroll
        for (int m = 0; m < kFragM; ++m) limit[m][0] = limit[m][1] = left;
        f.template step<true>(left, limit, [&] {
            F::landed();
            if (i + 1 < blocks) fetch(f.keys(), k, i + 1);
        });
    }
    bf16* y_head = y + size_t(item) * Tq * y_stride + head;
    f.finish(smem, [&](int r) -> bf16* { return first + r < Tq ? y_head + size_t(first + r) * y_stride : nullptr; });
}

#define INSTANCE(HD, kKeys)                                                                                         \
    extern "C" __global__ void __launch_bounds__(kThreads) attention_bf16_hd##HD(                                   \
        bf16* y, int y_stride, const bf16* q, int q_stride, const bf16* k, const bf16* v, int kv_stride,            \
        int Tq, int Tk) {                                                                                           \
        attention<HD, kKeys>(y, y_stride, q, q_stride, k, v, kv_stride, Tq, Tk);                                   \
    }
INSTANCE(64, 64)
INSTANCE(128, 32)
