//! Causal attention of packed sequences over ranges of the K/V cache; see `reference/attention_ranges.rs`.

use super::attention::BLOCK;
use super::launch::{args, blocks, blocks_yz, int, one};
use super::{Gpu, Launch, Op, expect_equal, expect_multiple};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::{DType, Place, Tensor};
use crate::reference;

/// i32 fields of a segment: first row and number of its queries; first row and length of two earlier K/V ranges,
/// each seen in full; first K/V row of its own range, which is causal and as long as its queries.
pub const SEGMENT: usize = 7;

/// Keys and values of every layer, by K/V row.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// `(L, NKV, CAP, HD)`
    pub k: Tensor,
    /// `(L, NKV, CAP, HD)`
    pub v: Tensor,
}

impl KvCache {
    /// For `cap` rows, in the state buffers `state` and `state + 1`.
    pub fn new(state: u32, layers: usize, heads: usize, cap: usize, head_dim: usize) -> Self {
        let t =
            |name: &str, i| Tensor::new(name, DType::Act, [layers, heads, cap, head_dim], Place::State(i));
        Self { k: t("kv.k", state), v: t("kv.v", state + 1) }
    }
}

/// The head size that there is a kernel for, and its dynamic shared memory, with a segment; a block holds `ROWS` queries: `kShared`, `kRows` in
/// kernels/attention.cuh.
const HEAD: usize = 128;
const SMEM: u32 = 2 * 128 * (128 + 2 * 32) + 32;
const ROWS: usize = 128;

struct AttentionRanges {
    y: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Tensor,
    flops: u64,
}

/// Query `t` of a segment attends to the segment's earlier ranges in full and to its own range up to itself.
///
/// `y`, `q` `(T, NH, HD)`; layer `l` of `kv` `(NKV, CAP, HD)`, each K/V head read by `NH/NKV` query heads;
/// `segments` `(S, SEGMENT)` i32. `context` is the mean number of keys a query sees, for the cost.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn attention_ranges(
    y: &Tensor,
    q: &Tensor,
    kv: &KvCache,
    l: usize,
    segments: &Tensor,
    context: usize,
) -> Result<impl Op + use<>> {
    let [t, nh, hd] = q.dims("attention_ranges q")?;
    y.expect_len("attention_ranges y", t * nh * hd)?;
    let (k, v) = (kv.k.index(l), kv.v.index(l));
    let [nkv, _, khd] = k.dims("attention_ranges k")?;
    expect_equal("attention_ranges head size", khd, hd)?;
    expect_multiple("attention_ranges query heads", nh, nkv)?;
    let [_, fields] = segments.dims("attention_ranges segments")?;
    expect_equal("attention_ranges segment fields", fields, SEGMENT)?;
    let flops = 4 * (t * nh * hd * context) as u64;
    Ok(AttentionRanges { y: y.clone(), q: q.clone(), k, v, segments: segments.clone(), flops })
}

impl Op for AttentionRanges {
    fn kind(&self) -> &'static str {
        "attention_ranges"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.q, &self.k, &self.v, &self.segments]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn flops(&self) -> u64 {
        self.flops
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let ([t, nh, hd], [nkv, cap, _]) = (self.q.dims("q")?, self.k.dims("k")?);
        let (s, group) = (self.segments.shape[0], nh / nkv);
        expect_equal("attention_ranges head size", hd, HEAD)?;
        if t == 0 {
            return Ok(Vec::new());
        }
        let [count, group_size, cap] = [s, group, cap].map(|n| int("attention_ranges extent", n));
        let kv = [&self.k, &self.v];
        one(Launch {
            entry: "attention_ranges_bf16_hd128",
            // a tile that is not full for every segment
            grid: [
                blocks("attention_ranges rows", t * group / ROWS + s)?,
                blocks_yz("attention_ranges K/V heads", nkv)?,
                1,
            ],
            block: [BLOCK, 1, 1],
            smem: SMEM,
            args: args![&self.y, &self.q, kv[0], kv[1], &self.segments, count?, group_size?, cap?],
        })
    }
    fn run(&self, m: &Memory) {
        let (heads, [kv_heads, cap, head_dim]) = (self.q.shape[1], [0, 1, 2].map(|i| self.k.shape[i]));
        let d = reference::Heads { heads, kv_heads, cap, head_dim };
        let (k, v) = (m.f32(&self.k), m.f32(&self.v));
        let (y, q, segments) = (m.f32_mut(&self.y), m.f32(&self.q), m.i32(&self.segments));
        reference::attention_ranges(y, q, k, v, segments, d, m.precision());
    }
}
