//! The GPUs that tables speak of: what a multiprocessor holds, peak rates, and the least time that counted work can take: a model, never a
//! measurement.

use serde::Serialize;

/// A GPU of the roofline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// `a100`, `rtx4090`, `h100`: what `PTXSIM_GPU` calls it.
    pub name: &'static str,
    /// Compute capability, major * 10 + minor.
    pub arch: u32,
    /// Multiprocessors.
    pub sms: u32,
    /// Boost clock, Hz.
    pub clock: f64,
    /// Memory bandwidth, bytes a second.
    pub bandwidth: f64,
    /// Dense bf16 rate of the tensor cores with f32 accumulation, FLOP/s.
    pub tensor: f64,
}

/// A100 (80 GB SXM), RTX 4090, H100 (SXM5). Figures are NVIDIA's data sheets': A100, the Ada whitepaper's appendix A, H100; the clock that
/// the tensor rate is for.
pub const ROOFLINES: [Spec; 3] = [
    Spec { name: "a100", arch: 80, sms: 108, clock: 1.410e9, bandwidth: 2039e9, tensor: 312e12 },
    Spec { name: "rtx4090", arch: 89, sms: 128, clock: 2.520e9, bandwidth: 1008e9, tensor: 165.2e12 },
    Spec { name: "h100", arch: 90, sms: 132, clock: 1.830e9, bandwidth: 3350e9, tensor: 989.4e12 },
];

/// Architectures that kernels are compiled for, as nvcc spells them, and a GPU of each: compute capability and multiprocessors (A100,
/// RTX 3090, RTX 4090, H100, B200, RTX 5090).
pub const ARCHS: [(&str, crate::ops::Gpu); 6] = {
    const fn gpu(arch: u32, sms: u32) -> crate::ops::Gpu {
        crate::ops::Gpu { arch, sms }
    }
    [
        ("80", gpu(80, 108)),
        ("86", gpu(86, 82)),
        ("89", gpu(89, 128)),
        ("90a", gpu(90, 132)),
        ("100a", gpu(100, 148)),
        ("120", gpu(120, 170)),
    ]
};

/// What a multiprocessor holds at once: threads, blocks, bytes of shared memory.
///
/// CUDA C++ Programming Guide 13.0, "Technical Specifications per Compute Capability".
fn limits(arch: u32) -> (u32, u32, u32) {
    match arch {
        80 => (2048, 32, 164 << 10),
        86 => (1536, 16, 100 << 10),
        89 | 120.. => (1536, 24, 100 << 10),
        _ => (2048, 32, 228 << 10),
    }
}

/// Schedulers of a multiprocessor, each with a quarter of its 65536 registers.
const SCHEDULERS: u32 = 4;

/// How many blocks of a kernel a multiprocessor holds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Occupancy {
    /// Blocks at once.
    pub blocks: u32,
    /// Share of the warps that it could hold, 0 to 1.
    pub share: f64,
    /// What runs out first: `blocks`, `threads`, `registers` or `shared`.
    pub limit: &'static str,
}

/// Occupancy of blocks of `threads` threads with `registers` each and `shared` bytes, static and dynamic: cuda_occupancy.h of CUDA 13.0 with
/// the largest share of L1 as shared memory.
pub fn occupancy(arch: u32, registers: u32, shared: u32, threads: u32) -> Occupancy {
    let (most_threads, most_blocks, memory) = limits(arch);
    let warps = threads.div_ceil(32).max(1);
    // A warp's registers come in units of 256; the system takes 1 KB of each block's memory, which comes in units of 128.
    let a_warp = (registers.max(1) * 32).next_multiple_of(256);
    let held = 65536 / SCHEDULERS / a_warp * SCHEDULERS;
    let limits = [
        (most_blocks, "blocks"),
        (most_threads / 32 / warps, "threads"),
        (held / warps, "registers"),
        (memory / (shared + 1024).next_multiple_of(128), "shared"),
    ];
    let (blocks, limit) = limits.into_iter().min_by_key(|l| l.0).expect("four limits");
    Occupancy { blocks, share: f64::from(blocks * warps) / f64::from(most_threads / 32), limit }
}

/// What a launch did, as the simulator counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Distinct bytes of global memory.
    pub bytes: u64,
    /// FLOPs of tensor-core instructions.
    pub tensor_flops: u64,
    /// Warp instructions.
    pub instructions: u64,
    /// Wavefronts of shared memory.
    pub wavefronts: u64,
}

impl Spec {
    /// The least seconds for `work` over `blocks` blocks, and what binds: the slowest of memory at its peak, and tensor cores, issue (an
    /// instruction a cycle and scheduler) and shared memory (a wavefront a cycle and multiprocessor), these three at their peak over the
    /// multiprocessors that have a block. Latencies and dependences are left out: the real time is longer.
    pub fn roofline(&self, work: &Work, occupancy: &Occupancy, blocks: u64) -> (f64, &'static str) {
        let sms = f64::from(self.sms);
        // Share of the block slots that hold a block, over the waves of the grid; one block a multiprocessor is enough to use it.
        let slots = u64::from(occupancy.blocks.max(1) * self.sms);
        let share = if blocks < slots {
            (blocks as f64 / sms).min(1.0)
        } else {
            blocks as f64 / (blocks.div_ceil(slots) * slots) as f64
        };
        let parts = [
            (work.bytes as f64 / self.bandwidth, "memory"),
            (work.tensor_flops as f64 / self.tensor / share, "tensor"),
            (work.instructions as f64 / (sms * f64::from(SCHEDULERS) * self.clock) / share, "issue"),
            (work.wavefronts as f64 / (sms * self.clock) / share, "shared"),
        ];
        let longest = parts.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).expect("four parts");
        if blocks == 0 { (0.0, longest.1) } else { longest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked by hand: 128 threads of 128 registers are 4 warps of 4096 registers; 48 KB and the system's 1 KB fit three times into 164 KB.
    #[test]
    fn occupancy_by_hand() {
        let o = occupancy(80, 128, 0, 128);
        assert_eq!((o.blocks, o.share, o.limit), (4, 0.25, "registers"));
        assert_eq!(occupancy(80, 32, 48 << 10, 128).blocks, 3);
        assert_eq!(occupancy(80, 32, 0, 32).blocks, 32);
        assert_eq!(occupancy(86, 32, 0, 32).blocks, 16);
        assert_eq!(occupancy(120, 32, 0, 32).blocks, 24);
        assert_eq!((occupancy(89, 32, 0, 1024).blocks, occupancy(90, 32, 0, 1024).blocks), (1, 2));
        assert_eq!(occupancy(80, 255, 200 << 10, 256).blocks, 0);
    }

    #[test]
    fn the_slowest_part_binds() {
        let a100 = ROOFLINES[0];
        let o = occupancy(80, 32, 0, 256);
        let slots = u64::from(o.blocks * a100.sms);
        let mut w = Work { bytes: 2_039_000_000, ..Work::default() };
        let (s, bound) = a100.roofline(&w, &o, slots);
        assert!((s - 1e-3).abs() < 1e-9 && bound == "memory", "{s} {bound}");
        w.tensor_flops = 624_000_000_000;
        let (s, bound) = a100.roofline(&w, &o, slots);
        assert!((s - 2e-3).abs() < 1e-9 && bound == "tensor", "{s} {bound}");
        // One block too many costs a second wave; 54 blocks leave half of the multiprocessors idle.
        assert!(a100.roofline(&w, &o, slots + 1).0 > 3.9e-3);
        assert!((a100.roofline(&w, &o, 54).0 - 4e-3).abs() < 1e-9);
        assert_eq!(a100.roofline(&w, &o, 0).0, 0.0);
    }
}
