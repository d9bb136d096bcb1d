//! The GPUs that can be pretended: one table, each figure with its source.

use serde::Serialize;

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
}

/// Sources: NVIDIA A100 datasheet (80 GB SXM) and GA100 whitepaper; Ada whitepaper (GeForce RTX 4090); H100 datasheet
/// (SXM5) and GH100 whitepaper; per-SM limits: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
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
    },
];

impl GpuSpec {
    /// The GPU of that short name: `a100`, `rtx4090` or `h100`.
    pub fn named(name: &str) -> Option<&'static GpuSpec> {
        GPUS.iter().find(|g| g.name == name)
    }
    /// Every GPU of the table.
    pub fn all() -> &'static [GpuSpec] {
        &GPUS
    }
}
