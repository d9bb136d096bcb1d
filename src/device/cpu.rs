//! The CPU device: the arena, the state buffers and the weights as f32 slices, and a run that asks each node to compute itself.

use super::{Device, Fetch, Seen, Values};
use crate::graph::{DType, Place, Tensor, Window};
use crate::models::Bound;
use crate::plan::Plan;
use crate::reference::{Precision, Short, View, ViewMut, Weights, widen};
use crate::{Error, Result};
use memmap2::{MmapMut, MmapRaw};
use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

/// Bytes of a buffer from which on it is compared with the free memory before it is made.
const LARGE: usize = 64 << 20;

/// Zeroed pages that several views may write, one node at a time. They take memory as they are written, not before: a K/V cache may never be full.
struct Bytes(MmapRaw);

impl Bytes {
    /// # Errors
    /// [`Error::OutOfMemory`] if the system has no room, or promises more than it has free.
    fn new(what: &str, bytes: usize) -> Result<Self> {
        if bytes >= LARGE && free().is_some_and(|free| free < bytes as u64) {
            return Err(short(what, bytes));
        }
        MmapMut::map_anon(bytes).map(|pages| Self(pages.into())).map_err(|_| short(what, bytes))
    }

    fn start(&self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// [`Error::OutOfMemory`].
fn short(what: &str, bytes: usize) -> Error {
    let free = free().unwrap_or(0);
    Error::OutOfMemory { device: "cpu".into(), what: what.into(), need: bytes as u64, free }
}

/// Bytes that this process can still fill: what is available or free for swapping, within its own limit of address space (`ulimit -v`). Unknown
/// where there is no `/proc`.
fn free() -> Option<u64> {
    let field = |file: &str, name: &str| -> Option<u64> {
        let text = std::fs::read_to_string(file).ok()?;
        text.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
    };
    let kilobytes =
        field("/proc/meminfo", "MemAvailable:")? + field("/proc/meminfo", "SwapFree:").unwrap_or(0);
    let limit = field("/proc/self/limits", "Max address space").unwrap_or(u64::MAX); // "unlimited" is no number
    let used = field("/proc/self/status", "VmSize:").unwrap_or(0) << 10;
    Some((kilobytes << 10).min(limit.saturating_sub(used)))
}

/// A model's weights and everything a plan touches, in the CPU's memory.
pub struct Cpu {
    weights: Bound,
    precision: Precision,
    states: HashMap<u32, Bytes>,
    arena: Option<Bytes>,
}

impl Cpu {
    /// A device with no state buffers yet.
    pub fn new(weights: Bound, precision: Precision) -> Self {
        Self { weights, precision, states: HashMap::new(), arena: None }
    }

    /// Copies `data` into the state buffer of `t`; `data` must fill it.
    fn write<T: bytemuck::Pod>(&mut self, t: &Tensor, data: &[T]) -> Result<()> {
        let data: &[u8] = bytemuck::cast_slice(data);
        let expected = t.len() * t.dtype.bytes(4);
        if data.len() != expected {
            return Err(Error::shape(&*t.name, format!("{expected} bytes"), data.len().to_string()));
        }
        let memory = self.memory(None);
        memory.check(t)?;
        let (to, len) = memory.range::<u8>(&Tensor {
            dtype: DType::U8,
            shape: vec![data.len()],
            offset: t.offset * t.dtype.bytes(4),
            ..t.clone()
        });
        // SAFETY: `range` is inside the buffer; `&mut self` means that nobody else reads it.
        unsafe { std::slice::from_raw_parts_mut(to, len) }.copy_from_slice(data);
        Ok(())
    }

    fn read<T: bytemuck::Pod>(&self, t: &Tensor) -> Result<Vec<T>> {
        let memory = self.memory(None);
        memory.check(t)?;
        Ok(memory.slice(t).to_vec())
    }

    fn memory<'a>(&'a self, plan: Option<&'a Plan>) -> Memory<'a> {
        Memory { cpu: self, plan }
    }
}

impl Values for Cpu {
    fn f32(&self, t: &Tensor) -> Result<Vec<f32>> {
        self.read(t)
    }
}

impl Device for Cpu {
    fn act_bytes(&self) -> usize {
        4
    }

    fn allocate(&mut self, t: &Tensor) -> Result<()> {
        let Place::State(id) = t.place else {
            return Err(Error::shape(&*t.name, "a state buffer", format!("{:?}", t.place)));
        };
        let bytes = t.len() * t.dtype.bytes(4);
        if self.states.get(&id).is_none_or(|b| b.len() < bytes) {
            self.states.remove(&id); // before there is another one
            self.states.insert(id, Bytes::new(&t.name, bytes)?);
        }
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        self.states.clear();
        self.arena = None;
        Ok(())
    }

    fn write_f32(&mut self, t: &Tensor, data: &[f32]) -> Result<()> {
        self.write(t, data)
    }

    fn write_i32(&mut self, t: &Tensor, data: &[i32]) -> Result<()> {
        self.write(t, data)
    }

    fn write_u8(&mut self, t: &Tensor, data: &[u8]) -> Result<()> {
        self.write(t, data)
    }

    fn read_i32(&self, t: &Tensor) -> Result<Vec<i32>> {
        self.read(t)
    }

    fn read_u8(&self, t: &Tensor) -> Result<Vec<u8>> {
        self.read(t)
    }

    fn run(&mut self, plan: &Plan, _each: bool, seen: Seen) -> Result<()> {
        if self.arena.as_ref().is_none_or(|a| a.len() < plan.arena_bytes) {
            self.arena = None; // before there is another one
            self.arena = Some(Bytes::new("activations", plan.arena_bytes)?);
        }
        let memory = self.memory(Some(plan));
        for (i, node) in plan.graph.nodes.iter().enumerate() {
            for t in node.op.reads().into_iter().chain(node.op.writes()) {
                memory.check(t).map_err(|e| Error::Node { node: node.name.clone(), source: Box::new(e) })?;
            }
            node.apart(|a, b| {
                let (a, b) = (memory.addresses(a), memory.addresses(b));
                a.start < b.end && b.start < a.end
            })?;
            let start = Instant::now();
            catch_unwind(AssertUnwindSafe(|| node.op.run(&memory))).map_err(|e| {
                match e.downcast::<Short>() {
                    Ok(e) => short(&node.name, e.0),
                    Err(e) => resume_unwind(e),
                }
            })?;
            seen(i, node, start.elapsed(), &memory)?;
        }
        Ok(())
    }

    fn fetch(&mut self, t: &Tensor) -> Result<Fetch> {
        self.read(t).map(Fetch::Here)
    }

    fn weights(&self) -> &Bound {
        &self.weights
    }
}

impl Values for Memory<'_> {
    fn f32(&self, t: &Tensor) -> Result<Vec<f32>> {
        self.check(t)?;
        Ok(self.slice(t).to_vec())
    }
}

/// Tensors as slices, for the ops.
///
/// Slices for writing are handed out from a shared reference. That is sound because only this crate's ops ever hold a `Memory`; they take slices of
/// the operands that they name, each once, one that is updated in place as one for writing; before a node runs, [`Cpu::run`](Device::run) has
/// refused one that writes bytes of another of its operands; and nodes run one after another.
pub struct Memory<'a> {
    cpu: &'a Cpu,
    plan: Option<&'a Plan>,
}

impl<'a> Memory<'a> {
    /// What matmuls compute with.
    pub fn precision(&self) -> Precision {
        self.cpu.precision
    }

    /// f32 elements to read.
    pub fn f32(&self, t: &Tensor) -> &'a [f32] {
        match t.place {
            Place::Derived(id) => &self.cpu.weights.derived(id)[t.offset..t.offset + t.len()],
            _ => self.slice(t),
        }
    }

    /// f32 elements to write.
    #[allow(clippy::mut_from_ref)]
    pub fn f32_mut(&self, t: &Tensor) -> &'a mut [f32] {
        self.slice_mut(t)
    }

    /// i32 elements to read.
    pub fn i32(&self, t: &Tensor) -> &'a [i32] {
        self.slice(t)
    }

    /// i32 elements to write.
    #[allow(clippy::mut_from_ref)]
    pub fn i32_mut(&self, t: &Tensor) -> &'a mut [i32] {
        self.slice_mut(t)
    }

    /// u8 elements to read.
    pub fn u8(&self, t: &Tensor) -> &'a [u8] {
        self.slice(t)
    }

    /// A window to read.
    pub fn window(&self, w: &Window) -> View<'a> {
        View { data: self.f32(&w.of), stride: w.of.matrix().1, col: w.col, width: w.width }
    }

    /// A window to write.
    pub fn window_mut(&self, w: &Window) -> ViewMut<'a> {
        ViewMut { data: self.f32_mut(&w.of), stride: w.of.matrix().1, col: w.col, width: w.width }
    }

    /// A matrix of weights, in place.
    pub fn weights(&self, t: &Tensor) -> Weights<'a> {
        match t.place {
            Place::Weight(id) => Weights::Bf16(&self.cpu.weights.weight(id)[t.offset..t.offset + t.len()]),
            _ => Weights::F32(self.f32(t)),
        }
    }

    /// A small weight (a norm, a bias) as f32.
    pub fn vector(&self, t: &Tensor) -> Vec<f32> {
        match self.weights(t) {
            Weights::F32(w) => w.to_vec(),
            Weights::Bf16(w) => {
                let mut out = vec![0.0; w.len()];
                widen(&mut out, w);
                out
            }
        }
    }

    /// Where a tensor's buffer starts, and its bytes.
    fn buffer(&self, t: &Tensor) -> Option<(*mut u8, usize)> {
        match t.place {
            Place::State(id) => self.cpu.states.get(&id).map(|b| (b.start(), b.len())),
            Place::Activation(id) => {
                let offset = (*self.plan?.offsets.get(id as usize)?)?;
                let arena = self.cpu.arena.as_ref()?;
                let len = arena.len().checked_sub(offset)?;
                // SAFETY: `offset` is inside the arena by the subtraction above.
                Some((unsafe { arena.start().add(offset) }, len))
            }
            Place::Weight(_) | Place::Derived(_) => None,
        }
    }

    /// An error unless the tensor's bytes are there.
    fn check(&self, t: &Tensor) -> Result<()> {
        if matches!(t.place, Place::Weight(_) | Place::Derived(_)) {
            return Ok(());
        }
        let end = t.offset.saturating_add(t.len()).saturating_mul(t.dtype.bytes(4));
        let found = self.buffer(t).map_or(0, |b| b.1);
        if end <= found {
            return Ok(());
        }
        Err(Error::shape(&*t.name, format!("a buffer of {end} bytes"), found.to_string()))
    }

    /// Where the bytes are of a tensor that may be written.
    fn addresses(&self, t: &Tensor) -> Range<usize> {
        let Some((start, _)) = self.buffer(t) else { return 0..0 };
        let start = start.addr() + t.offset * t.dtype.bytes(4);
        start..start + t.len() * t.dtype.bytes(4)
    }

    /// Start and number of the `T`s of a tensor.
    fn range<T>(&self, t: &Tensor) -> (*mut T, usize) {
        self.check(t).expect("operands are checked before a node runs");
        assert_eq!(size_of::<T>(), t.dtype.bytes(4), "bytes of an element of `{}`", t.name);
        let start = self.buffer(t).expect("checked above").0.cast::<T>();
        assert!(start.is_aligned(), "the place of `{}`", t.name);
        // SAFETY: inside the buffer by `check`.
        (unsafe { start.add(t.offset) }, t.len())
    }

    fn slice<T: bytemuck::Pod>(&self, t: &Tensor) -> &'a [T] {
        let (start, len) = self.range(t);
        // SAFETY: `range` is aligned and inside a buffer that lives for 'a; its pages were zeroed and any bits are a valid `T: Pod`; no slice for
        // writing shares bytes with it (see the type's documentation).
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    #[allow(clippy::mut_from_ref)]
    fn slice_mut<T: bytemuck::Pod>(&self, t: &Tensor) -> &'a mut [T] {
        let (start, len) = self.range(t);
        // SAFETY: as in `slice`; it is the one slice of these bytes (see the type's documentation).
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Graph;
    use crate::ops;

    fn cpu() -> Cpu {
        Cpu::new(Bound::default(), Precision::F32)
    }

    /// A chain of two copies of `x`, planned for the CPU.
    fn copies(x: &Tensor) -> Plan {
        let mut g = Graph::new();
        let (a, b) = (g.act("a", &x.shape[..]), g.act("b", &x.shape[..]));
        g.push("first", ops::copy(&a.all(), x).unwrap());
        g.push("second", ops::copy(&b.all(), &a).unwrap());
        Plan::new(g, 4).unwrap()
    }

    /// More than there can be is an error, which names it; what was there before is not in its way, and the device goes on.
    #[test]
    fn memory_that_is_not_there_is_an_error() {
        let state = |rows| Tensor::new("kv", DType::Act, [rows, 1 << 20], Place::State(0));
        let (few, many) = (state(1), state(1 << 26)); // 4 MB, 256 TB
        let mut cpu = cpu();
        cpu.allocate(&few).unwrap();
        let e = cpu.allocate(&many).unwrap_err();
        assert!(
            matches!(&e, Error::OutOfMemory { what, need, .. } if what == "kv" && *need == 1 << 48),
            "{e}"
        );
        let run = |cpu: &mut Cpu, x: &Tensor| cpu.run(&copies(x), false, &mut |_, _, _, _| Ok(()));
        let e = run(&mut cpu, &many).unwrap_err();
        assert!(matches!(&e, Error::OutOfMemory { what, .. } if what == "activations"), "{e}");
        cpu.allocate(&few).unwrap();
        run(&mut cpu, &few).unwrap();
    }

    /// Buffers take memory as they are written.
    #[cfg(target_os = "linux")]
    #[test]
    fn pages_that_nobody_writes_take_no_memory() {
        let resident = || {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let before = resident();
        let bytes = Bytes::new("cache", 1 << 30).unwrap();
        assert!(resident() < before + (1 << 29) && bytes.len() == 1 << 30);
    }

    /// Whatever was done to a plan, no op has two slices of bytes that it writes.
    #[test]
    fn operands_that_share_bytes_are_refused() {
        let x = Tensor::new("x", DType::Act, [4, 8], Place::State(0));
        let mut plan = copies(&x);
        plan.offsets[1] = plan.offsets[0];
        let mut cpu = cpu();
        cpu.allocate(&x).unwrap();
        let e = cpu.run(&plan, false, &mut |_, _, _, _| Ok(())).unwrap_err().to_string();
        assert!(e.contains("node `second`") && e.contains("apart"), "{e}");
    }
}
