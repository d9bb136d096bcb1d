//! The fused projection split into q, k, v; q and k rotated; k and v written to their cache rows.
//! Source: `InternLM2Attention.forward` and `apply_rotary_pos_emb`.

use super::Heads;
use super::matmul::Shared;
use rayon::prelude::*;

/// Where each row stands.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// Position in its sequence, `(T)`.
    pub positions: &'a [i32],
    /// Row of the K/V cache, `(T)`.
    pub kv_rows: &'a [i32],
}

/// `theta^(-2i/HD)` in f32, as the published code computes it.
pub fn inv_freq(theta: f64, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32)).collect()
}

/// `qkv` `(T, NKV, NH/NKV + 2, HD)`, `q` `(T, NH, HD)`, `k`, `v` `(NKV, CAP, HD)`. Pairs are `(i, i + HD/2)`.
pub fn rope_split(
    q: Option<&mut [f32]>,
    k: &mut [f32],
    v: &mut [f32],
    qkv: &[f32],
    at: Rows,
    inv_freq: &[f32],
    d: Heads,
) {
    let (hd, group) = (d.head_dim, d.heads / d.kv_heads);
    let width = d.kv_heads * (group + 2) * hd;
    let mut turns = vec![(0.0, 0.0); qkv.len() / width * inv_freq.len()];
    turns.par_chunks_exact_mut(inv_freq.len()).zip(at.positions).for_each(|(turns, position)| {
        turns.iter_mut().zip(inv_freq).for_each(|(turn, f)| *turn = (*position as f32 * f).sin_cos());
    });
    let rotate = |y: &mut [f32], x: &[f32], turns: &[(f32, f32)]| {
        let (y1, y2) = y.split_at_mut(hd / 2);
        let (x1, x2) = x.split_at(hd / 2);
        for (i, (sin, cos)) in turns.iter().enumerate() {
            y1[i] = x1[i] * cos - x2[i] * sin;
            y2[i] = x2[i] * cos + x1[i] * sin;
        }
    };
    let has_q = q.is_some();
    let q = Shared::new(q.unwrap_or_default());
    let cache = k.par_chunks_exact_mut(d.cap * hd).zip(v.par_chunks_exact_mut(d.cap * hd));
    cache.enumerate().for_each(|(g, (k, v))| {
        for (t, (row, turns)) in qkv.chunks_exact(width).zip(turns.chunks_exact(inv_freq.len())).enumerate() {
            let heads = &row[g * (group + 2) * hd..][..(group + 2) * hd];
            for j in (0..group).filter(|_| has_q) {
                // SAFETY: each task owns the query heads of its K/V head.
                let q = unsafe { q.row((t * d.heads + g * group + j) * hd, hd) };
                rotate(q, &heads[j * hd..][..hd], turns);
            }
            let to = at.kv_rows[t] as usize * hd;
            rotate(&mut k[to..to + hd], &heads[group * hd..][..hd], turns);
            v[to..to + hd].copy_from_slice(&heads[(group + 1) * hd..]);
        }
    });
}
