//! Attention over K/V pages for few rows a sequence: the context split over blocks; computed by `reference/attention_paged.rs`.

use super::attention_paged::{KvPages, PAGE, Paged, Queries};
use super::launch::{args, blocks, blocks_yz, int};
use super::{Gpu, Launch, Op, expect_equal};
use crate::device::cpu::Memory;
use crate::graph::{Cost, Tensor};
use crate::{Error, Result};

/// Keys of one part: `kSpan` in kernels/attention_paged.cuh.
const SPAN: usize = 4 * PAGE;

/// Threads a block, and dynamic shared memory: `kThreads` and `kShared` in kernels/attention_decode.cu; threads of the second kernel.
const BLOCK: u32 = 128;
const SMEM: u32 = 2 * 128 * (ROWS as u32 + 4 * 64) + ROWS as u32 * 64 * 4;
/// Queries of a block: `kRows` there.
const ROWS: usize = 16;
const SUM_BLOCK: u32 = 256;

/// The head size that there is a kernel for.
const HEAD: usize = 128;

/// Shape of the f32 scratch of [`attention_decode`]: of each row, head and part, `HD` sums, the largest score, the sum of
/// weights; rows are whole 32-byte sectors.
pub fn attention_parts(t: usize, nh: usize, hd: usize, max_pages: usize) -> [usize; 4] {
    [t, nh, (max_pages * PAGE).div_ceil(SPAN), hd + 8]
}

struct AttentionDecode {
    of: Queries,
    parts: Tensor,
}

/// [`attention_paged`](super::attention_paged) for decoding: every 256 keys are a part, parts run side by side and are then added up in
/// order. Rows of one slot that stand together share the loads of its K/V. `parts` is scratch of the shape [`attention_parts`].
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
#[allow(clippy::too_many_arguments)]
pub fn attention_decode(
    y: &Tensor,
    parts: &Tensor,
    q: &Tensor,
    kv: &KvPages,
    l: usize,
    seq: &Tensor,
    positions: &Tensor,
    pages: &Tensor,
    context: usize,
) -> Result<impl Op + use<>> {
    let at = Paged::new("attention_decode", kv, l, seq, positions, pages)?;
    let of = Queries::new("attention_decode", y, q, at, context)?;
    let [t, nh, hd] = q.dims("attention_decode q")?;
    parts.expect("attention_decode parts", &attention_parts(t, nh, hd, of.at.max_pages()))?;
    Ok(AttentionDecode { of, parts: parts.clone() })
}

impl Op for AttentionDecode {
    fn kind(&self) -> &'static str {
        "attention_decode"
    }
    fn reads(&self) -> Vec<&Tensor> {
        self.of.reads()
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.of.y, &self.parts]
    }
    fn flops(&self) -> u64 {
        self.cost().flops
    }
    fn cost(&self) -> Cost {
        self.of.cost(self.of.q.shape[0])
    }
    fn launch(&self, gpu: &Gpu) -> Result<Vec<Launch>> {
        let (Queries { y, q, at, .. }, parts, [nkv, hd]) = (&self.of, &self.parts, self.of.at.heads());
        let [t, nh, _] = q.dims("attention_decode q")?;
        expect_equal("attention_decode head size", hd, HEAD)?;
        if t == 0 {
            return Ok(Vec::new());
        }
        if nh > ROWS * nkv {
            let expected = format!("at most {ROWS} query heads a K/V head");
            return Err(Error::shape("attention_decode heads", expected, format!("{nh} for {nkv}")));
        }
        // A block may take several parts: no more blocks than two waves, however long the contexts may become.
        let spans = parts.shape[2].min((4 * gpu.sms as usize).div_ceil(t * nkv).max(8));
        let [rows, heads, kv_heads, max_pages] =
            [t, nh, nkv, at.max_pages()].map(|n| int("attention_decode extent", n));
        let (rows, heads, kv_heads, max_pages) = (rows?, heads?, kv_heads?, max_pages?);
        let (seq, positions) = (&at.seq, &at.positions);
        let first = Launch {
            entry: "attention_decode_bf16_hd128",
            grid: [
                blocks("attention_decode rows", t)?,
                blocks_yz("attention_decode K/V heads", nkv)?,
                blocks_yz("attention_decode parts", spans)?,
            ],
            block: [BLOCK, 1, 1],
            smem: SMEM,
            args: args![parts, q, &at.k, &at.v, seq, positions, &at.pages, rows, heads, kv_heads, max_pages],
        };
        let warps = t * nh;
        let second = Launch {
            entry: "attention_decode_sum_bf16_hd128",
            grid: [blocks("attention_decode row heads", warps.div_ceil(SUM_BLOCK as usize / 32))?, 1, 1],
            block: [SUM_BLOCK, 1, 1],
            smem: 0,
            args: args![y, parts, seq, positions, rows, heads, max_pages],
        };
        Ok(vec![first, second])
    }
    fn run(&self, m: &Memory) {
        self.of.run(m);
    }
}
