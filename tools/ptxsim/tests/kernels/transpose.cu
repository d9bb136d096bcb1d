// Transposition: y[c,r] = x[r,c].
//
//   y (C, R), x (R, C)  f32; gridDim = (ceil(C / 32), ceil(R / 32)), blocks of (32, 8)
//
// Four ways, which differ in what they cost: `plain` writes 32 rows at once, a sector for each 4 bytes; the others go
// through a tile in shared memory, read in columns. `conflicted` has rows of 32 words, and all of a column in one bank;
// `padded` has rows of 33; `swizzled` keeps 32 and puts column c of row r at c ^ r.

constexpr int kTile = 32, kRows = 8;

extern "C" __global__ void __launch_bounds__(kTile * kRows) transpose_plain(float* y, const float* x, int R, int C) {
    const int c = blockIdx.x * kTile + threadIdx.x;
    for (int j = threadIdx.y; j < kTile; j += kRows) {
        const int r = blockIdx.y * kTile + j;
        if (r < R && c < C) y[c * R + r] = x[r * C + c];
    }
}

template <int kPitch, bool kSwizzle> __device__ void transpose(float* y, const float* x, int R, int C) {
    __shared__ float s_tile[kTile * kPitch];
    const auto at = [](int r, int c) { return r * kPitch + (kSwizzle ? c ^ r : c); };
    const int r0 = blockIdx.y * kTile, c0 = blockIdx.x * kTile;
    for (int j = threadIdx.y; j < kTile; j += kRows) {
        const int r = r0 + j, c = c0 + threadIdx.x;
        if (r < R && c < C) s_tile[at(j, threadIdx.x)] = x[r * C + c];
    }
    __syncthreads();
    for (int j = threadIdx.y; j < kTile; j += kRows) {
        const int c = c0 + j, r = r0 + threadIdx.x;
        if (r < R && c < C) y[c * R + r] = s_tile[at(threadIdx.x, j)];
    }
}

extern "C" __global__ void __launch_bounds__(kTile * kRows) transpose_conflicted(float* y, const float* x, int R, int C) {
    transpose<32, false>(y, x, R, C);
}
extern "C" __global__ void __launch_bounds__(kTile * kRows) transpose_padded(float* y, const float* x, int R, int C) {
    transpose<33, false>(y, x, R, C);
}
extern "C" __global__ void __launch_bounds__(kTile * kRows) transpose_swizzled(float* y, const float* x, int R, int C) {
    transpose<32, true>(y, x, R, C);
}
