//! Pictures to rows of patches: resized as Pillow's BICUBIC does, normalised; see `reference/preprocess.rs`.

use super::launch::{args, blocks, blocks_yz, int};
use super::{Gpu, Launch, Op, expect_equal, expect_multiple};
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;
use crate::{Error, Result};

/// i32 fields of a picture's descriptor: the source's first byte / 16; height and width, in source pixels; first line of `lines`, a multiple
/// of 4; first element of the table of its width, and that table's quads; likewise of its height.
pub const PICTURE: usize = 8;

/// Lines that a block of at most 16 warps resizes across at a time, and columns of a warp: `kLines`, `kEach` in kernels/preprocess.cu.
const LINES: usize = 32;
const EACH: usize = 7;

/// Threads a block, patches beside each other that it makes, quads of lines that it holds: `kDown`, `kPatches`, `kRing` in
/// kernels/preprocess.cu.
const DOWN: u32 = 256;
const PATCHES: usize = 8;
const RING: usize = 16;

struct Preprocess {
    y: Tensor,
    lines: Tensor,
    source: Tensor,
    tables: Tensor,
    pictures: Tensor,
    patch: usize,
    side: usize,
}

/// `y[b*G*G + r*G + s, (c*P + u)*P + v] = (resized[b][P*r+u, P*s+v, c]/255 - MEAN[c]) / STD[c]`, `resized[b]` picture `b` at `(S, S)`, `S = G*P`.
///
/// `y` `(B*G*G, K)` with `K >= 3*P*P`, columns from `3*P*P` on zero; `source` u8, the pictures `(H, W, 3)`, each from a multiple of 16 on;
/// `lines` `(lines, S, 3)` u8, room for each picture's lines resized across, a multiple of 4 each; `tables` i32,
/// [`resize_table`](crate::image::resize_table)s; `pictures` `(B, PICTURE)` i32.
///
/// # Errors
/// [`Error::Shape`] for operands that do not fit, or a side that `patch` does not divide.
pub fn preprocess(
    y: &Tensor,
    lines: &Tensor,
    source: &Tensor,
    tables: &Tensor,
    pictures: &Tensor,
    patch: usize,
) -> Result<impl Op + use<>> {
    let ([b, fields], [_, size, channels]) =
        (pictures.dims("preprocess pictures")?, lines.dims("preprocess lines")?);
    expect_equal("preprocess picture fields", fields, PICTURE)?;
    expect_equal("preprocess channels", channels, 3)?;
    expect_multiple("preprocess S", size, patch)?;
    let (side, [_, k]) = (size / patch, y.dims("preprocess y")?);
    y.expect("preprocess y", &[b * side * side, k.max(3 * patch * patch)])?;
    let [y, lines, source, tables, pictures] = [y, lines, source, tables, pictures].map(Tensor::clone);
    Ok(Preprocess { y, lines, source, tables, pictures, patch, side })
}

impl Op for Preprocess {
    fn kind(&self) -> &'static str {
        "preprocess"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.source, &self.tables, &self.pictures]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y, &self.lines]
    }
    fn launch(&self, gpu: &Gpu) -> Result<Vec<Launch>> {
        let (b, k, [lines, size, _]) =
            (self.pictures.shape[0], self.y.matrix().1, self.lines.dims("preprocess lines")?);
        expect_multiple("preprocess S", size, 4)?; // 16-byte loads of words
        expect_multiple("preprocess lines", lines, 4)?;
        expect_multiple("preprocess K", k, 8)?; // 16-byte stores
        expect_multiple("preprocess source bytes", self.source.len(), 16)?;
        if b == 0 || lines == 0 {
            return Err(Error::shape("preprocess pictures", "at least one with a line", "none"));
        }
        let (y, x, s, t, p) = (&self.y, &self.lines, &self.source, &self.tables, &self.pictures);
        // Blocks share what is at their edges and read weights of their own: as large as leave every multiprocessor two, or one where there is little.
        let sms = gpu.sms as usize;
        let across = |g: usize, warps: usize| [lines.div_ceil(LINES * g), size.div_ceil(warps * EACH)];
        let sizes = [(4, 16, 2 * sms), (2, 16, 2 * sms), (1, 16, sms), (1, 8, sms)];
        let fills =
            |&(g, warps, least): &(usize, usize, usize)| across(g, warps).iter().product::<usize>() >= least;
        let (groups, warps, _) = sizes.into_iter().find(fills).unwrap_or((1, 4, 0));
        let [tall, tiles] = across(groups, warps);
        let (beside, high) = (self.side.div_ceil(PATCHES), |rows: usize| self.side.div_ceil(rows));
        let rows = [8, 4, 2].into_iter().find(|&rows| b * beside * high(rows) >= 2 * sms).unwrap_or(1);
        let shared = 2 * PATCHES * k + 4 * self.patch * (RING * 3 + rows);
        let [side, patch, columns, size, groups_, rows_] =
            [self.side, self.patch, k, size, groups, rows].map(|n| int("preprocess extent", n));
        let items = blocks_yz("preprocess B", b)?;
        Ok(vec![
            Launch {
                entry: "preprocess_across",
                grid: [blocks("preprocess lines", tall)?, blocks_yz("preprocess S", tiles)?, items],
                block: [32 * warps as u32, 1, 1],
                smem: 0,
                args: args![x, s, t, p, size?, groups_?],
            },
            Launch {
                entry: "preprocess_down_bf16",
                grid: [blocks("preprocess G", beside)?, blocks_yz("preprocess G", high(rows))?, items],
                block: [DOWN, 1, 1],
                smem: blocks("preprocess K", shared)?,
                args: args![y, x, t, p, side?, patch?, columns?, rows_?],
            },
        ])
    }
    fn run(&self, m: &Memory) {
        let size = self.side * self.patch;
        reference::preprocess(
            m.f32_mut(&self.y),
            m.u8(&self.source),
            m.i32(&self.pictures),
            size,
            self.patch,
        );
    }
}
