//! Softmax attention without a mask; see `reference/attention.rs`.

use super::launch::{args, blocks, blocks_yz, int, one};
use super::{Gpu, Launch, Op, expect_equal, expect_multiple};
use crate::device::cpu::Memory;
use crate::graph::{Tensor, Window};
use crate::reference;
use crate::{Error, Result};

/// Threads a block; by head size its kernel, the queries of a block, and its dynamic shared memory: `kThreads`, `kRows`, `kShared` in
/// kernels/attention.cuh.
pub(super) const BLOCK: u32 = 128;
const HEADS: [(usize, &str, usize, u32); 2] = [
    (64, "attention_bf16_hd64", 128, 2 * 64 * (128 + 2 * 64)),
    (128, "attention_bf16_hd128", 128, 2 * 128 * (128 + 2 * 32)),
];

struct Attention {
    y: Tensor,
    q: Window,
    k: Window,
    v: Window,
    batch: usize,
    heads: usize,
}

/// `y = softmax(q kᵀ / √HD) v`, each head and each of `batch` items on its own.
///
/// `y` and the window `q` hold `batch*Tq` rows of `NH*HD` columns, `k` and `v` `batch*Tk` rows of as many.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit; for rows that `batch`, or columns that `heads`, does not divide.
pub fn attention(
    y: &Tensor,
    q: &Window,
    k: &Window,
    v: &Window,
    batch: usize,
    heads: usize,
) -> Result<impl Op + use<>> {
    let (rows, c) = y.matrix();
    expect_multiple("attention C", c, heads)?;
    expect_multiple("attention query rows", rows, batch)?;
    expect_multiple("attention key rows", k.of.matrix().0, batch)?;
    expect_equal("attention q rows", q.of.matrix().0, rows)?;
    expect_equal("attention v rows", v.of.matrix().0, k.of.matrix().0)?;
    for (what, w) in [("attention q", q), ("attention k", k), ("attention v", v)] {
        expect_equal(what, w.width, c)?;
    }
    Ok(Attention { y: y.clone(), q: q.clone(), k: k.clone(), v: v.clone(), batch, heads })
}

impl Op for Attention {
    fn kind(&self) -> &'static str {
        "attention"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.q.of, &self.k.of, &self.v.of]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn flops(&self) -> u64 {
        let (rows, c) = self.y.matrix();
        4 * (rows * c * (self.k.of.matrix().0 / self.batch)) as u64
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let (rows, c) = self.y.matrix();
        let (tq, tk) = (rows / self.batch, self.k.of.matrix().0 / self.batch);
        let hd = c / self.heads;
        let Some(&(_, entry, tile, smem)) = HEADS.iter().find(|h| h.0 == hd) else {
            return Err(Error::shape("attention head size", "64 or 128", hd.to_string()));
        };
        if tk == 0 {
            return Err(Error::shape("attention keys", "at least one", "none"));
        }
        let stride = |w: &Window| {
            expect_multiple("attention columns", w.of.matrix().1, 8)?; // 16-byte copies
            expect_multiple("attention columns", w.col, 8)?;
            int("attention stride", w.of.matrix().1)
        };
        let (q, k, v) = (&self.q, &self.k, &self.v);
        expect_equal(
            "attention v columns, as the kernel reads k and v alike",
            stride(v)? as usize,
            k.of.matrix().1,
        )?;
        let [queries, keys] = [int("attention Tq", tq)?, int("attention Tk", tk)?];
        one(Launch {
            entry,
            grid: [
                blocks("attention Tq", tq.div_ceil(tile))?,
                blocks_yz("attention heads", self.heads)?,
                blocks_yz("attention items", self.batch)?,
            ],
            block: [BLOCK, 1, 1],
            smem,
            args: args![&self.y, int("attention C", c)?, q, stride(q)?, k, v, stride(k)?, queries, keys],
        })
    }
    fn run(&self, m: &Memory) {
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|w| m.window(w));
        reference::attention(m.f32_mut(&self.y), q, k, v, self.batch, self.heads, m.precision());
    }
}
