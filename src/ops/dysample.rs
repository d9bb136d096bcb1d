//! DySample upsampling by two; see `reference/dysample.rs`.

use super::launch::{args, blocks, blocks_yz, elements, int, one};
use super::{Gpu, Launch, Op, expect_equal, expect_multiple};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::{Tensor, Window};
use crate::reference;

/// Threads a block: `kBlock` in kernels/dysample.cu.
const BLOCK: usize = 128;

struct DysampleOffset {
    y: Tensor,
    x: Tensor,
    init_pos: Tensor,
}

/// `y[n,k] = 0.25 * x[n,k] + init_pos[k]`; `y` f32, `x` `(B*G*G, 8*groups)`, `init_pos` `(1, 8*groups, 1, 1)`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn dysample_offset(y: &Tensor, x: &Tensor, init_pos: &Tensor) -> Result<impl Op + use<>> {
    y.expect("dysample_offset y", &x.shape)?;
    init_pos.expect_len("dysample_offset init_pos", x.matrix().1)?;
    Ok(DysampleOffset { y: y.clone(), x: x.clone(), init_pos: init_pos.clone() })
}

impl Op for DysampleOffset {
    fn kind(&self) -> &'static str {
        "dysample_offset"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x, &self.init_pos]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let (n, k) = self.x.matrix();
        expect_multiple("dysample_offset K", k, 4)?;
        let [rows, width] = [int("dysample_offset N", n)?, int("dysample_offset K", k)?];
        let args = args![&self.y, &self.x, &self.init_pos, rows, width];
        let launches = elements("dysample_offset", "dysample_offset_bf16", (n * k).div_ceil(4), args)?;
        let smem = blocks("dysample_offset K", 2 * k)?;
        Ok(launches.into_iter().map(|l| Launch { smem, ..l }).collect())
    }
    fn run(&self, m: &Memory) {
        reference::dysample_offset(m.f32_mut(&self.y), m.f32(&self.x), &m.vector(&self.init_pos));
    }
}

struct Dysample {
    y: Window,
    x: Tensor,
    offset: Tensor,
    side: usize,
    groups: usize,
}

/// Samples the `G*G` map `x` bilinearly, border clamped, at `2G*2G` points that `offset` moves.
///
/// `y` a window of `D` columns and `B*4*G*G` rows, `x` `(B*G*G, D)`, `offset` `(B*G*G, 8*groups)` f32 in pixels of `x`, columns
/// ordered (x|y), group, i, j. Cell `(2r+i, 2s+j)` of group g reads at `(s + offset_x, r + offset_y)`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit, or channels that `groups` does not divide.
pub fn dysample(
    y: &Window,
    x: &Tensor,
    offset: &Tensor,
    side: usize,
    groups: usize,
) -> Result<impl Op + use<>> {
    let [n, d] = x.dims("dysample x")?;
    expect_multiple("dysample rows", n, side * side)?;
    expect_multiple("dysample D", d, groups)?;
    offset.expect("dysample offset", &[n, 8 * groups])?;
    expect_equal("dysample y rows", y.of.matrix().0, 4 * n)?;
    expect_equal("dysample y columns", y.width, d)?;
    Ok(Dysample { y: y.clone(), x: x.clone(), offset: offset.clone(), side, groups })
}

impl Op for Dysample {
    fn kind(&self) -> &'static str {
        "dysample"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x, &self.offset]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y.of]
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let ((n, stride), d) = (self.y.of.matrix(), self.y.width);
        expect_multiple("dysample channels of a group", d / self.groups, 8)?;
        expect_multiple("dysample y stride", stride, 8)?;
        let [stride, side, width] = [stride, self.side, d].map(|n| int("dysample extent", n));
        let groups = int("dysample groups", self.groups)?;
        one(Launch {
            entry: "dysample_bf16",
            grid: [blocks("dysample rows", n)?, blocks_yz("dysample D", (d / 8).div_ceil(BLOCK))?, 1],
            block: [BLOCK as u32, 1, 1],
            smem: 0,
            args: args![&self.y, stride?, &self.x, &self.offset, side?, width?, groups],
        })
    }
    fn run(&self, m: &Memory) {
        let (side, groups) = (self.side, self.groups);
        reference::dysample(m.window_mut(&self.y), m.f32(&self.x), m.f32(&self.offset), side, groups);
    }
}
