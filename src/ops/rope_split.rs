//! q, k, v out of the fused projection, rotated, K and V into the cache; see `reference/rope_split.rs`.

use super::attention_paged::{KvPages, PAGE, Paged};
use super::launch::{args, blocks, int, one};
use super::{Arg, Gpu, KvCache, Launch, Op, expect_equal, expect_multiple};
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;
use crate::{Error, Result};

/// Threads a block: `kBlock` in kernels/rope_split.cu.
const BLOCK: u32 = 256;

struct RopeSplit {
    q: Option<Tensor>,
    k: Tensor,
    v: Tensor,
    qkv: Tensor,
    positions: Tensor,
    kv_rows: Tensor,
    inv_freq: Tensor,
    heads: usize,
}

/// Splits `qkv` `(T, (NH + 2*NKV)*HD)`, rows grouped by K/V head as NH/NKV query heads, then k, then v; rotates q and k
/// by `positions` `(T)` ("rotate half", frequencies `inv_freq` `(HD/2)` f32); writes `q` `(T, NH, HD)` and rows `kv_rows` `(T)` of layer `l`
/// of `kv`. Without `q` only K and V are written.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
#[allow(clippy::too_many_arguments)]
pub fn rope_split(
    q: Option<&Tensor>,
    kv: &KvCache,
    l: usize,
    qkv: &Tensor,
    positions: &Tensor,
    kv_rows: &Tensor,
    inv_freq: &Tensor,
    heads: usize,
) -> Result<impl Op + use<>> {
    let (k, v) = (kv.k.index(l), kv.v.index(l));
    let [nkv, _, hd] = k.dims("rope_split k")?;
    let [t, width] = qkv.dims("rope_split qkv")?;
    expect_equal("rope_split qkv columns", width, (heads + 2 * nkv) * hd)?;
    if let Some(q) = q {
        q.expect("rope_split q", &[t, heads, hd])?;
    }
    positions.expect("rope_split positions", &[t])?;
    kv_rows.expect("rope_split kv_rows", &[t])?;
    inv_freq.expect("rope_split inv_freq", &[hd / 2])?;
    Ok(RopeSplit {
        q: q.cloned(),
        k,
        v,
        qkv: qkv.clone(),
        positions: positions.clone(),
        kv_rows: kv_rows.clone(),
        inv_freq: inv_freq.clone(),
        heads,
    })
}

impl Op for RopeSplit {
    fn kind(&self) -> &'static str {
        "rope_split"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.qkv, &self.positions, &self.kv_rows, &self.inv_freq]
    }
    fn writes(&self) -> Vec<&Tensor> {
        self.q.iter().chain([&self.k, &self.v]).collect()
    }
    fn cost(&self) -> crate::graph::Cost {
        // of the cache only the rows written count
        let (t, width) = self.qkv.matrix();
        crate::graph::Cost { flops: 0, bytes: (2 * 2 * t * width) as u64 }
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let (t, [nkv, cap, hd]) = (self.qkv.matrix().0, [0, 1, 2].map(|i| self.k.shape[i]));
        let (positions, kv_rows) = (&self.positions, &self.kv_rows);
        let mut args = args![
            self.q.as_ref(),
            &self.k,
            &self.v,
            &self.qkv,
            positions,
            kv_rows,
            &self.inv_freq,
            int("rope_split CAP", cap)?,
        ];
        args.extend(extents(self.heads, nkv, hd, cap)?);
        one(Launch {
            entry: "rope_split_bf16",
            grid: [blocks("rope_split T", t)?, 1, 1],
            block: [BLOCK, 1, 1],
            smem: 0,
            args,
        })
    }
    fn run(&self, m: &Memory) {
        let [kv_heads, cap, head_dim] = [0, 1, 2].map(|i| self.k.shape[i]);
        let d = reference::Heads { heads: self.heads, kv_heads, cap, head_dim };
        let q = self.q.as_ref().map(|q| m.f32_mut(q));
        let (k, v) = (m.f32_mut(&self.k), m.f32_mut(&self.v));
        let at = reference::Rows { positions: m.i32(&self.positions), kv_rows: m.i32(&self.kv_rows) };
        reference::rope_split(q, k, v, m.f32(&self.qkv), at, m.f32(&self.inv_freq), d);
    }
}

struct RopeSplitPaged {
    q: Option<Tensor>,
    qkv: Tensor,
    at: Paged,
    inv_freq: Tensor,
    heads: usize,
}

/// [`rope_split`] into pages: row `t` fills position `positions[t]` of slot `seq[t]`, page `pages[seq[t], positions[t] / PAGE]`; one whose
/// `seq` is -1 fills nothing. `inv_freq` `(S, HD/2)` f32, a row a slot; `seq`, `positions` `(T)`, `pages` `(S, MAX_PAGES)` i32.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
#[allow(clippy::too_many_arguments)]
pub fn rope_split_paged(
    q: Option<&Tensor>,
    kv: &KvPages,
    l: usize,
    qkv: &Tensor,
    seq: &Tensor,
    positions: &Tensor,
    pages: &Tensor,
    inv_freq: &Tensor,
    heads: usize,
) -> Result<impl Op + use<>> {
    let at = Paged::new("rope_split_paged", kv, l, seq, positions, pages)?;
    let [nkv, hd] = at.heads();
    let [t, width] = qkv.dims("rope_split_paged qkv")?;
    expect_equal("rope_split_paged qkv columns", width, (heads + 2 * nkv) * hd)?;
    at.seq.expect("rope_split_paged seq", &[t])?;
    if let Some(q) = q {
        q.expect("rope_split_paged q", &[t, heads, hd])?;
    }
    inv_freq.expect("rope_split_paged inv_freq", &[pages.shape[0], hd / 2])?;
    Ok(RopeSplitPaged { q: q.cloned(), qkv: qkv.clone(), at, inv_freq: inv_freq.clone(), heads })
}

impl Op for RopeSplitPaged {
    fn kind(&self) -> &'static str {
        "rope_split_paged"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.qkv, &self.at.seq, &self.at.positions, &self.at.pages, &self.inv_freq]
    }
    fn writes(&self) -> Vec<&Tensor> {
        self.q.iter().chain([&self.at.k, &self.at.v]).collect()
    }
    fn cost(&self) -> crate::graph::Cost {
        let (t, width) = self.qkv.matrix();
        crate::graph::Cost { flops: 0, bytes: (2 * 2 * t * width) as u64 }
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let (t, [nkv, hd], at) = (self.qkv.matrix().0, self.at.heads(), &self.at);
        let extents = extents(self.heads, nkv, hd, at.max_pages() * PAGE)?;
        let mut args = args![
            self.q.as_ref(),
            &at.k,
            &at.v,
            &self.qkv,
            &at.seq,
            &at.positions,
            &at.pages,
            &self.inv_freq,
            int("rope_split_paged pages", at.max_pages())?,
        ];
        args.extend(extents);
        one(Launch {
            entry: "rope_split_paged_bf16",
            grid: [blocks("rope_split_paged T", t)?, 1, 1],
            block: [BLOCK, 1, 1],
            smem: 0,
            args,
        })
    }
    fn run(&self, m: &Memory) {
        let q = self.q.as_ref().map(|q| m.f32_mut(q));
        let (k, v) = (m.f32_mut(&self.at.k), m.f32_mut(&self.at.v));
        let (qkv, inv_freq) = (m.f32(&self.qkv), m.f32(&self.inv_freq));
        reference::rope_split_paged(q, k, v, qkv, self.at.paging(m), inv_freq, self.heads);
    }
}

/// Positions of a sequence are below this: the kernel leaves out what sine and cosine need for larger angles.
pub const MAX_POSITIONS: usize = 100_000;

/// `NH`, `NKV`, `HD` as both kernels take them; there is room for `positions`.
fn extents(nh: usize, nkv: usize, hd: usize, positions: usize) -> Result<[Arg; 3]> {
    if positions > MAX_POSITIONS {
        let expected = format!("at most {MAX_POSITIONS}");
        return Err(Error::shape("rope_split K/V positions", expected, positions.to_string()));
    }
    expect_multiple("rope_split HD", hd, 16)?;
    if hd > 2 * BLOCK as usize {
        return Err(Error::shape("rope_split HD", format!("at most {}", 2 * BLOCK), hd.to_string()));
    }
    let [nh, nkv, hd] = [nh, nkv, hd].map(|n| int("rope_split extent", n));
    Ok([nh?, nkv?, hd?].map(Arg::from))
}
