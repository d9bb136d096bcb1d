//! Causal attention of packed rows over K/V pages; see `reference/attention_paged.rs`.

use super::launch::{args, blocks, blocks_yz, int, one};
use super::{Gpu, Launch, Op, expect_equal, expect_multiple};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::{Cost, DType, Place, Tensor};
use crate::reference;

/// Rows of a K/V page: the keys of one step of the attention kernels.
pub const PAGE: usize = 64;

/// Keys and values of every layer, in pages of [`PAGE`] rows.
#[derive(Clone, Debug)]
pub struct KvPages {
    /// `(L, PAGES, NKV, PAGE, HD)`
    pub k: Tensor,
    /// `(L, PAGES, NKV, PAGE, HD)`
    pub v: Tensor,
}

impl KvPages {
    /// Of `pages` pages, in the state buffers `state` and `state + 1`.
    pub fn new(state: u32, layers: usize, pages: usize, heads: usize, head_dim: usize) -> Self {
        let shape = [layers, pages, heads, PAGE, head_dim];
        let t = |name: &str, i| Tensor::new(name, DType::Act, shape, Place::State(i));
        Self { k: t("kv.k_pages", state), v: t("kv.v_pages", state + 1) }
    }
}

/// Rows, their sequences, and the sequences' pages: what all ops over K/V pages read. i32.
#[derive(Clone)]
pub(super) struct Paged {
    /// One layer, `(PAGES, NKV, PAGE, HD)`.
    pub k: Tensor,
    pub v: Tensor,
    /// `(T)`
    pub seq: Tensor,
    /// `(T)`
    pub positions: Tensor,
    /// `(S, MAX_PAGES)`
    pub pages: Tensor,
}

impl Paged {
    pub fn new(
        op: &str,
        kv: &KvPages,
        l: usize,
        seq: &Tensor,
        positions: &Tensor,
        pages: &Tensor,
    ) -> Result<Self> {
        let (k, v) = (kv.k.index(l), kv.v.index(l));
        let [_, _, page, _] = k.dims(&format!("{op} k"))?;
        v.expect(&format!("{op} v"), &k.shape)?;
        expect_equal(&format!("{op} rows of a page"), page, PAGE)?;
        let [t] = seq.dims(&format!("{op} seq"))?;
        positions.expect(&format!("{op} positions"), &[t])?;
        let [_, _] = pages.dims(&format!("{op} pages"))?;
        Ok(Self { k, v, seq: seq.clone(), positions: positions.clone(), pages: pages.clone() })
    }

    /// Heads of K/V and head size.
    pub fn heads(&self) -> [usize; 2] {
        [self.k.shape[1], self.k.shape[3]]
    }

    pub fn max_pages(&self) -> usize {
        self.pages.shape[1]
    }

    pub fn paging<'a>(&self, m: &Memory<'a>) -> reference::Paging<'a> {
        let [kv_heads, head_dim] = self.heads();
        reference::Paging {
            seq: m.i32(&self.seq),
            positions: m.i32(&self.positions),
            pages: m.i32(&self.pages),
            max_pages: self.max_pages(),
            kv_heads,
            head_dim,
        }
    }
}

/// Operands of both attentions over pages.
pub(super) struct Queries {
    pub y: Tensor,
    pub q: Tensor,
    pub at: Paged,
    /// Mean number of keys a row sees.
    pub context: usize,
}

impl Queries {
    pub fn new(op: &str, y: &Tensor, q: &Tensor, at: Paged, context: usize) -> Result<Self> {
        let [t, nh, hd] = q.dims(&format!("{op} q"))?;
        y.expect_len(&format!("{op} y"), t * nh * hd)?;
        at.seq.expect(&format!("{op} seq"), &[t])?;
        let [nkv, khd] = at.heads();
        expect_equal(&format!("{op} head size"), khd, hd)?;
        expect_multiple(&format!("{op} query heads"), nh, nkv)?;
        Ok(Self { y: y.clone(), q: q.clone(), at, context })
    }

    pub fn reads(&self) -> Vec<&Tensor> {
        vec![&self.q, &self.at.k, &self.at.v, &self.at.seq, &self.at.positions, &self.at.pages]
    }

    /// FLOPs, and the bytes of queries, results and `passes` times the keys and values that rows see.
    pub fn cost(&self, passes: usize) -> Cost {
        let [nkv, hd] = self.at.heads();
        let kv = 2 * passes * self.context * nkv * hd;
        Cost { flops: 4 * (self.q.len() * self.context) as u64, bytes: 2 * (2 * self.q.len() + kv) as u64 }
    }

    pub fn run(&self, m: &Memory) {
        let (y, q) = (m.f32_mut(&self.y), m.f32(&self.q));
        reference::attention_paged(y, q, m.f32(&self.at.k), m.f32(&self.at.v), self.at.paging(m));
    }
}

struct AttentionPaged(Queries);

/// Row `t` attends to the keys of its sequence at positions 0 to `positions[t]`. For rows in chunks (a prompt); [`attention_decode`] gives
/// the same bits, faster, for few rows a sequence.
///
/// `y`, `q` `(T, NH, HD)`; layer `l` of `kv`, each K/V head read by `NH/NKV` query heads; `seq` `(T)` i32, the row's slot of `pages`, or -1:
/// its `y` is zero; `positions` `(T)` i32; `pages` `(S, MAX_PAGES)` i32. Rows of a slot that stand together have ascending positions.
/// `context` is the mean number of keys a row sees, for the cost.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
///
/// [`attention_decode`]: super::attention_decode
#[allow(clippy::too_many_arguments)]
pub fn attention_paged(
    y: &Tensor,
    q: &Tensor,
    kv: &KvPages,
    l: usize,
    seq: &Tensor,
    positions: &Tensor,
    pages: &Tensor,
    context: usize,
) -> Result<impl Op + use<>> {
    let at = Paged::new("attention_paged", kv, l, seq, positions, pages)?;
    Ok(AttentionPaged(Queries::new("attention_paged", y, q, at, context)?))
}

/// The head size that there is a kernel for; threads and queries of a block, and its dynamic shared memory: `kThreads`, `kRows` and
/// `Slots::kShared` in kernels/attention_paged.cu.
const HEAD: usize = 128;
const BLOCK: u32 = 128;
const ROWS: usize = 64;
const SMEM: u32 = 2 * 128 * (64 + 4 * 64);

impl Op for AttentionPaged {
    fn kind(&self) -> &'static str {
        "attention_paged"
    }
    fn reads(&self) -> Vec<&Tensor> {
        self.0.reads()
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.0.y]
    }
    fn flops(&self) -> u64 {
        self.cost().flops
    }
    fn cost(&self) -> Cost {
        self.0.cost(1)
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let (Queries { y, q, at, .. }, [nkv, hd]) = (&self.0, self.0.at.heads());
        let [t, nh, _] = q.dims("attention_paged q")?;
        expect_equal("attention_paged head size", hd, HEAD)?;
        let tiles = blocks("attention_paged tiles", (t * (nh / nkv)).div_ceil(ROWS))?;
        let [rows, heads, kv_heads, max_pages] =
            [t, nh, nkv, at.max_pages()].map(|n| int("attention_paged extent", n));
        one(Launch {
            entry: "attention_paged_bf16_hd128",
            grid: [tiles, blocks_yz("attention_paged K/V heads", nkv)?, 1],
            block: [BLOCK, 1, 1],
            smem: SMEM,
            args: args![
                y,
                q,
                &at.k,
                &at.v,
                &at.seq,
                &at.positions,
                &at.pages,
                rows?,
                heads?,
                kv_heads?,
                max_pages?
            ],
        })
    }
    fn run(&self, m: &Memory) {
        self.0.run(m);
    }
}
