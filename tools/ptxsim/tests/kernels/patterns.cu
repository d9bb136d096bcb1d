// Access patterns whose sectors and wavefronts can be counted on paper. One warp unless said.

#include <cstdint>

// y[i] = x[i * stride + offset], 4 bytes a lane
extern "C" __global__ void strided_u32(uint32_t* y, const uint32_t* x, int stride, int offset) {
    y[threadIdx.x] = x[threadIdx.x * stride + offset];
}
// 8 and 16 bytes a lane
extern "C" __global__ void copy_u64(uint2* y, const uint2* x) { y[threadIdx.x] = x[threadIdx.x]; }
extern "C" __global__ void copy_u128(uint4* y, const uint4* x) { y[threadIdx.x] = x[threadIdx.x]; }
// 1 and 2 bytes a lane
extern "C" __global__ void copy_u8(uint8_t* y, const uint8_t* x) { y[threadIdx.x] = x[threadIdx.x]; }
extern "C" __global__ void copy_u16(uint16_t* y, const uint16_t* x) { y[threadIdx.x] = x[threadIdx.x]; }
// All lanes read one word.
extern "C" __global__ void broadcast_u32(uint32_t* y, const uint32_t* x) { y[threadIdx.x] = x[7]; }
// The lanes read backwards.
extern "C" __global__ void reversed_u32(uint32_t* y, const uint32_t* x) { y[threadIdx.x] = x[31 - threadIdx.x]; }
// Only every other lane reads.
extern "C" __global__ void half_u32(uint32_t* y, const uint32_t* x) {
    if (threadIdx.x % 2 == 0) y[threadIdx.x] = x[threadIdx.x];
}

extern __shared__ __align__(16) unsigned char s_bytes[];

// Fills 4096 bytes of shared memory: one warp, 32 stores of 4 bytes a lane, none in conflict.
__device__ void fill() {
    uint32_t* s = reinterpret_cast<uint32_t*>(s_bytes);
    for (int i = threadIdx.x; i < 1024; i += 32) s[i] = i;
    __syncwarp();
}

// y[i] = word i * stride % 1024 of shared memory
extern "C" __global__ void shared_strided_u32(uint32_t* y, int stride) {
    fill();
    y[threadIdx.x] = reinterpret_cast<const uint32_t*>(s_bytes)[threadIdx.x * stride % 1024];
}
extern "C" __global__ void shared_copy_u64(uint2* y) {
    fill();
    y[threadIdx.x] = reinterpret_cast<const uint2*>(s_bytes)[threadIdx.x];
}
extern "C" __global__ void shared_copy_u128(uint4* y) {
    fill();
    y[threadIdx.x] = reinterpret_cast<const uint4*>(s_bytes)[threadIdx.x];
}
extern "C" __global__ void shared_copy_u8(uint8_t* y) {
    fill();
    y[threadIdx.x] = s_bytes[threadIdx.x];
}
// The rows of four 8x8 matrices, `pitch` bytes from each other, through one ldmatrix.x4.
extern "C" __global__ void shared_ldmatrix(uint4* y, int pitch) {
    fill();
    uint4 v;
    const uint32_t addr = uint32_t(__cvta_generic_to_shared(s_bytes)) + threadIdx.x * pitch % 4096;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(addr));
    y[threadIdx.x] = v;
}
