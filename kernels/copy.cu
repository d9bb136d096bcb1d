// Rows into the columns of a wider matrix; leading rows of each item left out.
//
//   y[b*(rows - skip) + n, :] = x[b*rows + skip + n, :]
//
//   y  (B*(rows - skip), C)  bf16, rows `y_stride` elements apart
//   x  (B*rows, C)           bf16
//
// Requires C % 8 == 0, y_stride % 8 == 0, gridDim == (B*(rows - skip), ceil(C/8 / kBlock)). Bytes: 4*N*C.

#include "common.cuh"

constexpr int kBlock = 256;  // == ops::ROW_BLOCK

extern "C" __global__ void __launch_bounds__(kBlock)
copy_bf16(bf16* y, int y_stride, const bf16* x, int C, int rows, int skip) {
    const int c = (blockIdx.y * kBlock + threadIdx.x) * 8;
    if (c >= C) return;
    const int kept = rows - skip, n = blockIdx.x;
    const size_t from = size_t(n / kept) * rows + skip + n % kept;
    store16(y + size_t(n) * y_stride + c, load16(x + from * C + c));
}
