//! The CUDA device: the compiled kernels of `kernels/`, launched through the driver API; `--device sim` is the same code on the
//! simulated driver of `tools/ptxsim`.
//!
//! Everything runs in order on one stream. Weights are copied once, through two pinned buffers, while the next part is read from disk.
//! A plan's launches are resolved to addresses when it is first run; from its second run on it is replayed as CUDA graphs, one for
//! each part of the model (`vit`, `llm`, ...), so that the parts can be timed.

use super::{Choice, Device, Seen, Values};
use crate::graph::{DType, Place, Tensor, Window};
use crate::models::Bound;
use crate::ops::{Arg, Gpu, Launch};
use crate::plan::{ALIGN, Plan};
use crate::{Error, Result};
use cudarc::driver::DriverError;
use cudarc::driver::result as cu;
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use half::bf16;
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

/// A file of `kernels/`, compiled.
struct Kernel {
    /// The file's name without `.cu`.
    name: &'static str,
    /// Its `extern "C"` kernels.
    entries: &'static [&'static str],
    /// PTX for `compute_80`, ended by a NUL.
    ptx: &'static str,
    /// Machine code for the architectures it was compiled for.
    fatbin: Option<&'static [u8]>,
}

/// The bytes of a file, aligned as the driver reads them best.
#[allow(unused_macros)] // without kernels in the build
macro_rules! aligned {
    ($path:expr) => {{
        #[repr(C, align(64))]
        struct Aligned<T: ?Sized>(T);
        static FILE: &Aligned<[u8]> = &Aligned(*include_bytes!($path));
        &FILE.0
    }};
}
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The oldest driver whose PTX compiler knows CUDA 13.0 (release 580).
const DRIVER: i32 = 13000;
/// Bytes of each of the two pinned buffers that weights pass through.
const STAGING: usize = 32 << 20;
/// Prepared plans that are kept.
const PLANS: usize = 64;

/// Why this build has no kernels, if it has none.
pub fn why_no_kernels() -> Option<&'static str> {
    WHY_NONE
}

/// Names of the kernels, by file.
pub fn kernels() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    KERNELS.iter().map(|k| (k.name, k.entries))
}

/// The device.
pub struct Cuda {
    choice: Choice,
    gpu: Gpu,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    functions: HashMap<&'static str, Function>,
    weights: Bound,
    addresses: HashMap<Place, u64>,
    buffers: Vec<Buffer>,
    states: HashMap<u32, Buffer>,
    arena: Buffer,
    plans: Vec<Prepared>,
    /// Goes up whenever an address that plans hold may have changed.
    generation: u64,
    use_graphs: bool,
    sync: bool,
}

// SAFETY: driver handles may be used from any thread whose current context is theirs; every method makes it so first.
unsafe impl Send for Cuda {}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    max_threads: u32,
}

/// Device memory.
#[derive(Clone, Copy, Default)]
struct Buffer {
    at: u64,
    bytes: usize,
}

/// A kernel with its arguments resolved.
struct Ready {
    function: sys::CUfunction,
    grid: [u32; 3],
    block: [u32; 3],
    smem: u32,
    args: Vec<u64>,
}

/// A plan's launches by node, its parts, and their graphs once captured.
struct Prepared {
    id: u64,
    generation: u64,
    nodes: Vec<Vec<Ready>>,
    parts: Vec<Range<usize>>,
    graphs: Vec<sys::CUgraphExec>,
}

impl Cuda {
    /// Opens the device, loads the kernels and copies the weights.
    ///
    /// # Errors
    /// [`Error::Device`]: no kernels in this build, no driver library, a driver too old, no such device, not enough memory.
    pub fn open(choice: Choice, weights: Bound, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let fail = |expected: &str, found: String| Error::Device {
            device: choice.to_string(),
            expected: expected.into(),
            found,
        };
        if let Some(why) = WHY_NONE {
            return Err(fail(
                "a build with CUDA kernels (tools/cuda/fetch fetches the compiler)",
                why.into(),
            ));
        }
        if choice == Choice::Sim {
            open_simulator()?;
        }
        // SAFETY: looks whether the library can be opened, nothing else.
        if !unsafe { sys::is_culib_present() } {
            return Err(fail("NVIDIA's driver", "no driver library (libcuda.so.1)".into()));
        }
        if (choice == Choice::Sim) != (simulated().is_some()) {
            return Err(match choice {
                Choice::Sim => fail(
                    "the simulated driver first in the library path (set LD_LIBRARY_PATH to its folder)",
                    "another libcuda.so".into(),
                ),
                _ => fail("NVIDIA's driver", "the simulated one (use --device sim)".into()),
            });
        }
        let mut version = 0;
        // SAFETY: `version` outlives the call.
        let found = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
        found.map_err(|e| fail("a driver that answers", name(e)))?;
        if version < DRIVER {
            let found = format!("one for CUDA {}.{}", version / 1000, version % 1000 / 10);
            return Err(fail("driver 580 or newer (CUDA 13.0)", found));
        }
        cu::init().map_err(|e| fail("a driver with a device", name(e)))?;
        let count = cu::device::get_count().map_err(|e| fail("a driver that answers", name(e)))?;
        let ordinal = if let Choice::Cuda(n) = choice { n as i32 } else { 0 };
        if ordinal < 0 || ordinal >= count {
            return Err(fail("a CUDA device of this number", format!("{count} devices")));
        }
        let mut cuda =
            Self::retain(choice, ordinal, weights).map_err(|e| fail("a usable device", name(e)))?;
        cuda.load_kernels()?;
        cuda.load_weights(progress)?;
        Ok(cuda)
    }

    fn retain(choice: Choice, ordinal: i32, weights: Bound) -> std::result::Result<Self, DriverError> {
        let device = cu::device::get(ordinal)?;
        // SAFETY: a device of this driver; the context is released in `drop`.
        let (gpu, context) = unsafe {
            let get = |a| cu::device::get_attribute(device, a);
            let major = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            let minor = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            let sms = get(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
            let gpu = Gpu { arch: (major * 10 + minor) as u32, sms: sms as u32 };
            (gpu, cu::primary_ctx::retain(device)?)
        };
        let mut cuda = Self {
            choice,
            gpu,
            device,
            context,
            stream: std::ptr::null_mut(),
            modules: Vec::new(),
            functions: HashMap::new(),
            weights,
            addresses: HashMap::new(),
            buffers: Vec::new(),
            states: HashMap::new(),
            arena: Buffer::default(),
            plans: Vec::new(),
            generation: 0,
            use_graphs: true,
            sync: false,
        };
        cuda.enter()?;
        cuda.stream = cu::stream::create(cu::stream::StreamKind::NonBlocking)?;
        Ok(cuda)
    }

    /// The GPU, as launches see it.
    pub fn gpu(&self) -> Gpu {
        self.gpu
    }

    fn error(&self, doing: &str, e: DriverError) -> Error {
        Error::Device { device: self.choice.to_string(), expected: doing.into(), found: name(e) }
    }

    /// Makes the context current on this thread.
    fn enter(&self) -> std::result::Result<(), DriverError> {
        // SAFETY: retained until `drop`.
        unsafe { cu::ctx::set_current(self.context) }
    }

    fn load_kernels(&mut self) -> Result<()> {
        for kernel in KERNELS {
            let image = match kernel.fatbin {
                Some(fatbin) if self.choice != Choice::Sim => fatbin.as_ptr().cast::<c_void>(),
                _ => kernel.ptx.as_ptr().cast(),
            };
            // SAFETY: a fat binary, or PTX ended by a NUL, that lives as long as the program.
            let module = unsafe { cu::module::load_data(image) }
                .map_err(|e| self.error(&format!("kernels/{}.cu for this GPU", kernel.name), e))?;
            self.modules.push(module);
            for entry in kernel.entries {
                let function = self.function(module, entry).map_err(|e| self.error(entry, e))?;
                self.functions.insert(entry, function);
            }
        }
        Ok(())
    }

    fn function(&self, module: sys::CUmodule, entry: &str) -> std::result::Result<Function, DriverError> {
        use sys::CUfunction_attribute_enum as A;
        let symbol = CString::new(entry).unwrap_or_default();
        // SAFETY: `module` was just loaded and stays so until `drop`.
        unsafe {
            let handle = cu::module::get_function(module, symbol)?;
            let max =
                cu::function::get_function_attribute(handle, A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
            Ok(Function { handle, max_threads: max as u32 })
        }
    }

    /// Copies weights and what was derived from them into one allocation.
    fn load_weights(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let weights = self.weights.clone();
        let ids = weights.weight_ids();
        let mut parts: Vec<(Place, usize)> =
            ids.iter().map(|&id| (Place::Weight(id), 2 * weights.weight(id).len())).collect();
        for (i, (dtype, values)) in weights.all_derived().iter().enumerate() {
            parts.push((Place::Derived(i as u32), values.len() * dtype.bytes(2)));
        }
        let total: usize = parts.iter().map(|p| p.1.next_multiple_of(ALIGN)).sum();
        if total == 0 {
            return Ok(());
        }
        let arena = self.allocate_bytes("weights", total)?;
        self.buffers.push(arena);
        let mut staging = Staging::new(self)?;
        let (mut at, mut done) = (arena.at, 0u64);
        for (place, bytes) in parts {
            self.addresses.insert(place, at);
            let derived;
            let source: &[u8] = match place {
                Place::Weight(id) => bytemuck::cast_slice(weights.weight(id)),
                Place::Derived(id) => {
                    let (dtype, values) = &weights.all_derived()[id as usize];
                    derived = encode(*dtype, values);
                    &derived
                }
                Place::State(_) | Place::Activation(_) => &[],
            };
            let mut to = at;
            for chunk in source.chunks(STAGING) {
                staging.copy(to, chunk).map_err(|e| self.error("the weights on the device", e))?;
                to += chunk.len() as u64;
                done += chunk.len() as u64;
                progress(done, total as u64);
            }
            at += bytes.next_multiple_of(ALIGN) as u64;
        }
        staging.finish().map_err(|e| self.error("the weights on the device", e))
    }

    fn allocate_bytes(&self, what: &str, bytes: usize) -> Result<Buffer> {
        // SAFETY: plain allocation; freed in `drop` or by `free`.
        match unsafe { cu::malloc_sync(bytes.max(ALIGN)) } {
            Ok(at) => Ok(Buffer { at, bytes }),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, _) = cu::mem_get_info().unwrap_or_default();
                Err(Error::OutOfMemory {
                    device: self.choice.to_string(),
                    what: what.into(),
                    need: bytes as u64,
                    free: free as u64,
                })
            }
            Err(e) => Err(self.error("memory", e)),
        }
    }

    /// Frees memory that nothing in flight uses.
    fn free(&self, buffer: Buffer) {
        if buffer.at != 0 {
            // SAFETY: allocated by `allocate_bytes`, and not freed before. An error is that of work that failed earlier, and was reported.
            let _ = unsafe { cu::free_sync(buffer.at) };
        }
    }

    fn wait(&self) -> std::result::Result<(), DriverError> {
        // SAFETY: the stream lives until `drop`.
        unsafe { cu::stream::synchronize(self.stream) }
    }

    /// Where a tensor's first element lies; its bytes are checked to be there.
    fn address(&self, t: &Tensor, plan: Option<&Plan>) -> Result<u64> {
        let size = t.dtype.bytes(2);
        let missing = |found: usize| {
            let need = (t.offset + t.len()) * size;
            Error::shape(&*t.name, format!("a buffer of {need} bytes"), found.to_string())
        };
        let inside = |b: Buffer| {
            let fits = (t.offset + t.len()) * size <= b.bytes;
            if fits { Ok(b.at) } else { Err(missing(b.bytes)) }
        };
        let base = match t.place {
            Place::Weight(_) | Place::Derived(_) => {
                *self.addresses.get(&t.place).ok_or_else(|| missing(0))?
            }
            Place::State(id) => inside(*self.states.get(&id).ok_or_else(|| missing(0))?)?,
            Place::Activation(id) => {
                let offset = plan.and_then(|p| *p.offsets.get(id as usize)?).ok_or_else(|| missing(0))?;
                let bytes = self.arena.bytes.checked_sub(offset).ok_or_else(|| missing(0))?;
                inside(Buffer { at: self.arena.at + offset as u64, bytes })?
            }
        };
        Ok(base + (t.offset * size) as u64)
    }

    /// The bytes of a tensor, once everything before is done.
    fn read_bytes(&self, t: &Tensor, plan: Option<&Plan>) -> Result<Vec<u8>> {
        let mut bytes = vec![0u8; t.len() * t.dtype.bytes(2)];
        let at = self.address(t, plan)?;
        if bytes.is_empty() {
            return Ok(bytes);
        }
        self.enter()
            .and_then(|()| self.wait())
            // SAFETY: `address` checked that the bytes are there.
            .and_then(|()| unsafe { cu::memcpy_dtoh_sync(&mut bytes, at) })
            .map_err(|e| self.error(&format!("the values of `{}`", t.name), e))?;
        Ok(bytes)
    }

    fn read_values(&self, t: &Tensor, plan: Option<&Plan>) -> Result<Vec<f32>> {
        let bytes = self.read_bytes(t, plan)?;
        Ok(match t.dtype {
            DType::Act | DType::Bf16 => {
                bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()
            }
            _ => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        })
    }

    fn write_bytes(&mut self, t: &Tensor, data: &[u8]) -> Result<()> {
        let expected = t.len() * t.dtype.bytes(2);
        if data.len() != expected {
            return Err(Error::shape(&*t.name, format!("{expected} bytes"), data.len().to_string()));
        }
        let at = self.address(t, None)?;
        if data.is_empty() {
            return Ok(());
        }
        self.enter()
            // What is in flight may read the old contents.
            .and_then(|()| self.wait())
            // SAFETY: `address` checked that the bytes are there.
            .and_then(|()| unsafe { cu::memcpy_htod_sync(at, data) })
            .map_err(|e| self.error(&format!("a place for `{}`", t.name), e))
    }

    /// The launches of `plan`, resolved; its index among the prepared ones, and whether it was there before.
    fn prepare(&mut self, plan: &Plan) -> Result<(usize, bool)> {
        if self.arena.bytes < plan.arena_bytes {
            let old = std::mem::take(&mut self.arena);
            self.wait().map_err(|e| self.error("work that ends", e))?;
            self.free(old);
            self.generation += 1;
            self.arena = self.allocate_bytes("activations", plan.arena_bytes)?;
        }
        if let Some(i) = self.plans.iter().position(|p| p.id == plan.id) {
            if self.plans[i].generation == self.generation {
                return Ok((i, true));
            }
            let stale = self.plans.remove(i);
            stale.destroy();
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
        if self.plans.len() == PLANS {
            self.plans.remove(0).destroy();
        }
        let generation = self.generation;
        self.plans.push(Prepared { id: plan.id, generation, nodes, parts, graphs: Vec::new() });
        Ok((self.plans.len() - 1, false))
    }

    fn ready(&self, l: &Launch, plan: &Plan) -> Result<Ready> {
        use sys::CUfunction_attribute_enum as A;
        let f = *self
            .functions
            .get(l.entry)
            .ok_or_else(|| Error::shape(l.entry, "a kernel of this name in kernels/*.cu", "none"))?;
        let threads: u32 = l.block.iter().product();
        if threads > f.max_threads || threads == 0 {
            let found = format!("blocks of {threads}");
            return Err(Error::shape(l.entry, format!("1 to {} threads a block", f.max_threads), found));
        }
        if l.smem > 48 << 10 {
            let attribute = A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a loaded module.
            unsafe { cu::function::set_function_attribute(f.handle, attribute, l.smem as i32) }
                .map_err(|e| self.error(&format!("{} bytes of shared memory a block", l.smem), e))?;
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
        let args = l.args.iter().map(arg).collect::<Result<_>>()?;
        Ok(Ready { function: f.handle, grid: l.grid, block: l.block, smem: l.smem, args })
    }

    fn launch(&self, r: &Ready) -> std::result::Result<(), DriverError> {
        let mut params: Vec<*mut c_void> =
            r.args.iter().map(|a| std::ptr::from_ref(a).cast_mut().cast()).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (r.grid, r.block);
        // SAFETY: a function of a loaded module; the op gave its arguments in the kernel's order, and every address was checked to hold
        // its tensor; a plan keeps what a node writes apart from what it reads. A kernel reads 4 or 8 bytes of each 8-byte slot.
        unsafe { cu::launch_kernel(r.function, (gx, gy, gz), (bx, by, bz), r.smem, self.stream, &mut params) }
    }

    /// Captures the parts of plan `i` as graphs.
    fn capture(&mut self, i: usize) -> std::result::Result<(), DriverError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let mut graphs = Vec::new();
        for part in &self.plans[i].parts {
            // SAFETY: the stream lives until `drop`; the graph is destroyed here, its executable in `Prepared::destroy`.
            unsafe {
                cu::stream::begin_capture(self.stream, mode)?;
                let launched =
                    self.plans[i].nodes[part.clone()].iter().flatten().try_for_each(|r| self.launch(r));
                let graph = cu::stream::end_capture(self.stream);
                launched?;
                let graph = graph?;
                let exec = cu::graph::instantiate(graph, sys::CUgraphInstantiate_flags_enum(0));
                cu::graph::destroy(graph)?;
                graphs.push(exec?);
            }
        }
        self.plans[i].graphs = graphs;
        Ok(())
    }
}

impl Prepared {
    fn destroy(self) {
        for graph in self.graphs {
            // SAFETY: made by `capture`, destroyed once; a graph that still runs is kept by the driver until it ends.
            let _ = unsafe { cu::graph::exec_destroy(graph) };
        }
    }
}

impl Values for Cuda {
    fn f32(&self, t: &Tensor) -> Result<Vec<f32>> {
        self.read_values(t, None)
    }
}

/// Values while `plan` runs.
struct Running<'a>(&'a Cuda, &'a Plan);

impl Values for Running<'_> {
    fn f32(&self, t: &Tensor) -> Result<Vec<f32>> {
        self.0.read_values(t, Some(self.1))
    }
}

impl Device for Cuda {
    fn act_bytes(&self) -> usize {
        2
    }

    fn keeps_plans(&self) -> bool {
        true
    }

    fn debug(&mut self, graphs: bool, sync: bool) {
        (self.use_graphs, self.sync) = (graphs, sync);
    }

    fn allocate(&mut self, t: &Tensor) -> Result<()> {
        let Place::State(id) = t.place else {
            return Err(Error::shape(&*t.name, "a state buffer", format!("{:?}", t.place)));
        };
        let bytes = t.len() * t.dtype.bytes(2);
        if self.states.get(&id).is_some_and(|b| b.bytes >= bytes) {
            return Ok(());
        }
        self.enter().and_then(|()| self.wait()).map_err(|e| self.error("work that ends", e))?;
        if let Some(old) = self.states.remove(&id) {
            self.free(old);
        }
        self.generation += 1;
        let buffer = self.allocate_bytes(&t.name, bytes)?;
        self.states.insert(id, buffer);
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        self.enter().and_then(|()| self.wait()).map_err(|e| self.error("work that ends", e))?;
        let states = std::mem::take(&mut self.states);
        let arena = std::mem::take(&mut self.arena);
        states.into_values().chain([arena]).for_each(|b| self.free(b));
        self.generation += 1;
        Ok(())
    }

    fn write_f32(&mut self, t: &Tensor, data: &[f32]) -> Result<()> {
        self.write_bytes(t, &encode(t.dtype, data))
    }

    fn write_i32(&mut self, t: &Tensor, data: &[i32]) -> Result<()> {
        self.write_bytes(t, bytemuck::cast_slice(data))
    }

    fn read_i32(&self, t: &Tensor) -> Result<Vec<i32>> {
        Ok(self.read_bytes(t, None)?.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect())
    }

    fn read_u8(&self, t: &Tensor) -> Result<Vec<u8>> {
        self.read_bytes(t, None)
    }

    fn run(&mut self, plan: &Plan, each: bool, seen: Seen) -> Result<()> {
        self.enter().map_err(|e| self.error("a context", e))?;
        let (i, again) = self.prepare(plan)?;
        let each = each || self.sync;
        if !each && self.use_graphs && again && self.plans[i].graphs.is_empty() {
            self.capture(i).map_err(|e| self.error("a plan captured as a CUDA graph", e))?;
        }
        let prepared = &self.plans[i];
        let steps: Vec<Range<usize>> = match each {
            true => (0..prepared.nodes.len()).map(|n| n..n + 1).collect(),
            false => prepared.parts.clone(),
        };
        let events = Events::new(steps.len() + 1).map_err(|e| self.error("events", e))?;
        events.record(0, self.stream).map_err(|e| self.error("events", e))?;
        for (s, step) in steps.iter().enumerate() {
            let last = step.end - 1;
            let run = || {
                match prepared.graphs.get(s) {
                    // SAFETY: an executable graph of this context.
                    Some(&graph) if !each => unsafe { cu::graph::launch(graph, self.stream) }?,
                    _ => prepared.nodes[step.clone()].iter().flatten().try_for_each(|r| self.launch(r))?,
                }
                events.record(s + 1, self.stream)?;
                if each { self.wait() } else { Ok(()) }
            };
            run().map_err(|e| self.failed(plan, step, e))?;
            if each {
                let time = events.between(s).map_err(|e| self.failed(plan, step, e))?;
                seen(last, &plan.graph.nodes[last], time, &Running(self, plan))?;
            }
        }
        self.wait().map_err(|e| self.failed(plan, &(0..plan.graph.nodes.len()), e))?;
        if !each {
            for (s, step) in steps.iter().enumerate() {
                let last = step.end - 1;
                let time = events.between(s).map_err(|e| self.failed(plan, step, e))?;
                seen(last, &plan.graph.nodes[last], time, &Running(self, plan))?;
            }
        }
        Ok(())
    }

    fn weights(&self) -> &Bound {
        &self.weights
    }
}

impl Cuda {
    /// An error in one of the nodes of `step`; kernels run asynchronously, so only a step of one node names it for certain.
    fn failed(&self, plan: &Plan, step: &Range<usize>, e: DriverError) -> Error {
        let (first, last) = (&plan.graph.nodes[step.start].name, &plan.graph.nodes[step.end - 1].name);
        let node = if first == last { first.clone() } else { format!("{first} .. {last} (--sync names it)") };
        Error::Node { node, source: Box::new(self.error("kernels that end without a fault", e)) }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if self.enter().is_err() {
            return;
        }
        let _ = self.wait();
        self.plans.drain(..).for_each(Prepared::destroy);
        for b in self.states.values().chain(&self.buffers).chain([&self.arena]) {
            self.free(*b);
        }
        // SAFETY: each was made by this value and is released once. After a fault all of these fail, and there is nobody to tell.
        unsafe {
            for &module in &self.modules {
                let _ = cu::module::unload(module);
            }
            if !self.stream.is_null() {
                let _ = cu::stream::destroy(self.stream);
            }
            let _ = cu::primary_ctx::release(self.device);
        }
    }
}

/// Events that time the steps of a run.
struct Events(Vec<sys::CUevent>);

impl Events {
    fn new(n: usize) -> std::result::Result<Self, DriverError> {
        let mut events = Self(Vec::with_capacity(n));
        for _ in 0..n {
            events.0.push(cu::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?);
        }
        Ok(events)
    }

    fn record(&self, i: usize, stream: sys::CUstream) -> std::result::Result<(), DriverError> {
        // SAFETY: event and stream live.
        unsafe { cu::event::record(self.0[i], stream) }
    }

    /// Time between event `i` and the next, both of which have happened.
    fn between(&self, i: usize) -> std::result::Result<Duration, DriverError> {
        // SAFETY: both events live and were recorded.
        let ms = unsafe { cu::event::elapsed(self.0[i], self.0[i + 1]) }?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        for &event in &self.0 {
            // SAFETY: made by `new`, destroyed once.
            let _ = unsafe { cu::event::destroy(event) };
        }
    }
}

/// Two pinned buffers: while one is copied to the device, the other is filled from disk.
struct Staging {
    stream: sys::CUstream,
    buffers: [*mut u8; 2],
    done: Events,
    next: usize,
}

impl Staging {
    fn new(cuda: &Cuda) -> Result<Self> {
        let make = || {
            let done = Events::new(2)?;
            let stream = cu::stream::create(cu::stream::StreamKind::NonBlocking)?;
            let mut staging = Self { stream, buffers: [std::ptr::null_mut(); 2], done, next: 0 };
            for b in &mut staging.buffers {
                // SAFETY: plain allocation, freed in `drop`.
                *b = unsafe { cu::malloc_host(STAGING, 0) }?.cast();
            }
            Ok(staging)
        };
        make().map_err(|e| cuda.error("pinned memory for copying weights", e))
    }

    /// Copies `data`, at most [`STAGING`] bytes, to device address `to`; returns when `data` may change.
    fn copy(&mut self, to: u64, data: &[u8]) -> std::result::Result<(), DriverError> {
        let i = self.next % 2;
        // SAFETY: the buffer holds STAGING bytes and its last copy is waited for; the device memory was allocated for this tensor.
        unsafe {
            if self.next >= 2 {
                cu::event::synchronize(self.done.0[i])?;
            }
            std::ptr::copy_nonoverlapping(data.as_ptr(), self.buffers[i], data.len());
            let staged = std::slice::from_raw_parts(self.buffers[i], data.len());
            cu::memcpy_htod_async(to, staged, self.stream)?;
        }
        self.done.record(i, self.stream)?;
        self.next += 1;
        Ok(())
    }

    fn finish(self) -> std::result::Result<(), DriverError> {
        // SAFETY: the stream lives until `drop`.
        unsafe { cu::stream::synchronize(self.stream) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: nothing reads the buffers once the stream is done; each is released once.
        unsafe {
            let _ = cu::stream::synchronize(self.stream);
            for b in self.buffers.into_iter().filter(|b| !b.is_null()) {
                let _ = cu::free_host(b.cast());
            }
            let _ = cu::stream::destroy(self.stream);
        }
    }
}

/// Values as a device holds them.
fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::Act | DType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => bytemuck::cast_slice(values).to_vec(),
    }
}

/// `CUDA_ERROR_...: what it means`
fn name(e: DriverError) -> String {
    let text = |s: std::result::Result<&std::ffi::CStr, DriverError>| {
        s.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
    };
    format!("{} ({})", text(e.error_name()), text(e.error_string()))
}

/// Loads the simulated driver, so that it answers when the driver is looked for.
///
/// It is `$MLLMSEG_SIM`, or `libcuda.so` beside the program, in `deps/` there, or in the folder above.
fn open_simulator() -> Result<()> {
    let candidates = match std::env::var_os("MLLMSEG_SIM") {
        Some(path) => vec![PathBuf::from(path)],
        None => {
            let program = std::env::current_exe().unwrap_or_default();
            let dir = program.parent().map(PathBuf::from).unwrap_or_default();
            ["libcuda.so", "deps/libcuda.so", "../libcuda.so"].map(|f| dir.join(f)).into()
        }
    };
    let fail = |expected: String, found: String| Error::Device { device: "sim".into(), expected, found };
    let Some(path) = candidates.iter().find(|p| p.is_file()) else {
        let places: Vec<_> = candidates.iter().map(|p| p.display().to_string()).collect();
        let expected =
            "the simulated driver (cargo build --release -p ptxsim-driver; MLLMSEG_SIM names it elsewhere)";
        return Err(fail(expected.into(), format!("none of {}", places.join(", "))));
    };
    let file = CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
    // SAFETY: loads a library that runs no code of its own when it is opened.
    if unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) }.is_null() {
        return Err(fail(
            format!("{} to load", path.display()),
            "a file that is not a library for this machine".into(),
        ));
    }
    Ok(())
}

type Report = unsafe extern "C" fn(*mut c_char, usize) -> usize;

/// The report function of the driver, if it is the simulated one. The driver library must be present.
fn simulated() -> Option<Report> {
    // SAFETY: the symbol has this type in tools/ptxsim/driver/include/ptxsim.h, and only that library has it.
    unsafe { sys::culib().get::<Report>(b"ptxsim_report_json\0") }.ok().map(|f| *f)
}

/// What the simulated driver recorded since the program began or since [`reset_simulator`]: findings, counters by kernel.
pub fn simulator_report() -> Option<serde_json::Value> {
    // SAFETY: looks whether the library can be opened.
    let report = unsafe { sys::is_culib_present() }.then(simulated)??;
    // SAFETY: as ptxsim.h says: asked for the size first, then for as many bytes.
    let bytes = unsafe {
        let mut bytes = vec![0u8; report(std::ptr::null_mut(), 0)];
        report(bytes.as_mut_ptr().cast(), bytes.len());
        bytes
    };
    serde_json::from_slice(bytes.strip_suffix(&[0])?).ok()
}

/// Makes the simulated driver forget what it recorded.
pub fn reset_simulator() {
    // SAFETY: looks whether the library can be opened; the symbol has this type in ptxsim.h.
    unsafe {
        if sys::is_culib_present()
            && let Ok(reset) = sys::culib().get::<unsafe extern "C" fn()>(b"ptxsim_reset\0")
        {
            reset();
        }
    }
}
