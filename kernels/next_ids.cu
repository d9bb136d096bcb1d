// The ids of a step's rows: the host's, or tokens that an earlier step chose and the host has not read yet.
//
//   ids[t] = tokens[-1 - ids[t]] where ids[t] < 0
//
//   ids     (T)  i32, in place; negative ones are above -1 - R
//   tokens  (R)  i32
//
// Requires gridDim.x == ceil(T / kBlock). Bytes: 8*T.

#include "common.cuh"

constexpr int kBlock = 32;  // == ops::next_ids::BLOCK

extern "C" __global__ void __launch_bounds__(kBlock)
next_ids(int* ids, const int* tokens, int T) {
    const int t = blockIdx.x * kBlock + threadIdx.x;
    if (t < T && ids[t] < 0) ids[t] = tokens[-1 - ids[t]];
}
