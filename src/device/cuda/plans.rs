//! Plans made ready: launches with their addresses, the events that time them, their graphs. Replaying one allocates nothing.

use super::driver::{Driver, Event, GraphExec, Stream};
use super::{Cuda, nvtx};
use crate::graph::{Place, Tensor, Window};
use crate::ops::{Arg, Launch};
use crate::plan::Plan;
use crate::{Error, Result};
use cudarc::driver::DriverError;
use cudarc::driver::result as cu;
use cudarc::driver::sys;
use std::ffi::{CString, c_void};
use std::ops::Range;

/// Prepared plans that are kept.
const PLANS: usize = 64;

/// A kernel with its arguments resolved.
pub struct Ready {
    function: sys::CUfunction,
    grid: [u32; 3],
    block: [u32; 3],
    smem: u32,
    /// 8 bytes each, of which a kernel reads 4 or 8; behind `params`.
    _args: Box<[u64]>,
    params: Vec<*mut c_void>,
}

/// A plan's launches by node, its parts (by the first word of the nodes' names), and their graphs once captured.
pub struct Prepared {
    id: u64,
    generation: u64,
    pub nodes: Vec<Vec<Ready>>,
    pub parts: Vec<Range<usize>>,
    pub graphs: Vec<GraphExec>,
    /// Before the first part and after each.
    pub marks: Vec<Event>,
    /// The nodes' names, if a profiler wants them.
    names: Vec<CString>,
    part_names: Vec<CString>,
}

impl Prepared {
    /// An NVTX range named by node `i`.
    pub fn range(&self, i: usize) -> Option<nvtx::Range> {
        self.names.get(i).and_then(|name| nvtx::range(name))
    }

    /// Queues all parts, as graphs if they were captured and `use_graphs`; an error names the nodes that it may be of.
    pub fn replay(
        &mut self,
        stream: &Stream,
        use_graphs: bool,
    ) -> std::result::Result<(), (Range<usize>, DriverError)> {
        self.marks[0].record(stream).map_err(|e| (0..self.nodes.len(), e))?;
        for p in 0..self.parts.len() {
            self.queue(p, stream, use_graphs).map_err(|e| (self.parts[p].clone(), e))?;
        }
        Ok(())
    }

    fn queue(&mut self, p: usize, stream: &Stream, use_graphs: bool) -> Driver<()> {
        let part = self.parts[p].clone();
        let _range = self.part_names.get(p).and_then(|name| nvtx::range(name));
        match self.graphs.get(p) {
            Some(graph) if use_graphs => graph.launch(stream)?,
            _ => {
                for n in part {
                    let _range = self.range(n);
                    self.nodes[n].iter_mut().try_for_each(|r| r.launch(stream))?;
                }
            }
        }
        self.marks[p + 1].record(stream)
    }
}

impl Ready {
    pub fn launch(&mut self, stream: &Stream) -> Driver<()> {
        let ([gx, gy, gz], [bx, by, bz]) = (self.grid, self.block);
        // SAFETY: a function of a loaded module; the op gave its arguments in the kernel's order, and every address was checked to hold
        // its tensor; a plan keeps what a node writes apart from what it reads.
        unsafe {
            cu::launch_kernel(
                self.function,
                (gx, gy, gz),
                (bx, by, bz),
                self.smem,
                stream.raw(),
                &mut self.params,
            )
        }
    }
}

impl Cuda {
    /// The launches of `plan`, resolved; its index among the prepared ones, and whether it was prepared before, be it with other addresses.
    pub(super) fn prepare(&mut self, plan: &Plan) -> Result<(usize, bool)> {
        if self.arena.as_ref().map_or(0, |a| a.bytes) < plan.arena_bytes {
            self.stream.wait().map_err(|e| self.error("work that ends", e))?;
            self.arena = None;
            self.generation += 1;
            self.arena = Some(self.allocate_bytes("activations", plan.arena_bytes)?);
        }
        let before = self.plans.iter().position(|p| p.id == plan.id);
        if let Some(i) = before {
            if self.plans[i].generation == self.generation {
                return Ok((i, true));
            }
            self.plans.remove(i);
        }
        let mut nodes = Vec::with_capacity(plan.graph.nodes.len());
        for node in &plan.graph.nodes {
            let at = |e| Error::Node { node: node.name.clone(), source: Box::new(e) };
            let launches = node.op.launch(&self.gpu).map_err(at)?;
            let ready = launches.iter().map(|l| self.ready(l, plan)).collect::<Result<Vec<_>>>();
            nodes.push(ready.map_err(at)?);
        }
        let part = |i: usize| plan.graph.nodes[i].name.split('.').next();
        let mut parts: Vec<Range<usize>> = Vec::new();
        for i in 0..nodes.len() {
            match parts.last_mut() {
                Some(p) if part(p.start) == part(i) => p.end = i + 1,
                _ => parts.push(i..i + 1),
            }
        }
        let marks = (0..parts.len() + 1).map(|_| Event::new()).collect::<Driver<_>>();
        let marks = marks.map_err(|e| self.error("events", e))?;
        let (mut names, mut part_names) = (Vec::new(), Vec::new());
        if nvtx::attached() {
            let c_string = |s: &str| CString::new(s).unwrap_or_default();
            names = plan.graph.nodes.iter().map(|n| c_string(&n.name)).collect();
            part_names = parts.iter().map(|p| c_string(part(p.start).unwrap_or_default())).collect();
        }
        if self.plans.len() == PLANS {
            self.plans.remove(0);
        }
        let (id, generation) = (plan.id, self.generation);
        let graphs = Vec::new();
        self.plans.push(Prepared { id, generation, nodes, parts, graphs, marks, names, part_names });
        Ok((self.plans.len() - 1, before.is_some()))
    }

    fn ready(&self, l: &Launch, plan: &Plan) -> Result<Ready> {
        let f = *self
            .functions
            .get(l.entry)
            .ok_or_else(|| Error::shape(l.entry, "a kernel of this name in kernels/*.cu", "none"))?;
        let threads: u32 = l.block.iter().product();
        if threads > f.max_threads || threads == 0 {
            let found = format!("blocks of {threads}");
            return Err(Error::shape(l.entry, format!("1 to {} threads a block", f.max_threads), found));
        }
        if l.smem > f.max_shared {
            let expected = format!("at most {} bytes of dynamic shared memory a block", f.max_shared);
            return Err(Error::shape(l.entry, expected, l.smem.to_string()));
        }
        let window = |w: &Window| Tensor { offset: w.of.offset + w.col, shape: vec![1], ..w.of.clone() };
        let arg = |a: &Arg| {
            Ok(match a {
                Arg::At(t) => self.address(t, Some(plan))?,
                Arg::AtCol(w) => self.address(&w.of, Some(plan)).and(self.address(&window(w), Some(plan)))?,
                Arg::Null => 0,
                Arg::I32(v) => u64::from(*v as u32),
                Arg::F32(v) => u64::from(v.to_bits()),
            })
        };
        let mut args = l.args.iter().map(arg).collect::<Result<Box<[u64]>>>()?;
        let params = args.iter_mut().map(|a| std::ptr::from_mut(a).cast()).collect();
        Ok(Ready { function: f.handle, grid: l.grid, block: l.block, smem: l.smem, _args: args, params })
    }

    /// Captures the parts of plan `i` as graphs.
    pub(super) fn capture(&mut self, i: usize) -> Driver<()> {
        let (stream, prepared) = (&self.stream, &mut self.plans[i]);
        let mut graphs = Vec::with_capacity(prepared.parts.len());
        for part in &prepared.parts {
            let nodes = &mut prepared.nodes[part.clone()];
            graphs.push(GraphExec::capture(stream, || {
                nodes.iter_mut().flatten().try_for_each(|r| r.launch(stream))
            })?);
        }
        prepared.graphs = graphs;
        Ok(())
    }

    /// The device address of a tensor, all of whose elements are there; activations need their plan.
    pub(super) fn address(&self, t: &Tensor, plan: Option<&Plan>) -> Result<u64> {
        let size = t.dtype.bytes(2);
        let needed = (t.offset + t.len()) * size;
        let missing =
            |found: usize| Error::shape(&*t.name, format!("a buffer of {needed} bytes"), found.to_string());
        let (base, bytes) = match t.place {
            Place::Weight(_) | Place::Derived(_) => {
                (*self.weights_at.get(&t.place).ok_or_else(|| missing(0))?, needed)
            }
            Place::State(id) => self.states.get(&id).map_or((0, 0), |m| (m.at, m.bytes)),
            Place::Activation(id) => {
                let offset = plan.and_then(|p| *p.offsets.get(id as usize)?).ok_or_else(|| missing(0))?;
                let (at, bytes) = self.arena.as_ref().map_or((0, 0), |m| (m.at, m.bytes));
                (at + offset as u64, bytes.saturating_sub(offset))
            }
        };
        if needed > bytes {
            return Err(missing(bytes));
        }
        Ok(base + (t.offset * size) as u64)
    }
}
