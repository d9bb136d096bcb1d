//! What the driver gives, as values that give it back when they are dropped. The context must be current where one is made, used or dropped.

use cudarc::driver::DriverError;
use cudarc::driver::result as cu;
use cudarc::driver::sys;
use std::time::Duration;

/// A driver call's result.
pub type Driver<T> = std::result::Result<T, DriverError>;

/// `CUDA_ERROR_...: what it means`
pub fn name(e: DriverError) -> String {
    let text = |s: Driver<&std::ffi::CStr>| s.map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{} ({})", text(e.error_name()), text(e.error_string()))
}

/// A device's primary context, retained.
pub struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

// SAFETY: a context may be used and released from any thread.
unsafe impl Send for Context {}
// SAFETY: as above; nothing here changes.
unsafe impl Sync for Context {}

impl Context {
    pub fn retain(device: sys::CUdevice) -> Driver<Self> {
        // SAFETY: a device of this driver; released in `drop`.
        let handle = unsafe { cu::primary_ctx::retain(device) }?;
        Ok(Self { device, handle })
    }

    /// Makes it current on this thread.
    pub fn enter(&self) -> Driver<()> {
        // SAFETY: retained until `drop`.
        unsafe { cu::ctx::set_current(self.handle) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once. After a fault this fails, as do the calls below, and there is nobody to tell.
        let _ = unsafe { cu::primary_ctx::release(self.device) };
    }
}

/// A stream that does not wait for the default one.
pub struct Stream(sys::CUstream);

impl Stream {
    pub fn new() -> Driver<Self> {
        cu::stream::create(cu::stream::StreamKind::NonBlocking).map(Self)
    }

    pub fn raw(&self) -> sys::CUstream {
        self.0
    }

    /// Returns when all that was queued is done.
    pub fn wait(&self) -> Driver<()> {
        // SAFETY: lives until `drop`.
        unsafe { cu::stream::synchronize(self.0) }
    }

    /// What is queued from now on starts after `event`.
    pub fn wait_for(&self, event: &Event) -> Driver<()> {
        // SAFETY: both live.
        unsafe { cu::stream::wait_event(self.0, event.0, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made once; work that it still holds is finished by the driver first.
        let _ = unsafe { cu::stream::destroy(self.0) };
    }
}

/// A moment on a stream.
pub struct Event(sys::CUevent);

impl Event {
    pub fn new() -> Driver<Self> {
        cu::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map(Self)
    }

    pub fn record(&self, stream: &Stream) -> Driver<()> {
        // SAFETY: both live.
        unsafe { cu::event::record(self.0, stream.0) }
    }

    /// Returns when it has happened; at once if it was never recorded.
    pub fn wait(&self) -> Driver<()> {
        // SAFETY: lives until `drop`.
        unsafe { cu::event::synchronize(self.0) }
    }

    /// Time until `end`; both have happened.
    pub fn until(&self, end: &Event) -> Driver<Duration> {
        // SAFETY: both live.
        let ms = unsafe { cu::event::elapsed(self.0, end.0) }?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made once.
        let _ = unsafe { cu::event::destroy(self.0) };
    }
}

/// Device memory.
pub struct Memory {
    pub at: u64,
    pub bytes: usize,
}

impl Memory {
    /// At least one byte, so that it has an address.
    pub fn new(bytes: usize) -> Driver<Self> {
        // SAFETY: freed in `drop`.
        let at = unsafe { cu::malloc_sync(bytes.max(1)) }?;
        Ok(Self { at, bytes })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated once.
        let _ = unsafe { cu::free_sync(self.at) };
    }
}

/// Host memory that copies to and from the device run beside the CPU's work.
pub struct Pinned {
    at: *mut u8,
    bytes: usize,
}

// SAFETY: owned memory.
unsafe impl Send for Pinned {}

impl Pinned {
    pub fn new(bytes: usize) -> Driver<Self> {
        // SAFETY: freed in `drop`.
        let at = unsafe { cu::malloc_host(bytes, 0) }?.cast::<u8>();
        // SAFETY: `bytes` bytes were just allocated.
        unsafe { at.write_bytes(0, bytes) };
        Ok(Self { at, bytes })
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated and initialised in `new`.
        unsafe { std::slice::from_raw_parts(self.at, self.bytes) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated once; whoever queues copies waits for them before dropping.
        let _ = unsafe { cu::free_host(self.at.cast()) };
    }
}

/// Host memory that kernels read where it lies.
pub struct Registered {
    at: *mut std::ffi::c_void,
    /// Where kernels see its first byte.
    pub device: u64,
}

// SAFETY: an address that nothing is read or written through here.
unsafe impl Send for Registered {}

impl Registered {
    /// # Safety
    /// The bytes stay mapped until the value is dropped.
    pub unsafe fn new(at: usize, bytes: usize) -> Driver<Self> {
        let at = at as *mut std::ffi::c_void;
        let flags = sys::CU_MEMHOSTREGISTER_DEVICEMAP | sys::CU_MEMHOSTREGISTER_READ_ONLY;
        // SAFETY: the caller's promise; unregistered in `drop`.
        unsafe { sys::cuMemHostRegister_v2(at, bytes, flags) }.result()?;
        let mut registered = Self { at, device: 0 };
        // SAFETY: just registered; the field outlives the call.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut registered.device, at, 0) }.result()?;
        Ok(registered)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: registered once.
        let _ = unsafe { sys::cuMemHostUnregister(self.at) };
    }
}

/// A module of kernels.
pub struct Module(pub sys::CUmodule);

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded once.
        let _ = unsafe { cu::module::unload(self.0) };
    }
}

/// A captured part of a plan, ready to be launched.
pub struct GraphExec(sys::CUgraphExec);

impl GraphExec {
    /// Captures what `launch` queues on `stream`.
    pub fn capture(stream: &Stream, launch: impl FnOnce() -> Driver<()>) -> Driver<Self> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives; the graph is destroyed here, its executable in `drop`.
        unsafe {
            cu::stream::begin_capture(stream.0, mode)?;
            let launched = launch();
            let graph = cu::stream::end_capture(stream.0);
            if graph.is_err() {
                // Were the stream still capturing, nothing could be freed.
                let _ = cu::stream::end_capture(stream.0);
            }
            if let (Err(e), Ok(graph)) = (launched, graph) {
                let _ = cu::graph::destroy(graph);
                return Err(e);
            }
            let graph = graph?;
            let exec = cu::graph::instantiate(graph, sys::CUgraphInstantiate_flags_enum(0)).map(Self);
            let _ = cu::graph::destroy(graph);
            exec
        }
    }

    pub fn launch(&self, stream: &Stream) -> Driver<()> {
        // SAFETY: both live.
        unsafe { cu::graph::launch(self.0, stream.0) }
    }
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        // SAFETY: instantiated once; one that still runs is kept by the driver until it ends.
        let _ = unsafe { cu::graph::exec_destroy(self.0) };
    }
}
