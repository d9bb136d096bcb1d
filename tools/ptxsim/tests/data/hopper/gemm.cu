// C (M,N) = A (M,K) @ B (N,K)^T, bf16 in, f32 out, on Hopper: TMA in and out, mbarrier pipeline, wgmma.
//
// One block: 128 consumer threads (one warpgroup) and a producer warp. Tile 64 x 64, K in steps of 64, kStages deep.
// gemm_multicast: clusters of 2 blocks along M share the tile of B; each loads half of it for both.
//
// nvcc -ptx -arch=compute_90a gemm.cu; tests/hopper.rs reads the PTX beside this file.

#include <cuda.h>
#include <cuda_bf16.h>
#include <stdint.h>

constexpr int kM = 64, kN = 64, kK = 64, kStages = 3;

struct alignas(1024) Shared {
    __nv_bfloat16 a[kStages][kM * kK];
    __nv_bfloat16 b[kStages][kN * kK];
    float c[kM * kN];
    uint64_t full[kStages], empty[kStages];
};

__device__ uint32_t smem(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
__device__ void init(uint64_t* bar, int n) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem(bar)), "r"(n));
}
__device__ void expect(uint64_t* bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem(bar)), "r"(bytes) : "memory");
}
__device__ void arrive(uint64_t* bar) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(smem(bar)) : "memory");
}
__device__ void arrive_at(uint64_t* bar, int rank) {
    asm volatile("{\n.reg .b32 r;\nmapa.shared::cluster.u32 r, %0, %1;\n"
                 "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [r];\n}" ::"r"(smem(bar)), "r"(rank) : "memory");
}
__device__ void wait(uint64_t* bar, int parity) {
    asm volatile("{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra done;\nbra again;\ndone:\n}" ::"r"(smem(bar)), "r"(parity) : "memory");
}
__device__ void load(void* to, const CUtensorMap* map, uint64_t* bar, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
                 "r"(smem(to)), "l"(map), "r"(smem(bar)), "r"(x), "r"(y) : "memory");
}
__device__ void load_both(void* to, const CUtensorMap* map, uint64_t* bar, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::
                 "r"(smem(to)), "l"(map), "r"(smem(bar)), "r"(x), "r"(y), "h"((short)3) : "memory");
}
// K-major, 128-byte swizzle: 8 rows of 128 bytes are 1024 apart.
__device__ uint64_t descriptor(const void* p) {
    return (uint64_t)((smem(p) & 0x3ffff) >> 4) | 1ull << 16 | (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
}
__device__ void mma(float (&d)[32], uint64_t a, uint64_t b, int accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
        "%32, %33, p, 1, 1, 0, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
          "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),
          "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
          "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b), "r"(accumulate));
}

template <bool kCluster>
__device__ void gemm(const CUtensorMap& ma, const CUtensorMap& mb, const CUtensorMap& mc, int K) {
    extern __shared__ __align__(1024) unsigned char raw[];
    Shared& s = *reinterpret_cast<Shared*>(raw);
    const int warp = threadIdx.x / 32;
    int rank = 0;
    if (kCluster) asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    if (threadIdx.x == 0) {
        for (int i = 0; i < kStages; ++i) {
            init(&s.full[i], 1);
            init(&s.empty[i], kCluster ? 2 * 128 : 128);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (kCluster) {
        asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
    }
    const int row = blockIdx.y * kM, column = blockIdx.x * kN, steps = K / kK;
    if (warp == 4) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x % 32 == 0) {
            for (int i = 0; i < steps; ++i) {
                const int stage = i % kStages, round = i / kStages;
                wait(&s.empty[stage], round % 2 ^ 1);
                expect(&s.full[stage], (kM + kN) * kK * 2);
                load(s.a[stage], &ma, &s.full[stage], i * kK, row);
                if (kCluster)
                    load_both(s.b[stage] + rank * kN / 2 * kK, &mb, &s.full[stage], i * kK, column + rank * kN / 2);
                else
                    load(s.b[stage], &mb, &s.full[stage], i * kK, column);
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        float d[32];
        for (float& x : d) x = 0;
        for (int i = 0; i < steps; ++i) {
            const int stage = i % kStages, round = i / kStages;
            wait(&s.full[stage], round % 2);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
            for (int k = 0; k < kK; k += 16) mma(d, descriptor(s.a[stage] + k), descriptor(s.b[stage] + k), 1);
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            if (kCluster) {
                arrive_at(&s.empty[stage], 0);
                arrive_at(&s.empty[stage], 1);
            } else {
                arrive(&s.empty[stage]);
            }
        }
        const int lane = threadIdx.x % 32;
        for (int j = 0; j < 8; ++j)
            for (int i = 0; i < 4; ++i)
                s.c[(16 * warp + lane / 4 + 8 * (i / 2)) * kN + 8 * j + 2 * (lane % 4) + i % 2] = d[4 * j + i];
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        asm volatile("bar.sync 1, 128;" ::: "memory");
        if (threadIdx.x == 0) {
            asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&mc), "r"(smem(s.c)), "r"(column), "r"(row) : "memory");
            asm volatile("cp.async.bulk.commit_group;");
            asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
        }
    }
    if (kCluster) {
        // Nobody leaves while the other block may still arrive at its mbarriers.
        asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
    }
}

extern "C" __global__ void __launch_bounds__(160)
gemm(const __grid_constant__ CUtensorMap ma, const __grid_constant__ CUtensorMap mb, const __grid_constant__ CUtensorMap mc, int K) {
    gemm<false>(ma, mb, mc, K);
}

extern "C" __global__ void __cluster_dims__(1, 2, 1) __launch_bounds__(160)
gemm_multicast(const __grid_constant__ CUtensorMap ma, const __grid_constant__ CUtensorMap mb, const __grid_constant__ CUtensorMap mc, int K) {
    gemm<true>(ma, mb, mc, K);
}

// y[i] += x[i] for n floats, by bulk copies in and a bulk reduction out.
extern "C" __global__ void bulk_add(float* y, const float* x, int n) {
    extern __shared__ __align__(1024) unsigned char raw[];
    float* buffer = reinterpret_cast<float*>(raw);
    __shared__ uint64_t bar;
    if (threadIdx.x == 0) init(&bar, 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        expect(&bar, n * 4);
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(smem(buffer)), "l"(x), "r"(n * 4), "r"(smem(&bar)) : "memory");
    }
    wait(&bar, 0);
    for (int i = threadIdx.x; i < n; i += blockDim.x) buffer[i] *= 2;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(y), "r"(smem(buffer)), "r"(n * 4) : "memory");
        asm volatile("cp.async.bulk.commit_group;");
        asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    }
}
