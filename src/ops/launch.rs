//! What a GPU is asked to start for an op: kernel, grid, block, arguments. Plain data; no device is touched.

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
pub(super) use args;

/// What a launch may depend on: the GPU it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Compute capability, major * 10 + minor: 80, 86, 89, 90, 100, 120.
    pub arch: u32,
    /// Multiprocessors.
    pub sms: u32,
}

/// A size as a kernel's `int`.
pub(super) fn int(what: &str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::shape(what, "at most 2147483647", n.to_string()))
}

/// A number of blocks along x.
pub(super) fn blocks(what: &str, n: usize) -> Result<u32> {
    int(what, n).map(|n| n as u32)
}

/// A number of blocks along y or z.
pub(super) fn blocks_yz(what: &str, n: usize) -> Result<u32> {
    if n <= 65535 { Ok(n as u32) } else { Err(Error::shape(what, "at most 65535", n.to_string())) }
}

/// Threads a block of kernels that go through rows or elements: their `kBlock`.
const ROW_BLOCK: usize = 256;

/// One launch, or none where it would have no blocks.
pub(super) fn one(launch: Launch) -> Result<Vec<Launch>> {
    Ok(if launch.grid.contains(&0) { Vec::new() } else { vec![launch] })
}

/// A kernel over `n` rows of `c` elements, eight a thread, blocks `(row, part of the row)`.
pub(super) fn rows(op: &str, entry: &'static str, n: usize, c: usize, args: Vec<Arg>) -> Result<Vec<Launch>> {
    super::expect_multiple(&format!("{op} C"), c, 8)?;
    let parts = blocks_yz(&format!("{op} C"), (c / 8).div_ceil(ROW_BLOCK))?;
    let grid = [blocks(&format!("{op} rows"), n)?, parts, 1];
    one(Launch { entry, grid, block: [ROW_BLOCK as u32, 1, 1], smem: 0, args })
}

/// A kernel over `n` threads' elements.
pub(super) fn elements(op: &str, entry: &'static str, n: usize, args: Vec<Arg>) -> Result<Vec<Launch>> {
    let grid = [blocks(&format!("{op} elements"), n.div_ceil(ROW_BLOCK))?, 1, 1];
    one(Launch { entry, grid, block: [ROW_BLOCK as u32, 1, 1], smem: 0, args })
}

/// A norm over `n` rows of `c` elements: a block a row, which the threads hold in 1, 2, 4 or 8 vectors of eight each.
pub(super) fn norm(
    op: &str,
    entries: [&'static str; 4],
    n: usize,
    c: usize,
    args: Vec<Arg>,
) -> Result<Vec<Launch>> {
    super::expect_multiple(&format!("{op} C"), c, 8)?;
    let Some(i) = [1, 2, 4, 8].iter().position(|v| c <= 8 * v * ROW_BLOCK) else {
        return Err(Error::shape(format!("{op} C"), format!("at most {}", 64 * ROW_BLOCK), c.to_string()));
    };
    let threads = (c / 8).next_multiple_of(32).clamp(32, ROW_BLOCK) as u32;
    let grid = [blocks(&format!("{op} rows"), n)?, 1, 1];
    one(Launch { entry: entries[i], grid, block: [threads, 1, 1], smem: 0, args })
}
