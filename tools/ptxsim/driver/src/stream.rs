//! Streams, events, and the capture of a stream's work into a graph.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Instant;

use crate::abi::{api, get, get_all, is_per_thread, lock, put, put_if, unsupported};
use crate::copy::{Copy, Fill};
use crate::errors::*;
use crate::graph::{Graph, Node, Step};
use crate::launch::Launch;
use crate::queue;
use crate::state::{Context, context, current_any, driver};
use crate::types::{HostFn, LaunchAttribute, StreamCallback};

const LEGACY: usize = 1;
const PER_THREAD: usize = 2;
const NON_BLOCKING: u32 = 1;
const DISABLE_TIMING: u32 = 2;
const ACTIVE: u32 = 1;
const INVALIDATED: u32 = 2;
const GLOBAL: u32 = 0;
const THREAD_LOCAL: u32 = 1;
const RELAXED: u32 = 2;

/// A stream: work in order.
pub struct Stream {
    pub handle: usize,
    pub context: Arc<Context>,
    pub flags: u32,
    pub priority: i32,
    /// The context's legacy default stream. It has no state of its own.
    pub legacy: bool,
    /// Number of the operation submitted last.
    last: AtomicU64,
    capturing: Mutex<Option<Capturing>>,
}

/// A stream's part in a capture: the nodes that its next node will depend on.
struct Capturing {
    capture: Arc<Capture>,
    after: Vec<usize>,
    /// What `cuStreamGetCaptureInfo` pointed to, alive until it is asked again.
    shown: Vec<usize>,
}

/// A capture under way.
pub struct Capture {
    pub id: u64,
    pub context: Arc<Context>,
    pub graph: Arc<Graph>,
    origin: usize,
    mode: u32,
    thread: ThreadId,
    broken: Mutex<bool>,
}

/// An event.
pub struct Event {
    pub handle: usize,
    pub context: Arc<Context>,
    pub flags: u32,
    state: Mutex<EventState>,
}

#[derive(Default)]
struct EventState {
    /// The operation that records it.
    number: Option<u64>,
    /// The last operation that recorded it and is done, and when.
    at: Option<(u64, Instant)>,
    /// Recorded in a capture: after these nodes.
    captured: Option<(Arc<Capture>, Vec<usize>)>,
}

/// What a stream can be given; also what a graph's node does.
#[derive(Clone)]
pub enum Work {
    Kernel(Arc<Launch>),
    Copy(Copy),
    Fill(Fill),
    Host {
        function: HostFn,
        data: usize,
    },
    Callback {
        function: StreamCallback,
        stream: usize,
        data: usize,
    },
    Record(Arc<Event>),
    /// Submission order already makes it so: see [`queue`].
    Wait(Arc<Event>),
    /// Its memory was allocated when it was submitted.
    Alloc {
        address: u64,
    },
    Free {
        address: u64,
    },
    Child(Arc<Graph>),
    Empty,
}

impl Work {
    /// Does it, on the worker.
    ///
    /// # Errors
    /// The fault that ends the context.
    pub fn run(&self, context: &Context) -> Result<()> {
        match self {
            Work::Kernel(launch) => launch.run(context),
            Work::Copy(copy) => copy.run(),
            Work::Fill(fill) => fill.run(),
            Work::Host { function, data } => {
                if let Some(function) = function {
                    // SAFETY: the program gave this function to be called with this value.
                    unsafe { function(*data as *mut c_void) };
                }
                Ok(())
            }
            Work::Callback { function, stream, data } => {
                if let Some(function) = function {
                    let code = context.fault().unwrap_or(CUDA_SUCCESS);
                    // SAFETY: the program gave this function to be called with these values.
                    unsafe { function(*stream, code, *data as *mut c_void) };
                }
                Ok(())
            }
            Work::Free { address } => crate::memory::release(context, *address),
            Work::Record(_) | Work::Wait(_) | Work::Alloc { .. } | Work::Child(_) | Work::Empty => Ok(()),
        }
    }
}

impl Event {
    /// Makes it stand for an operation that this submits on behalf of `context`.
    fn record(self: &Arc<Self>, context: &Arc<Context>) -> u64 {
        let event = self.clone();
        // No lock is held while submitting: the queue may be full, and its worker at an earlier record of this event.
        let number = queue::submit_always(context, move |_| {
            lock(&event.state).at = Some((queue::running(), Instant::now()));
        });
        let mut state = lock(&self.state);
        state.number = state.number.max(Some(number));
        state.captured = None;
        number
    }
}

impl Stream {
    fn create(context: &Arc<Context>, flags: u32, priority: i32) -> Result<Arc<Stream>> {
        Ok(driver()?.streams.insert(|handle| Stream::new(handle, context, flags, priority, false)))
    }
    fn new(handle: usize, context: &Arc<Context>, flags: u32, priority: i32, legacy: bool) -> Stream {
        Stream {
            handle,
            context: context.clone(),
            flags,
            priority,
            legacy,
            last: AtomicU64::new(0),
            capturing: Mutex::default(),
        }
    }

    /// Gives it work: submits it, or adds it to the graph that is being captured.
    ///
    /// # Errors
    /// `CUDA_ERROR_STREAM_CAPTURE_*`.
    pub fn issue(&self, work: Work) -> Result<()> {
        let mut capturing = lock(&self.capturing);
        if let Some(part) = capturing.as_mut() {
            part.capture.check()?;
            let node = part.capture.graph.add(Node { work, after: part.after.clone() })?;
            part.after = vec![node];
            return Ok(());
        }
        drop(capturing);
        self.check_implicit()?;
        let number = match work {
            Work::Record(event) => event.record(&self.context),
            Work::Callback { .. } => queue::submit_always(&self.context, move |c| {
                let _ = work.run(c);
            }),
            Work::Free { .. } => queue::submit_always(&self.context, move |c| {
                let _ = work.run(c);
            }),
            work => queue::submit(&self.context, move |c| work.run(c)),
        };
        self.last.fetch_max(number, Ordering::Relaxed);
        Ok(())
    }

    /// Submits the steps of a graph.
    pub fn issue_steps(&self, steps: &[Step]) -> Result<()> {
        self.check_implicit()?;
        for step in steps.iter().filter(|s| s.enabled) {
            self.issue(step.work.clone())?;
        }
        Ok(())
    }

    /// Whether its work is being captured.
    pub fn is_capturing(&self) -> bool {
        lock(&self.capturing).is_some()
    }

    /// Waits for its work.
    ///
    /// # Errors
    /// The fault that ended its context; `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED` while it is captured.
    pub fn synchronize(&self) -> Result<()> {
        self.forbid_capture()?;
        self.check_implicit()?;
        queue::wait(if self.legacy { queue::last() } else { self.last.load(Ordering::Relaxed) });
        self.context.fault().map_or(Ok(()), Err)
    }

    /// Breaks the capture that it is part of, for calls that a capture cannot contain.
    ///
    /// # Errors
    /// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED` if there is one.
    pub fn forbid_capture(&self) -> Result<()> {
        match lock(&self.capturing).as_ref() {
            Some(part) => {
                *lock(&part.capture.broken) = true;
                Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
            }
            None => Ok(()),
        }
    }

    /// The legacy stream waits for all blocking streams, which a capture of one of them cannot express.
    fn check_implicit(&self) -> Result<()> {
        if !self.legacy {
            return Ok(());
        }
        for stream in driver()?.streams.all() {
            if stream.context.handle != self.context.handle || stream.flags & NON_BLOCKING != 0 {
                continue;
            }
            if let Some(part) = lock(&stream.capturing).as_ref()
                && part.capture.mode != RELAXED
            {
                *lock(&part.capture.broken) = true;
                return Err(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
            }
        }
        Ok(())
    }
}

impl Capture {
    fn check(&self) -> Result<()> {
        if *lock(&self.broken) { Err(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED) } else { Ok(()) }
    }
}

thread_local! {
    static CAPTURE_MODE: std::cell::Cell<u32> = const { std::cell::Cell::new(GLOBAL) };
}

/// Calls that may depend on work under capture, such as allocations, are not allowed during one.
///
/// # Errors
/// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED`; the capture is broken by it.
pub fn forbid_in_capture() -> Result<()> {
    let mode = CAPTURE_MODE.get();
    if mode == RELAXED {
        return Ok(());
    }
    let me = std::thread::current().id();
    for capture in lock(&driver()?.captures).iter() {
        let own = capture.thread == me && capture.mode != RELAXED;
        if own || (mode == GLOBAL && capture.mode == GLOBAL) {
            *lock(&capture.broken) = true;
            return Err(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        }
    }
    Ok(())
}

/// The stream of that handle: 0 is the default stream of the current context.
///
/// # Errors
/// `CUDA_ERROR_INVALID_HANDLE`, or the current context's error for a default stream.
pub fn stream(handle: usize) -> Result<Arc<Stream>> {
    let handle = if handle == 0 && is_per_thread() { PER_THREAD } else { handle };
    match handle {
        0 | LEGACY => {
            let context = context()?;
            Ok(Arc::new(Stream::new(LEGACY, &context, 0, 0, true)))
        }
        PER_THREAD => {
            let context = context()?;
            let mut streams = lock(&context.per_thread);
            if let Some(stream) = streams.get(&std::thread::current().id()) {
                return Ok(stream.clone());
            }
            // In the table like any other, so that the legacy stream sees its captures; programs know it as 2.
            let stream = Stream::create(&context, 0, 0)?;
            streams.insert(std::thread::current().id(), stream.clone());
            Ok(stream)
        }
        handle => {
            let stream = driver()?.streams.get(handle)?;
            stream.context.fault().map_or(Ok(stream), Err)
        }
    }
}

fn event(handle: usize) -> Result<Arc<Event>> {
    driver()?.events.get(handle)
}

/// Gives the stream of that handle work.
///
/// # Errors
/// As [`stream`] and [`Stream::issue`].
pub fn issue(handle: usize, work: Work) -> Result<()> {
    stream(handle)?.issue(work)
}

fn record(event: &Arc<Event>, stream: &Stream) -> Result<()> {
    let capturing = lock(&stream.capturing);
    if let Some(part) = capturing.as_ref() {
        part.capture.check()?;
        let captured = Some((part.capture.clone(), part.after.clone()));
        *lock(&event.state) = EventState { captured, ..EventState::default() };
        return Ok(());
    }
    drop(capturing);
    stream.issue(Work::Record(event.clone()))
}

fn wait_event(stream: &Stream, event: &Event) -> Result<()> {
    let captured = lock(&event.state).captured.clone();
    if let Some((capture, _)) = &captured
        && !lock(&driver()?.captures).iter().any(|c| Arc::ptr_eq(c, capture))
    {
        // Its capture is over: the event stands for nothing.
        return Err(CUDA_ERROR_CAPTURED_EVENT);
    }
    let mut capturing = lock(&stream.capturing);
    match (captured, capturing.as_mut()) {
        (Some((capture, nodes)), None) => {
            capture.check()?;
            if stream.legacy {
                return Err(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
            }
            *capturing = Some(Capturing { capture, after: nodes, shown: Vec::new() });
            Ok(())
        }
        (Some((capture, nodes)), Some(part)) => {
            if !Arc::ptr_eq(&capture, &part.capture) {
                return Err(CUDA_ERROR_STREAM_CAPTURE_MERGE);
            }
            for node in nodes {
                if !part.after.contains(&node) {
                    part.after.push(node);
                }
            }
            Ok(())
        }
        // Work outside the capture cannot be part of the graph.
        (None, Some(part)) => {
            if lock(&event.state).number.is_some() {
                *lock(&part.capture.broken) = true;
                return Err(CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
            }
            Ok(())
        }
        (None, None) => Ok(()),
    }
}

fn begin(stream: &Arc<Stream>, graph: Arc<Graph>, after: Vec<usize>, mode: u32) -> Result<()> {
    if stream.legacy || mode > RELAXED {
        return Err(if stream.legacy {
            CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        } else {
            CUDA_ERROR_INVALID_VALUE
        });
    }
    let mut capturing = lock(&stream.capturing);
    if capturing.is_some() {
        return Err(CUDA_ERROR_ILLEGAL_STATE);
    }
    static IDS: AtomicU64 = AtomicU64::new(1);
    let capture = Arc::new(Capture {
        id: IDS.fetch_add(1, Ordering::Relaxed),
        context: stream.context.clone(),
        graph,
        origin: stream.handle,
        mode,
        thread: std::thread::current().id(),
        broken: Mutex::new(false),
    });
    lock(&driver()?.captures).push(capture.clone());
    *capturing = Some(Capturing { capture, after, shown: Vec::new() });
    Ok(())
}

/// The capture is over, however it ends: every stream leaves it. Answers whether one has work that is not among `joined`.
fn leave(capture: &Arc<Capture>, joined: &[usize]) -> Result<bool> {
    let driver = driver()?;
    let mut unjoined = false;
    for stream in driver.streams.all() {
        let mut capturing = lock(&stream.capturing);
        if capturing.as_ref().is_some_and(|part| Arc::ptr_eq(&part.capture, capture)) {
            unjoined |= capturing.take().is_some_and(|part| part.after.iter().any(|n| !joined.contains(n)));
        }
    }
    lock(&driver.captures).retain(|c| !Arc::ptr_eq(c, capture));
    Ok(unjoined)
}

fn end(stream: &Arc<Stream>) -> Result<Arc<Graph>> {
    let capture = match lock(&stream.capturing).as_ref() {
        None => return Err(CUDA_ERROR_ILLEGAL_STATE),
        Some(part) => part.capture.clone(),
    };
    if capture.origin != stream.handle {
        return Err(CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    }
    if capture.mode != RELAXED && capture.thread != std::thread::current().id() {
        return Err(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    }
    let joined = match lock(&stream.capturing).take() {
        Some(part) => capture.graph.ancestors(&part.after),
        None => Vec::new(),
    };
    let result = if leave(&capture, &joined)? { Err(CUDA_ERROR_STREAM_CAPTURE_UNJOINED) } else { Ok(()) };
    if let Err(code) = capture.check().and(result) {
        capture.graph.destroy()?;
        return Err(code);
    }
    Ok(capture.graph.clone())
}

/// Status, id, graph and dependencies of a stream's capture.
fn info(stream: &Stream) -> (u32, u64, usize, *const usize, usize) {
    match lock(&stream.capturing).as_mut() {
        None => (0, 0, 0, std::ptr::null(), 0),
        Some(part) if part.capture.check().is_err() => (INVALIDATED, part.capture.id, 0, std::ptr::null(), 0),
        Some(part) => {
            part.shown = part.after.clone();
            (ACTIVE, part.capture.id, part.capture.graph.handle, part.shown.as_ptr(), part.shown.len())
        }
    }
}

/// Streams that capture never belong to the legacy stream, and a null handle asks for none.
fn any_stream(handle: usize) -> Result<Arc<Stream>> {
    stream(handle)
}

unsafe fn update_after(handle: usize, nodes: *const usize, len: usize, flags: u32) -> Result<()> {
    // SAFETY: the program passed `len` node handles.
    let nodes = unsafe { get_all(nodes, len)? };
    let stream = any_stream(handle)?;
    let mut capturing = lock(&stream.capturing);
    let part = capturing.as_mut().ok_or(CUDA_ERROR_ILLEGAL_STATE)?;
    for node in &nodes {
        part.capture.graph.expect(*node)?;
    }
    match flags {
        0 => part.after.extend(nodes),
        1 => part.after = nodes,
        _ => return Err(CUDA_ERROR_INVALID_VALUE),
    }
    Ok(())
}

api! {
    fn cuStreamCreate(out: *mut usize, flags: u32) {
        if flags & !NON_BLOCKING != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        put(out, Stream::create(&context()?, flags, 0)?.handle)
    }
    fn cuStreamCreateWithPriority(out: *mut usize, flags: u32, priority: i32) {
        if flags & !NON_BLOCKING != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        put(out, Stream::create(&context()?, flags, priority.clamp(-5, 0))?.handle)
    }
    fn cuStreamDestroy(handle: usize) {
        destroy_stream(handle)
    }
    fn cuStreamDestroy_v2(handle: usize) {
        destroy_stream(handle)
    }
    fn cuStreamGetPriority / cuStreamGetPriority_ptsz(handle: usize, out: *mut i32) {
        put(out, stream(handle)?.priority)
    }
    fn cuStreamGetFlags / cuStreamGetFlags_ptsz(handle: usize, out: *mut u32) {
        put(out, stream(handle)?.flags)
    }
    fn cuStreamGetId / cuStreamGetId_ptsz(handle: usize, out: *mut u64) {
        let stream = stream(handle)?;
        put(out, stream.handle as u64 + ((stream.context.handle as u64) << 32))
    }
    fn cuStreamGetDevice / cuStreamGetDevice_ptsz(handle: usize, out: *mut i32) {
        put(out, stream(handle)?.context.device as i32)
    }
    fn cuStreamGetCtx / cuStreamGetCtx_ptsz(handle: usize, out: *mut usize) {
        put(out, stream(handle)?.context.handle)
    }
    fn cuStreamGetCtx_v2 / cuStreamGetCtx_v2_ptsz(handle: usize, out: *mut usize, green: *mut usize) {
        put_if(green, 0);
        put(out, stream(handle)?.context.handle)
    }
    fn cuStreamSynchronize / cuStreamSynchronize_ptsz(handle: usize) {
        stream(handle)?.synchronize()
    }
    fn cuStreamQuery / cuStreamQuery_ptsz(handle: usize) {
        let stream = stream(handle)?;
        stream.forbid_capture()?;
        stream.check_implicit()?;
        let last = if stream.legacy { queue::last() } else { stream.last.load(Ordering::Relaxed) };
        if !queue::is_done(last) {
            return Err(CUDA_ERROR_NOT_READY);
        }
        stream.context.fault().map_or(Ok(()), Err)
    }
    fn cuStreamWaitEvent / cuStreamWaitEvent_ptsz(handle: usize, on: usize, flags: u32) {
        if flags & !1 != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let stream = stream(handle)?;
        let event = event(on)?;
        if flags == 1 {
            return stream.issue(Work::Wait(event));
        }
        wait_event(&stream, &event)
    }
    fn cuStreamAddCallback / cuStreamAddCallback_ptsz(handle: usize, function: StreamCallback, data: *mut c_void, flags: u32) {
        if function.is_none() || flags != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let stream = stream(handle)?;
        stream.forbid_capture()?;
        stream.issue(Work::Callback { function, stream: handle, data: data as usize })
    }
    fn cuLaunchHostFunc / cuLaunchHostFunc_ptsz(handle: usize, function: HostFn, data: *mut c_void) {
        if function.is_none() {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        issue(handle, Work::Host { function, data: data as usize })
    }
    /// Managed memory is plain memory here: there is nothing to attach.
    fn cuStreamAttachMemAsync / cuStreamAttachMemAsync_ptsz(handle: usize, address: u64, _bytes: usize, _flags: u32) {
        if !crate::copy::is_known_host(address)? {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        issue(handle, Work::Empty)
    }
    /// Launch attributes of streams are hints on caches, priorities and domains, none of which is modelled.
    fn cuStreamSetAttribute / cuStreamSetAttribute_ptsz(handle: usize, _id: u32, value: *const [u64; 8]) {
        get(value)?;
        stream(handle).map(drop)
    }
    fn cuStreamGetAttribute / cuStreamGetAttribute_ptsz(handle: usize, id: u32, out: *mut [u64; 8]) {
        let stream = stream(handle)?;
        let mut value = LaunchAttribute { id, pad: [0; 4], value: [0; 8] }.value;
        if id == 8 {
            value[0] = stream.priority as u32 as u64;
        }
        put(out, value)
    }
    fn cuStreamCopyAttributes / cuStreamCopyAttributes_ptsz(dst: usize, src: usize) {
        stream(dst)?;
        stream(src).map(drop)
    }
    fn cuStreamWriteValue32_v2 / cuStreamWriteValue32_v2_ptsz(handle: usize, address: u64, value: u32, _flags: u32) {
        let fill = Fill { dst: address, pattern: value.to_le_bytes().to_vec(), width: 1, height: 1, pitch: 0 };
        fill.check()?;
        issue(handle, Work::Fill(fill))
    }
    fn cuStreamWriteValue64_v2 / cuStreamWriteValue64_v2_ptsz(handle: usize, address: u64, value: u64, _flags: u32) {
        let bytes = Arc::new(value.to_le_bytes().to_vec());
        let copy = Copy::linear(crate::copy::Place::Device(address), crate::copy::Place::Taken(bytes), 8);
        copy.check()?;
        issue(handle, Work::Copy(copy))
    }

    fn cuStreamBeginCapture_v2 / cuStreamBeginCapture_v2_ptsz(handle: usize, mode: u32) {
        let graph = Graph::create()?;
        begin(&stream(handle)?, graph, Vec::new(), mode)
    }
    fn cuStreamBeginCapture / cuStreamBeginCapture_ptsz(handle: usize) {
        let graph = Graph::create()?;
        begin(&stream(handle)?, graph, Vec::new(), GLOBAL)
    }
    fn cuStreamBeginCaptureToGraph / cuStreamBeginCaptureToGraph_ptsz(
        handle: usize, graph: usize, nodes: *const usize, _data: *const c_void, len: usize, mode: u32,
    ) {
        let graph = driver()?.graphs.get(graph)?;
        let nodes = get_all(nodes, len)?;
        for node in &nodes {
            graph.expect(*node)?;
        }
        begin(&stream(handle)?, graph, nodes, mode)
    }
    fn cuStreamEndCapture / cuStreamEndCapture_ptsz(handle: usize, out: *mut usize) {
        put(out, 0)?;
        let graph = end(&any_stream(handle)?)?;
        put(out, graph.handle)
    }
    fn cuStreamIsCapturing / cuStreamIsCapturing_ptsz(handle: usize, out: *mut u32) {
        let stream = any_stream(handle)?;
        stream.check_implicit()?;
        put(out, info(&stream).0)
    }
    fn cuStreamGetCaptureInfo / cuStreamGetCaptureInfo_ptsz(handle: usize, status: *mut u32, id: *mut u64) {
        let info = info(&*any_stream(handle)?);
        put_if(id, info.1);
        put(status, info.0)
    }
    fn cuStreamGetCaptureInfo_v2 / cuStreamGetCaptureInfo_v2_ptsz(
        handle: usize, status: *mut u32, id: *mut u64, graph: *mut usize, nodes: *mut *const usize, len: *mut usize,
    ) {
        let info = info(&*any_stream(handle)?);
        put_if(id, info.1);
        put_if(graph, info.2);
        put_if(nodes, info.3);
        put_if(len, info.4);
        put(status, info.0)
    }
    fn cuStreamGetCaptureInfo_v3 / cuStreamGetCaptureInfo_v3_ptsz(
        handle: usize, status: *mut u32, id: *mut u64, graph: *mut usize, nodes: *mut *const usize,
        data: *mut *const c_void, len: *mut usize,
    ) {
        let info = info(&*any_stream(handle)?);
        put_if(id, info.1);
        put_if(graph, info.2);
        put_if(nodes, info.3);
        put_if(data, std::ptr::null());
        put_if(len, info.4);
        put(status, info.0)
    }
    fn cuStreamUpdateCaptureDependencies / cuStreamUpdateCaptureDependencies_ptsz(
        handle: usize, nodes: *const usize, len: usize, flags: u32,
    ) {
        update_after(handle, nodes, len, flags)
    }
    fn cuStreamUpdateCaptureDependencies_v2 / cuStreamUpdateCaptureDependencies_v2_ptsz(
        handle: usize, nodes: *const usize, _data: *const c_void, len: usize, flags: u32,
    ) {
        update_after(handle, nodes, len, flags)
    }
    fn cuThreadExchangeStreamCaptureMode(mode: *mut u32) {
        let new = get(mode)?;
        if !matches!(new, GLOBAL | THREAD_LOCAL | RELAXED) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        put(mode, CAPTURE_MODE.replace(new))
    }

    fn cuEventCreate(out: *mut usize, flags: u32) {
        if flags & 4 != 0 {
            return Err(unsupported("cuEventCreate(CU_EVENT_INTERPROCESS)"));
        }
        if flags & !3 != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let context = context()?;
        let event = driver()?.events.insert(|handle| Event { handle, context, flags, state: Mutex::default() });
        put(out, event.handle)
    }
    fn cuEventDestroy(handle: usize) {
        driver()?.events.remove(handle).map(drop)
    }
    fn cuEventDestroy_v2(handle: usize) {
        driver()?.events.remove(handle).map(drop)
    }
    fn cuEventRecord / cuEventRecord_ptsz(handle: usize, on: usize) {
        let event = event(handle)?;
        let stream = stream(on)?;
        if event.context.handle != stream.context.handle {
            return Err(CUDA_ERROR_INVALID_HANDLE);
        }
        record(&event, &stream)
    }
    fn cuEventRecordWithFlags / cuEventRecordWithFlags_ptsz(handle: usize, on: usize, flags: u32) {
        let event = event(handle)?;
        let stream = stream(on)?;
        if event.context.handle != stream.context.handle {
            return Err(CUDA_ERROR_INVALID_HANDLE);
        }
        match flags {
            0 => record(&event, &stream),
            // External: a node of its own in a captured graph.
            1 => stream.issue(Work::Record(event)),
            _ => Err(CUDA_ERROR_INVALID_VALUE),
        }
    }
    fn cuEventQuery(handle: usize) {
        forbid_in_capture()?;
        let event = event(handle)?;
        let state = lock(&event.state);
        if state.captured.is_some() {
            return Err(CUDA_ERROR_CAPTURED_EVENT);
        }
        if state.number.is_some_and(|n| !queue::is_done(n)) {
            return Err(CUDA_ERROR_NOT_READY);
        }
        event.context.fault().map_or(Ok(()), Err)
    }
    fn cuEventSynchronize(handle: usize) {
        forbid_in_capture()?;
        let event = event(handle)?;
        let number = {
            let state = lock(&event.state);
            if state.captured.is_some() {
                return Err(CUDA_ERROR_CAPTURED_EVENT);
            }
            state.number
        };
        if let Some(number) = number {
            queue::wait(number);
        }
        event.context.fault().map_or(Ok(()), Err)
    }
    fn cuEventElapsedTime(out: *mut f32, start: usize, end: usize) {
        put(out, elapsed(start, end)?)
    }
    fn cuEventElapsedTime_v2(out: *mut f32, start: usize, end: usize) {
        put(out, elapsed(start, end)?)
    }
    fn cuCtxRecordEvent(ctx: usize, handle: usize) {
        let context = driver()?.contexts.get(ctx)?;
        let event = event(handle)?;
        forbid_in_capture()?;
        event.record(&context);
        Ok(())
    }
    fn cuCtxWaitEvent(ctx: usize, handle: usize) {
        driver()?.contexts.get(ctx)?;
        event(handle).map(drop)
    }
    fn cuCtxSynchronize() {
        let context = current_any()?;
        forbid_in_capture()?;
        context.synchronize()
    }
    fn cuCtxSynchronize_v2(ctx: usize) {
        let context = if ctx == 0 { current_any()? } else { driver()?.contexts.get(ctx)? };
        forbid_in_capture()?;
        context.synchronize()
    }
}

fn destroy_stream(handle: usize) -> Result<()> {
    if handle <= PER_THREAD {
        return Err(CUDA_ERROR_INVALID_HANDLE);
    }
    // Its work goes on: the queue holds it.
    let stream = driver()?.streams.remove(handle)?;
    let part = lock(&stream.capturing).take();
    if let Some(part) = part {
        *lock(&part.capture.broken) = true;
        // Nobody can end a capture whose first stream is gone.
        if part.capture.origin == handle {
            leave(&part.capture, &[])?;
        }
    }
    Ok(())
}

/// Milliseconds of wall time between two events: how long the simulation took, not what a GPU would take.
fn elapsed(start: usize, end: usize) -> Result<f32> {
    let at = |handle| {
        let event = event(handle)?;
        if event.flags & DISABLE_TIMING != 0 {
            return Err(CUDA_ERROR_INVALID_HANDLE);
        }
        let state = lock(&event.state);
        if state.captured.is_some() {
            return Err(CUDA_ERROR_CAPTURED_EVENT);
        }
        match state.number {
            None => Err(CUDA_ERROR_INVALID_HANDLE),
            Some(n) => state.at.filter(|at| at.0 >= n).map(|at| at.1).ok_or(CUDA_ERROR_NOT_READY),
        }
    };
    let (start, end) = (at(start)?, at(end)?);
    let ms = |d: std::time::Duration| d.as_secs_f64() * 1e3;
    Ok(if end >= start { ms(end - start) } else { -ms(start - end) } as f32)
}
