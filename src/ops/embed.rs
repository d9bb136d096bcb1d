//! Token embeddings, with image tokens in their places; see `reference/embed.rs`.

use super::launch::{args, int, rows};
use super::{Gpu, Launch, Op, expect_equal};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

struct Embed {
    y: Tensor,
    ids: Tensor,
    table: Tensor,
    images: Option<Tensor>,
}

/// `y[t] = table[ids[t]]`, or `images[-1 - ids[t]]` where `ids[t] < 0`.
///
/// `y` `(T, C)`, `ids` `(T)` i32 below `V`, `table` `(V, C)`, `images` `(R, C)`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn embed(y: &Tensor, ids: &Tensor, table: &Tensor, images: Option<&Tensor>) -> Result<impl Op + use<>> {
    let [t, c] = y.dims("embed y")?;
    ids.expect("embed ids", &[t])?;
    let [_, width] = table.dims("embed table")?;
    expect_equal("embed table columns", width, c)?;
    if let Some(images) = images {
        expect_equal("embed image columns", images.matrix().1, c)?;
    }
    Ok(Embed { y: y.clone(), ids: ids.clone(), table: table.clone(), images: images.cloned() })
}

impl Op for Embed {
    fn kind(&self) -> &'static str {
        "embed"
    }
    fn reads(&self) -> Vec<&Tensor> {
        [&self.ids, &self.table].into_iter().chain(&self.images).collect()
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn cost(&self) -> crate::graph::Cost {
        crate::graph::Cost { flops: 0, bytes: 4 * self.y.len() as u64 } // of the table only the rows read count
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let (n, c) = self.y.matrix();
        let args = args![&self.y, &self.ids, &self.table, self.images.as_ref(), int("embed C", c)?];
        rows("embed", "embed_bf16", n, c, args)
    }
    fn run(&self, m: &Memory) {
        let images = self.images.as_ref().map(|t| m.f32(t));
        reference::embed(
            m.f32_mut(&self.y),
            m.i32(&self.ids),
            m.weights(&self.table),
            images,
            self.y.shape[1],
        );
    }
}
