//! The GPUs that can be pretended: one table, each figure with its source; and what follows from it, which is a model:
//! how many blocks an SM holds, and the least time that a launch's counted work can take.

use serde::Serialize;

use crate::{Counters, KernelInfo};

/// Figures of one GPU. Rates are peaks of the whole device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GpuSpec {
    /// Short name, as in `--gpu`.
    pub name: &'static str,
    /// The name that the driver answers with.
    pub full_name: &'static str,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub sms: u32,
    /// Boost clock, kHz.
    pub clock_khz: u32,
    /// Memory clock, kHz.
    pub memory_clock_khz: u32,
    /// Memory bus width, bits.
    pub memory_bus_bits: u32,
    /// Device memory, bytes.
    pub memory_bytes: u64,
    /// Memory bandwidth, bytes a second.
    pub bandwidth: f64,
    /// L2 cache, bytes.
    pub l2_bytes: u32,
    /// Shared memory an SM, bytes.
    pub smem_per_sm: u32,
    /// Shared memory a block may opt in to, bytes.
    pub smem_per_block_optin: u32,
    /// Resident threads an SM.
    pub threads_per_sm: u32,
    /// Resident blocks an SM.
    pub blocks_per_sm: u32,
    /// Dense bf16 tensor-core rate, FLOP/s, f32 accumulation.
    pub bf16_flops: f64,
    /// f32 rate, FLOP/s.
    pub f32_flops: f64,
    /// Dense tensor-core rates, operations a second, by input type as PTX writes it; f32 accumulation for floats.
    pub tensor: &'static [(&'static str, f64)],
}

// Sources, column by column:
// - a100: "NVIDIA A100 Tensor Core GPU" datasheet (80 GB SXM: 312 TFLOPS bf16, 156 tf32, 624 TOPS int8, 19.5 f64 and f32,
//   2,039 GB/s) and the GA100 whitepaper (108 SMs, 1410 MHz boost, 40 MB L2, 5120-bit HBM2e).
// - rtx4090: "NVIDIA Ada GPU Architecture" whitepaper, appendix A (128 SMs, 2520 MHz boost, 1008 GB/s over 384 bits at
//   21 Gbit/s, 72 MB L2, 82.6 TFLOPS f32; dense with f32 accumulation: 165.2 f16 and bf16, 82.6 tf32, 330.3 fp8;
//   660.6 TOPS int8).
// - h100: "NVIDIA H100 Tensor Core GPU" datasheet (SXM5, dense halves of the sparse figures: 989.4 TFLOPS bf16, 494.7
//   tf32, 1978.9 fp8, 1978.9 TOPS int8, 66.9 f64 tensor and f32, 3.35 TB/s) and the GH100 whitepaper (132 SMs, 50 MB L2,
//   5120-bit HBM3). The tensor rates there are for 1830 MHz; 1980 MHz is what the driver reports as the clock.
// - limits an SM: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability" (8.0, 8.9, 9.0).
pub(crate) static GPUS: [GpuSpec; 3] = [
    GpuSpec {
        name: "a100",
        full_name: "NVIDIA A100-SXM4-80GB",
        capability: (8, 0),
        sms: 108,
        clock_khz: 1_410_000,
        memory_clock_khz: 1_593_000,
        memory_bus_bits: 5120,
        memory_bytes: 80 << 30,
        bandwidth: 2039e9,
        l2_bytes: 40 << 20,
        smem_per_sm: 164 << 10,
        smem_per_block_optin: 163 << 10,
        threads_per_sm: 2048,
        blocks_per_sm: 32,
        bf16_flops: 312e12,
        f32_flops: 19.5e12,
        tensor: &[
            ("f16", 312e12),
            ("bf16", 312e12),
            ("tf32", 156e12),
            ("s8", 624e12),
            ("u8", 624e12),
            ("f64", 19.5e12),
        ],
    },
    GpuSpec {
        name: "rtx4090",
        full_name: "NVIDIA GeForce RTX 4090",
        capability: (8, 9),
        sms: 128,
        clock_khz: 2_520_000,
        memory_clock_khz: 10_501_000,
        memory_bus_bits: 384,
        memory_bytes: 24 << 30,
        bandwidth: 1008e9,
        l2_bytes: 72 << 20,
        smem_per_sm: 100 << 10,
        smem_per_block_optin: 99 << 10,
        threads_per_sm: 1536,
        blocks_per_sm: 24,
        bf16_flops: 165.2e12,
        f32_flops: 82.6e12,
        tensor: &[
            ("f16", 165.2e12),
            ("bf16", 165.2e12),
            ("tf32", 82.6e12),
            ("s8", 660.6e12),
            ("u8", 660.6e12),
            ("e4m3", 330.3e12),
            ("e5m2", 330.3e12),
        ],
    },
    GpuSpec {
        name: "h100",
        full_name: "NVIDIA H100 80GB HBM3",
        capability: (9, 0),
        sms: 132,
        clock_khz: 1_980_000,
        memory_clock_khz: 2_619_000,
        memory_bus_bits: 5120,
        memory_bytes: 80 << 30,
        bandwidth: 3350e9,
        l2_bytes: 50 << 20,
        smem_per_sm: 228 << 10,
        smem_per_block_optin: 227 << 10,
        threads_per_sm: 2048,
        blocks_per_sm: 32,
        bf16_flops: 989.4e12,
        f32_flops: 66.9e12,
        tensor: &[
            ("f16", 989.4e12),
            ("bf16", 989.4e12),
            ("tf32", 494.7e12),
            ("s8", 1978.9e12),
            ("u8", 1978.9e12),
            ("e4m3", 1978.9e12),
            ("e5m2", 1978.9e12),
            ("f64", 66.9e12),
        ],
    },
];

/// How many blocks of a kernel an SM holds at once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Occupancy {
    /// Registers a thread that were assumed.
    pub registers: u32,
    /// Resident blocks an SM.
    pub blocks_per_sm: u32,
    /// Resident warps an SM.
    pub warps_per_sm: u32,
    /// Share of the warps that an SM could hold, 0 to 1.
    pub share: f64,
    /// What runs out first: "blocks", "threads", "registers" or "shared".
    pub limit: &'static str,
}

/// The least time that counted work can take on a GPU: a model, never a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Roofline {
    /// Seconds to move each touched byte once between the GPU's memory and its SMs.
    pub memory_s: f64,
    /// Seconds to move every 32-byte sector of every request, as if no cache held any.
    pub uncached_s: f64,
    /// Seconds of tensor-core work at its peak rate.
    pub tensor_s: f64,
    /// Seconds to issue every warp instruction, one a cycle and scheduler (four an SM).
    pub issue_s: f64,
    /// Seconds of shared-memory wavefronts, one a cycle and SM.
    pub shared_s: f64,
    /// Share of the SMs' block slots that hold a block, averaged over the waves of the grid, 0 to 1.
    pub wave_share: f64,
    /// The largest of memory, tensor, issue and shared, divided by `wave_share`.
    pub seconds: f64,
    /// Which one it is: "memory", "tensor", "issue" or "shared".
    pub bound: &'static str,
}

/// Registers of an SM; registers are allocated to a warp in units of 256.
const REGISTERS_PER_SM: u32 = 65536;
const REGISTER_UNIT: u32 = 256;
/// Schedulers of an SM, each with a quarter of the registers.
const SCHEDULERS: u32 = 4;
/// Shared memory that the system takes of each block, and the unit in which it is allocated.
const SMEM_RESERVED: u32 = 1024;
const SMEM_UNIT: u32 = 128;

impl GpuSpec {
    /// The GPU of that short name: `a100`, `rtx4090` or `h100`.
    pub fn named(name: &str) -> Option<&'static GpuSpec> {
        GPUS.iter().find(|g| g.name == name)
    }
    /// Every GPU of the table.
    pub fn all() -> &'static [GpuSpec] {
        &GPUS
    }

    /// Registers a thread of a kernel is taken to need: what its PTX needs at once, within what its launch bounds leave.
    /// ptxas decides the real number.
    pub fn registers(&self, kernel: &KernelInfo) -> u32 {
        let bound = REGISTERS_PER_SM / kernel.max_threads.clamp(32, 1024).next_multiple_of(32) / 8 * 8;
        let most = kernel.max_registers.unwrap_or(255).min(bound).min(255);
        kernel.registers.next_multiple_of(8).clamp(16, most.max(16))
    }

    /// The largest block that a kernel can be launched with.
    pub fn max_threads(&self, kernel: &KernelInfo) -> u32 {
        let warps = self.register_warps(self.registers(kernel)) / SCHEDULERS * SCHEDULERS;
        kernel.max_threads.min(warps * 32).min(1024)
    }

    /// Occupancy of a kernel with blocks of `threads` threads and `dynamic` bytes of dynamic shared memory.
    pub fn occupancy(&self, kernel: &KernelInfo, threads: u32, dynamic: u32) -> Occupancy {
        self.occupancy_of(self.registers(kernel), kernel.static_shared.saturating_add(dynamic), threads)
    }

    /// Occupancy for `registers` a thread and `shared` bytes of shared memory a block.
    ///
    /// Follows cuda_occupancy.h of CUDA 13.0 for compute capabilities 8.0, 8.9 and 9.0 with the largest carve-out.
    pub fn occupancy_of(&self, registers: u32, shared: u32, threads: u32) -> Occupancy {
        let warps = threads.div_ceil(32).max(1);
        let most_warps = self.threads_per_sm / 32;
        let used =
            shared.saturating_add(SMEM_RESERVED).checked_next_multiple_of(SMEM_UNIT).unwrap_or(u32::MAX);
        let fits = threads <= 1024 && shared <= self.smem_per_block_optin && registers <= 255;
        let limits = [
            (self.blocks_per_sm, "blocks"),
            (most_warps / warps, "threads"),
            (self.register_warps(registers) / warps, "registers"),
            (self.smem_per_sm / used, "shared"),
        ];
        // Of equal limits the first one names the reason.
        let (blocks, limit) = limits.into_iter().min_by_key(|(n, _)| *n).unwrap_or((0, "blocks"));
        let blocks = if fits { blocks } else { 0 };
        Occupancy {
            registers,
            blocks_per_sm: blocks,
            warps_per_sm: blocks * warps,
            share: f64::from(blocks * warps) / f64::from(most_warps),
            limit,
        }
    }

    /// Warps of that many registers a thread that an SM holds.
    fn register_warps(&self, registers: u32) -> u32 {
        let a_warp = (registers.max(1) * 32).next_multiple_of(REGISTER_UNIT);
        REGISTERS_PER_SM / SCHEDULERS / a_warp * SCHEDULERS
    }

    /// The tensor-core rate for the input type that a key of [`Counters::tensor`] names; the bf16 rate if it names none
    /// of the table's.
    fn tensor_rate(&self, key: &str) -> f64 {
        let rates: Vec<f64> = key
            .split('.')
            .filter_map(|part| self.tensor.iter().find(|(name, _)| *name == part).map(|(_, rate)| *rate))
            .collect();
        // A mixed key such as `f32.bf16.bf16.f32` or `f16.e4m3.e4m3.f16`: the narrower inputs have the higher rate.
        rates.into_iter().reduce(f64::max).unwrap_or(self.bf16_flops)
    }

    /// The least time for what a launch counted, with that occupancy over `blocks` blocks. Caches, latencies and
    /// dependences are left out: the real time is longer.
    pub fn roofline(&self, counters: &Counters, occupancy: &Occupancy, blocks: u64) -> Roofline {
        let clock = f64::from(self.clock_khz) * 1e3;
        let sms = f64::from(self.sms);
        let sectors =
            counters.global_load.sectors + counters.global_store.sectors + counters.global_atomic.sectors;
        let memory_s = counters.distinct_bytes as f64 / self.bandwidth;
        let tensor_s =
            counters.tensor.iter().fold(0.0, |s, (key, c)| s + c.flops as f64 / self.tensor_rate(key));
        let issue_s = counters.total.warps as f64 / (sms * f64::from(SCHEDULERS) * clock);
        let wavefronts = counters.shared_load.wavefronts + counters.shared_store.wavefronts;
        let shared_s = wavefronts as f64 / (sms * clock);
        let slots = u64::from(occupancy.blocks_per_sm.max(1)) * u64::from(self.sms);
        let wave_share = blocks as f64 / (blocks.div_ceil(slots).max(1) * slots) as f64;
        // A grid that leaves SMs empty still gets all of them up to one block each.
        let wave_share = if blocks < slots { (blocks as f64 / sms).min(1.0) } else { wave_share };
        let parts = [(memory_s, "memory"), (tensor_s, "tensor"), (issue_s, "issue"), (shared_s, "shared")];
        let (longest, bound) = parts.into_iter().fold((0.0, "issue"), |a, b| if b.0 > a.0 { b } else { a });
        Roofline {
            memory_s,
            uncached_s: sectors as f64 * 32.0 / self.bandwidth,
            tensor_s,
            issue_s,
            shared_s,
            wave_share,
            seconds: if blocks == 0 { 0.0 } else { longest / wave_share },
            bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TensorCounters;

    #[test]
    fn occupancy_matches_the_published_calculator() {
        let a100 = GpuSpec::named("a100").unwrap();
        // Worked by hand from cuda_occupancy.h: 128 threads of 128 registers are 4 warps of 4096 registers each.
        let o = a100.occupancy_of(128, 0, 128);
        assert_eq!((o.blocks_per_sm, o.warps_per_sm, o.limit), (4, 16, "registers"));
        // 48 KiB and the reserved 1 KiB: three of 49 KiB fit in 164 KiB.
        let o = a100.occupancy_of(32, 48 << 10, 128);
        assert_eq!((o.blocks_per_sm, o.limit), (3, "shared"));
        assert_eq!(a100.occupancy_of(32, 0, 1024).blocks_per_sm, 2);
        assert_eq!(a100.occupancy_of(32, 0, 32).blocks_per_sm, 32);
        assert_eq!(a100.occupancy_of(32, 0, 64).share, 1.0);
        // The largest block that may be asked for.
        assert_eq!(a100.occupancy_of(32, 163 << 10, 128).blocks_per_sm, 1);
        assert_eq!(a100.occupancy_of(32, (163 << 10) + 1, 128).blocks_per_sm, 0);
        assert_eq!(a100.occupancy_of(256, 0, 32).blocks_per_sm, 0);
        let ada = GpuSpec::named("rtx4090").unwrap();
        assert_eq!(
            (ada.occupancy_of(32, 0, 1024).blocks_per_sm, ada.occupancy_of(32, 0, 32).blocks_per_sm),
            (1, 24)
        );
        let hopper = GpuSpec::named("h100").unwrap();
        // A warp-specialised kernel: 384 threads of 168 registers, 12 warps of 5376.
        assert_eq!(hopper.occupancy_of(168, 200 << 10, 384).blocks_per_sm, 1);
    }

    #[test]
    fn roofline_is_bound_by_the_slowest_part() {
        let gpu = GpuSpec::named("a100").unwrap();
        let o = gpu.occupancy_of(32, 0, 256);
        let mut c = Counters { distinct_bytes: 2_039_000_000, ..Counters::default() };
        let blocks = u64::from(o.blocks_per_sm * gpu.sms);
        let r = gpu.roofline(&c, &o, blocks);
        assert_eq!((r.bound, r.wave_share), ("memory", 1.0));
        assert!((r.seconds - 1e-3).abs() < 1e-9, "{r:?}");
        let flops = TensorCounters { ops: 1, flops: 624_000_000_000 };
        c.tensor.insert("m16n8k16.f32.bf16.bf16.f32".into(), flops);
        let r = gpu.roofline(&c, &o, blocks);
        assert_eq!(r.bound, "tensor");
        assert!((r.seconds - 2e-3).abs() < 1e-9, "{r:?}");
        // One block more than a wave leaves the second one nearly empty.
        let r = gpu.roofline(&c, &o, blocks + 1);
        assert!(r.wave_share < 0.51, "{r:?}");
    }

    #[test]
    fn tables_are_consistent() {
        for g in GpuSpec::all() {
            let rate = |name| g.tensor.iter().find(|(n, _)| *n == name).map(|(_, r)| *r);
            assert_eq!(rate("bf16"), Some(g.bf16_flops), "{}", g.name);
            // Two transfers a clock.
            let bandwidth = f64::from(g.memory_bus_bits) / 8.0 * 2.0 * f64::from(g.memory_clock_khz) * 1e3;
            assert!((bandwidth / g.bandwidth - 1.0).abs() < 0.01, "{}: {bandwidth}", g.name);
            assert!(g.smem_per_block_optin + 1024 == g.smem_per_sm, "{}", g.name);
        }
    }
}
