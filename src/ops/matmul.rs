//! `y = epilogue(x @ wᵀ + b)`; see `reference/matmul.rs`.

use super::launch::{args, blocks, blocks_yz, int, one};
use super::{Gpu, Launch, Op, SMALL_ROWS, expect_equal, expect_multiple, matmul_small};
use crate::device::cpu::Memory;
use crate::graph::{Cost, DType, Graph, Tensor};
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
    /// Rows of the lower tile that makes what does not fill one: its `Low` in kernels/matmul.cu.
    low: usize,
    threads: u32,
    /// Dynamic shared memory, bytes: `kShared` in kernels/matmul.cuh.
    smem: u32,
    /// Share of the tensor cores' rate that its main loop can use, by the shared-memory traffic of its warps' tiles.
    efficiency: f64,
    /// Kernels for bf16 results, SwiGLU, f32 results.
    entries: [&'static str; 3],
}

macro_rules! tile {
    ($m:literal x $n:literal, $low:literal, $threads:literal, $smem:expr, $efficiency:literal) => {
        Tile {
            m: $m,
            n: $n,
            low: $low,
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
    tile!(128 x 256, 64, 256, 4 * 384 * 64, 1.0),
    tile!(128 x 128, 32, 128, 4 * 256 * 64, 0.95),
    tile!(64 x 64, 32, 128, 5 * 128 * 64, 0.6),
    tile!(32 x 64, 32, 128, 6 * 96 * 64, 0.4),
];

/// Number of tiles that [`Matmul::with_tile`] knows.
pub const MATMUL_TILES: usize = TILES.len();

/// Most tiles of a product whose K has several parts: `kMostTiles` in kernels/matmul.cu.
const MOST_TILES: usize = 16384;

impl Tile {
    /// How many whole and how many low tiles `m` rows take, of one column of tiles: as kernels/matmul.cu counts them.
    fn rows(&self, m: usize) -> [usize; 2] {
        let (tall, low) = (m / self.m, (m % self.m).div_ceil(self.low));
        if tall == 0 || low * self.low >= self.m { [m.div_ceil(self.m), 0] } else { [tall, low] }
    }

    /// Blocks of an (m, n) product, of one part of K.
    fn tiles(&self, m: usize, n: usize) -> usize {
        self.rows(m).iter().sum::<usize>() * n.div_ceil(self.n)
    }

    /// Relative time until the slowest multiprocessor is done with `parts` parts of K: whole tiles first, then low ones in the places that these
    /// leave, and after them. A low tile takes at most twice the time that its share of the rows would.
    fn time(&self, m: usize, n: usize, parts: usize, gpu: &Gpu) -> f64 {
        let (sms, columns) = (gpu.sms.max(1) as usize, n.div_ceil(self.n) * parts);
        let [tall, low] = self.rows(m).map(|rows| rows * columns);
        let rounds = tall.div_ceil(sms);
        let places = (rounds * sms - tall) * (self.m / self.low / 2);
        let more = low.saturating_sub(places).div_ceil(sms);
        ((rounds * self.m + more * 2 * self.low) * self.n) as f64 / self.efficiency / parts as f64
    }
}

/// The tile that is done first: every one of them gives the same bits.
fn pick(m: usize, n: usize, parts: usize, gpu: &Gpu) -> &'static Tile {
    let time = |t: &Tile| t.time(m, n, parts, gpu);
    TILES.iter().min_by(|a, b| time(a).total_cmp(&time(b))).expect("there are tiles")
}

/// In how many parts K is summed where [`Matmul::in_parts`] asks for it: few columns and a deep sum leave most of a GPU idle else. 256 rows of
/// 4096 columns are 64 tiles of 128x128; three parts make 192 blocks, of which an A100 has 216 at once. Neither the rows nor the GPU
/// decide: they may not change a bit.
fn parts(n: usize, k: usize) -> usize {
    if n <= 4096 { (k / 1344).clamp(1, 3) } else { 1 }
}

/// The op; built with [`matmul`] and the methods here.
pub struct Matmul {
    y: Tensor,
    x: Tensor,
    w: Tensor,
    b: Option<Tensor>,
    epilogue: Epilogue,
    norm: Option<(Tensor, f32)>,
    /// `(parts, ..)` f32: sums of parts of K.
    parts: Option<Tensor>,
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
    /// `Then` in kernels/epilogue.cuh.
    pub then: i32,
    /// Columns of a part of K.
    pub part: usize,
}

/// `y (M,N) = x (M,K) @ w (N,K)ᵀ`; leading extents of `y` and `x` are taken as rows, trailing ones of `w` as columns.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit.
pub fn matmul(y: &Tensor, x: &Tensor, w: &Tensor) -> Result<Matmul> {
    let (m, k) = x.matrix();
    let n = w.shape.first().copied().unwrap_or(0);
    w.expect_len("matmul w", n * k)?;
    expect_equal("matmul y columns", y.matrix().1, n)?;
    expect_equal("matmul y rows", y.matrix().0, m)?;
    let (y, x, w) = (y.clone(), x.clone(), w.clone());
    Ok(Matmul { y, x, w, b: None, epilogue: Epilogue::Store, norm: None, parts: None, tile: None })
}

/// f32s of the sums of a part of K, for M rows and N columns: those of whole tiles, whichever they are.
pub fn matmul_parts_room(m: usize, n: usize) -> usize {
    m.next_multiple_of(TILES[0].m) * n.next_multiple_of(TILES[0].n)
}

impl Matmul {
    /// Adds `b` `(N)` to the product.
    ///
    /// # Errors
    /// [`Error::Shape`] for a `b` of another shape.
    pub fn bias(mut self, b: &Tensor) -> Result<Self> {
        b.expect("matmul b", &[self.w.shape[0]])?;
        self.b = Some(b.clone());
        Ok(self)
    }

    /// Sets the epilogue.
    ///
    /// # Errors
    /// [`Error::Shape`] for a `ls` or `w3` of another shape.
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

    /// Sums K in a few parts, so that blocks of their own can make them: how many, and so the bits, depends on N and K alone. For products of
    /// few rows with few columns, not for SwiGLU and f32 results. A buffer for the parts' sums is made in `g`.
    pub fn in_parts(mut self, g: &mut Graph) -> Self {
        let ((m, k), n) = (self.x.matrix(), self.w.shape[0]);
        if parts(n, k) > 1 {
            // matmul_small.cu has the sums in registers.
            let room = if m > SMALL_ROWS { matmul_parts_room(m, n) } else { 0 };
            self.parts = Some(g.buffer("matmul.parts", DType::F32, [parts(n, k), room]));
        }
        self
    }

    /// [`in_parts`](Self::in_parts), as many as `sums`, `(parts, matmul_parts_room(M, N))` f32, has room for: for tests and benches.
    ///
    /// # Errors
    /// [`Error::Shape`] for `sums` of no part, of another type than f32, or of other than two extents.
    pub fn with_parts(mut self, sums: &Tensor) -> Result<Self> {
        let [parts, _] = sums.dims("matmul parts")?;
        if parts == 0 || sums.dtype != DType::F32 {
            return Err(Error::shape("matmul parts", "(parts, sums) f32", sums.to_string()));
        }
        self.parts = Some(sums.clone());
        Ok(self)
    }

    /// Columns of a part of K: whole tiles of both kernels.
    fn part(&self) -> usize {
        let (k, parts) = (self.x.matrix().1, self.parts.as_ref().map_or(1, |p| p.shape[0]));
        k.div_ceil(64).div_ceil(parts) * 64
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
        std::iter::once(&self.y).chain(&self.parts).collect()
    }
    fn cost(&self) -> Cost {
        let bytes = |t: &&Tensor| (t.len() * t.dtype.bytes(2)) as u64;
        let bytes = self.reads().iter().chain([&&self.y]).map(bytes).sum(); // parts' sums need not be in memory
        Cost { flops: self.flops(), bytes }
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
        let part = self.part();
        let mixed = (w3.is_some() && b.is_some()) || (kind != 0 && self.parts.is_some());
        if mixed || (kind != 2 && y.dtype != DType::Act) {
            return Err(Error::shape(self.kind(), "an epilogue that the kernels have", "another one"));
        }
        if m <= SMALL_ROWS && self.tile.is_none() {
            return matmul_small::launch(
                &Product { m, n, k, y, x, w, w3, b, ls, norm, kind, then, part },
                gpu,
            );
        }
        expect_multiple("matmul K", k, 8)?; // 16-byte copies
        let width = if w3.is_some() { 2 * n } else { n };
        let parts = k.div_ceil(part);
        let tile = self.tile.and_then(|t| TILES.get(t)).unwrap_or_else(|| pick(m, width, parts, gpu));
        let tiles = tile.tiles(m, width);
        if parts > 1 && tiles > MOST_TILES {
            let expected = format!("at most {MOST_TILES} where K has parts");
            return Err(Error::shape("matmul tiles", expected, tiles.to_string()));
        }
        if let Some(sums) = &self.parts
            && parts > 1
        {
            sums.expect("matmul parts", &[sums.shape[0], matmul_parts_room(m, n)])?;
        }
        let [rows, cols, depth, part] = [m, n, k, part].map(|n| int("matmul extent", n));
        let (rows, cols, depth) = (rows?, cols?, depth?);
        int("matmul x", m * k)?; // the kernel counts elements in 32 bits
        int("matmul w", n * k)?;
        let args = match kind {
            0 => args![y, x, w, b, ls, rows, cols, depth, then, self.parts.as_ref(), part?],
            1 => args![y, x, w, w3, rows, cols, depth],
            _ => args![y, x, w, b, rows, cols, depth],
        };
        one(Launch {
            entry: tile.entries[kind],
            grid: [blocks("matmul tiles", tiles)?, blocks_yz("matmul parts", parts)?, 1],
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
                reference::Short::resize(&mut normed, self.x.len());
                reference::rmsnorm(&mut normed, m.f32(&self.x), &m.vector(w), *eps);
                &normed
            }
        };
        reference::matmul(m.f32_mut(&self.y), x, m.weights(&self.w), n, b.as_deref(), then, m.precision());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::ARCHS;
    use crate::graph::Place;
    use crate::ops::Arg;

    fn t(dtype: DType, shape: &[usize]) -> Tensor {
        Tensor::new("t", dtype, shape, Place::State(0))
    }

    /// `w2` of the 8B model for `m` rows.
    fn w2(m: usize) -> Matmul {
        let act = |shape: &[usize]| t(DType::Act, shape);
        matmul(&act(&[m, 4096]), &act(&[m, 14336]), &act(&[4096, 14336])).unwrap()
    }

    /// Every row is in a tile, and fewer rows than a low tile has are in none but where the first tile is not full.
    #[test]
    fn tiles_cover_the_rows() {
        for tile in &TILES {
            for m in 1..=4 * tile.m {
                let [tall, low] = tile.rows(m);
                let rows = tall * tile.m + low * tile.low;
                assert!(rows >= m && (rows - m < tile.low || m < tile.m), "{m} rows: {tall} and {low}");
                assert!(low * tile.low < tile.m, "{m} rows: {low} low tiles");
            }
        }
    }

    /// Columns of a part of K are those of the weight, whatever the rows and the GPU: they decide the bits.
    #[test]
    fn rows_and_gpus_change_no_part() {
        for m in [1, 8, 16, 17, 64, 96, 256, 1025, 2048, 20000] {
            for (_, gpu) in ARCHS {
                let launch = w2(m).in_parts(&mut Graph::new()).launch(&gpu).unwrap().remove(0);
                let Some(Arg::I32(part)) = launch.args.last() else { panic!("{launch:?}") };
                assert_eq!(*part, 4800, "{m} rows");
                assert_eq!(launch.grid[1], if m > SMALL_ROWS { 3 } else { 1 }, "{m} rows");
            }
        }
        // Parts fill the multiprocessors that tiles alone would leave idle.
        let a100 = ARCHS[0].1;
        let blocks = |op: Matmul| op.launch(&a100).unwrap()[0].grid.iter().product::<u32>();
        assert!(10 * blocks(w2(256)) < 6 * a100.sms);
        assert!(10 * blocks(w2(256).in_parts(&mut Graph::new())) > 8 * a100.sms);
        // Neither wide nor shallow products have parts.
        for (n, k) in [(6144, 4096), (4096, 1024), (28672, 4096)] {
            assert_eq!(parts(n, k), 1, "({n}, {k})");
        }
    }

    #[test]
    fn sums_that_do_not_fit_are_refused() {
        let gpu = ARCHS[0].1;
        let room = matmul_parts_room(300, 4096);
        assert_eq!(room, 384 * 4096);
        let e = |op: Matmul| op.launch(&gpu).unwrap_err().to_string();
        let short = e(w2(300).with_parts(&t(DType::F32, &[3, room - 1])).unwrap());
        assert!(short.contains("matmul parts") && short.contains("1572864"), "{short}");
        let many = e(w2(600_000).in_parts(&mut Graph::new()));
        assert!(many.contains("matmul tiles") && many.contains("16384"), "{many}");
        assert!(w2(300).with_parts(&t(DType::Act, &[3, room])).is_err());
        assert!(w2(300).with_parts(&t(DType::F32, &[room])).is_err());
        let swiglu = Epilogue::SiluMul(t(DType::Act, &[4096, 14336]));
        e(w2(300).in_parts(&mut Graph::new()).then(swiglu).unwrap());
    }
}
