// Small kernels, one for a feature: dp4a, device-function calls, switch, local arrays, printf, assert, divergence.

#include <cassert>
#include <cstdint>
#include <cstdio>

// y[r] = sum_c x[r,c] * w[c];  y (R) s32, x (R, C) s8, w (C) s8; C % 4 == 0, 4-byte aligned, one thread a row
extern "C" __global__ void dot_s8(int* y, const int* x, const int* w, int R, int C) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= R) return;
    int sum = 0;
    for (int c = 0; c < C / 4; ++c) sum = __dp4a(x[r * (C / 4) + c], w[c], sum);
    y[r] = sum;
}

// A function that calls itself, so that it stays one.
__device__ __noinline__ uint32_t fibonacci(uint32_t n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

// y[i] = the i-th Fibonacci number, each lane to its own depth; y (n) u32, one block
extern "C" __global__ void fibonacci_u32(uint32_t* y) { y[threadIdx.x] = fibonacci(threadIdx.x % 12); }

struct Step { int op; float value; };

// y[i] = x[i] after the program's steps; the program of thread i is that of i % 4, so that the lanes of a warp part.
__device__ __noinline__ float apply(float v, Step s) {
    switch (s.op) {
        case 0: return v + s.value;
        case 1: return v * s.value;
        case 2: return v - s.value * 2.f;
        case 3: return fmaxf(v, s.value);
        case 4: return sqrtf(fabsf(v)) + s.value;
        case 5: return s.value / (v + 7.f);
        case 6: return v * v - s.value;
        case 7: return fminf(v, s.value);
        case 8: return floorf(v) + s.value;
        case 9: return copysignf(v, s.value);
        default: return v;
    }
}
extern "C" __global__ void interpret(float* y, const float* x, const Step* program, int steps, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    for (int s = 0; s < steps; ++s) v = apply(v, program[(i % 4) * steps + s]);
    y[i] = v;
}

// y[i] = the k-th smallest of x[i, 0..16], k = i % 16: an insertion sort in an array that local memory holds
extern "C" __global__ void select_f32(float* y, const float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v[16];
    for (int j = 0; j < 16; ++j) {
        const float e = x[i * 16 + j];
        int at = j;
        for (; at > 0 && v[at - 1] > e; --at) v[at] = v[at - 1];
        v[at] = e;
    }
    y[i] = v[i % 16];
}

// y[i] = the number of steps that Collatz' rule takes from i + 1 to 1; lanes leave the loop at different times
extern "C" __global__ void collatz(uint32_t* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint32_t v = i + 1, steps = 0;
    for (; v != 1; ++steps) {
        if (v % 2) v = 3 * v + 1;
        else v /= 2;
    }
    y[i] = steps;
}

__constant__ float c_table[4] = {1.f, 10.f, 100.f, 1000.f};
__device__ int d_calls;

// y[i] = x[i] * c_table[i % 4]; counts its threads in d_calls
extern "C" __global__ void scale_by_table(float* y, const float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    y[i] = x[i] * c_table[i % 4];
    atomicAdd(&d_calls, 1);
}

// Prints a line of every fourth thread.
extern "C" __global__ void print(int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && i % 4 == 0) printf("thread %d of %s: %.3f %5u %c %llx\n", i, "print", i * 0.5, 7u * i, 'a' + i, 0x1234567890ull + i);
}

// Asserts that x holds no negative number.
extern "C" __global__ void assert_positive(const int* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) assert(x[i] >= 0);
}
