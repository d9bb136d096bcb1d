//! Rows picked by number; see `reference/gather_rows.rs`.

use super::launch::{args, int, rows};
use super::{Gpu, Launch, Op};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

struct GatherRows {
    y: Tensor,
    x: Tensor,
    rows: Tensor,
}

/// `y[r] = x[rows[r]]`; `y` `(R, C)`, `x` `(N, C)`, `rows` `(R)` i32 below `N`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn gather_rows(y: &Tensor, x: &Tensor, rows: &Tensor) -> Result<impl Op + use<>> {
    let [_, c] = x.dims("gather_rows x")?;
    let [r] = rows.dims("gather_rows rows")?;
    y.expect("gather_rows y", &[r, c])?;
    Ok(GatherRows { y: y.clone(), x: x.clone(), rows: rows.clone() })
}

impl Op for GatherRows {
    fn kind(&self) -> &'static str {
        "gather_rows"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x, &self.rows]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y]
    }
    fn cost(&self) -> crate::graph::Cost {
        crate::graph::Cost { flops: 0, bytes: 4 * self.y.len() as u64 } // of x only the rows read count
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let (n, c) = self.y.matrix();
        let args = args![&self.y, &self.x, &self.rows, int("gather_rows C", c)?];
        rows("gather_rows", "gather_rows_bf16", n, c, args)
    }
    fn run(&self, m: &Memory) {
        reference::gather_rows(m.f32_mut(&self.y), m.f32(&self.x), m.i32(&self.rows));
    }
}
