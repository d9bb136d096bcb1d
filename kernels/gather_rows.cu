// Rows picked by number.
//
//   y[r] = x[rows[r]]
//
//   y     (R, C)  bf16
//   x     (N, C)  bf16
//   rows  (R)     i32, below N
//
// Requires C % 8 == 0, gridDim == (R, ceil(C/8 / kBlock)). A copy. Bytes: 4*R*C.

#include "common.cuh"

constexpr int kBlock = 256;  // == ops::ROW_BLOCK

extern "C" __global__ void __launch_bounds__(kBlock)
gather_rows_bf16(bf16* y, const bf16* x, const int* rows, int C) {
    const int c = (blockIdx.y * kBlock + threadIdx.x) * 8;
    if (c < C) store16(y + size_t(blockIdx.x) * C + c, load16(x + size_t(rows[blockIdx.x]) * C + c));
}
