//! What the driver holds: devices, contexts and the tables behind every handle.
//!
//! Handles are numbers that are looked up, never pointers that are followed: a stale or invented one gives
//! `CUDA_ERROR_INVALID_HANDLE`, not a crash.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use ptxsim::{Checks, GpuSpec, Memory, Report, ReportKind};

use crate::abi::lock;
use crate::config::{self, Config};
use crate::errors::*;
use crate::graph::{Exec, Graph, UserObject};
use crate::memory::{HostRange, Pool};
use crate::module::{Function, Kernel, Library, LinkState, Module};
use crate::queue;
use crate::record;
use crate::stream::{Capture, Event, Stream};

/// Objects by handle.
pub struct Table<T>(Mutex<BTreeMap<usize, Arc<T>>>);

/// 1 and 2 are the legacy and the per-thread stream; the others just should not look like small numbers.
static NEXT_HANDLE: AtomicUsize = AtomicUsize::new(0x5_0000);

/// A number that no handle had before.
pub fn new_handle() -> usize {
    NEXT_HANDLE.fetch_add(16, Ordering::Relaxed)
}

impl<T> Table<T> {
    const fn new() -> Self {
        Table(Mutex::new(BTreeMap::new()))
    }
    /// Keeps the object that is made for a new handle.
    pub fn insert(&self, make: impl FnOnce(usize) -> T) -> Arc<T> {
        let handle = new_handle();
        let object = Arc::new(make(handle));
        lock(&self.0).insert(handle, object.clone());
        object
    }
    /// Keeps an object for a handle that was chosen before.
    pub fn insert_as(&self, handle: usize, object: T) -> Arc<T> {
        let object = Arc::new(object);
        lock(&self.0).insert(handle, object.clone());
        object
    }
    /// The object of that handle.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_HANDLE`.
    pub fn get(&self, handle: usize) -> Result<Arc<T>> {
        lock(&self.0).get(&handle).cloned().ok_or(CUDA_ERROR_INVALID_HANDLE)
    }
    /// Forgets a handle.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_HANDLE`.
    pub fn remove(&self, handle: usize) -> Result<Arc<T>> {
        lock(&self.0).remove(&handle).ok_or(CUDA_ERROR_INVALID_HANDLE)
    }
    /// Forgets the objects that `gone` picks.
    pub fn remove_where(&self, gone: impl Fn(&T) -> bool) {
        // Dropped after the lock: an object's end may look up others.
        let mut dropped = Vec::new();
        lock(&self.0).retain(|_, object| {
            let keep = !gone(object);
            if !keep {
                dropped.push(object.clone());
            }
            keep
        });
    }
    /// All objects.
    pub fn all(&self) -> Vec<Arc<T>> {
        lock(&self.0).values().cloned().collect()
    }
}

/// Everything, from `cuInit` on.
pub struct Driver {
    pub config: &'static Config,
    pub devices: Vec<Device>,
    pub contexts: Table<Context>,
    pub modules: Table<Module>,
    pub functions: Table<Function>,
    pub libraries: Table<Library>,
    pub kernels: Table<Kernel>,
    pub links: Table<LinkState>,
    pub streams: Table<Stream>,
    pub events: Table<Event>,
    pub graphs: Table<Graph>,
    /// Node handle to the handle of its graph.
    pub nodes: Mutex<HashMap<usize, usize>>,
    pub execs: Table<Exec>,
    pub user_objects: Table<UserObject>,
    pub pools: Table<Pool>,
    /// Host memory that kernels may use, by address: pinned, registered, managed.
    pub host: Mutex<BTreeMap<u64, HostRange>>,
    /// Captures under way.
    pub captures: Mutex<Vec<Arc<Capture>>>,
}

/// A simulated GPU.
pub struct Device {
    pub ordinal: usize,
    pub gpu: &'static GpuSpec,
    pub memory: Memory,
    pub primary: Mutex<Primary>,
    primary_handle: usize,
    /// Handles of its default pool and of the pool that `cuMemAllocAsync` uses now.
    pub default_pool: usize,
    pub current_pool: AtomicUsize,
}

/// The primary context of a device.
#[derive(Default)]
pub struct Primary {
    pub context: Option<Arc<Context>>,
    pub retained: u32,
    pub flags: u32,
}

/// A context: what dies together.
pub struct Context {
    pub handle: usize,
    pub device: usize,
    pub primary: bool,
    pub flags: AtomicU32,
    /// The fault that ended it: what every call returns from then on.
    fault: Mutex<Option<CUresult>>,
    /// Device memory that it owns: address to (bytes, pool or 0).
    pub allocations: Mutex<BTreeMap<u64, (u64, usize)>>,
    pub per_thread: Mutex<HashMap<std::thread::ThreadId, Arc<Stream>>>,
    pub limits: Mutex<BTreeMap<u32, usize>>,
    pub cache_config: AtomicU32,
    pub shared_config: AtomicU32,
}

static DRIVER: OnceLock<Driver> = OnceLock::new();

thread_local! {
    static STACK: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Starts the driver: `cuInit`.
///
/// # Errors
/// `CUDA_ERROR_INVALID_VALUE` if a `PTXSIM_*` variable cannot be understood, `CUDA_ERROR_NO_DEVICE` without devices.
pub fn init() -> Result<()> {
    let config = config::get().map_err(|_| CUDA_ERROR_INVALID_VALUE)?;
    let driver = DRIVER.get_or_init(|| {
        let pools = Table::new();
        let devices = (0..config.devices)
            .map(|ordinal| {
                let pool = pools.insert(|handle| Pool::new(handle, ordinal));
                Device {
                    ordinal,
                    gpu: config.gpu,
                    memory: Memory::with_base(config.memory, ordinal as u32),
                    primary: Mutex::default(),
                    primary_handle: new_handle(),
                    default_pool: pool.handle,
                    current_pool: AtomicUsize::new(pool.handle),
                }
            })
            .collect();
        Driver {
            config,
            devices,
            contexts: Table::new(),
            modules: Table::new(),
            functions: Table::new(),
            libraries: Table::new(),
            kernels: Table::new(),
            links: Table::new(),
            streams: Table::new(),
            events: Table::new(),
            graphs: Table::new(),
            nodes: Mutex::default(),
            execs: Table::new(),
            user_objects: Table::new(),
            pools,
            host: Mutex::default(),
            captures: Mutex::default(),
        }
    });
    if driver.devices.is_empty() { Err(CUDA_ERROR_NO_DEVICE) } else { Ok(()) }
}

/// The driver.
///
/// # Errors
/// `CUDA_ERROR_NOT_INITIALIZED` before `cuInit`.
pub fn driver() -> Result<&'static Driver> {
    DRIVER.get().ok_or(CUDA_ERROR_NOT_INITIALIZED)
}

/// The device of that ordinal.
///
/// # Errors
/// `CUDA_ERROR_INVALID_DEVICE`.
pub fn device(ordinal: i32) -> Result<&'static Device> {
    let devices = &driver()?.devices;
    usize::try_from(ordinal).ok().and_then(|i| devices.get(i)).ok_or(CUDA_ERROR_INVALID_DEVICE)
}

/// The calling thread's current context, which has met no fault.
///
/// # Errors
/// `CUDA_ERROR_INVALID_CONTEXT` without one, `CUDA_ERROR_CONTEXT_IS_DESTROYED`, or the fault that ended it.
pub fn context() -> Result<Arc<Context>> {
    let context = current_any()?;
    context.fault().map_or(Ok(context), Err)
}

/// The calling thread's current context, ended or not.
///
/// # Errors
/// `CUDA_ERROR_INVALID_CONTEXT` without one, `CUDA_ERROR_CONTEXT_IS_DESTROYED`.
pub fn current_any() -> Result<Arc<Context>> {
    let driver = driver()?;
    match current() {
        0 => Err(CUDA_ERROR_INVALID_CONTEXT),
        handle => driver.contexts.get(handle).map_err(|_| CUDA_ERROR_CONTEXT_IS_DESTROYED),
    }
}

/// Handle of the calling thread's current context, or 0.
pub fn current() -> usize {
    STACK.with_borrow(|stack| stack.last().copied().unwrap_or(0))
}

/// Makes a context current; 0 leaves none.
pub fn set_current(handle: usize) {
    STACK.with_borrow_mut(|stack| {
        stack.pop();
        if handle != 0 {
            stack.push(handle);
        }
    });
}

/// Pushes a context on the calling thread's stack.
pub fn push_current(handle: usize) {
    STACK.with_borrow_mut(|stack| stack.push(handle));
}

/// Pops the calling thread's stack.
pub fn pop_current() -> Option<usize> {
    STACK.with_borrow_mut(Vec::pop)
}

impl Context {
    /// A context on a device, known under its handle; a primary one has the same handle each time.
    pub fn create(device: &Device, flags: u32, primary: bool) -> Result<Arc<Context>> {
        let handle = if primary { device.primary_handle } else { new_handle() };
        let context = Context {
            handle,
            device: device.ordinal,
            primary,
            flags: AtomicU32::new(flags),
            fault: Mutex::default(),
            allocations: Mutex::default(),
            per_thread: Mutex::default(),
            limits: Mutex::default(),
            cache_config: AtomicU32::new(0),
            shared_config: AtomicU32::new(0),
        };
        Ok(driver()?.contexts.insert_as(handle, context))
    }

    /// Its device.
    pub fn device(&self) -> &'static Device {
        &DRIVER.get().expect("contexts exist only after cuInit").devices[self.device]
    }

    /// The fault that ended it.
    pub fn fault(&self) -> Option<CUresult> {
        *lock(&self.fault)
    }

    /// Ends it with a fault; the first one stays.
    pub fn end(&self, code: CUresult) {
        lock(&self.fault).get_or_insert(code);
    }

    /// Waits for all work submitted so far.
    ///
    /// # Errors
    /// The fault that ended it, if one did.
    pub fn synchronize(&self) -> Result<()> {
        queue::wait(queue::last());
        self.fault().map_or(Ok(()), Err)
    }

    /// Destroys it with all that belongs to it; memory that was not freed is reported as a leak.
    pub fn destroy(self: &Arc<Self>) -> Result<()> {
        let driver = driver()?;
        queue::wait(queue::last());
        driver.contexts.remove(self.handle)?;
        lock(&self.per_thread).clear();
        driver.streams.remove_where(|s| s.context.handle == self.handle);
        driver.events.remove_where(|e| e.context.handle == self.handle);
        driver.functions.remove_where(|f| f.module.context.handle == self.handle);
        for module in driver.modules.all().iter().filter(|m| m.context.handle == self.handle) {
            module.loaded.unload(&self.device().memory);
        }
        driver.modules.remove_where(|m| m.context.handle == self.handle);
        for library in driver.libraries.all() {
            library.forget(self);
        }
        lock(&driver.captures).retain(|c| c.context.handle != self.handle);
        let left = std::mem::take(&mut *lock(&self.allocations));
        for (&addr, &(bytes, pool)) in &left {
            if pool == 0 && driver.config.checks.has(Checks::LEAK) {
                record::report(Report {
                    kind: ReportKind::Leak,
                    message: format!(
                        "{bytes} bytes at {addr:#x} are still allocated when their context ends"
                    ),
                    kernel: String::new(),
                    place: Default::default(),
                    block: [0; 3],
                    thread: [0; 3],
                    address: Some(addr),
                    other: None,
                    count: 1,
                });
            }
            // An address in the list is one that the memory handed out.
            let _ = self.device().memory.free(addr);
        }
        crate::memory::release_host(self)?;
        Ok(())
    }
}
