//! `y = epilogue(x @ wᵀ + b)`; see `reference/matmul.rs`.

use super::launch::{args, blocks, int, one};
use super::{Gpu, Launch, Op, SMALL_ROWS, expect_equal, expect_multiple, matmul_small};
use crate::device::cpu::Memory;
use crate::graph::{DType, Tensor};
use crate::reference;
use crate::{Error, Result};

/// What happens to the product before it is stored.
#[derive(Clone, Debug, Default)]
pub enum Epilogue {
    /// `y = v`
    #[default]
    Store,
    /// `y = v/2 * (1 + erf(v/√2))`
    Gelu,
    /// `y = max(v, 0)`
    Relu,
    /// `y += v`: the residual stream, in place.
    Residual,
    /// `y += ls[n] * v`, `ls` `(N)`: InternViT's layer scale.
    ScaledResidual(Tensor),
    /// `y = silu(v) * (x @ w3ᵀ)`, `w3` `(N, K)`: SwiGLU; `w` is the gate.
    SiluMul(Tensor),
}

/// A tile that kernels/matmul.cu is compiled for.
struct Tile {
    /// Rows and columns of the product that a block makes.
    m: usize,
    n: usize,
    threads: u32,
    /// Dynamic shared memory, bytes: `kShared` in kernels/matmul.cuh.
    smem: u32,
    /// Share of the tensor cores' rate that its main loop can use, by the shared-memory traffic of its warps' tiles.
    efficiency: f64,
    /// Kernels for bf16 results, SwiGLU, f32 results.
    entries: [&'static str; 3],
}

macro_rules! tile {
    ($m:literal x $n:literal, $threads:literal, $smem:expr, $efficiency:literal) => {
        Tile {
            m: $m,
            n: $n,
            threads: $threads,
            smem: $smem,
            efficiency: $efficiency,
            entries: [
                concat!("matmul_bf16_", $m, "x", $n),
                concat!("matmul_silu_mul_bf16_", $m, "x", $n),
                concat!("matmul_f32_", $m, "x", $n),
            ],
        }
    };
}

/// The tiles of kernels/matmul.cu, largest first.
const TILES: [Tile; 4] = [
    tile!(128 x 256, 256, 4 * 384 * 64, 1.0),
    tile!(128 x 128, 128, 4 * 256 * 64, 0.95),
    tile!(64 x 64, 128, 5 * 128 * 64, 0.6),
    tile!(32 x 64, 128, 6 * 96 * 64, 0.4),
];

/// Number of tiles that [`Matmul::with_tile`] knows.
pub const MATMUL_TILES: usize = TILES.len();

/// The tile whose slowest multiprocessor is done first: every one of them gives the same bits.
fn pick(m: usize, n: usize, gpu: &Gpu) -> &'static Tile {
    let time = |t: &Tile| {
        let rounds = (m.div_ceil(t.m) * n.div_ceil(t.n)).div_ceil(gpu.sms.max(1) as usize);
        (rounds * t.m * t.n) as f64 / t.efficiency
    };
    TILES.iter().min_by(|a, b| time(a).total_cmp(&time(b))).expect("there are tiles")
}

/// The op; built with [`matmul`] and the methods here.
pub struct Matmul {
    y: Tensor,
    x: Tensor,
    w: Tensor,
    b: Option<Tensor>,
    epilogue: Epilogue,
    norm: Option<(Tensor, f32)>,
    tile: Option<usize>,
}

/// What both kernels' launches take from the op.
pub(super) struct Product<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub y: &'a Tensor,
    pub x: &'a Tensor,
    pub w: &'a Tensor,
    pub w3: Option<&'a Tensor>,
    pub b: Option<&'a Tensor>,
    pub ls: Option<&'a Tensor>,
    pub norm: Option<&'a (Tensor, f32)>,
    /// 0: bf16 results, 1: SwiGLU, 2: f32 results.
    pub kind: usize,
    /// `Then` in kernels/matmul.cu.
    pub then: i32,
}

/// `y (M,N) = x (M,K) @ w (N,K)ᵀ`; leading extents of `y` and `x` are taken as rows, trailing ones of `w` as columns.
pub fn matmul(y: &Tensor, x: &Tensor, w: &Tensor) -> Result<Matmul> {
    let (m, k) = x.matrix();
    let n = w.shape.first().copied().unwrap_or(0);
    w.expect_len("matmul w", n * k)?;
    expect_equal("matmul y columns", y.matrix().1, n)?;
    expect_equal("matmul y rows", y.matrix().0, m)?;
    let (y, x, w) = (y.clone(), x.clone(), w.clone());
    Ok(Matmul { y, x, w, b: None, epilogue: Epilogue::Store, norm: None, tile: None })
}

impl Matmul {
    /// Adds `b` `(N)` to the product.
    pub fn bias(mut self, b: &Tensor) -> Result<Self> {
        b.expect("matmul b", &[self.w.shape[0]])?;
        self.b = Some(b.clone());
        Ok(self)
    }

    /// Sets the epilogue.
    pub fn then(mut self, epilogue: Epilogue) -> Result<Self> {
        match &epilogue {
            Epilogue::ScaledResidual(ls) => ls.expect("matmul ls", &[self.w.shape[0]])?,
            Epilogue::SiluMul(w3) => w3.expect("matmul w3", &self.w.shape)?,
            _ => {}
        }
        self.epilogue = epilogue;
        Ok(self)
    }

    /// Takes RMSNorm of x for x: `norm` `(K)`, `eps` added to the mean square. Bits are those of [`rmsnorm`](super::rmsnorm) before the product.
    ///
    /// # Errors
    /// [`Error::Shape`] for more than [`SMALL_ROWS`] rows: then every block would normalise many rows again.
    pub fn norm(mut self, norm: &Tensor, eps: f32) -> Result<Self> {
        let (m, k) = self.x.matrix();
        norm.expect("matmul norm", &[k])?;
        if m > SMALL_ROWS {
            let expected = format!("at most {SMALL_ROWS} rows with a norm");
            return Err(Error::shape("matmul x", expected, m.to_string()));
        }
        self.norm = Some((norm.clone(), eps));
        Ok(self)
    }

    /// Fixes the kernel's tile, by number below [`MATMUL_TILES`]: for tests and benches.
    pub fn with_tile(mut self, tile: usize) -> Self {
        self.tile = Some(tile);
        self
    }
}

impl Op for Matmul {
    fn kind(&self) -> &'static str {
        match self.epilogue {
            Epilogue::Store => "matmul",
            Epilogue::Gelu => "matmul_gelu",
            Epilogue::Relu => "matmul_relu",
            Epilogue::Residual => "matmul_add",
            Epilogue::ScaledResidual(_) => "matmul_scale_add",
            Epilogue::SiluMul(_) => "matmul_silu_mul",
        }
    }
    fn reads(&self) -> Vec<&Tensor> {
        let mut all = vec![&self.x, &self.w];
        all.extend(&self.b);
        match &self.epilogue {
            Epilogue::Residual => all.push(&self.y),
            Epilogue::ScaledResidual(ls) => all.extend([&self.y, ls]),
            Epilogue::SiluMul(w3) => all.push(w3),
            _ => {}
        }
        all.extend(self.norm.iter().map(|n| &n.0));
        all
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn flops(&self) -> u64 {
        let twice = if matches!(self.epilogue, Epilogue::SiluMul(_)) { 2 } else { 1 };
        2 * twice * (self.x.matrix().0 * self.w.len()) as u64
    }
    fn launch(&self, gpu: &Gpu) -> Result<Vec<Launch>> {
        let ((m, k), n) = (self.x.matrix(), self.w.shape[0]);
        if m == 0 || n == 0 {
            return Ok(Vec::new());
        }
        let (then, ls, w3) = match &self.epilogue {
            Epilogue::Store => (0, None, None),
            Epilogue::SiluMul(w3) => (0, None, Some(w3)),
            Epilogue::Gelu => (1, None, None),
            Epilogue::Relu => (2, None, None),
            Epilogue::Residual => (3, None, None),
            Epilogue::ScaledResidual(ls) => (3, Some(ls), None),
        };
        let kind = match &self.epilogue {
            Epilogue::SiluMul(_) => 1,
            Epilogue::Store if self.y.dtype == DType::F32 => 2,
            _ => 0,
        };
        let (y, x, w, b, norm) = (&self.y, &self.x, &self.w, self.b.as_ref(), self.norm.as_ref());
        if (w3.is_some() && b.is_some()) || (kind != 2 && y.dtype != DType::Act) {
            return Err(Error::shape(self.kind(), "an epilogue that the kernels have", "another one"));
        }
        if m <= SMALL_ROWS && self.tile.is_none() {
            return matmul_small::launch(&Product { m, n, k, y, x, w, w3, b, ls, norm, kind, then }, gpu);
        }
        expect_multiple("matmul K", k, 8)?; // 16-byte copies
        let width = if w3.is_some() { 2 * n } else { n };
        let tile = self.tile.and_then(|t| TILES.get(t)).unwrap_or_else(|| pick(m, width, gpu));
        let [rows, cols, depth] = [m, n, k].map(|n| int("matmul extent", n));
        let (rows, cols, depth) = (rows?, cols?, depth?);
        int("matmul x", m * k)?; // the kernel counts elements in 32 bits
        int("matmul w", n * k)?;
        let args = match kind {
            0 => args![y, x, w, b, ls, rows, cols, depth, then],
            1 => args![y, x, w, w3, rows, cols, depth],
            _ => args![y, x, w, b, rows, cols, depth],
        };
        one(Launch {
            entry: tile.entries[kind],
            grid: [blocks("matmul tiles", m.div_ceil(tile.m) * width.div_ceil(tile.n))?, 1, 1],
            block: [tile.threads, 1, 1],
            smem: tile.smem,
            args,
        })
    }
    fn run(&self, m: &Memory) {
        let b = self.b.as_ref().map(|b| m.vector(b));
        let (mut ls, mut then) = (None, reference::Then::Store);
        match &self.epilogue {
            Epilogue::Store => {}
            Epilogue::Gelu => then = reference::Then::Gelu,
            Epilogue::Relu => then = reference::Then::Relu,
            Epilogue::Residual => then = reference::Then::Residual,
            Epilogue::ScaledResidual(t) => then = reference::Then::ScaledResidual(ls.insert(m.vector(t))),
            Epilogue::SiluMul(w3) => then = reference::Then::SiluMul(m.weights(w3)),
        }
        let n = self.w.shape[0];
        let mut normed = Vec::new();
        let x = match &self.norm {
            None => m.f32(&self.x),
            Some((w, eps)) => {
                normed.resize(self.x.len(), 0.0);
                reference::rmsnorm(&mut normed, m.f32(&self.x), &m.vector(w), *eps);
                &normed
            }
        };
        reference::matmul(m.f32_mut(&self.y), x, m.weights(&self.w), n, b.as_deref(), then, m.precision());
    }
}
