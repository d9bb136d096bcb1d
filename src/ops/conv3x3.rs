//! 3x3 convolution, BatchNorm folded into its weights, ReLU, channels laid out as pixels; see `reference/conv3x3.rs`.

use super::launch::{args, blocks, int, one};
use super::{Gpu, Launch, Op, expect_equal, expect_multiple};
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;
use crate::{Error, Result};

/// The tiles of kernels/conv3x3.cu: rows, columns, dynamic shared memory in bytes; both have `BLOCK` threads.
const TILES: [(&str, usize, usize, u32); 2] = [
    ("conv3x3_bf16_128x128", 128, 128, 4 * (128 + 128) * 64),
    ("conv3x3_bf16_128x64", 128, 64, 4 * (128 + 64) * 64),
];
const BLOCK: u32 = 128;

/// Number of tiles that [`Conv3x3::with_tile`] knows.
pub const CONV3X3_TILES: usize = TILES.len();

/// The op; built with [`conv3x3`].
pub struct Conv3x3 {
    y: Tensor,
    x: Tensor,
    w: Tensor,
    b: Tensor,
    side: usize,
    cell: usize,
    tile: Option<usize>,
}

/// `y[q, P*r + u, P*s + v] = relu(b[o] + Σ w[o, i, j, d] * x[q, (r+i-1)*G + (s+j-1), d])`, `o = P*u + v`, zero outside the map.
///
/// `y` `(Q, G*P, G*P)`, `x` `(Q, G*G, D)`, `w` `(P*P, 3, 3, D)` folded and reordered at load, `b` `(P*P)` f32; `r`, `s` count cells, `y` counts
/// pixels of the model's input, not of the source image.
/// Source: `RESDecoder.forward`, mllmseg/mllmseg_internvl.py, `conv1` and the two `permute`s after it.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
pub fn conv3x3(y: &Tensor, x: &Tensor, w: &Tensor, b: &Tensor, side: usize) -> Result<Conv3x3> {
    let [q, p, d] = x.dims("conv3x3 x")?;
    expect_equal("conv3x3 cells", p, side * side)?;
    let [o, ..] = w.dims::<4>("conv3x3 w")?;
    w.expect("conv3x3 w", &[o, 3, 3, d])?;
    b.expect("conv3x3 b", &[o])?;
    let cell = o.isqrt();
    expect_equal("conv3x3 channels", o, cell * cell)?;
    y.expect("conv3x3 y", &[q, side * cell, side * cell])?;
    Ok(Conv3x3 { y: y.clone(), x: x.clone(), w: w.clone(), b: b.clone(), side, cell, tile: None })
}

impl Conv3x3 {
    /// Fixes the kernel's tile, by number below [`CONV3X3_TILES`]: for tests and benches.
    pub fn with_tile(mut self, tile: usize) -> Self {
        self.tile = Some(tile);
        self
    }
}

impl Op for Conv3x3 {
    fn kind(&self) -> &'static str {
        "conv3x3"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x, &self.w, &self.b]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn flops(&self) -> u64 {
        2 * (self.x.matrix().0 * self.w.len()) as u64
    }
    fn launch(&self, gpu: &Gpu) -> Result<Vec<Launch>> {
        let ((m, d), p) = (self.x.matrix(), self.cell);
        expect_multiple("conv3x3 D", d, 8)?; // 16-byte copies
        expect_multiple("conv3x3 P", p, 2)?; // pixels go two by two to shared memory
        expect_multiple("conv3x3 G*P", self.side * p, 8)?; // and eight by eight from there
        if !(2..=TILES[1].2).contains(&p) {
            return Err(Error::shape("conv3x3 P", format!("2 to {}", TILES[1].2), p.to_string()));
        }
        let [rows, side, width, cell] = [m, self.side, d, p].map(|n| int("conv3x3 extent", n));
        // The larger tile, which shared memory feeds fast enough, unless it leaves multiprocessors idle.
        let tiles = |t: &(_, usize, usize, _)| m.div_ceil(t.1) * p.div_ceil(t.2 / p);
        let fills = || TILES.iter().find(|t| tiles(t) >= gpu.sms as usize).unwrap_or(&TILES[1]);
        let tile = self.tile.and_then(|t| TILES.get(t)).unwrap_or_else(fills);
        one(Launch {
            entry: tile.0,
            grid: [blocks("conv3x3 tiles", tiles(tile))?, 1, 1],
            block: [BLOCK, 1, 1],
            smem: tile.3,
            args: args![&self.y, &self.x, &self.w, &self.b, rows?, side?, width?, cell?],
        })
    }
    fn run(&self, m: &Memory) {
        let (y, x) = (m.f32_mut(&self.y), m.f32(&self.x));
        reference::conv3x3(y, x, m.weights(&self.w), m.f32(&self.b), self.side, m.precision());
    }
}
