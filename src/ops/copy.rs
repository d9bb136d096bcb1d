//! Rows copied into a window of columns, the class token left out or not; see `reference/copy.rs`.

use super::launch::{args, int, rows};
use super::{Gpu, Launch, Op, expect_equal, expect_multiple};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::{Tensor, Window};
use crate::reference;

struct Copy {
    y: Window,
    x: Tensor,
    /// Leading rows of each of the items that are left out, and the items' rows.
    skip: usize,
    rows: usize,
}

/// `y[n] = x[n]`; `x` `(.., C)`, `y` a window of `C` columns.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn copy(y: &Window, x: &Tensor) -> Result<impl Op + use<>> {
    let (n, c) = x.matrix();
    expect_equal("copy rows", y.of.matrix().0, n)?;
    expect_equal("copy columns", y.width, c)?;
    Ok(Copy { y: y.clone(), x: x.clone(), skip: 0, rows: n })
}

/// `y[b*N + n] = x[b,1+n]`; `x` `(B, 1+N, C)`, `y` a window of `C` columns and `B*N` rows.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands that do not fit.
pub fn drop_cls(y: &Window, x: &Tensor) -> Result<impl Op + use<>> {
    let [b, t, c] = x.dims("drop_cls x")?;
    expect_equal("drop_cls rows and class tokens", y.of.matrix().0 + b, b * t)?;
    expect_equal("drop_cls columns", y.width, c)?;
    Ok(Copy { y: y.clone(), x: x.clone(), skip: 1, rows: t })
}

impl Op for Copy {
    fn kind(&self) -> &'static str {
        "copy"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.x]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.y.of]
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let ((n, stride), c) = (self.y.of.matrix(), self.y.width);
        expect_multiple("copy y stride", stride, 8)?;
        let [stride, width] = [int("copy y stride", stride)?, int("copy C", c)?];
        let args = args![&self.y, stride, &self.x, width, int("copy rows", self.rows)?, self.skip as i32];
        rows("copy", "copy_bf16", n, c, args)
    }
    fn run(&self, m: &Memory) {
        reference::copy(m.window_mut(&self.y), m.f32(&self.x), self.skip, self.rows);
    }
}
