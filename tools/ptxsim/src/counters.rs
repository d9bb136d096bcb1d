//! What a launch did, counted exactly: the same numbers in every run and for every number of threads.

use serde::Serialize;
use std::collections::BTreeMap;

use crate::ast::Ast;
use crate::exec::counting::Traffic;
use crate::program::Program;

/// Classes of instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Integer and bit arithmetic.
    Integer,
    /// 32-bit floating point.
    Float32,
    /// 64-bit floating point.
    Float64,
    /// 16-bit and packed floating point.
    Half,
    /// Approximate functions (`ex2`, `rcp`, `sin`, ...).
    Special,
    /// `cvt`.
    Convert,
    /// Moves, selections, address conversions.
    Move,
    /// Comparisons and predicate logic.
    Predicate,
    /// Branches, calls, returns.
    Control,
    /// Loads of any space.
    Load,
    /// Stores of any space.
    Store,
    /// Atomics and reductions.
    Atomic,
    /// Shuffles, votes, matches.
    Warp,
    /// Barriers and fences.
    Barrier,
    /// Asynchronous copies and their groups.
    Async,
    /// Matrix instructions and their fragment loads and stores.
    Tensor,
    /// Anything else.
    Other,
}

/// Executions of an opcode or a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OpCounters {
    /// Times a warp executed it.
    pub warps: u64,
    /// Lanes active in them, added up.
    pub lanes: u64,
}

/// Matrix instructions of one shape and type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TensorCounters {
    /// Instructions.
    pub ops: u64,
    /// Multiplications and additions, counted as two.
    pub flops: u64,
}

/// Global-memory traffic as the coalescer would see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GlobalCounters {
    /// Warp requests.
    pub requests: u64,
    /// 32-byte sectors of these requests.
    pub sectors: u64,
    /// Bytes the lanes asked for, each byte of a request once.
    pub bytes: u64,
}

/// Shared-memory traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SharedCounters {
    /// Warp requests.
    pub requests: u64,
    /// 128-byte wavefronts these requests take, bank conflicts included.
    pub wavefronts: u64,
    /// Wavefronts they would take without bank conflicts.
    pub ideal: u64,
}

/// What one source line did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LineCounters {
    /// CUDA source file, or empty without `-lineinfo`.
    pub file: String,
    /// 1-based line of the source file, or of the PTX text.
    pub line: u32,
    /// Instructions.
    pub ops: OpCounters,
    /// Global loads.
    pub global_load: GlobalCounters,
    /// Global stores.
    pub global_store: GlobalCounters,
    /// Shared loads and stores.
    pub shared: SharedCounters,
}

/// Everything counted in one launch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// All instructions.
    pub total: OpCounters,
    /// By opcode form.
    pub opcodes: BTreeMap<String, OpCounters>,
    /// By class.
    pub classes: BTreeMap<Class, OpCounters>,
    /// By shape and types, as in `m16n8k16.f32.bf16.bf16.f32`.
    pub tensor: BTreeMap<String, TensorCounters>,
    /// Global loads, asynchronous copies included.
    pub global_load: GlobalCounters,
    /// Global stores.
    pub global_store: GlobalCounters,
    /// Global atomics and reductions.
    pub global_atomic: GlobalCounters,
    /// Distinct global bytes that were touched: the compulsory traffic. Counted where global races are checked.
    pub distinct_bytes: u64,
    /// Shared loads, fragment loads included.
    pub shared_load: SharedCounters,
    /// Shared stores.
    pub shared_store: SharedCounters,
    /// Atomic operations, lanes added up (all spaces).
    pub atomics: u64,
    /// Barriers that warps reached.
    pub barriers: u64,
    /// Asynchronous copies: bytes they moved.
    pub async_bytes: u64,
    /// The most bytes in flight at once in one block.
    pub async_in_flight_max: u64,
    /// By source line, in order.
    pub lines: Vec<LineCounters>,
}

impl Counters {
    /// Adds another launch's counts; `async_in_flight_max` becomes the larger one.
    pub fn add(&mut self, other: &Counters) {
        self.total.add(other.total);
        for (form, n) in &other.opcodes {
            self.opcodes.entry(form.clone()).or_default().add(*n);
        }
        for (class, n) in &other.classes {
            self.classes.entry(*class).or_default().add(*n);
        }
        for (shape, n) in &other.tensor {
            let sum = self.tensor.entry(shape.clone()).or_default();
            sum.ops += n.ops;
            sum.flops += n.flops;
        }
        self.global_load.add(other.global_load);
        self.global_store.add(other.global_store);
        self.global_atomic.add(other.global_atomic);
        self.distinct_bytes += other.distinct_bytes;
        self.shared_load.add(other.shared_load);
        self.shared_store.add(other.shared_store);
        self.atomics += other.atomics;
        self.barriers += other.barriers;
        self.async_bytes += other.async_bytes;
        self.async_in_flight_max = self.async_in_flight_max.max(other.async_in_flight_max);
        for line in &other.lines {
            match self.lines.binary_search_by(|l| (&l.file, l.line).cmp(&(&line.file, line.line))) {
                Ok(i) => {
                    let sum = &mut self.lines[i];
                    sum.ops.add(line.ops);
                    sum.global_load.add(line.global_load);
                    sum.global_store.add(line.global_store);
                    sum.shared.add(line.shared);
                }
                Err(i) => self.lines.insert(i, line.clone()),
            }
        }
    }
}

impl OpCounters {
    fn add(&mut self, other: OpCounters) {
        self.warps += other.warps;
        self.lanes += other.lanes;
    }
}

impl GlobalCounters {
    fn add(&mut self, other: GlobalCounters) {
        self.requests += other.requests;
        self.sectors += other.sectors;
        self.bytes += other.bytes;
    }
}

impl SharedCounters {
    fn add(&mut self, other: SharedCounters) {
        self.requests += other.requests;
        self.wavefronts += other.wavefronts;
        self.ideal += other.ideal;
    }
}

/// Adds up the executions and the traffic of each instruction.
pub(crate) fn fill(c: &mut Counters, prog: &Program, ast: &Ast, counts: &[[u64; 2]], traffic: &[Traffic]) {
    let mut lines: BTreeMap<(String, u32), LineCounters> = BTreeMap::new();
    for (pc, (&[warps, lanes], t)) in counts.iter().zip(traffic).enumerate() {
        if warps == 0 {
            continue;
        }
        let info = &prog.info[pc];
        let place = prog.place(pc as u32, ast);
        let (file, line) = place.source.unwrap_or((String::new(), place.ptx_line));
        let l = lines.entry((file.clone(), line)).or_insert_with(|| LineCounters {
            file,
            line,
            ..LineCounters::default()
        });
        for o in [
            &mut c.total,
            c.opcodes.entry(place.opcode.clone()).or_default(),
            c.classes.entry(info.class).or_default(),
            &mut l.ops,
        ] {
            o.warps += warps;
            o.lanes += lanes;
        }
        let store = info.class == Class::Store;
        for g in [
            match info.class {
                Class::Store => &mut c.global_store,
                Class::Atomic => &mut c.global_atomic,
                _ => &mut c.global_load,
            },
            if store { &mut l.global_store } else { &mut l.global_load },
        ] {
            g.requests += t.requests;
            g.sectors += t.sectors;
            g.bytes += t.bytes;
        }
        let stores = store
            || matches!(info.class, Class::Async | Class::Atomic)
            || place.opcode.starts_with("stmatrix");
        for s in [if stores { &mut c.shared_store } else { &mut c.shared_load }, &mut l.shared] {
            s.requests += t.shared_requests;
            s.wavefronts += t.wavefronts;
            s.ideal += t.ideal;
        }
        if let Some((shape, flops)) = prog.tensor_work(pc as u32) {
            let e = c.tensor.entry(shape).or_default();
            e.ops += warps;
            e.flops += flops * warps;
        }
    }
    c.lines = lines.into_values().collect();
}
