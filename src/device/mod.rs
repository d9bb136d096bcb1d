//! Devices: where a plan runs. [`Cpu`] runs `reference/`; [`cuda`] runs the compiled kernels, on a GPU or on the simulated driver.

pub(crate) mod cpu;
pub mod cuda;
pub mod gpu;

pub use cpu::Cpu;

use crate::Result;
use crate::graph::{Node, Tensor, Window};
use crate::models::Bound;
use crate::plan::Plan;
use crate::reference::Precision;
use std::time::Duration;

/// Which device, as `--device` spells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// `cpu`
    #[default]
    Cpu,
    /// `cuda:N`
    Cuda(u32),
    /// `sim`: the CUDA device on the simulated driver of `tools/ptxsim`.
    Sim,
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match s {
            "cpu" => Ok(Self::Cpu),
            "sim" => Ok(Self::Sim),
            "cuda" => Ok(Self::Cuda(0)),
            _ => match s.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
                Some(n) => Ok(Self::Cuda(n)),
                None => Err("expected cpu, sim, cuda or cuda:N".into()),
            },
        }
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Sim => f.write_str("sim"),
        }
    }
}

/// Values of tensors while a plan runs.
pub trait Values {
    /// The elements of an activation, a state buffer or a view of one, in f32.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for a tensor that has no buffer; [`Error::Device`](crate::Error::Device) for a device that failed.
    fn f32(&self, t: &Tensor) -> Result<Vec<f32>>;

    /// The elements of a window, row after row.
    ///
    /// # Errors
    /// As [`f32`](Self::f32).
    fn window(&self, w: &Window) -> Result<Vec<f32>> {
        let (all, stride) = (self.f32(&w.of)?, w.of.matrix().1);
        Ok(all.chunks_exact(stride).flat_map(|row| &row[w.col..w.col + w.width]).copied().collect())
    }
}

/// What is called while a plan runs: index of a node that is done, the node, its time, and the values as it left them.
pub type Seen<'a> = &'a mut dyn FnMut(usize, &Node, Duration, &dyn Values) -> Result<()>;

/// A model's weights and everything a plan touches, and the means to run one.
pub trait Device: Values + Send {
    /// Bytes of one [`DType::Act`](crate::graph::DType::Act) element.
    fn act_bytes(&self) -> usize;

    /// Whether running a plan again is much cheaper than running a new one: then sizes are rounded up to few values.
    fn keeps_plans(&self) -> bool {
        false
    }

    /// For debugging: whether plans are replayed as graphs, and whether every node is waited for, so that an error names it.
    fn debug(&mut self, graphs: bool, sync: bool) {
        let _ = (graphs, sync);
    }

    /// Makes the state buffer of `t`, in place of any that has its number. Its contents are undefined until they are written.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for a tensor that is no state buffer; [`Error::OutOfMemory`](crate::Error::OutOfMemory), then
    /// there may be none of its number; [`Error::Device`](crate::Error::Device) for a device that failed.
    fn allocate(&mut self, t: &Tensor) -> Result<()>;

    /// Gives the memory of all state buffers and activations back.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) for a device that failed.
    fn release(&mut self) -> Result<()>;

    /// Copies `data`, which must fill `t`, into a state buffer of f32 or activations. Every write is seen by what is run or queued after it, and not
    /// by what was queued before.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for data of another size, or a tensor that has no buffer;
    /// [`Error::Device`](crate::Error::Device) for a device that failed.
    fn write_f32(&mut self, t: &Tensor, data: &[f32]) -> Result<()>;

    /// Copies `data`, which must fill `t`, into an i32 state buffer.
    ///
    /// # Errors
    /// As [`write_f32`](Self::write_f32).
    fn write_i32(&mut self, t: &Tensor, data: &[i32]) -> Result<()>;

    /// Copies `data`, which must fill `t`, into a u8 state buffer.
    ///
    /// # Errors
    /// As [`write_f32`](Self::write_f32).
    fn write_u8(&mut self, t: &Tensor, data: &[u8]) -> Result<()>;

    /// The contents of an i32 state buffer.
    ///
    /// # Errors
    /// As [`Values::f32`].
    fn read_i32(&self, t: &Tensor) -> Result<Vec<i32>>;

    /// The contents of a u8 state buffer.
    ///
    /// # Errors
    /// As [`Values::f32`].
    fn read_u8(&self, t: &Tensor) -> Result<Vec<u8>>;

    /// Runs every node in order. `seen` is called after every node with its time; unless `each`, a device may call it after the last node
    /// of each part (first word of the nodes' names) only, with the part's time.
    ///
    /// # Errors
    /// [`Error::Node`](crate::Error::Node) for a node that cannot run or fails; [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn run(&mut self, plan: &Plan, each: bool, seen: Seen) -> Result<()>;

    /// Whether [`queue`](Self::queue) returns before the plan has run.
    fn queues(&self) -> bool {
        false
    }

    /// Queues a plan behind all that was queued before; a device that does not queue runs it. A kernel's fault may be told by any later call.
    ///
    /// # Errors
    /// [`Error::Node`](crate::Error::Node) for a node that cannot run.
    fn queue(&mut self, plan: &Plan) -> Result<()> {
        self.run(plan, false, &mut |_, _, _, _| Ok(()))
    }

    /// Queues the reading of a state buffer of i32 or f32 behind all that was queued before.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    fn fetch(&mut self, t: &Tensor) -> Result<Fetch>;

    /// The weights that it computes with.
    fn weights(&self) -> &Bound;
}

/// The contents of a buffer on their way to the host.
pub enum Fetch {
    /// They are there.
    Here(Vec<u32>),
    /// They are on their way.
    Coming(cuda::Download),
}

impl Fetch {
    /// The 32-bit words, once they are there.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) for a device that failed before.
    pub fn wait(self) -> Result<Vec<u32>> {
        match self {
            Self::Here(words) => Ok(words),
            Self::Coming(download) => download.wait(),
        }
    }
}

/// Opens a device with a model's weights; `progress` is called with bytes copied and bytes in all.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) for one that is absent or too old, [`Error::OutOfMemory`](crate::Error::OutOfMemory) for one too small.
pub fn open(
    choice: Choice,
    weights: Bound,
    precision: Precision,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Box<dyn Device>> {
    Ok(match choice {
        Choice::Cpu => Box::new(Cpu::new(weights, precision)),
        Choice::Cuda(_) | Choice::Sim => Box::new(cuda::Cuda::open(choice, weights, progress)?),
    })
}
