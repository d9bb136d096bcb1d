//! A graph laid out: every activation's offset in one arena, from the nodes' lifetimes.

use crate::graph::{Graph, Place, Tensor};
use crate::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// Offsets are multiples of this: enough for any vector access and for TMA.
pub const ALIGN: usize = 256;

/// A graph and the place of each of its activations. A run allocates nothing.
pub struct Plan {
    /// No other plan of this process has it: devices keep what they prepare under it.
    pub id: u64,
    /// What is run.
    pub graph: Graph,
    /// Byte offset of each activation in the arena; `None` for one that no node touches.
    pub offsets: Vec<Option<usize>>,
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// Bytes of one [`DType::Act`](crate::graph::DType::Act) element.
    pub act_bytes: usize,
}

/// First and last node that touch an activation, and its bytes.
struct Life {
    id: usize,
    first: usize,
    last: usize,
    bytes: usize,
}

impl Plan {
    /// Places the activations: the biggest first, each at the lowest offset that is free for its whole life.
    ///
    /// # Errors
    /// [`Error::Node`] for a node that reads an activation never written, writes a weight, or writes bytes of another of its operands.
    pub fn new(graph: Graph, act_bytes: usize) -> Result<Self> {
        let mut lives: Vec<Option<Life>> = graph.activations.iter().map(|_| None).collect();
        for (i, node) in graph.nodes.iter().enumerate() {
            let fail = |expected: &str, found: String| Error::Node {
                node: node.name.clone(),
                source: Box::new(Error::shape(node.op.kind(), expected, found)),
            };
            let (reads, writes) = (node.op.reads(), node.op.writes());
            node.apart(Tensor::overlaps)?;
            if let Some(w) = writes.iter().find(|w| matches!(w.place, Place::Weight(_) | Place::Derived(_))) {
                return Err(fail("weights only read", format!("{w} written")));
            }
            for t in &reads {
                if let Place::Activation(id) = t.place
                    && lives[id as usize].is_none()
                {
                    return Err(fail("operands written before they are read", t.to_string()));
                }
            }
            for t in reads.iter().chain(&writes) {
                if let Place::Activation(id) = t.place {
                    let id = id as usize;
                    let bytes = graph.activations[id].len() * graph.activations[id].dtype.bytes(act_bytes);
                    lives[id].get_or_insert(Life { id, first: i, last: i, bytes }).last = i;
                }
            }
        }
        let mut offsets = vec![None; graph.activations.len()];
        let mut lives: Vec<Life> = lives.into_iter().flatten().collect();
        lives.sort_by_key(|l| (std::cmp::Reverse(l.bytes), l.first));
        let mut placed: Vec<(usize, &Life)> = Vec::new(); // by offset
        let mut arena_bytes = 0;
        for life in &lives {
            let mut at = 0;
            for (offset, other) in &placed {
                let apart = other.last < life.first || life.last < other.first;
                if !apart && at + life.bytes > *offset {
                    at = at.max((offset + other.bytes).next_multiple_of(ALIGN));
                }
            }
            let index = placed.partition_point(|(o, _)| *o < at);
            placed.insert(index, (at, life));
            offsets[life.id] = Some(at);
            arena_bytes = arena_bytes.max((at + life.bytes).next_multiple_of(ALIGN));
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { id, graph, offsets, arena_bytes, act_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::DType;
    use crate::ops;

    /// A chain of copies needs two buffers, whatever its length; every pair alive at once stays apart.
    #[test]
    fn a_chain_takes_two_buffers() {
        let mut g = Graph::new();
        let first = Tensor::new("in", DType::Act, [100, 8], Place::State(0));
        let mut x = first;
        for _ in 0..10 {
            let y = g.act("y", [100, 8]);
            g.push("copy", ops::copy(&y.all(), &x).unwrap());
            x = y;
        }
        let plan = Plan::new(g, 4).unwrap();
        assert_eq!(plan.arena_bytes, 2 * (100 * 8 * 4usize).next_multiple_of(ALIGN));
    }

    #[test]
    fn reading_what_nobody_wrote_is_an_error() {
        let mut g = Graph::new();
        let (x, y) = (g.act("x", [4, 8]), g.act("y", [4, 8]));
        g.push("copy", ops::copy(&y.all(), &x).unwrap());
        let e = Plan::new(g, 4).err().unwrap().to_string();
        assert!(e.contains("node `copy`") && e.contains("written before they are read"), "{e}");
    }

    /// Operands share bytes only where nobody writes them, and where the op updates the one operand in place; not where it was given a tensor twice.
    #[test]
    fn overlapping_operands_are_an_error() {
        fn plan(op: Result<impl ops::Op + 'static>) -> Result<Plan> {
            let mut g = Graph::new();
            g.push("op", op.unwrap());
            Plan::new(g, 4)
        }
        #[track_caller]
        fn refused(op: Result<impl ops::Op + 'static>) {
            let e = plan(op).err().unwrap().to_string();
            assert!(e.contains("node `op`") && e.contains("written operands apart"), "{e}");
        }
        let state = |i, shape: &[usize]| Tensor::new("t", DType::Act, shape, Place::State(i));
        let (x, h, w, one) = (state(0, &[8, 8]), state(1, &[8, 8]), state(2, &[8, 8]), state(3, &[8]));
        refused(ops::copy(&x.rows(0..4).all(), &x.rows(2..6)));
        refused(ops::copy(&x.all(), &x));
        refused(ops::rmsnorm(&x, &x, &one, 1e-6));
        refused(ops::rmsnorm(&x, &x.clone().reshape([8, 8]), &one, 1e-6));
        refused(ops::layernorm(&x.all(), &x, &one, &one, 1e-6));
        refused(ops::sigmoid(&x, &x));
        let add = |y, x| ops::matmul(y, x, &w)?.then(ops::Epilogue::Residual);
        refused(add(&x, &x));
        refused(ops::argmax(
            &Tensor::new("y", DType::I32, [8], Place::State(0)),
            &x.rows(4..8).reshape([8, 4]),
        ));
        assert!(plan(add(&h, &x)).is_ok() && plan(ops::rmsnorm(&h, &x, &one, 1e-6)).is_ok());
        assert!(plan(ops::matmul(&h, &x, &x)).is_ok());
    }
}
