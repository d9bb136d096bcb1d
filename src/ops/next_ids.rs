//! A step's ids, of which some are tokens that an earlier step chose; see `reference/next_ids.rs`.

use super::launch::{args, blocks, int, one};
use super::{Gpu, Launch, Op};
use crate::Result;
use crate::device::cpu::Memory;
use crate::graph::Tensor;
use crate::reference;

/// Threads a block: `kBlock` in kernels/next_ids.cu.
const BLOCK: u32 = 32;

struct NextIds {
    ids: Tensor,
    tokens: Tensor,
}

/// `ids[t] = tokens[-1 - ids[t]]` where `ids[t] < 0`, in place; `ids` `(T)`, `tokens` `(R)`, both i32. So a step can be queued before the
/// host has read what the step before it chose.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for operands of other than one extent.
pub fn next_ids(ids: &Tensor, tokens: &Tensor) -> Result<impl Op + use<>> {
    let [_] = ids.dims("next_ids ids")?;
    let [_] = tokens.dims("next_ids tokens")?;
    Ok(NextIds { ids: ids.clone(), tokens: tokens.clone() })
}

impl Op for NextIds {
    fn kind(&self) -> &'static str {
        "next_ids"
    }
    fn reads(&self) -> Vec<&Tensor> {
        vec![&self.ids, &self.tokens]
    }
    fn writes(&self) -> Vec<&Tensor> {
        vec![&self.ids]
    }
    fn launch(&self, _: &Gpu) -> Result<Vec<Launch>> {
        let t = self.ids.len();
        one(Launch {
            entry: "next_ids",
            grid: [blocks("next_ids T", t.div_ceil(BLOCK as usize))?, 1, 1],
            block: [BLOCK, 1, 1],
            smem: 0,
            args: args![&self.ids, &self.tokens, int("next_ids T", t)?],
        })
    }
    fn run(&self, m: &Memory) {
        reference::next_ids(m.i32_mut(&self.ids), m.i32(&self.tokens));
    }
}
