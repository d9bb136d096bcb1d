//! `y = epilogue(x @ wᵀ + b)`; see `gemm.rs` for the product.
//!
//! A task owns a tile of `y`: some rows of `x`, and some columns, which are weight rows. It computes their product transposed in a buffer that stays in L2, applies
//! the epilogue there, and stores. An element's sum runs over k in order, in parts whose sums are added in order, whatever else is in the matrix.

use super::gemm::{Buffer, Kernel, Packed, store_transposed};
use super::matvec::Few;
use super::{Precision, Weights, math};
use rayon::prelude::*;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

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

/// A slice that several tasks write at places of their own.
pub(crate) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    _life: PhantomData<&'a mut [f32]>,
}

// SAFETY: only `row` and what is done with `place` touch the memory, in ranges that are disjoint by their callers' promise.
unsafe impl Sync for Shared<'_> {}
// SAFETY: as above.
unsafe impl Send for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(y: &'a mut [f32]) -> Self {
        Self { start: y.as_mut_ptr(), len: y.len(), _life: PhantomData }
    }

    /// Where `y[at..at + len]` starts, which is inside.
    pub fn place(&self, at: usize, len: usize) -> *mut f32 {
        assert!(at + len <= self.len);
        // SAFETY: inside the slice by the assertion.
        unsafe { self.start.add(at) }
    }

    /// `y[at..at + len]`.
    ///
    /// # Safety
    /// No other task may touch that range while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row(&self, at: usize, len: usize) -> &mut [f32] {
        // SAFETY: inside the slice by `place`; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.place(at, len), len) }
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
    precision: Precision,
) {
    let m = y.len() / n;
    if m == 0 {
        return;
    }
    let k = x.len() / m;
    assert!(y.len() == m * n && x.len() == m * k && w.len() == n * k);
    let all = match then {
        Then::SiluMul(w3) => [w, w3],
        _ => [w, w],
    };
    if Few::fits(m, k, &all) {
        let mut words = PACKED.take();
        let few = Few::new(&mut words, x, m, k, precision);
        let product = |yt: &mut Buffer, _: &mut Buffer, w: Weights, next: (Weights, usize), n, _| {
            few.product(yt, w, n, next)
        };
        run_tasks(y, n, [few.task_rows(n), m], w, b, then, product, rows_of(n, then));
        PACKED.set(words);
    } else {
        let row = |i: usize, _| &x[i * k..][..k];
        matmul_parts(y, [1, k], row, w, n, b, then, precision, rows_of(n, then));
    }
}

/// A tile of the product, transposed: value `[r*stride + i]` is that of weight row `first + r` and row `top + i` of `x`.
pub(super) struct Tile<'a> {
    pub yt: &'a [f32],
    pub stride: usize,
    pub first: usize,
    pub top: usize,
    /// Weight rows, and rows of `x`.
    pub shape: [usize; 2],
}

/// Stores a tile as its place in the rows of `y (M, n)`.
fn rows_of(n: usize, then: Then) -> impl Fn(&Shared, Tile) + Sync {
    let add = matches!(then, Then::Residual | Then::ScaledResidual(_));
    move |y, Tile { yt, stride, first, top, shape: [rows, height] }| {
        let to = y.place(top * n + first, (height - 1) * n + rows);
        // SAFETY: inside by `place`; each task owns its columns of its rows.
        unsafe { store_transposed(to, n, yt, stride, [rows, height], add) };
    }
}

/// The same for rows of `x` in `parts` of `len` values each, `x(i, part)`, empty for zeros; `store` puts each tile of the product into `y`.
#[allow(clippy::too_many_arguments)]
pub(super) fn matmul_parts<'x>(
    y: &mut [f32],
    [parts, len]: [usize; 2],
    x: impl Fn(usize, usize) -> &'x [f32] + Sync,
    w: Weights,
    n: usize,
    b: Option<&[f32]>,
    then: Then,
    precision: Precision,
    store: impl Fn(&Shared, Tile) + Sync,
) {
    let m = y.len() / n;
    assert!(y.len() == m * n && w.len() == n * parts * len);
    let mut words = PACKED.take();
    let packed = Packed::new(&mut words, m, [parts, len], x, Kernel::new(precision, m, len));
    let product = |yt: &mut Buffer, scratch: &mut Buffer, w: Weights, _: (Weights, usize), n, m| {
        packed.product(yt, scratch, w, n, m)
    };
    run_tasks(y, n, packed.task_shape(n), w, b, then, product, store);
    PACKED.set(words);
}

/// Tasks of `rows` columns of y, which are weight rows, and `height` rows; `product(yt, scratch, w, next, columns, rows)` puts the transposed
/// product into `yt` and returns the distance of its rows, `next` being which weights, from which row on, will be read after them; `store` writes
/// a task's own elements of `y`.
#[allow(clippy::too_many_arguments)]
fn run_tasks(
    y: &mut [f32],
    n: usize,
    [tile, task_rows]: [usize; 2],
    w: Weights,
    b: Option<&[f32]>,
    then: Then,
    product: impl Fn(&mut Buffer, &mut Buffer, Weights, (Weights, usize), Range<usize>, Range<usize>) -> usize
    + Sync,
    store: impl Fn(&Shared, Tile) + Sync,
) {
    let m = y.len() / n;
    assert!(b.is_none_or(|b| b.len() == n));
    let m_tasks = m.div_ceil(task_rows);
    let y = Shared::new(y);
    (0..n.div_ceil(tile) * m_tasks).into_par_iter().with_max_len(1).for_each(|task| {
        let (first, top) = (task / m_tasks * tile, task % m_tasks * task_rows);
        let (rows, height) = (tile.min(n - first), task_rows.min(m - top));
        let mut buffers = BUFFERS.take();
        let Buffers { yt, up, scratch } = &mut buffers;
        let mut product = |y: &mut Buffer, w: Weights, next: (Weights, usize)| {
            product(y, scratch, w, next, first..first + rows, top..top + height)
        };
        let behind = (w, first + rows);
        let next = if let Then::SiluMul(w3) = then { (w3, first) } else { behind };
        let stride = product(yt, w, next);
        let yt = yt.floats(rows * stride);
        if let Some(b) = b {
            yt.chunks_exact_mut(stride).zip(&b[first..first + rows]).for_each(|(y, b)| math::add(y, *b));
        }
        match then {
            Then::Store | Then::Residual => {}
            Then::Gelu => math::gelu(yt),
            Then::Relu => math::relu(yt),
            Then::ScaledResidual(ls) => {
                let scale = |(y, ls): (&mut [f32], &f32)| y.iter_mut().for_each(|y| *y *= ls);
                yt.chunks_exact_mut(stride).zip(&ls[first..first + rows]).for_each(scale);
            }
            Then::SiluMul(w3) => {
                product(up, w3, behind);
                math::silu_mul(yt, up.floats(rows * stride));
            }
        }
        store(&y, Tile { yt, stride, first, top, shape: [rows, height] });
        BUFFERS.set(buffers);
    });
}

thread_local! {
    static PACKED: Cell<Buffer> = Cell::default();
    static BUFFERS: Cell<Buffers> = Cell::default();
}

#[derive(Default)]
struct Buffers {
    yt: Buffer,
    up: Buffer,
    scratch: Buffer,
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    /// Small integers, whose products and sums are exact in any order: every shape of tail must give the exact answer in both
    /// precisions, with every epilogue that stays exact.
    #[test]
    fn small_integers_are_exact_at_every_edge() {
        let shapes = [1, 2, 8, 9, 16, 17, 31, 32, 33].map(|m| (m, 49, 66));
        let more = [
            (7, 1, 2),
            (7, 12, 1024),
            (7, 13, 1026),
            (400, 200, 30),
            (33, 47, 2050),
            (9, 48, 7),
            (5, 97, 3),
            (40, 96, 4098),
        ];
        for (m, n, k) in shapes.into_iter().chain(more) {
            let value = |i: usize, by: usize| ((i * by) % 15) as f32 - 7.0;
            let x: Vec<f32> = (0..m * k).map(|i| value(i, 7)).collect();
            let w: Vec<f32> = (0..n * k).map(|i| value(i, 11)).collect();
            let wb: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
            let b: Vec<f32> = (0..n).map(|i| value(i, 3)).collect();
            for precision in [Precision::F32, Precision::Bf16] {
                for weights in [Weights::F32(&w), Weights::Bf16(&wb)] {
                    let mut y: Vec<f32> = (0..m * n).map(|i| value(i, 5)).collect();
                    matmul(&mut y, &x, weights, n, Some(&b), Then::Residual, precision);
                    for (i, y) in y.iter().enumerate() {
                        let dot: f32 = (0..k).map(|j| x[i / n * k + j] * w[i % n * k + j]).sum();
                        let exact = value(i, 5) + dot + b[i % n];
                        assert_eq!(*y, exact, "{precision:?} ({m}, {n}, {k}) at {i}");
                    }
                }
            }
        }
    }

    /// A row's result has the same bits alone and among any number of others.
    #[test]
    fn a_row_does_not_depend_on_the_others() {
        // few rows go through `matvec.rs` if k is a multiple of 32, more through `gemm.rs`; the others are all that there is of parts beside one
        // another and of what is left over
        for (n, k, precision) in [700, 704, 1024, 2048, 4096 + 1024 + 96, 8192 + 4096 + 2048 + 544]
            .into_iter()
            .flat_map(|k| [Precision::F32, Precision::Bf16].map(|p| (70, k, p)))
        {
            let value = |i: usize| ((i * 2_654_435_761) % 1_000_003) as f32 / 500_001.5 - 1.0;
            let w: Vec<bf16> = (0..n * k).map(|i| bf16::from_f32(value(i + 17))).collect();
            let x: Vec<f32> = (0..400 * k).map(value).collect();
            let run = |m: usize| {
                let mut y = vec![0.0; m * n];
                matmul(&mut y, &x[..m * k], Weights::Bf16(&w), n, None, Then::Gelu, precision);
                y
            };
            let alone = run(1);
            for m in [2, 3, 8, 9, 16, 17, 33, 400] {
                assert_eq!(run(m)[..n], alone, "{precision:?}, k {k}, {m} rows");
            }
        }
    }

    /// Against the `gemm` crate on values with outliers.
    #[test]
    fn agrees_with_the_library() {
        let (m, n, k) = (65, 130, 1500);
        let value = |i: usize| ((i * 2_654_435_761) % 1_000_003) as f32 / 500_001.5 - 1.0;
        let x: Vec<f32> = (0..m * k).map(|i| if i % 97 == 0 { 30.0 * value(i) } else { value(i) }).collect();
        let w: Vec<bf16> = (0..n * k).map(|i| bf16::from_f32(value(i + 17))).collect();
        let wide: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
        let (mut y, mut exact) = (vec![0.0; m * n], vec![0.0; m * n]);
        let parallel = gemm::Parallelism::None;
        // SAFETY: the pointers are to m*n, m*k and n*k values, with those strides.
        unsafe {
            let (y, x, w) = (exact.as_mut_ptr(), x.as_ptr(), wide.as_ptr());
            let (n_step, k_step) = (n as isize, k as isize);
            gemm::gemm(
                m, n, k, y, 1, n_step, false, x, 1, k_step, w, k_step, 1, 0.0, 1.0, false, false, false,
                parallel,
            );
        }
        let relative = |y: &[f32]| {
            let sum = |f: &dyn Fn(usize) -> f64| (0..y.len()).map(f).sum::<f64>();
            let off = |i: usize| f64::from(y[i] - exact[i]).powi(2);
            (sum(&off) / sum(&|i| f64::from(exact[i]).powi(2))).sqrt()
        };
        matmul(&mut y, &x, Weights::Bf16(&w), n, None, Then::Store, Precision::F32);
        assert!(relative(&y) < 1e-6, "f32: {}", relative(&y));
        matmul(&mut y, &x, Weights::Bf16(&w), n, None, Then::Store, Precision::Bf16);
        assert!(relative(&y) < 4e-3, "bf16 operands: {}", relative(&y)); // half an ulp of bf16 is 2e-3
    }
}
