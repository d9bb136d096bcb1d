//! Memory: device allocations, pools, pinned, registered and managed host memory, copies, fills, pointer attributes.

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use crate::abi::{api, get, get_all, lock, put, put_if, unsupported};
use crate::copy::{Copy, Fill, Place, device_of, is_known_host, memory_of};
use crate::errors::*;
use crate::queue;
use crate::state::{Context, context, device, driver};
use crate::stream::{Work, forbid_in_capture, issue, stream};
use crate::types::*;

const PAGE: usize = 4096;
/// Row alignment of pitched memory, as on GPUs of today.
const PITCH: usize = 512;
/// `cuMemHostAlloc`'s portable, mapped and write-combined; all three hold anyway.
const HOST_FLAGS: u32 = 7;

/// `CU_MEMHOSTREGISTER_READ_ONLY`: kernels do not write there, so that a file mapped read-only can be registered.
const REGISTER_READ_ONLY: u32 = 8;

/// Host memory that kernels may use at its own address.
pub struct HostRange {
    pub bytes: u64,
    pub kind: HostKind,
    pub flags: u32,
    context: usize,
    /// How it was allocated, if the driver did it.
    owned: Option<Layout>,
}

/// Which call made a range known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// `cuMemHostAlloc`, `cuMemAllocHost`.
    Pinned,
    /// `cuMemHostRegister`.
    Registered,
    /// `cuMemAllocManaged`: plain host memory, no pages move.
    Managed,
}

/// A memory pool. It keeps books, no memory: what is freed goes back at once.
pub struct Pool {
    pub handle: usize,
    pub device: usize,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    used: u64,
    high: u64,
    /// What was set, by attribute.
    set: BTreeMap<u32, u64>,
}

impl Pool {
    /// An empty pool of a device.
    pub fn new(handle: usize, device: usize) -> Pool {
        Pool { handle, device, books: Mutex::default() }
    }
    fn add(&self, bytes: u64) {
        let mut books = lock(&self.books);
        books.used += bytes;
        books.high = books.high.max(books.used);
    }
    fn sub(&self, bytes: u64) {
        let mut books = lock(&self.books);
        books.used = books.used.saturating_sub(bytes);
    }
}

/// Memory that allocation nodes of graphs stand for: address to owner.
static GRAPH_MEMORY: Mutex<BTreeMap<u64, Arc<Context>>> = Mutex::new(BTreeMap::new());

fn allocate(context: &Context, bytes: usize, pool: usize) -> Result<u64> {
    if bytes == 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let memory = &context.device().memory;
    let address = memory
        .alloc(bytes as u64, 256)
        .or_else(|_| {
            // Frees that were submitted may make room.
            queue::wait(queue::last());
            memory.alloc(bytes as u64, 256)
        })
        .map_err(|_| CUDA_ERROR_OUT_OF_MEMORY)?;
    lock(&context.allocations).insert(address, (bytes as u64, pool));
    Ok(address)
}

/// Frees device memory; what a graph's allocation node owns stays until the graph goes.
///
/// # Errors
/// `CUDA_ERROR_INVALID_VALUE` if no allocation starts there.
pub fn release(context: &Context, address: u64) -> Result<()> {
    if lock(&GRAPH_MEMORY).contains_key(&address) {
        return Ok(());
    }
    let driver = driver()?;
    let mut owner = lock(&context.allocations).remove(&address);
    for other in driver.contexts.all() {
        if owner.is_none() {
            owner = lock(&other.allocations).remove(&address);
        }
    }
    let (bytes, pool) = owner.ok_or(CUDA_ERROR_INVALID_VALUE)?;
    if let Ok(pool) = driver.pools.get(pool) {
        pool.sub(bytes);
    }
    memory_of(address)?.free(address).map_err(|_| CUDA_ERROR_INVALID_VALUE)
}

/// Frees what an allocation node stood for.
pub fn release_graph_memory(address: u64) -> Result<()> {
    let Some(context) = lock(&GRAPH_MEMORY).remove(&address) else { return Ok(()) };
    queue::submit_always(&context.clone(), move |_| {
        let _ = release(&context, address);
    });
    Ok(())
}

/// Where an allocation starts that is alive and not asked to be freed.
fn is_allocation(address: u64) -> Result<bool> {
    Ok(driver()?.contexts.all().iter().any(|c| lock(&c.allocations).contains_key(&address)))
}

fn allocate_host(bytes: usize, kind: HostKind, flags: u32) -> Result<u64> {
    let context = context()?;
    forbid_in_capture()?;
    if bytes == 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let layout = Layout::from_size_align(bytes, PAGE).map_err(|_| CUDA_ERROR_OUT_OF_MEMORY)?;
    // SAFETY: the layout has a size.
    let at = unsafe { std::alloc::alloc_zeroed(layout) };
    if at.is_null() {
        return Err(CUDA_ERROR_OUT_OF_MEMORY);
    }
    map_host(
        at,
        bytes,
        HostRange { bytes: bytes as u64, kind, flags, context: context.handle, owned: Some(layout) },
    )?;
    Ok(at as u64)
}

/// Whether this process may read all of a range, and write it if `write`: what pinning its pages would find out.
fn is_mapped(range: std::ops::Range<u64>, write: bool) -> bool {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return true };
    let mut at = range.start;
    for line in maps.lines() {
        // "7f0000000000-7f0000001000 rw-p ...", by ascending address.
        let part = || {
            let (bounds, rest) = line.split_once(' ')?;
            let (from, to) = bounds.split_once('-')?;
            let hex = |t| u64::from_str_radix(t, 16).ok();
            Some((hex(from)?, hex(to)?, rest.starts_with('r') && (!write || rest[1..].starts_with('w'))))
        };
        if let Some((from, to, allowed)) = part()
            && (from..to).contains(&at)
        {
            if !allowed {
                return false;
            }
            at = to;
        }
        if at >= range.end {
            return true;
        }
    }
    false
}

fn map_host(at: *mut u8, bytes: usize, range: HostRange) -> Result<()> {
    let driver = driver()?;
    let writable = range.kind != HostKind::Registered || range.flags & REGISTER_READ_ONLY == 0;
    for (i, device) in driver.devices.iter().enumerate() {
        // SAFETY: the range stays until `unmap_host`: it is the driver's own, or the program keeps it registered.
        if unsafe { device.memory.map_host(at, bytes as u64, writable) }.is_err() {
            for device in &driver.devices[..i] {
                let _ = device.memory.free(at as u64);
            }
            return Err(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        }
    }
    lock(&driver.host).insert(at as u64, range);
    Ok(())
}

fn unmap_host(at: u64, kinds: &[HostKind]) -> Result<()> {
    let driver = driver()?;
    let range = {
        let mut host = lock(&driver.host);
        match host.get(&at) {
            Some(range) if kinds.contains(&range.kind) => host.remove(&at),
            _ => None,
        }
    };
    let range = range.ok_or(if kinds.contains(&HostKind::Registered) {
        CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED
    } else {
        CUDA_ERROR_INVALID_VALUE
    })?;
    // Work that uses it ends first.
    queue::wait(queue::last());
    for device in &driver.devices {
        let _ = device.memory.free(at);
    }
    if let Some(layout) = range.owned {
        // SAFETY: `allocate_host` made it with this layout, and it is in no table any more.
        unsafe { std::alloc::dealloc(at as *mut u8, layout) };
    }
    Ok(())
}

/// Frees the host memory of a context that ends.
pub fn release_host(context: &Context) -> Result<()> {
    let of_context: Vec<(u64, HostKind)> = lock(&driver()?.host)
        .iter()
        .filter(|(_, r)| r.context == context.handle)
        .map(|(at, r)| (*at, r.kind))
        .collect();
    for (at, kind) in of_context {
        unmap_host(at, &[kind])?;
    }
    Ok(())
}

/// Copies in stream order. Pageable memory is read before the call returns, and written before it returns.
fn copy_async(copy: Copy, on: usize) -> Result<()> {
    copy.check()?;
    let stream = stream(on)?;
    if stream.is_capturing() {
        return stream.issue(Work::Copy(copy));
    }
    let writes_pageable = copy.writes_pageable();
    stream.issue(Work::Copy(copy.taken()))?;
    if writes_pageable { stream.synchronize() } else { Ok(()) }
}

/// Copies in the default stream and waits.
fn copy_sync(copy: Copy) -> Result<()> {
    copy.check()?;
    let stream = stream(0)?;
    stream.forbid_capture()?;
    // The program waits, so pageable memory needs no copy of its own.
    stream.issue(Work::Copy(copy))?;
    stream.synchronize()
}

fn fill_async(dst: u64, pattern: &[u8], width: usize, height: usize, pitch: usize, on: usize) -> Result<()> {
    let fill = Fill { dst, pattern: pattern.to_vec(), width, height, pitch };
    let stream = stream(on)?;
    fill.check()?;
    stream.issue(Work::Fill(fill))
}

fn fill_sync(dst: u64, pattern: &[u8], width: usize, height: usize, pitch: usize) -> Result<()> {
    fill_async(dst, pattern, width, height, pitch, 0)
}

fn place(kind: u32, host: usize, device: u64, what: &str) -> Result<Place> {
    match kind {
        1 => Ok(Place::of(host as u64)),
        2 | 4 => Ok(Place::of(device)).and_then(|p| match (kind, p) {
            (2, Place::Pageable(_)) => Err(CUDA_ERROR_INVALID_VALUE),
            (_, p) => Ok(p),
        }),
        3 => Err(unsupported(&format!("{what} with CUDA arrays"))),
        _ => Err(CUDA_ERROR_INVALID_VALUE),
    }
}

fn offset(place: Place, pitch: usize, slice: usize, x: usize, y: usize, z: usize) -> Result<Place> {
    let total = y
        .checked_mul(pitch)
        .and_then(|r| z.checked_mul(slice)?.checked_add(r)?.checked_add(x))
        .ok_or(CUDA_ERROR_INVALID_VALUE)?;
    Ok(match place {
        Place::Pageable(at) => Place::Pageable(at.checked_add(total).ok_or(CUDA_ERROR_INVALID_VALUE)?),
        Place::Device(at) => Place::Device(at.checked_add(total as u64).ok_or(CUDA_ERROR_INVALID_VALUE)?),
        taken => taken,
    })
}

fn copy_2d(p: &Memcpy2d) -> Result<Copy> {
    copy_3d(&Memcpy3d {
        src_x_bytes: p.src_x_bytes,
        src_y: p.src_y,
        src_z: 0,
        src_lod: 0,
        src_type: p.src_type,
        src_host: p.src_host,
        src_device: p.src_device,
        src_array: p.src_array,
        src_context: 0,
        src_pitch: p.src_pitch,
        src_height: p.height,
        dst_x_bytes: p.dst_x_bytes,
        dst_y: p.dst_y,
        dst_z: 0,
        dst_lod: 0,
        dst_type: p.dst_type,
        dst_host: p.dst_host,
        dst_device: p.dst_device,
        dst_array: p.dst_array,
        dst_context: 0,
        dst_pitch: p.dst_pitch,
        dst_height: p.height,
        width_bytes: p.width_bytes,
        height: p.height,
        depth: 1,
    })
}

/// The copy that a `CUDA_MEMCPY3D` describes. A pitch of 0 stands for rows without gaps.
///
/// # Errors
/// `CUDA_ERROR_INVALID_VALUE`, or `CUDA_ERROR_NOT_SUPPORTED` for arrays.
pub fn copy_3d(p: &Memcpy3d) -> Result<Copy> {
    let rows = |pitch: usize, x: usize| if pitch == 0 { p.width_bytes.saturating_add(x) } else { pitch };
    let (src_pitch, dst_pitch) = (rows(p.src_pitch, p.src_x_bytes), rows(p.dst_pitch, p.dst_x_bytes));
    let slice = |pitch: usize, height: usize, y: usize| {
        let rows = if height == 0 { p.height.saturating_add(y) } else { height };
        pitch.checked_mul(rows).ok_or(CUDA_ERROR_INVALID_VALUE)
    };
    let (src_slice, dst_slice) =
        (slice(src_pitch, p.src_height, p.src_y)?, slice(dst_pitch, p.dst_height, p.dst_y)?);
    let src = place(p.src_type, p.src_host, p.src_device, "cuMemcpy3D")?;
    let dst = place(p.dst_type, p.dst_host, p.dst_device, "cuMemcpy3D")?;
    Ok(Copy {
        src: offset(src, src_pitch, src_slice, p.src_x_bytes, p.src_y, p.src_z)?,
        dst: offset(dst, dst_pitch, dst_slice, p.dst_x_bytes, p.dst_y, p.dst_z)?,
        width: p.width_bytes,
        height: p.height,
        depth: p.depth,
        dst_pitch,
        dst_slice,
        src_pitch,
        src_slice,
    })
}

fn host(at: *const c_void) -> Place {
    Place::of(at as u64)
}

fn alloc_async(bytes: usize, pool: &Pool, on: usize) -> Result<u64> {
    let stream = stream(on)?;
    if stream.is_capturing() {
        let address = allocate(&stream.context, bytes, pool.handle)?;
        lock(&GRAPH_MEMORY).insert(address, stream.context.clone());
        pool.add(bytes as u64);
        stream.issue(Work::Alloc { address })?;
        return Ok(address);
    }
    let address = allocate(&stream.context, bytes, pool.handle)?;
    pool.add(bytes as u64);
    Ok(address)
}

fn pool(handle: usize) -> Result<Arc<Pool>> {
    driver()?.pools.get(handle)
}

/// One pointer attribute, as bytes; `None` for a pointer that is not the driver's.
fn pointer_attribute(attribute: u32, address: u64) -> Result<Option<Vec<u8>>> {
    let driver = driver()?;
    let Some(range) = memory_of(address).ok().and_then(|m| m.find(address)) else { return Ok(None) };
    let host = {
        let host = lock(&driver.host);
        host.range(..=address)
            .next_back()
            .filter(|(at, r)| address - **at < r.bytes)
            .map(|(_, r)| (r.kind, r.context))
    };
    let owner = match (host, device_of(address)) {
        (Some((_, context)), _) => context,
        (None, Some(_)) => {
            let contexts = driver.contexts.all();
            contexts.iter().find(|c| lock(&c.allocations).contains_key(&range.addr)).map_or(0, |c| c.handle)
        }
        (None, None) => 0,
    };
    let managed = host.is_some_and(|(kind, _)| kind == HostKind::Managed);
    let int = |v: u32| v.to_ne_bytes().to_vec();
    let long = |v: u64| v.to_ne_bytes().to_vec();
    let flag = |v: bool| vec![u8::from(v)];
    Ok(Some(match attribute {
        1 => long(owner as u64),
        2 => int(if host.is_some() && !managed { 1 } else { 2 }),
        3 => long(address),
        4 if host.is_some() => long(address),
        4 => return Err(CUDA_ERROR_INVALID_VALUE),
        6 => flag(false),
        7 => long(range.addr),
        8 => flag(managed),
        9 => {
            let of_owner = driver.contexts.get(owner).map_or(0, |c| c.device);
            int(device_of(address).unwrap_or(of_owner) as u32)
        }
        10 | 15 | 21 => flag(false),
        11 | 19 => long(range.addr),
        12 | 18 => long(range.bytes),
        13 => flag(true),
        14 => int(0),
        16 => int(3),
        17 => long(
            driver
                .contexts
                .get(owner)
                .ok()
                .and_then(|c| lock(&c.allocations).get(&range.addr).map(|(_, pool)| *pool as u64))
                .unwrap_or(0),
        ),
        20 => long(range.addr),
        _ => return Err(unsupported(&format!("cuPointerGetAttribute({attribute})"))),
    }))
}

/// Writes an attribute's bytes.
unsafe fn put_bytes(out: *mut c_void, bytes: &[u8]) -> Result<()> {
    if out.is_null() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: the program gave room for this attribute.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), out.cast(), bytes.len()) };
    Ok(())
}

/// Bytes that an unset attribute of an unknown pointer takes.
fn attribute_bytes(attribute: u32) -> usize {
    match attribute {
        2 | 9 | 14 | 16 => 4,
        6 | 8 | 10 | 13 | 15 | 21 => 1,
        _ => 8,
    }
}

fn free_sync(address: u64) -> Result<()> {
    let context = context()?;
    if address == 0 {
        return Ok(());
    }
    forbid_in_capture()?;
    let managed = lock(&driver()?.host).get(&address).is_some_and(|r| r.kind == HostKind::Managed);
    if managed {
        return unmap_host(address, &[HostKind::Managed]);
    }
    context.synchronize()?;
    release(&context, address)
}

fn pitched(width: usize, height: usize, element: u32) -> Result<(u64, usize)> {
    if !matches!(element, 4 | 8 | 16) || width == 0 || height == 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let context = context()?;
    forbid_in_capture()?;
    let pitch = width.checked_next_multiple_of(PITCH).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    let bytes = pitch.checked_mul(height).ok_or(CUDA_ERROR_OUT_OF_MEMORY)?;
    Ok((allocate(&context, bytes, 0)?, pitch))
}

api! {
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let stats = context()?.device().memory.stats();
        put(free, (stats.limit - stats.used) as usize)?;
        put(total, stats.limit as usize)
    }
    fn cuMemAlloc_v2(out: *mut u64, bytes: usize) {
        let context = context()?;
        forbid_in_capture()?;
        put(out, 0)?;
        put(out, allocate(&context, bytes, 0)?)
    }
    fn cuMemAllocPitch_v2(out: *mut u64, pitch: *mut usize, width: usize, height: usize, element: u32) {
        let (address, bytes) = pitched(width, height, element)?;
        put(pitch, bytes)?;
        put(out, address)
    }
    fn cuMemFree_v2(address: u64) {
        free_sync(address)
    }
    fn cuMemGetAddressRange_v2(base: *mut u64, bytes: *mut usize, address: u64) {
        context()?;
        let range = memory_of(address).ok().and_then(|m| m.find(address)).ok_or(CUDA_ERROR_NOT_FOUND)?;
        put_if(base, range.addr);
        put_if(bytes, range.bytes as usize);
        Ok(())
    }
    fn cuMemAllocHost_v2(out: *mut *mut c_void, bytes: usize) {
        put(out, allocate_host(bytes, HostKind::Pinned, 0)? as *mut c_void)
    }
    fn cuMemHostAlloc(out: *mut *mut c_void, bytes: usize, flags: u32) {
        if flags & !HOST_FLAGS != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        put(out, allocate_host(bytes, HostKind::Pinned, flags)? as *mut c_void)
    }
    fn cuMemFreeHost(at: *mut c_void) {
        context()?;
        if at.is_null() {
            return Ok(());
        }
        unmap_host(at as u64, &[HostKind::Pinned])
    }
    fn cuMemHostRegister_v2(at: *mut c_void, bytes: usize, flags: u32) {
        let context = context()?;
        if at.is_null() || bytes == 0 || flags & !0xf != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        if flags & 4 != 0 {
            return Err(unsupported("cuMemHostRegister(CU_MEMHOSTREGISTER_IOMEMORY)"));
        }
        let range = (at as u64).checked_add(bytes as u64).map(|end| at as u64..end);
        if !range.is_some_and(|r| is_mapped(r, flags & REGISTER_READ_ONLY == 0)) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let range = HostRange {
            bytes: bytes as u64,
            kind: HostKind::Registered,
            flags,
            context: context.handle,
            owned: None,
        };
        map_host(at.cast(), bytes, range)
    }
    fn cuMemHostUnregister(at: *mut c_void) {
        context()?;
        unmap_host(at as u64, &[HostKind::Registered])
    }
    fn cuMemHostGetDevicePointer_v2(out: *mut u64, at: *mut c_void, _flags: u32) {
        context()?;
        if !is_known_host(at as u64)? {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        put(out, at as u64)
    }
    fn cuMemHostGetFlags(out: *mut u32, at: *mut c_void) {
        let host = lock(&driver()?.host);
        let range = host.range(..=at as u64).next_back().filter(|(start, r)| at as u64 - **start < r.bytes);
        put(out, range.map(|(_, r)| r.flags | 2).ok_or(CUDA_ERROR_INVALID_VALUE)?)
    }
    fn cuMemAllocManaged(out: *mut u64, bytes: usize, flags: u32) {
        if !matches!(flags, 1 | 2 | 4) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        put(out, allocate_host(bytes, HostKind::Managed, flags)?)
    }

    fn cuMemcpy / cuMemcpy_ptds(dst: u64, src: u64, bytes: usize) {
        copy_sync(Copy::linear(Place::of(dst), Place::of(src), bytes))
    }
    fn cuMemcpyHtoD_v2 / cuMemcpyHtoD_v2_ptds(dst: u64, src: *const c_void, bytes: usize) {
        copy_sync(Copy::linear(Place::Device(dst), host(src), bytes))
    }
    fn cuMemcpyDtoH_v2 / cuMemcpyDtoH_v2_ptds(dst: *mut c_void, src: u64, bytes: usize) {
        copy_sync(Copy::linear(host(dst), Place::Device(src), bytes))
    }
    fn cuMemcpyDtoD_v2 / cuMemcpyDtoD_v2_ptds(dst: u64, src: u64, bytes: usize) {
        copy_sync(Copy::linear(Place::Device(dst), Place::Device(src), bytes))
    }
    fn cuMemcpyPeer / cuMemcpyPeer_ptds(dst: u64, _to: usize, src: u64, _from: usize, bytes: usize) {
        copy_sync(Copy::linear(Place::Device(dst), Place::Device(src), bytes))
    }
    fn cuMemcpyAsync / cuMemcpyAsync_ptsz(dst: u64, src: u64, bytes: usize, on: usize) {
        copy_async(Copy::linear(Place::of(dst), Place::of(src), bytes), on)
    }
    fn cuMemcpyHtoDAsync_v2 / cuMemcpyHtoDAsync_v2_ptsz(dst: u64, src: *const c_void, bytes: usize, on: usize) {
        copy_async(Copy::linear(Place::Device(dst), host(src), bytes), on)
    }
    fn cuMemcpyDtoHAsync_v2 / cuMemcpyDtoHAsync_v2_ptsz(dst: *mut c_void, src: u64, bytes: usize, on: usize) {
        copy_async(Copy::linear(host(dst), Place::Device(src), bytes), on)
    }
    fn cuMemcpyDtoDAsync_v2 / cuMemcpyDtoDAsync_v2_ptsz(dst: u64, src: u64, bytes: usize, on: usize) {
        copy_async(Copy::linear(Place::Device(dst), Place::Device(src), bytes), on)
    }
    fn cuMemcpyPeerAsync / cuMemcpyPeerAsync_ptsz(dst: u64, _to: usize, src: u64, _from: usize, bytes: usize, on: usize) {
        copy_async(Copy::linear(Place::Device(dst), Place::Device(src), bytes), on)
    }
    fn cuMemcpy2D_v2 / cuMemcpy2D_v2_ptds(p: *const Memcpy2d) {
        copy_sync(copy_2d(&get(p)?)?)
    }
    fn cuMemcpy2DUnaligned_v2 / cuMemcpy2DUnaligned_v2_ptds(p: *const Memcpy2d) {
        copy_sync(copy_2d(&get(p)?)?)
    }
    fn cuMemcpy2DAsync_v2 / cuMemcpy2DAsync_v2_ptsz(p: *const Memcpy2d, on: usize) {
        copy_async(copy_2d(&get(p)?)?, on)
    }
    fn cuMemcpy3D_v2 / cuMemcpy3D_v2_ptds(p: *const Memcpy3d) {
        copy_sync(copy_3d(&get(p)?)?)
    }
    fn cuMemcpy3DAsync_v2 / cuMemcpy3DAsync_v2_ptsz(p: *const Memcpy3d, on: usize) {
        copy_async(copy_3d(&get(p)?)?, on)
    }
    fn cuMemcpy3DPeer / cuMemcpy3DPeer_ptds(p: *const Memcpy3d) {
        copy_sync(copy_3d(&get(p)?)?)
    }
    fn cuMemcpy3DPeerAsync / cuMemcpy3DPeerAsync_ptsz(p: *const Memcpy3d, on: usize) {
        copy_async(copy_3d(&get(p)?)?, on)
    }
    fn cuMemcpyBatchAsync_v2 / cuMemcpyBatchAsync_v2_ptsz(
        dst: *const u64, src: *const u64, bytes: *const usize, len: usize,
        _attributes: *const c_void, _indices: *const usize, _count: usize, on: usize,
    ) {
        let (dst, src, bytes) = (get_all(dst, len)?, get_all(src, len)?, get_all(bytes, len)?);
        for ((d, s), n) in dst.into_iter().zip(src).zip(bytes) {
            copy_async(Copy::linear(Place::of(d), Place::of(s), n), on)?;
        }
        Ok(())
    }

    fn cuMemsetD8_v2 / cuMemsetD8_v2_ptds(dst: u64, value: u8, len: usize) {
        fill_sync(dst, &[value], len, 1, 0)
    }
    fn cuMemsetD16_v2 / cuMemsetD16_v2_ptds(dst: u64, value: u16, len: usize) {
        fill_sync(dst, &value.to_le_bytes(), len, 1, 0)
    }
    fn cuMemsetD32_v2 / cuMemsetD32_v2_ptds(dst: u64, value: u32, len: usize) {
        fill_sync(dst, &value.to_le_bytes(), len, 1, 0)
    }
    fn cuMemsetD2D8_v2 / cuMemsetD2D8_v2_ptds(dst: u64, pitch: usize, value: u8, width: usize, height: usize) {
        fill_sync(dst, &[value], width, height, pitch)
    }
    fn cuMemsetD2D16_v2 / cuMemsetD2D16_v2_ptds(dst: u64, pitch: usize, value: u16, width: usize, height: usize) {
        fill_sync(dst, &value.to_le_bytes(), width, height, pitch)
    }
    fn cuMemsetD2D32_v2 / cuMemsetD2D32_v2_ptds(dst: u64, pitch: usize, value: u32, width: usize, height: usize) {
        fill_sync(dst, &value.to_le_bytes(), width, height, pitch)
    }
    fn cuMemsetD8Async / cuMemsetD8Async_ptsz(dst: u64, value: u8, len: usize, on: usize) {
        fill_async(dst, &[value], len, 1, 0, on)
    }
    fn cuMemsetD16Async / cuMemsetD16Async_ptsz(dst: u64, value: u16, len: usize, on: usize) {
        fill_async(dst, &value.to_le_bytes(), len, 1, 0, on)
    }
    fn cuMemsetD32Async / cuMemsetD32Async_ptsz(dst: u64, value: u32, len: usize, on: usize) {
        fill_async(dst, &value.to_le_bytes(), len, 1, 0, on)
    }
    fn cuMemsetD2D8Async / cuMemsetD2D8Async_ptsz(dst: u64, pitch: usize, value: u8, width: usize, height: usize, on: usize) {
        fill_async(dst, &[value], width, height, pitch, on)
    }
    fn cuMemsetD2D16Async / cuMemsetD2D16Async_ptsz(dst: u64, pitch: usize, value: u16, width: usize, height: usize, on: usize) {
        fill_async(dst, &value.to_le_bytes(), width, height, pitch, on)
    }
    fn cuMemsetD2D32Async / cuMemsetD2D32Async_ptsz(dst: u64, pitch: usize, value: u32, width: usize, height: usize, on: usize) {
        fill_async(dst, &value.to_le_bytes(), width, height, pitch, on)
    }

    fn cuMemAllocAsync / cuMemAllocAsync_ptsz(out: *mut u64, bytes: usize, on: usize) {
        let device = context()?.device();
        put(out, alloc_async(bytes, &*pool(device.current_pool.load(Ordering::Relaxed))?, on)?)
    }
    fn cuMemAllocFromPoolAsync / cuMemAllocFromPoolAsync_ptsz(out: *mut u64, bytes: usize, from: usize, on: usize) {
        put(out, alloc_async(bytes, &*pool(from)?, on)?)
    }
    fn cuMemFreeAsync / cuMemFreeAsync_ptsz(address: u64, on: usize) {
        if address == 0 {
            return Ok(());
        }
        if !is_allocation(address)? {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        issue(on, Work::Free { address })
    }
    fn cuMemPoolCreate(out: *mut usize, props: *const PoolProps) {
        let props = get(props)?;
        if props.location.kind != 1 {
            return Err(unsupported("cuMemPoolCreate outside device memory"));
        }
        let at = device(props.location.id)?.ordinal;
        put(out, driver()?.pools.insert(|handle| Pool::new(handle, at)).handle)
    }
    fn cuMemPoolDestroy(handle: usize) {
        let driver = driver()?;
        if driver.devices.iter().any(|d| d.default_pool == handle) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        for device in &driver.devices {
            let swap = (handle, device.default_pool);
            let _ = device.current_pool.compare_exchange(swap.0, swap.1, Ordering::Relaxed, Ordering::Relaxed);
        }
        driver.pools.remove(handle).map(drop)
    }
    fn cuMemPoolTrimTo(handle: usize, _keep: usize) {
        pool(handle).map(drop)
    }
    fn cuMemPoolSetAttribute(handle: usize, attribute: u32, value: *const c_void) {
        let pool = pool(handle)?;
        let value = match attribute {
            1..=3 => u64::from(get(value.cast::<u32>())?),
            4 | 6 | 8 => get(value.cast::<u64>())?,
            _ => return Err(CUDA_ERROR_INVALID_VALUE),
        };
        let mut books = lock(&pool.books);
        match attribute {
            6 | 8 if value == 0 => books.high = books.used,
            6 | 8 => return Err(CUDA_ERROR_INVALID_VALUE),
            _ => drop(books.set.insert(attribute, value)),
        }
        Ok(())
    }
    fn cuMemPoolGetAttribute(handle: usize, attribute: u32, out: *mut c_void) {
        let pool = pool(handle)?;
        let books = lock(&pool.books);
        let set = |default: u64| books.set.get(&attribute).copied().unwrap_or(default);
        match attribute {
            1..=3 => put(out.cast::<u32>(), set(1) as u32),
            4 => put(out.cast::<u64>(), set(0)),
            5 | 7 => put(out.cast::<u64>(), books.used),
            6 | 8 => put(out.cast::<u64>(), books.high),
            _ => Err(CUDA_ERROR_INVALID_VALUE),
        }
    }
    fn cuMemPoolSetAccess(handle: usize, map: *const AccessDesc, len: usize) {
        get_all(map, len)?;
        pool(handle).map(drop)
    }
    fn cuMemPoolGetAccess(out: *mut u32, handle: usize, location: *const MemLocation) {
        let own = pool(handle)?.device as i32 == get(location)?.id;
        put(out, if own { 3 } else { 0 })
    }
    fn cuDeviceGetDefaultMemPool(out: *mut usize, of: i32) {
        put(out, device(of)?.default_pool)
    }
    fn cuDeviceGetMemPool(out: *mut usize, of: i32) {
        put(out, device(of)?.current_pool.load(Ordering::Relaxed))
    }
    fn cuDeviceSetMemPool(of: i32, handle: usize) {
        let (device, pool) = (device(of)?, pool(handle)?);
        if pool.device != device.ordinal {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        device.current_pool.store(handle, Ordering::Relaxed);
        Ok(())
    }

    fn cuPointerGetAttribute(out: *mut c_void, attribute: u32, address: u64) {
        context()?;
        let bytes = pointer_attribute(attribute, address)?.ok_or(CUDA_ERROR_INVALID_VALUE)?;
        put_bytes(out, &bytes)
    }
    /// As documented, an unknown pointer gives zeros and no error.
    fn cuPointerGetAttributes(len: u32, attributes: *const u32, out: *const *mut c_void, address: u64) {
        context()?;
        let (attributes, outs) = (get_all(attributes, len as usize)?, get_all(out, len as usize)?);
        for (attribute, out) in attributes.into_iter().zip(outs) {
            let bytes = match pointer_attribute(attribute, address) {
                Ok(Some(bytes)) => bytes,
                Ok(None) | Err(CUDA_ERROR_INVALID_VALUE) if attribute == 9 => (-2i32).to_ne_bytes().to_vec(),
                Ok(None) | Err(CUDA_ERROR_INVALID_VALUE) => vec![0; attribute_bytes(attribute)],
                Err(code) => return Err(code),
            };
            put_bytes(out, &bytes)?;
        }
        Ok(())
    }
    fn cuPointerSetAttribute(value: *const c_void, attribute: u32, address: u64) {
        if attribute != 6 || value.is_null() {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        memory_of(address).map(drop)
    }
    /// No pages move here, so there is nothing to prefetch or to advise.
    fn cuMemPrefetchAsync / cuMemPrefetchAsync_ptsz(address: u64, _bytes: usize, _device: i32, on: usize) {
        memory_of(address)?;
        issue(on, Work::Empty)
    }
    fn cuMemPrefetchAsync_v2 / cuMemPrefetchAsync_v2_ptsz(address: u64, _bytes: usize, _to: u64, _flags: u32, on: usize) {
        memory_of(address)?;
        issue(on, Work::Empty)
    }
    fn cuMemAdvise(address: u64, _bytes: usize, _advice: u32, _device: i32) {
        memory_of(address).map(drop)
    }
    fn cuMemAdvise_v2(address: u64, _bytes: usize, _advice: u32, _to: u64) {
        memory_of(address).map(drop)
    }
}
