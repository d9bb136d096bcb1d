//! Softmax attention without a mask; see `reference/attention.rs`.

use super::{Op, expect_equal, expect_multiple};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::{Tensor, Window};
use crate::reference;

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
    fn run(&self, m: &Memory) {
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|w| m.window(w));
        reference::attention(m.f32_mut(&self.y), q, k, v, self.batch, self.heads);
    }
}
