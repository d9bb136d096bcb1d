//! The fused projection split into q, k, v; q and k rotated; k and v written to their cache rows.
//! Source: `InternLM2Attention.forward` and `apply_rotary_pos_emb`.

use super::matmul::Shared;
use super::{Heads, Paging};
use crate::ops::PAGE;
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
    let kv_at = |t: usize, g: usize| Some((g * d.cap + at.kv_rows[t] as usize) * d.head_dim);
    split(q, k, v, qkv, d, |t| (at.positions[t], inv_freq), kv_at);
}

/// The same for `k`, `v` `(PAGES, NKV, PAGE, HD)`, with frequencies `inv_freq` `(S, HD/2)` of each slot. A row that is nobody's has its `q`
/// rotated by slot 0's.
pub fn rope_split_paged(
    q: Option<&mut [f32]>,
    k: &mut [f32],
    v: &mut [f32],
    qkv: &[f32],
    at: Paging,
    inv_freq: &[f32],
    heads: usize,
) {
    let hd = at.head_dim;
    let d = Heads { heads, kv_heads: at.kv_heads, cap: PAGE, head_dim: hd };
    let angle = |t: usize| (at.positions[t], &inv_freq[at.seq[t].max(0) as usize * hd / 2..][..hd / 2]);
    let kv_at = |t: usize, g: usize| {
        let (slot, position) = (usize::try_from(at.seq[t]).ok()?, at.positions[t] as usize);
        Some(at.page(slot, position / PAGE, g) + position % PAGE * hd)
    };
    split(q, k, v, qkv, d, angle, kv_at);
}

/// `angle(t)` is row t's position and frequencies, `kv_at(t, g)` the first element of its key (and value) of head g, if it has a place.
fn split<'a>(
    q: Option<&mut [f32]>,
    k: &mut [f32],
    v: &mut [f32],
    qkv: &[f32],
    d: Heads,
    angle: impl Fn(usize) -> (i32, &'a [f32]) + Sync,
    kv_at: impl Fn(usize, usize) -> Option<usize> + Sync,
) {
    let (hd, group) = (d.head_dim, d.heads / d.kv_heads);
    let width = d.kv_heads * (group + 2) * hd;
    let mut turns = vec![(0.0, 0.0); qkv.len() / width * (hd / 2)];
    turns.par_chunks_exact_mut(hd / 2).enumerate().for_each(|(t, turns)| {
        let (position, inv_freq) = angle(t);
        turns.iter_mut().zip(inv_freq).for_each(|(turn, f)| *turn = (position as f32 * f).sin_cos());
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
    let [q, k, v] = [q.unwrap_or_default(), k, v].map(Shared::new);
    (0..d.kv_heads).into_par_iter().for_each(|g| {
        for (t, (row, turns)) in qkv.chunks_exact(width).zip(turns.chunks_exact(hd / 2)).enumerate() {
            let heads = &row[g * (group + 2) * hd..][..(group + 2) * hd];
            // SAFETY: each task owns the rows of its K/V head and of the query heads that go with it; it has one slice at a time.
            let [q, k, v] = [&q, &k, &v].map(|y| |at: usize| unsafe { y.row(at, hd) });
            for j in (0..group).filter(|_| has_q) {
                rotate(q((t * d.heads + g * group + j) * hd), &heads[j * hd..][..hd], turns);
            }
            if let Some(to) = kv_at(t, g) {
                rotate(k(to), &heads[group * hd..][..hd], turns);
                v(to).copy_from_slice(&heads[(group + 1) * hd..]);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Into pages as into one cache: the same q, and each row's key and value in its page.
    #[test]
    fn pages_hold_what_a_cache_holds() {
        let (t, heads, kv_heads, hd) = (4, 4, 2, 8);
        let qkv: Vec<f32> = (0..t * 8 * hd).map(|i| ((i * 37) % 101) as f32 * 0.1 - 5.0).collect();
        let freqs = [inv_freq(1e4, hd), inv_freq(3e4, hd)];
        let (seq, positions, pages) = ([1, 1, -1, 0], [63, 64, 5, 7], [1, 9, 2, 0]);
        let at =
            Paging { seq: &seq, positions: &positions, pages: &pages, max_pages: 2, kv_heads, head_dim: hd };
        let mut q = vec![0.0; t * heads * hd];
        let [mut k, mut v] = [(); 2].map(|()| vec![9.0; 3 * kv_heads * PAGE * hd]);
        rope_split_paged(Some(&mut q), &mut k, &mut v, &qkv, at, &freqs.concat(), heads);
        let mut rest = (k.clone(), v.clone());
        for i in 0..t {
            // alone, in row 0 of a cache of one row
            let d = Heads { heads, kv_heads, cap: 1, head_dim: hd };
            let rows = Rows { positions: &positions[i..=i], kv_rows: &[0] };
            let (mut q1, mut k1, mut v1) =
                (vec![0.0; heads * hd], vec![0.0; kv_heads * hd], vec![0.0; kv_heads * hd]);
            let freq = &freqs[seq[i].max(0) as usize];
            rope_split(Some(&mut q1), &mut k1, &mut v1, &qkv[i * 8 * hd..][..8 * hd], rows, freq, d);
            assert_eq!(q[i * heads * hd..][..heads * hd], q1, "q of row {i}");
            let page = match i {
                0 => 2,
                1 => 0,
                3 => 1,
                _ => continue,
            };
            for g in 0..kv_heads {
                let at = ((page * kv_heads + g) * PAGE + positions[i] as usize % PAGE) * hd;
                assert_eq!((&k[at..at + hd], &v[at..at + hd]), (&k1[g * hd..][..hd], &v1[g * hd..][..hd]));
                rest.0[at..at + hd].fill(9.0);
                rest.1[at..at + hd].fill(9.0);
            }
        }
        assert!(rest.0.iter().chain(&rest.1).all(|&x| x == 9.0), "nothing else is written");
    }
}
