//! The CUDA device: the compiled kernels of `kernels/`, launched through the driver API; `--device sim` is the same code on the
//! simulated driver of `tools/ptxsim`.
//!
//! Kernels run in order on one stream, copies on another through pinned memory. A plan's launches are resolved to addresses when it is first
//! run; from its second run on it is replayed as CUDA graphs, one for each part of the model (`vit`, `llm`, ...), so that the parts can be
//! timed. Weights are one allocation and activations another; a plan that is replayed allocates nothing.

mod driver;
mod nvtx;
mod plans;
mod sim;
mod transfer;
mod weights;

pub use sim::{find as find_simulator, reset_simulator, simulator_report};
pub use transfer::Download;

use super::{Choice, Device, Fetch, Seen, Values};
use crate::graph::{DType, Place, Tensor};
use crate::models::Bound;
use crate::ops::Gpu;
use crate::plan::Plan;
use crate::{Error, Result};
use cudarc::driver::DriverError;
use cudarc::driver::result as cu;
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUresult};
use driver::{Context, Driver, Event, Memory, Module, Registered, Stream, name};
use half::bf16;
use plans::Prepared;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ops::Range;
use std::sync::Arc;
use transfer::{Downloads, Transfers};
use weights::encode;

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
    /// What ptxas gave each kernel: entry, architecture, registers, bytes of stack, static shared memory.
    usage: &'static [(&'static str, &'static str, u32, u32, u32)],
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

/// Why this build has no kernels, if it has none.
pub fn why_no_kernels() -> Option<&'static str> {
    WHY_NONE
}

/// The version of nvcc that compiled the kernels, as in `13.0.88`; empty without kernels.
pub fn compiler() -> &'static str {
    NVCC
}

/// Names of the kernels, by file.
pub fn kernels() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    KERNELS.iter().map(|k| (k.name, k.entries))
}

/// Fat binaries of the kernels' machine code, by file; none in a build of PTX alone.
pub fn machine_code() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    KERNELS.iter().filter_map(|k| Some((k.name, k.fatbin?)))
}

/// What ptxas gave a kernel for an architecture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// The `extern "C"` name.
    pub entry: &'static str,
    /// As nvcc spells it: `80`, `90a`.
    pub arch: &'static str,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes a thread of memory for spilled registers and arrays; 0 in every kernel that is fast.
    pub stack: u32,
    /// Static shared memory, bytes.
    pub shared: u32,
}

/// Of every kernel for every architecture that this build has machine code for.
pub fn usage() -> impl Iterator<Item = Usage> {
    KERNELS.iter().flat_map(|k| k.usage).map(|&(entry, arch, registers, stack, shared)| Usage {
        entry,
        arch,
        registers,
        stack,
        shared,
    })
}

/// A CUDA device of this machine.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// As launches see it.
    pub gpu: Gpu,
    /// Bytes of memory.
    pub memory: usize,
}

/// The devices that the loaded driver knows: NVIDIA's, or the simulated one once a `sim` device was opened.
///
/// # Errors
/// [`Error::Device`]: no driver library, or one that fails.
pub fn devices() -> Result<Vec<Found>> {
    let fail = |expected: &str, found: String| Error::Device {
        device: "cuda".into(),
        expected: expected.into(),
        found,
    };
    // SAFETY: looks whether the library can be opened, nothing else.
    if !unsafe { sys::is_culib_present() } {
        return Err(fail("NVIDIA's driver", "no driver library (libcuda.so.1)".into()));
    }
    let find = || {
        cu::init()?;
        (0..cu::device::get_count()?)
            .map(|ordinal| {
                let device = cu::device::get(ordinal)?;
                // SAFETY: a device of this driver.
                let memory = unsafe { cu::device::total_mem(device) }?;
                Ok(Found { name: cu::device::get_name(device)?, gpu: describe(device)?, memory })
            })
            .collect::<Driver<_>>()
    };
    find().map_err(|e| fail("a driver that answers", name(e)))
}

fn describe(device: sys::CUdevice) -> Driver<Gpu> {
    // SAFETY: a device of this driver.
    let get = |a| unsafe { cu::device::get_attribute(device, a) };
    let major = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let sms = get(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    Ok(Gpu { arch: (major * 10 + minor) as u32, sms: sms as u32 })
}

/// Starts or ends what a profiler records (`nsys profile --capture-range=cudaProfilerApi`). A device must be open.
///
/// # Errors
/// [`Error::Device`] if the driver refuses.
pub fn profiler(on: bool) -> Result<()> {
    // SAFETY: no arguments; the library is there if a device is open.
    let done = unsafe {
        match sys::is_culib_present() {
            true if on => sys::cuProfilerStart().result(),
            true => sys::cuProfilerStop().result(),
            false => Err(DriverError(CUresult::CUDA_ERROR_NOT_INITIALIZED)),
        }
    };
    done.map_err(|e| Error::Device {
        device: "cuda".into(),
        expected: "a driver that can be profiled".into(),
        found: name(e),
    })
}

/// The device. Fields are dropped in this order, the context last.
pub struct Cuda {
    choice: Choice,
    gpu: Gpu,
    plans: Vec<Prepared>,
    functions: HashMap<&'static str, Function>,
    modules: Vec<Module>,
    states: HashMap<u32, Memory>,
    arena: Option<Memory>,
    weight_arena: Option<Memory>,
    registered: Vec<Registered>,
    weights_at: HashMap<Place, u64>,
    weights: Bound,
    transfers: RefCell<Transfers>,
    downloads: Arc<Downloads>,
    stream: Stream,
    /// After the last plan that was queued and not waited for.
    queued: Option<Event>,
    /// Goes up whenever an address that plans hold may have changed.
    generation: u64,
    use_graphs: bool,
    sync: bool,
    context: Arc<Context>,
}

// SAFETY: driver handles may be used from any thread whose current context is theirs; every method makes it so first.
unsafe impl Send for Cuda {}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    max_threads: u32,
    /// Bytes of shared memory that a launch may ask for, beside the kernel's static arrays.
    max_shared: u32,
}

impl Cuda {
    /// Opens the device, loads the kernels and copies the weights.
    ///
    /// # Errors
    /// [`Error::Device`]: no kernels in this build, no driver library, a driver too old, no such device; [`Error::OutOfMemory`].
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
            sim::open()?;
        }
        // SAFETY: looks whether the library can be opened, nothing else.
        if !unsafe { sys::is_culib_present() } {
            return Err(fail("NVIDIA's driver", "no driver library (libcuda.so.1)".into()));
        }
        if (choice == Choice::Sim) != (sim::report().is_some()) {
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
        let shared = cu::device::get(ordinal).and_then(|device| {
            // SAFETY: a device of this driver.
            unsafe {
                let most = Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
                cu::device::get_attribute(device, most)
            }
        });
        cuda.load_kernels(shared.map_err(|e| fail("a usable device", name(e)))?)?;
        cuda.load_weights(progress)?;
        Ok(cuda)
    }

    fn retain(choice: Choice, ordinal: i32, weights: Bound) -> Driver<Self> {
        let device = cu::device::get(ordinal)?;
        let gpu = describe(device)?;
        let context = Arc::new(Context::retain(device)?);
        context.enter()?;
        Ok(Self {
            choice,
            gpu,
            plans: Vec::new(),
            functions: HashMap::new(),
            modules: Vec::new(),
            states: HashMap::new(),
            arena: None,
            weight_arena: None,
            registered: Vec::new(),
            weights_at: HashMap::new(),
            weights,
            transfers: RefCell::new(Transfers::new()?),
            downloads: Arc::new(Downloads::new(choice, Arc::clone(&context))),
            queued: None,
            stream: Stream::new()?,
            generation: 0,
            use_graphs: true,
            sync: false,
            context,
        })
    }

    /// The GPU, as launches see it.
    pub fn gpu(&self) -> Gpu {
        self.gpu
    }

    /// Waits for everything in flight, so that memory may be freed.
    fn finish(&mut self) -> Result<()> {
        let ready = self.context.enter().and_then(|()| self.transfers.get_mut().wait());
        ready.and_then(|()| self.stream.wait()).map_err(|e| self.error("work that ends", e))
    }

    fn error(&self, doing: &str, e: DriverError) -> Error {
        Error::Device { device: self.choice.to_string(), expected: doing.into(), found: name(e) }
    }

    /// A block may have `shared` bytes of shared memory.
    fn load_kernels(&mut self, shared: i32) -> Result<()> {
        for kernel in KERNELS {
            let image = match kernel.fatbin {
                Some(fatbin) if self.choice != Choice::Sim => fatbin.as_ptr().cast::<c_void>(),
                _ => kernel.ptx.as_ptr().cast(),
            };
            // SAFETY: a fat binary, or PTX ended by a NUL, that lives as long as the program.
            let module = unsafe { cu::module::load_data(image) }
                .map_err(|e| self.error(&format!("kernels/{}.cu for this GPU", kernel.name), e))?;
            self.modules.push(Module(module));
            for entry in kernel.entries {
                let function = function(module, entry, shared).map_err(|e| self.error(entry, e))?;
                self.functions.insert(entry, function);
            }
        }
        Ok(())
    }

    fn allocate_bytes(&self, what: &str, bytes: usize) -> Result<Memory> {
        match Memory::new(bytes) {
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, _) = cu::mem_get_info().unwrap_or_default();
                Err(Error::OutOfMemory {
                    device: self.choice.to_string(),
                    what: what.into(),
                    need: bytes as u64,
                    free: free as u64,
                })
            }
            other => other.map_err(|e| self.error("memory", e)),
        }
    }

    /// Gives a tensor's bytes to `take`, piece by piece, once everything before is done.
    fn read(&self, t: &Tensor, plan: Option<&Plan>, take: &mut dyn FnMut(&[u8])) -> Result<()> {
        let (at, bytes) = (self.address(t, plan)?, t.len() * t.dtype.bytes(2));
        let mut copy = || {
            self.context.enter()?;
            self.stream.wait()?;
            // SAFETY: `address` checked that the bytes are there, and the kernels are done.
            unsafe { self.transfers.borrow_mut().download(at, bytes, take) }
        };
        copy().map_err(|e| self.error(&format!("the values of `{}`", t.name), e))
    }

    fn read_values(&self, t: &Tensor, plan: Option<&Plan>) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(t.len());
        let half = matches!(t.dtype, DType::Act | DType::Bf16);
        self.read(t, plan, &mut |piece| match half {
            true => values.extend(piece.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32())),
            false => values.extend(piece.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
        })?;
        Ok(values)
    }

    /// Where `bytes` bytes that fill `t` go.
    fn place_for(&self, t: &Tensor, bytes: usize) -> Result<u64> {
        let expected = t.len() * t.dtype.bytes(2);
        if bytes != expected {
            return Err(Error::shape(&*t.name, format!("{expected} bytes"), bytes.to_string()));
        }
        self.address(t, None)
    }

    fn write_bytes(&mut self, t: &Tensor, data: &[u8]) -> Result<()> {
        let at = self.place_for(t, data.len())?;
        let copy = || {
            self.context.enter()?;
            let mut transfers = self.transfers.borrow_mut();
            transfers.after(self.queued.as_ref())?;
            // SAFETY: `address` checked that the bytes are there; `run` returns when the kernels are done, and those that were queued come before.
            unsafe { transfers.upload(at, data, &mut |_| ()) }
        };
        copy().map_err(|e| self.error(&format!("a place for `{}`", t.name), e))
    }

    /// Resolves, and if it was run before captures, a plan; its number. What is queued next sees all that was written.
    fn make_ready(&mut self, plan: &Plan, each: bool) -> Result<usize> {
        self.context.enter().map_err(|e| self.error("a context", e))?;
        let (i, again) = self.prepare(plan)?;
        if !each && self.use_graphs && again && self.plans[i].graphs.is_empty() {
            self.capture(i).map_err(|e| self.error("a plan captured as a CUDA graph", e))?;
        }
        let uploaded = self.transfers.get_mut().before(&self.stream);
        uploaded.map_err(|e| self.error("inputs on the device", e))?;
        Ok(i)
    }

    /// Runs plan `i` node by node.
    fn run_each(&mut self, i: usize, plan: &Plan, seen: Seen) -> Result<()> {
        for (n, node) in plan.graph.nodes.iter().enumerate() {
            let (stream, prepared) = (&self.stream, &mut self.plans[i]);
            let mut run = || {
                let _range = prepared.range(n);
                prepared.marks[0].record(stream)?;
                prepared.nodes[n].iter_mut().try_for_each(|r| r.launch(stream))?;
                prepared.marks[1].record(stream)?;
                stream.wait()?;
                prepared.marks[0].until(&prepared.marks[1])
            };
            let time = run().map_err(|e| self.failed(plan, &(n..n + 1), e))?;
            seen(n, node, time, &Running(self, plan))?;
        }
        Ok(())
    }

    /// Queues plan `i`, by its graphs if it has them.
    fn queue_whole(&mut self, i: usize, plan: &Plan) -> Result<()> {
        let done = self.plans[i].replay(&self.stream, self.use_graphs);
        done.map_err(|(nodes, e)| self.failed(plan, &nodes, e))
    }

    /// The same, and waits for it.
    fn run_whole(&mut self, i: usize, plan: &Plan, seen: Seen) -> Result<()> {
        self.queue_whole(i, plan)?;
        self.stream.wait().map_err(|e| self.failed(plan, &(0..plan.graph.nodes.len()), e))?;
        for (p, part) in self.plans[i].parts.iter().enumerate() {
            let marks = &self.plans[i].marks;
            let time = marks[p].until(&marks[p + 1]).map_err(|e| self.failed(plan, part, e))?;
            let last = part.end - 1;
            seen(last, &plan.graph.nodes[last], time, &Running(self, plan))?;
        }
        Ok(())
    }

    /// An error in one of `nodes`; kernels run asynchronously, so only a step of one node names it for certain.
    fn failed(&self, plan: &Plan, nodes: &Range<usize>, e: DriverError) -> Error {
        let (first, last) = (&plan.graph.nodes[nodes.start].name, &plan.graph.nodes[nodes.end - 1].name);
        let node = if first == last { first.clone() } else { format!("{first} .. {last} (--sync names it)") };
        Error::Node { node, source: Box::new(self.error("kernels that end without a fault", e)) }
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
        if self.states.get(&id).is_some_and(|m| m.bytes >= bytes) {
            return Ok(());
        }
        self.finish()?;
        self.states.remove(&id);
        self.generation += 1;
        let memory = self.allocate_bytes(&t.name, bytes)?;
        self.states.insert(id, memory);
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        self.finish()?;
        self.states.clear();
        self.arena = None;
        self.generation += 1;
        Ok(())
    }

    fn write_f32(&mut self, t: &Tensor, data: &[f32]) -> Result<()> {
        match t.dtype {
            DType::Act | DType::Bf16 => self.write_bytes(t, &encode(t.dtype, data)),
            _ => self.write_bytes(t, bytemuck::cast_slice(data)),
        }
    }

    fn write_i32(&mut self, t: &Tensor, data: &[i32]) -> Result<()> {
        self.write_bytes(t, bytemuck::cast_slice(data))
    }

    fn write_u8(&mut self, t: &Tensor, data: &[u8]) -> Result<()> {
        self.write_bytes(t, data)
    }

    fn read_i32(&self, t: &Tensor) -> Result<Vec<i32>> {
        let mut values = Vec::with_capacity(t.len());
        self.read(t, None, &mut |piece| {
            values.extend(piece.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)));
        })?;
        Ok(values)
    }

    fn read_u8(&self, t: &Tensor) -> Result<Vec<u8>> {
        let mut values = Vec::with_capacity(t.len());
        self.read(t, None, &mut |piece| values.extend_from_slice(piece))?;
        Ok(values)
    }

    fn run(&mut self, plan: &Plan, each: bool, seen: Seen) -> Result<()> {
        let each = each || self.sync;
        let i = self.make_ready(plan, each)?;
        if each { self.run_each(i, plan, seen) } else { self.run_whole(i, plan, seen) }
    }

    fn queues(&self) -> bool {
        true
    }

    fn queue(&mut self, plan: &Plan) -> Result<()> {
        if self.sync {
            return self.run(plan, true, &mut |_, _, _, _| Ok(()));
        }
        let i = self.make_ready(plan, false)?;
        self.queue_whole(i, plan)?;
        let mut mark = || {
            if self.queued.is_none() {
                self.queued = Some(Event::new()?);
            }
            self.queued.iter().try_for_each(|e| e.record(&self.stream))
        };
        mark().map_err(|e| self.error("an event behind a plan", e))
    }

    fn fetch(&mut self, t: &Tensor) -> Result<Fetch> {
        let at = self.address(t, None)?;
        // SAFETY: `address` checked that the bytes are there.
        let download = unsafe { self.downloads.queue(at, t.len() * t.dtype.bytes(2), &self.stream) };
        download.map(Fetch::Coming).map_err(|e| self.error(&format!("the values of `{}`", t.name), e))
    }

    fn weights(&self) -> &Bound {
        &self.weights
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // The fields are dropped with the context current, when nothing uses them.
        if self.context.enter().is_ok() {
            let _ = self.stream.wait();
        }
    }
}

/// A kernel, of which a block may have `shared` bytes of shared memory in all; more than 48 KB are to be had by asking alone.
fn function(module: sys::CUmodule, entry: &str, shared: i32) -> Driver<Function> {
    use sys::CUfunction_attribute_enum as A;
    let symbol = CString::new(entry).unwrap_or_default();
    // SAFETY: the module was just loaded, and stays so as long as its functions are used.
    unsafe {
        let handle = cu::module::get_function(module, symbol)?;
        let max = cu::function::get_function_attribute(handle, A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        let own = cu::function::get_function_attribute(handle, A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        let rest = (shared - own).max(0);
        let attribute = A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        cu::function::set_function_attribute(handle, attribute, rest)?;
        Ok(Function { handle, max_threads: max as u32, max_shared: rest as u32 })
    }
}
