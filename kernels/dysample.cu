// DySample: a G*G map sampled bilinearly at 2G*2G points that move, border clamped.
//
//   y[2r+i, 2s+j] of group g = x at (s + offset_x, r + offset_y), offset columns ordered (x|y), group, i, j
//
//   y       (B*2G*2G, D)         bf16, rows `y_stride` elements apart: its third of the concatenated buffer
//   x       (B*G*G, D)           bf16
//   offset  (B*G*G, 8*groups)    f32, in pixels of x
//
// Requires (D/groups) % 8 == 0, y_stride % 8 == 0, gridDim == (B*2G*2G, ceil(D/8 / kBlock)). Coordinates and weights in f32, rounded as the
// reference rounds them; where an offset is NaN, so is y. A thread makes eight channels. Bytes: 2*B*4*G*G*D written; x, four times as small, comes from L2.

#include "common.cuh"

constexpr int kBlock = 128;  // == ops::dysample::BLOCK

extern "C" __global__ void __launch_bounds__(kBlock)
dysample_bf16(bf16* y, int y_stride, const bf16* x, const float* offset, int G, int D, int groups) {
    const int d = (blockIdx.y * kBlock + threadIdx.x) * 8;
    if (d >= D) return;
    const int n = blockIdx.x, side = 2 * G;
    const int b = n / (side * side), row = n / side % side, col = n % side;
    const int r = row / 2, s = col / 2, channel = d / (D / groups) * 4 + row % 2 * 2 + col % 2;
    const float* moves = offset + ((size_t(b) * G + r) * G + s) * 8 * groups;
    const float last = G - 1;
    const float px = min_nan(max_nan(s + moves[channel], 0.f), last);
    const float py = min_nan(max_nan(r + moves[4 * groups + channel], 0.f), last);
    const float x0 = floorf(px), y0 = floorf(py), fx = px - x0, fy = py - y0;
    const bf16* map = x + size_t(b) * G * G * D + d;
    auto corner = [&](float row, float col) {
        return load8(map + (size_t(fminf(row, last)) * G + int(fminf(col, last))) * D);
    };
    const float8 c00 = corner(y0, x0), c01 = corner(y0, x0 + 1.f), c10 = corner(y0 + 1.f, x0),
                 c11 = corner(y0 + 1.f, x0 + 1.f);
    const float w00 = (1.f - fx) * (1.f - fy), w01 = fx * (1.f - fy), w10 = (1.f - fx) * fy, w11 = fx * fy;
    float8 v;
#pragma unroll
    for (int k = 0; k < 8; ++k) v.v[k] = c00.v[k] * w00 + c01.v[k] * w01 + c10.v[k] * w10 + c11.v[k] * w11;
    store8(y + size_t(n) * y_stride + d, v);
}
