//! What a GPU is asked to start for an op: kernel, grid, block, arguments. Plain data; no device is touched.
#![allow(dead_code, unused_macros)]

use crate::graph::{Tensor, Window};
use crate::{Error, Result};

/// One kernel to start.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The `extern "C"` name in `kernels/*.cu`.
    pub entry: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads a block.
    pub block: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub smem: u32,
    /// In the kernel's order.
    pub args: Vec<Arg>,
}

/// An argument of a kernel.
#[derive(Clone, Debug)]
pub enum Arg {
    /// Device address of the tensor's first element.
    At(Tensor),
    /// Device address of the window's first element.
    AtCol(Window),
    /// A null pointer: an operand that is not there.
    Null,
    /// `int`
    I32(i32),
    /// `float`
    F32(f32),
}

impl From<&Tensor> for Arg {
    fn from(t: &Tensor) -> Self {
        Arg::At(t.clone())
    }
}

impl From<&Window> for Arg {
    fn from(w: &Window) -> Self {
        Arg::AtCol(w.clone())
    }
}

impl From<Option<&Tensor>> for Arg {
    fn from(t: Option<&Tensor>) -> Self {
        t.map_or(Arg::Null, Arg::from)
    }
}

impl From<i32> for Arg {
    fn from(v: i32) -> Self {
        Arg::I32(v)
    }
}

impl From<f32> for Arg {
    fn from(v: f32) -> Self {
        Arg::F32(v)
    }
}

/// A kernel's arguments, in order.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { vec![$($crate::ops::Arg::from($arg)),*] };
}
#[allow(unused_imports)]
pub(crate) use args;

/// What a launch may depend on: the GPU it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Compute capability, major * 10 + minor: 80, 86, 89, 90, 100, 120.
    pub arch: u32,
    /// Multiprocessors.
    pub sms: u32,
}

/// A size as a kernel's `int`.
pub(crate) fn int(what: &str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::shape(what, "at most 2147483647", n.to_string()))
}

/// A number of blocks along x.
pub(crate) fn blocks(what: &str, n: usize) -> Result<u32> {
    int(what, n).map(|n| n as u32)
}

/// A number of blocks along y or z.
pub(crate) fn blocks_yz(what: &str, n: usize) -> Result<u32> {
    if n <= 65535 { Ok(n as u32) } else { Err(Error::shape(what, "at most 65535", n.to_string())) }
}
