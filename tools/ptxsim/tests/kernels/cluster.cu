// The histogram of histogram.cu over a cluster: each of the cluster's blocks keeps a part of the bins in its shared
// memory, and all count there. For sm_90a.
//
//   count[b] += |{ i : x[i] == b }|,   b < 1024
//
//   count (1024) u32, x (n) u16 below 1024; clusters of kCluster blocks of kBlock threads, a whole number of clusters

#include "ptx.cuh"

constexpr int kBlock = 128, kCluster = 4, kBins = 1024, kOwn = kBins / kCluster;

#if __CUDA_ARCH__ >= 900
__device__ inline void red_shared_cluster_add(uint32_t addr, uint32_t v) {
    asm volatile("red.relaxed.cluster.shared::cluster.add.u32 [%0], %1;" ::"r"(addr), "r"(v) : "memory");
}

extern "C" __global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kBlock)
histogram_cluster(uint32_t* count, const uint16_t* x, int n) {
    __shared__ uint32_t s_count[kOwn];
    for (int b = threadIdx.x; b < kOwn; b += kBlock) s_count[b] = 0;
    barrier_cluster_arrive();
    barrier_cluster_wait();  // every block's bins are zero
    for (int i = blockIdx.x * kBlock + threadIdx.x; i < n; i += gridDim.x * kBlock)
        red_shared_cluster_add(mapa(smem(&s_count[x[i] % kOwn]), x[i] / kOwn), 1);
    barrier_cluster_arrive();
    barrier_cluster_wait();  // no block counts any more
    const uint32_t first = cluster_ctarank() * kOwn;
    for (int b = threadIdx.x; b < kOwn; b += kBlock)
        if (s_count[b]) atomicAdd(&count[first + b], s_count[b]);
}

// y[i] = x[i of the next block in the cluster]: read from its shared memory. The second barrier keeps a block from
// ending while another reads from it.
extern "C" __global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kBlock) rotate_cluster(uint32_t* y, const uint32_t* x) {
    __shared__ uint32_t s_x[kBlock];
    const int i = blockIdx.x * kBlock + threadIdx.x;
    s_x[threadIdx.x] = x[i];
    barrier_cluster_arrive();
    barrier_cluster_wait();
    y[i] = ld_shared_cluster(mapa(smem(&s_x[threadIdx.x]), (cluster_ctarank() + 1) % kCluster));
    barrier_cluster_arrive();
    barrier_cluster_wait();
}
#endif
