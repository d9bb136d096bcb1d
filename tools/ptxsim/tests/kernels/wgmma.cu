// y = x @ w^T for sm_90a: TMA, mbarrier pipeline, wgmma, warp specialisation.
//
//   y[m,n] = bf16(sum_k x[m,k] * w[n,k])
//
//   x_map (M, K), w_map (N, K): bf16 tensor maps of boxes of 64 rows x 64 columns, 128-byte swizzle, zeros past the edge
//   y_map (M, N): the same, for storing
//
// gridDim = (ceil(N / 64), ceil(M / 128)), kSmem bytes of dynamic shared memory. wgmma_bf16 runs in single blocks;
// wgmma_multicast_bf16 in clusters of two along M, which share the tile of w: each block fetches 32 rows of it for both,
// so that the box of its w_map has 32 rows.
//
// A block does 128 x 64: warp group 0 fetches tiles of 64 along K into a ring of kStages, the other two multiply, 64 rows
// each. `full` counts the bytes of a stage, `empty` the warp groups that have read it, of the whole cluster.

#include "ptx.cuh"

constexpr int kBlock = 384, kStep = 64, kStages = 3;
constexpr int kBoxBytes = 64 * kStep * 2;
constexpr int kStageBytes = 3 * kBoxBytes;              // two boxes of x, one of w
constexpr int kSmem = kStages * kStageBytes + 1024;     // and what it takes to begin at a multiple of 1024

#if __CUDA_ARCH__ >= 900
#include <cuda.h>

template <int kCluster>
__device__ void gemm(const CUtensorMap& y_map, const CUtensorMap& x_map, const CUtensorMap& w_map, int K) {
    extern __shared__ unsigned char s_dynamic[];
    __shared__ uint64_t s_full[kStages], s_empty[kStages];
    const uint32_t s_tiles = (smem(s_dynamic) + 1023) / 1024 * 1024;
    const int group = threadIdx.x / 128, thread = threadIdx.x % 128;
    const int m0 = blockIdx.y * 128, n0 = blockIdx.x * 64, steps = (K + kStep - 1) / kStep;
    const uint32_t rank = kCluster > 1 ? cluster_ctarank() : 0;

    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            mbarrier_init(&s_full[s], 1);
            mbarrier_init(&s_empty[s], 2 * kCluster);
        }
        fence_mbarrier_init();
    }
    if (kCluster > 1) {
        barrier_cluster_arrive();
        barrier_cluster_wait();
    } else {
        __syncthreads();
    }

    if (group == 0) {
        setmaxnreg_dec<40>();
        if (thread == 0)
            for (int step = 0; step < steps; ++step) {
                const int stage = step % kStages, round = step / kStages;
                mbarrier_wait(&s_empty[stage], (round & 1) ^ 1);
                mbarrier_arrive_expect_tx(&s_full[stage], kStageBytes);
                const uint32_t t_x = s_tiles + stage * kStageBytes, t_w = t_x + 2 * kBoxBytes;
                cp_async_bulk_tensor_load(t_x, &x_map, step * kStep, m0, &s_full[stage]);
                cp_async_bulk_tensor_load(t_x + kBoxBytes, &x_map, step * kStep, m0 + 64, &s_full[stage]);
                if (kCluster > 1)
                    cp_async_bulk_tensor_load_multicast(t_w + rank * (kBoxBytes / 2), &w_map, step * kStep, n0 + rank * 32, &s_full[stage], 3);
                else
                    cp_async_bulk_tensor_load(t_w, &w_map, step * kStep, n0, &s_full[stage]);
            }
    } else {
        setmaxnreg_inc<232>();
        float acc[32];
        for (int step = 0; step < steps; ++step) {
            const int stage = step % kStages, round = step / kStages;
            mbarrier_wait(&s_full[stage], round & 1);
            const uint32_t t_x = s_tiles + stage * kStageBytes + (group - 1) * kBoxBytes, t_w = s_tiles + stage * kStageBytes + 2 * kBoxBytes;
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < kStep / 16; ++k)
                wgmma_m64n64k16(acc, wgmma_desc_128b(t_x + k * 32), wgmma_desc_128b(t_w + k * 32), step + k > 0);
            wgmma_commit();
            wgmma_wait<0>();
            if (thread < kCluster) mbarrier_arrive_cluster(kCluster > 1 ? mapa(smem(&s_empty[stage]), thread) : smem(&s_empty[stage]));
        }
        // The tile of y goes out through the x half of stage 0, once all have read it.
        const uint32_t s_y = s_tiles + (group - 1) * kBoxBytes;
        asm volatile("bar.sync 1, 256;" ::: "memory");
        const int lane = thread % 32, warp = thread / 32;
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = warp * 16 + h * 8 + lane / 4;
                const __nv_bfloat162 v = __floats2bfloat162_rn(acc[j * 4 + h * 2], acc[j * 4 + h * 2 + 1]);
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(s_y + row * 128 + ((j ^ (row % 8)) * 16) + lane % 4 * 4),
                             "r"(reinterpret_cast<const uint32_t&>(v)) : "memory");
            }
        fence_proxy_async();  // the stores above are seen by the copy below
        asm volatile("bar.sync %0, 128;" ::"r"(1 + group) : "memory");
        if (thread == 0) {
            cp_async_bulk_tensor_store(&y_map, s_y, n0, m0 + (group - 1) * 64);
            cp_async_bulk_commit();
            cp_async_bulk_wait<0>();
        }
    }
    if (kCluster > 1) {  // no block ends while the other may still send to it
        barrier_cluster_arrive();
        barrier_cluster_wait();
    }
}

extern "C" __global__ void __launch_bounds__(kBlock)
wgmma_bf16(const __grid_constant__ CUtensorMap y, const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w, int K) {
    gemm<1>(y, x, w, K);
}
extern "C" __global__ void __cluster_dims__(1, 2, 1) __launch_bounds__(kBlock)
wgmma_multicast_bf16(const __grid_constant__ CUtensorMap y, const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w, int K) {
    gemm<2>(y, x, w, K);
}

// y[i] = x[i] + 1 through the bulk copies of flat memory: a block does 1024 words. y, x 16-byte aligned.
extern "C" __global__ void __launch_bounds__(128) bulk_increment(uint32_t* y, const uint32_t* x) {
    __shared__ alignas(16) uint32_t s_x[1024];
    __shared__ uint64_t s_full;
    if (threadIdx.x == 0) {
        mbarrier_init(&s_full, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(&s_full, sizeof s_x);
        cp_async_bulk_load(smem(s_x), x + blockIdx.x * 1024, sizeof s_x, &s_full);
    }
    __syncthreads();
    mbarrier_wait(&s_full, 0);
    for (int i = threadIdx.x; i < 1024; i += 128) s_x[i] += 1;
    fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(y + blockIdx.x * 1024), "r"(smem(s_x)), "r"(uint32_t(sizeof s_x)) : "memory");
        cp_async_bulk_commit();
        cp_async_bulk_wait<0>();
    }
}
#endif
