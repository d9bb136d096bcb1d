// Heat in a ring, in one cooperative launch: a block keeps nothing between steps but what all can see.
//
//   `steps` times: x[i] <- (x[i-1] + 2 x[i] + x[i+1]) / 4, indices modulo n
//
//   x, spare (n) f32, n == gridDim.x * kBlock; the result is in x when `steps` is even, else in spare

#include <cooperative_groups.h>

constexpr int kBlock = 64;

extern "C" __global__ void __launch_bounds__(kBlock) heat_f32(float* x, float* spare, int n, int steps) {
    const int i = blockIdx.x * kBlock + threadIdx.x;
    for (int s = 0; s < steps; ++s) {
        spare[i] = (x[(i + n - 1) % n] + 2.f * x[i] + x[(i + 1) % n]) * 0.25f;
        cooperative_groups::this_grid().sync();
        float* t = x;
        x = spare;
        spare = t;
    }
}
