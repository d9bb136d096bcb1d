//! `y = epilogue(x @ wᵀ + b)` with f32 operands and sums: bf16 weights are widened a tile at a time, the products are the matmul library's.
//!
//! A task owns a tile of `y`'s columns: it widens its weight rows `K_TILE` columns at a time, accumulates the product in a buffer that
//! stays in L2, applies the epilogue there, and stores.

use super::{Precision, Weights, math};
use rayon::prelude::*;
use std::marker::PhantomData;

/// Weight rows of one task.
const N_TILE: usize = 128;
/// Columns widened at a time.
const K_TILE: usize = 512;
/// Rows of `x` of one task.
const M_TILE: usize = 512;

/// What happens to the product before it is stored; see [`crate::ops::Epilogue`].
#[derive(Clone, Copy)]
pub enum Then<'a> {
    /// `y = v`
    Store,
    /// `y = gelu(v)`, erf form
    Gelu,
    /// `y = max(v, 0)`
    Relu,
    /// `y += v`
    Residual,
    /// `y += ls[n] * v`
    ScaledResidual(&'a [f32]),
    /// `y = silu(v) * (x @ w3ᵀ)`
    SiluMul(Weights<'a>),
}

/// A matrix operand: element `(i, j)` is `data[i*rows + j*cols]`.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
}

impl Operand<'_> {
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, ..self }
    }

    fn holds(&self, m: usize, n: usize) -> bool {
        m == 0 || n == 0 || (m - 1) * self.rows + (n - 1) * self.cols < self.data.len()
    }
}

/// `y (m, n) = [y +] a (m, k) @ b (k, n)` on one thread; rows of `y` are `stride` apart.
pub(crate) fn gemm(y: &mut [f32], stride: usize, add: bool, [m, n, k]: [usize; 3], a: Operand, b: Operand) {
    assert!(a.holds(m, k) && b.holds(k, n) && (Operand { data: y, rows: stride, cols: 1 }).holds(m, n));
    // SAFETY: the assertion keeps every element that the library touches inside the three slices, and `y` is borrowed mutably.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.cols as isize,
            a.rows as isize,
            b.data.as_ptr(),
            b.cols as isize,
            b.rows as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A slice that several tasks write at places of their own.
pub(crate) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    _life: PhantomData<&'a mut [f32]>,
}

// SAFETY: only `write` and `row` touch the memory, and their callers promise disjoint ranges.
unsafe impl Sync for Shared<'_> {}
// SAFETY: as above.
unsafe impl Send for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(y: &'a mut [f32]) -> Self {
        Self { start: y.as_mut_ptr(), len: y.len(), _life: PhantomData }
    }

    /// `y[at..at + x.len()] = x`.
    ///
    /// # Safety
    /// No other task may touch that range.
    pub unsafe fn write(&self, at: usize, x: &[f32]) {
        // SAFETY: the caller's promise.
        unsafe { self.row(at, x.len()) }.copy_from_slice(x);
    }

    /// `y[at..at + len]`.
    ///
    /// # Safety
    /// No other task may touch that range while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at + len <= self.len);
        // SAFETY: inside the slice by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

/// `y (M, n)`, `x (M, K)`, `w (n, K)`, `b (n)`.
pub fn matmul(
    y: &mut [f32],
    x: &[f32],
    w: Weights,
    n: usize,
    b: Option<&[f32]>,
    then: Then,
    _precision: Precision,
) {
    let m = y.len() / n;
    if m == 0 {
        return;
    }
    let k = x.len() / m;
    assert!(x.len() == m * k && w.len() == n * k);
    let y = Shared::new(y);
    let (m_tiles, n_tiles) = (m.div_ceil(M_TILE), n.div_ceil(N_TILE));
    (0..m_tiles * n_tiles).into_par_iter().with_max_len(1).for_each_init(
        Buffers::default,
        |buffers, task| {
            let (row, col) = (task % m_tiles * M_TILE, task / m_tiles * N_TILE);
            let (rows, cols) = (M_TILE.min(m - row), N_TILE.min(n - col));
            let x = &x[row * k..(row + rows) * k];
            product(&mut buffers.y, &mut buffers.w, x, w, [rows, cols, k], col);
            if let Some(b) = b {
                for v in buffers.y.chunks_exact_mut(cols) {
                    v.iter_mut().zip(&b[col..]).for_each(|(v, b)| *v += b);
                }
            }
            match then {
                Then::Gelu => math::gelu(&mut buffers.y),
                Then::Relu => buffers.y.iter_mut().for_each(|v| *v = v.max(0.0)),
                Then::SiluMul(w3) => {
                    product(&mut buffers.up, &mut buffers.w, x, w3, [rows, cols, k], col);
                    math::silu_mul(&mut buffers.y, &buffers.up);
                }
                _ => {}
            }
            for (i, v) in buffers.y.chunks_exact(cols).enumerate() {
                // SAFETY: each task owns its columns of its rows.
                let y = unsafe { y.row((row + i) * n + col, cols) };
                match then {
                    Then::Residual => y.iter_mut().zip(v).for_each(|(y, v)| *y += v),
                    Then::ScaledResidual(ls) => {
                        y.iter_mut().zip(v).zip(&ls[col..]).for_each(|((y, v), ls)| *y += ls * v);
                    }
                    _ => y.copy_from_slice(v),
                }
            }
        },
    );
}

#[derive(Default)]
struct Buffers {
    y: Vec<f32>,
    up: Vec<f32>,
    w: Vec<f32>,
}

/// `y (m, n) = x (m, k) @ w[col..col + n, :]ᵀ`.
fn product(y: &mut Vec<f32>, tile: &mut Vec<f32>, x: &[f32], w: Weights, [m, n, k]: [usize; 3], col: usize) {
    y.resize(m * n, 0.0);
    for first in (0..k).step_by(K_TILE) {
        let len = K_TILE.min(k - first);
        tile.resize(n * len, 0.0);
        for (i, row) in tile.chunks_exact_mut(len).enumerate() {
            w.widen((col + i) * k + first, row);
        }
        let x = Operand { data: &x[first..], rows: k, cols: 1 };
        gemm(y, n, first > 0, [m, n, len], x, Operand { data: tile, rows: len, cols: 1 }.t());
    }
}
