//! The column of each row's largest product, without the products in memory; see `reference/matmul_argmax.rs`.

use super::launch::{args, blocks, int};
use super::{Gpu, Launch, Op, expect_equal, expect_multiple};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

/// The tiles of kernels/matmul_argmax.cu: rows, columns, dynamic shared memory in bytes; both have `THREADS` threads.
const TILES: [(&str, usize, usize, u32); 2] = [
    ("matmul_argmax_bf16_32x64", 32, 64, 6 * 96 * 64),
    ("matmul_argmax_bf16_128x128", 128, 128, 4 * 256 * 64),
];
const THREADS: u32 = 128;

/// Threads of a block that reduces tiles: `kBlock` in kernels/matmul_argmax.cu.
const BLOCK: u32 = 256;

/// Number of tiles that [`MatmulArgmax::with_tile`] knows.
pub const ARGMAX_TILES: usize = TILES.len();

/// Rows of `partial` for `n` columns: the smallest tile's.
pub fn argmax_partials(n: usize) -> usize {
    n.div_ceil(TILES[0].2)
}

/// The op; built with [`matmul_argmax`].
pub struct MatmulArgmax {
    y: Tensor,
    partial: Tensor,
    x: Tensor,
    w: Tensor,
    tile: Option<usize>,
}

/// `y[m] = argmax_n (x @ wᵀ)[m,n]`, the first of equal ones; `y` `(M)` i32, `x` `(M, K)`, `w` `(N, K)`; `partial` `(argmax_partials(N), M, 2)` i32 is
/// room for a kernel's tiles.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn matmul_argmax(y: &Tensor, partial: &Tensor, x: &Tensor, w: &Tensor) -> Result<MatmulArgmax> {
    let ([m, k], [n, depth]) = (x.dims("matmul_argmax x")?, w.dims("matmul_argmax w")?);
    expect_equal("matmul_argmax depth", depth, k)?;
    y.expect("matmul_argmax y", &[m])?;
    partial.expect("matmul_argmax partial", &[argmax_partials(n), m, 2])?;
    Ok(MatmulArgmax { y: y.clone(), partial: partial.clone(), x: x.clone(), w: w.clone(), tile: None })
}

impl MatmulArgmax {
    /// Fixes the kernel's tile, by number below [`ARGMAX_TILES`]: for tests and benches.
    pub fn with_tile(mut self, tile: usize) -> Self {
        self.tile = Some(tile);
        self
    }
}

impl Op for MatmulArgmax {
    fn kind(&self) -> &'static str {
        "matmul_argmax"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x, &self.w]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y, &self.partial]
    }
    fn flops(&self) -> u64 {
        2 * (self.x.matrix().0 * self.w.len()) as u64
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let ([m, k], [n, _]) = (self.x.dims("matmul_argmax x")?, self.w.dims("matmul_argmax w")?);
        expect_multiple("matmul_argmax K", k, 8)?; // 16-byte copies
        if m == 0 {
            return Ok(Vec::new());
        }
        let fits = || TILES.iter().find(|t| m <= t.1).unwrap_or(&TILES[1]);
        let &(entry, tile_m, tile_n, smem) = self.tile.and_then(|t| TILES.get(t)).unwrap_or_else(fits);
        let tiles = n.div_ceil(tile_n);
        let [rows, columns, depth, tiles_] = [m, n, k, tiles].map(|n| int("matmul_argmax extent", n));
        let (rows, grid) = (rows?, blocks("matmul_argmax tiles", m.div_ceil(tile_m) * tiles)?);
        let products = args![&self.partial, &self.x, &self.w, rows, columns?, depth?];
        let whole = args![&self.y, &self.partial, rows, tiles_?];
        Ok(vec![
            Launch { entry, grid: [grid, 1, 1], block: [THREADS, 1, 1], smem, args: products },
            Launch {
                entry: "matmul_argmax_tiles",
                grid: [rows as u32, 1, 1],
                block: [BLOCK, 1, 1],
                smem: 0,
                args: whole,
            },
        ])
    }
    fn run(&self, m: &Memory) {
        let (x, w, n) = (m.f32(&self.x), m.weights(&self.w), self.w.shape[0]);
        reference::matmul_argmax(m.i32_mut(&self.y), x, w, n, m.precision());
    }
}
