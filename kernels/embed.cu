// Token rows and image rows to their places.
//
//   y[t] = table[ids[t]], or images[-1 - ids[t]] where ids[t] < 0 (zeros if images is null)
//
//   y       (T, C)  bf16
//   ids     (T)     i32, below V
//   table   (V, C)  bf16
//   images  (R, C)  bf16 or null
//
// Requires C % 8 == 0, gridDim == (T, ceil(C/8 / kBlock)). A copy. Bytes: 4*T*C.

#include "common.cuh"

constexpr int kBlock = 256;  // == ops::ROW_BLOCK

extern "C" __global__ void __launch_bounds__(kBlock)
embed_bf16(bf16* y, const int* ids, const bf16* table, const bf16* images, int C) {
    const int c = (blockIdx.y * kBlock + threadIdx.x) * 8;
    if (c >= C) return;
    const int id = ids[blockIdx.x];
    uint4 v = make_uint4(0, 0, 0, 0);
    if (id >= 0) {
        v = load16(table + size_t(id) * C + c);
    } else if (images) {
        v = load16(images + size_t(-1 - id) * C + c);
    }
    store16(y + size_t(blockIdx.x) * C + c, v);
}
