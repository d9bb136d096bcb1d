//! The launch of [`Matmul`](super::Matmul) for at most [`SMALL_ROWS`] rows: kernels/matmul_small.cu, which gives the bits of kernels/matmul.cu.

use super::launch::{args, blocks, int, one};
use super::matmul::Product;
use super::{Gpu, Launch, expect_multiple};
use crate::Result;

/// Rows of x that the kernel takes at most: `kRows` there.
pub const SMALL_ROWS: usize = 16;

/// Kernels for bf16 results, SwiGLU, f32 results, by columns of a block.
const ENTRIES: [(usize, [&str; 3]); 2] = [
    (64, ["matmul_small_bf16_64", "matmul_small_silu_mul_bf16_64", "matmul_small_f32_64"]),
    (32, ["matmul_small_bf16_32", "matmul_small_silu_mul_bf16_32", "matmul_small_f32_32"]),
];

/// Dynamic shared memory, bytes: `kShared` in the kernel.
fn smem(columns: usize, swiglu: bool) -> u32 {
    let slots = if swiglu { 4 * 2 } else { 6 };
    (columns / 8 * slots * 1024 + 2 * SMALL_ROWS * 512 + SMALL_ROWS * 8 * 4) as u32
}

pub(super) fn launch(p: &Product, gpu: &Gpu) -> Result<Vec<Launch>> {
    expect_multiple("matmul K", p.k, 8)?; // 16-byte copies
    // Wide blocks read x less often; half of the multiprocessors can draw all that memory gives.
    let wide = 2 * p.n.div_ceil(ENTRIES[0].0) >= gpu.sms as usize;
    let (columns, entries) = ENTRIES[usize::from(!wide)];
    let [m, n, k, part] = [p.m, p.n, p.k, p.part].map(|n| int("matmul extent", n));
    let (m, n, k) = (m?, n?, k?);
    let (norm, eps) = p.norm.map_or((None, 0.0), |(w, eps)| (Some(w), *eps));
    let (y, x, w, b, ls) = (p.y, p.x, p.w, p.b, p.ls);
    let args = match p.kind {
        0 => args![y, x, w, b, ls, norm, eps, m, n, k, p.then, part?],
        1 => args![y, x, w, p.w3, norm, eps, m, n, k],
        _ => args![y, x, w, b, norm, eps, m, n, k],
    };
    one(Launch {
        entry: entries[p.kind],
        grid: [blocks("matmul columns", p.n.div_ceil(columns))?, 1, 1],
        block: [columns as u32 * 4, 1, 1],
        smem: smem(columns, p.kind == 1),
        args,
    })
}
