//! The memory of one simulated GPU: allocations with red zones, which bytes were written, who touched them.
//!
//! Device addresses are virtual and the same in every run. An address is never used twice, so freed memory stays
//! poisoned, and at least [`RED_ZONE`] bytes lie between allocations, so running off an end is always seen.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

use memmap2::{MmapMut, MmapOptions};

use crate::{Error, Result};

/// Unmapped bytes after each allocation, at least.
pub const RED_ZONE: u64 = 4096;
/// The first device address: above every host address of a user process, so that the two never meet.
const FIRST: u64 = 1 << 48;
/// Freed allocations whose bounds are remembered for messages.
const FREED_KEPT: usize = 4096;

/// Where an allocation's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocKind {
    /// Memory of the device.
    Device,
    /// The caller's own memory, mapped in place; its device address is its host address.
    Host,
}

/// An allocation, as [`Memory::find`] describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocInfo {
    /// First address.
    pub addr: u64,
    /// Length.
    pub bytes: u64,
    /// Device or host memory.
    pub kind: AllocKind,
}

/// Totals of a [`Memory`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Bytes of device memory there are.
    pub limit: u64,
    /// Bytes allocated now, host memory not included.
    pub used: u64,
    /// The most that was ever allocated.
    pub peak: u64,
    /// Allocations that live now, host memory included.
    pub allocations: usize,
}

/// Zeroed words. A large range is a map of its own, whose pages the system commits when they are touched and for which it
/// reserves nothing: a GPU may have more memory than this machine as long as the program does not use it all.
struct Words {
    at: *mut u64,
    len: usize,
    owner: Owner,
}

enum Owner {
    Heap(#[expect(dead_code, reason = "owns the words")] Box<[u64]>),
    Map(MmapMut),
}

impl Words {
    /// Bytes from which a range is a map.
    const MAPPED: usize = 1 << 18;

    /// `n` zeros, at a multiple of 64 bytes.
    fn new(n: usize) -> Option<Words> {
        let bytes = n.checked_mul(8)?;
        if bytes < Self::MAPPED {
            let mut words = vec![0u64; n + 7].into_boxed_slice();
            let at = words.as_mut_ptr();
            let at = at.wrapping_add(at.align_offset(64));
            return Some(Words { at, len: n, owner: Owner::Heap(words) });
        }
        let mut map = MmapOptions::new().len(bytes).no_reserve_swap().map_anon().ok()?;
        Some(Words { at: map.as_mut_ptr().cast(), len: n, owner: Owner::Map(map) })
    }

    fn atomics(&self) -> &[AtomicU64] {
        // SAFETY: `owner` holds `len` words from `at` and nobody else refers to them.
        unsafe { std::slice::from_raw_parts(self.at.cast(), self.len) }
    }

    /// Makes all words zero and, on Linux, gives a map's pages back.
    fn clear(&self) {
        #[cfg(target_os = "linux")]
        if let Owner::Map(map) = &self.owner {
            // SAFETY: the pages of a private anonymous map read as zeros from now on, which is what is asked for.
            if unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) }.is_ok() {
                return;
            }
        }
        self.atomics().iter().for_each(|w| w.store(0, Relaxed));
    }
}

/// One allocation. Kernels on several threads read and write its bytes through `host`, as threads of a GPU do.
pub(crate) struct Alloc {
    pub addr: u64,
    pub bytes: u64,
    pub host: *mut u8,
    pub writable: bool,
    kind: AllocKind,
    /// One bit a byte, set when it was written; `None` for memory that counts as written.
    init: Option<Words>,
    /// Set once every byte is known to be written, which makes `init` superfluous.
    all_init: AtomicBool,
    /// One word for each 8 bytes, two to an element: see `check::global`.
    shadow: OnceLock<Words>,
    /// Launch epoch in which `shadow` was last cleared.
    pub shadow_epoch: AtomicU32,
    _owned: Option<Words>,
}

// SAFETY: `host` points to memory that lives as long as the allocation (owned, or promised by `register_host`'s
// caller); simultaneous access to it by several threads is the simulated program's, with the same meaning as on a GPU.
unsafe impl Send for Alloc {}
// SAFETY: as above.
unsafe impl Sync for Alloc {}

impl Alloc {
    /// Sets the written bit of `len` bytes from `off`, which lie inside.
    pub fn mark(&self, off: u64, len: u64) {
        let Some(bits) = &self.init else { return };
        let bits = bits.atomics();
        if self.all_init.load(Relaxed) || len == 0 {
            return;
        }
        if off == 0 && len >= self.bytes {
            self.all_init.store(true, Relaxed);
            return;
        }
        let (first, last) = (off / 64, (off + len - 1) / 64);
        for w in first..=last {
            let lo = if w == first { off % 64 } else { 0 };
            let hi = if w == last { (off + len - 1) % 64 } else { 63 };
            let m = (u64::MAX >> (63 - (hi - lo))) << lo;
            let word = &bits[w as usize];
            if word.load(Relaxed) & m != m {
                word.fetch_or(m, Relaxed);
            }
        }
    }

    /// The first byte of `len` from `off` that was never written.
    pub fn unwritten(&self, off: u64, len: u64) -> Option<u64> {
        let bits = self.init.as_ref()?.atomics();
        if self.all_init.load(Relaxed) || len == 0 {
            return None;
        }
        let (first, last) = (off / 64, (off + len - 1) / 64);
        for w in first..=last {
            let lo = if w == first { off % 64 } else { 0 };
            let hi = if w == last { (off + len - 1) % 64 } else { 63 };
            let m = (u64::MAX >> (63 - (hi - lo))) << lo;
            let missing = !bits[w as usize].load(Relaxed) & m;
            if missing != 0 {
                return Some(w * 64 + u64::from(missing.trailing_zeros()));
            }
        }
        None
    }

    /// Whether every byte counts as written.
    pub fn is_written(&self) -> bool {
        self.init.is_none() || self.all_init.load(Relaxed)
    }

    /// The race shadow, made on first use: element `i` covers bytes `16*i .. 16*i + 16`, low word first.
    pub fn shadow(&self) -> &[AtomicU64] {
        let words = self.bytes.div_ceil(16) as usize;
        let make = || Words::new(words).expect("an address space has room for half of what it has room for");
        self.shadow.get_or_init(make).atomics()
    }

    /// Forgets who touched what.
    pub fn clear_shadow(&self) {
        if let Some(shadow) = self.shadow.get() {
            shadow.clear();
        }
    }

    pub fn end(&self) -> u64 {
        self.addr + self.bytes
    }

    fn info(&self) -> AllocInfo {
        AllocInfo { addr: self.addr, bytes: self.bytes, kind: self.kind }
    }
}

struct Table {
    live: BTreeMap<u64, Arc<Alloc>>,
    freed: BTreeMap<u64, u64>,
    next: u64,
    used: u64,
    peak: u64,
}

/// Device memory of one simulated GPU, and the host memory mapped into it. Shared freely between threads.
pub struct Memory {
    table: RwLock<Table>,
    limit: u64,
    /// Launches so far; its low bits tag the race shadow.
    pub(crate) epoch: AtomicU32,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({:?})", self.stats())
    }
}

impl Memory {
    /// An empty memory of `limit` bytes.
    pub fn new(limit: u64) -> Memory {
        Memory::with_base(limit, 0)
    }

    /// An empty memory of `limit` bytes whose addresses start at a place of its own for each `device` below 64, so that
    /// addresses of several devices never meet.
    pub fn with_base(limit: u64, device: u32) -> Memory {
        let next = FIRST + (u64::from(device % 64) << 42);
        let table = Table { live: BTreeMap::new(), freed: BTreeMap::new(), next, used: 0, peak: 0 };
        Memory { table: RwLock::new(table), limit, epoch: AtomicU32::new(0) }
    }

    fn read_table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(|e| e.into_inner())
    }
    fn write_table(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(|e| e.into_inner())
    }

    /// Allocates `bytes` (not 0) at a multiple of `align` (a power of two; at least 256 is used). The contents count as
    /// never written.
    ///
    /// # Errors
    /// [`Error::Memory`] if the limit is passed or the request is malformed.
    pub fn alloc(&self, bytes: u64, align: u64) -> Result<u64> {
        if bytes == 0 || !align.is_power_of_two() || align > 1 << 30 {
            return Err(Error::Memory(format!("cannot allocate {bytes} bytes aligned to {align}")));
        }
        let mut t = self.write_table();
        if bytes > self.limit.saturating_sub(t.used) {
            return Err(Error::Memory(format!(
                "out of memory: {bytes} bytes asked for, {} of {} in use",
                t.used, self.limit
            )));
        }
        let (Some(owned), Some(init)) =
            (Words::new(bytes.div_ceil(8) as usize), Words::new(bytes.div_ceil(64) as usize))
        else {
            return Err(Error::Memory(format!("out of memory: this machine has no room for {bytes} bytes")));
        };
        let addr = t.next.next_multiple_of(align.max(256));
        t.next = (addr + bytes + RED_ZONE).next_multiple_of(256);
        t.used += bytes;
        t.peak = t.peak.max(t.used);
        let alloc = Alloc {
            addr,
            bytes,
            host: owned.at.cast(),
            writable: true,
            kind: AllocKind::Device,
            init: Some(init),
            all_init: AtomicBool::new(false),
            shadow: OnceLock::new(),
            shadow_epoch: AtomicU32::new(0),
            _owned: Some(owned),
        };
        t.live.insert(addr, Arc::new(alloc));
        Ok(addr)
    }

    /// Maps the caller's memory in place: no copy, and its device address is its host address. It counts as written.
    ///
    /// # Safety
    /// `ptr..ptr+bytes` must stay valid, and writable if `writable`, until [`Memory::free`] of that address; while a
    /// launch runs nobody else may touch it.
    ///
    /// # Errors
    /// [`Error::Memory`] if it overlaps an allocation.
    pub unsafe fn map_host(&self, ptr: *mut u8, bytes: u64, writable: bool) -> Result<u64> {
        let addr = ptr as u64;
        let mut t = self.write_table();
        let end = addr
            .checked_add(bytes)
            .filter(|_| bytes > 0 && addr > 0)
            .ok_or_else(|| Error::Memory("cannot map an empty range".into()))?;
        let before = t.live.range(..end).next_back();
        if before.is_some_and(|(_, a)| a.end() > addr) {
            return Err(Error::Memory(format!("host range {addr:#x}+{bytes} overlaps one that is mapped")));
        }
        t.freed.remove(&addr);
        let alloc = Alloc {
            addr,
            bytes,
            host: ptr,
            writable,
            kind: AllocKind::Host,
            init: None,
            all_init: AtomicBool::new(true),
            shadow: OnceLock::new(),
            shadow_epoch: AtomicU32::new(0),
            _owned: None,
        };
        t.live.insert(addr, Arc::new(alloc));
        Ok(addr)
    }

    /// Frees the allocation that starts at `addr`, or unmaps that host range. A launch still running keeps its bytes alive.
    ///
    /// # Errors
    /// [`Error::Memory`] if none starts there.
    pub fn free(&self, addr: u64) -> Result<()> {
        let mut t = self.write_table();
        let Some(a) = t.live.remove(&addr) else {
            let what = if t.freed.contains_key(&addr) {
                "was freed before"
            } else {
                "is not the start of an allocation"
            };
            return Err(Error::Memory(format!("cannot free {addr:#x}: it {what}")));
        };
        if a.kind == AllocKind::Device {
            t.used -= a.bytes;
        }
        t.freed.insert(addr, a.bytes);
        if t.freed.len() > FREED_KEPT {
            t.freed.pop_first();
        }
        Ok(())
    }

    /// The allocation that `addr` lies in.
    pub fn find(&self, addr: u64) -> Option<AllocInfo> {
        self.containing(addr, 1).map(|a| a.info())
    }

    fn containing(&self, addr: u64, bytes: u64) -> Option<Arc<Alloc>> {
        let t = self.read_table();
        let (_, a) = t.live.range(..=addr).next_back()?;
        (addr.checked_add(bytes)? <= a.end()).then(|| a.clone())
    }

    fn range(&self, addr: u64, bytes: u64) -> Result<Arc<Alloc>> {
        self.containing(addr, bytes.max(1)).ok_or_else(|| Error::Memory(self.describe(addr, bytes)))
    }

    /// Why `bytes` at `addr` are not inside an allocation, in words.
    pub(crate) fn describe(&self, addr: u64, bytes: u64) -> String {
        let t = self.read_table();
        let at = format!("{bytes} bytes at {addr:#x}");
        if let Some((_, a)) = t.live.range(..=addr).next_back() {
            if addr < a.end() {
                return format!(
                    "{at} run {} past the end of the {}-byte allocation at {:#x}",
                    addr + bytes - a.end(),
                    a.bytes,
                    a.addr
                );
            }
            if addr - a.end() < RED_ZONE {
                return format!(
                    "{at} start {} past the end of the {}-byte allocation at {:#x}",
                    addr - a.end(),
                    a.bytes,
                    a.addr
                );
            }
        }
        if let Some((start, len)) = t.freed.range(..=addr).next_back()
            && addr < start + len
        {
            return format!("{at} are in the {len}-byte allocation at {start:#x}, which was freed");
        }
        if let Some((start, a)) = t.live.range((Bound::Excluded(addr), Bound::Unbounded)).next()
            && start - addr < RED_ZONE
        {
            return format!(
                "{at} start {} before the {}-byte allocation at {start:#x}",
                start - addr,
                a.bytes
            );
        }
        format!("{at} are in no allocation")
    }

    /// Copies from `addr` to `out`.
    ///
    /// # Errors
    /// [`Error::Memory`] if the range is not inside one allocation.
    pub fn read(&self, addr: u64, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let a = self.range(addr, out.len() as u64)?;
        // SAFETY: `range` found the bytes inside the allocation, which the Arc keeps alive; `out` cannot overlap it
        // other than by the caller's breach of `map_host`.
        unsafe {
            std::ptr::copy_nonoverlapping(a.host.add((addr - a.addr) as usize), out.as_mut_ptr(), out.len())
        };
        Ok(())
    }

    /// Copies `bytes` to `addr`.
    ///
    /// # Errors
    /// [`Error::Memory`] if the range is not inside one allocation, or that is mapped read-only.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let a = self.writable(addr, bytes.len() as u64)?;
        // SAFETY: `writable` found the bytes inside a writable allocation, which the Arc keeps alive.
        unsafe { std::ptr::copy(bytes.as_ptr(), a.host.add((addr - a.addr) as usize), bytes.len()) };
        a.mark(addr - a.addr, bytes.len() as u64);
        Ok(())
    }

    fn writable(&self, addr: u64, bytes: u64) -> Result<Arc<Alloc>> {
        let a = self.range(addr, bytes)?;
        if !a.writable {
            return Err(Error::Memory(format!(
                "{bytes} bytes at {addr:#x} are in host memory mapped read-only"
            )));
        }
        Ok(a)
    }

    /// Copies `bytes` from `src` to `dst`; the ranges may overlap. Bytes never written stay so.
    ///
    /// # Errors
    /// [`Error::Memory`] if a range is not inside one allocation, or `dst` is mapped read-only.
    pub fn copy(&self, dst: u64, src: u64, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let (d, s) = (self.writable(dst, bytes)?, self.range(src, bytes)?);
        let (doff, soff) = (dst - d.addr, src - s.addr);
        // SAFETY: both ranges were found inside live allocations; `copy` allows overlap.
        unsafe { std::ptr::copy(s.host.add(soff as usize), d.host.add(doff as usize), bytes as usize) };
        let mut at = 0;
        while at < bytes {
            // Runs of written bytes are marked; unwritten ones keep the state of the destination.
            let run = s.unwritten(soff + at, bytes - at).map_or(bytes - at, |o| o - soff - at);
            d.mark(doff + at, run);
            at += run + 1;
        }
        Ok(())
    }

    /// Fills `count` elements from `addr` with `pattern` (1, 2 or 4 bytes).
    ///
    /// # Errors
    /// [`Error::Memory`] as [`Memory::write`].
    pub fn fill(&self, addr: u64, pattern: &[u8], count: u64) -> Result<()> {
        let bytes = count
            .checked_mul(pattern.len() as u64)
            .ok_or_else(|| Error::Memory("fill of more than 2^64 bytes".into()))?;
        if bytes == 0 {
            return Ok(());
        }
        let a = self.writable(addr, bytes)?;
        // SAFETY: the range lies inside a writable live allocation; no other reference to these bytes is made here.
        let out =
            unsafe { std::slice::from_raw_parts_mut(a.host.add((addr - a.addr) as usize), bytes as usize) };
        if let [b] = pattern {
            out.fill(*b);
        } else {
            out.chunks_exact_mut(pattern.len()).for_each(|c| c.copy_from_slice(pattern));
        }
        a.mark(addr - a.addr, bytes);
        Ok(())
    }

    /// Host pointer to `bytes` at `addr`, for callers that move data themselves.
    ///
    /// # Errors
    /// [`Error::Memory`] if the range is not inside one allocation.
    pub fn host_ptr(&self, addr: u64, bytes: u64) -> Result<*mut u8> {
        let a = self.range(addr, bytes)?;
        Ok(a.host.wrapping_add((addr - a.addr) as usize))
    }

    /// Counts `bytes` at `addr` as written, for callers that wrote through [`Memory::host_ptr`].
    ///
    /// # Errors
    /// [`Error::Memory`] if the range is not inside one allocation.
    pub fn mark_written(&self, addr: u64, bytes: u64) -> Result<()> {
        let a = self.range(addr, bytes)?;
        a.mark(addr - a.addr, bytes);
        Ok(())
    }

    /// Totals.
    pub fn stats(&self) -> MemoryStats {
        let t = self.read_table();
        MemoryStats { limit: self.limit, used: t.used, peak: t.peak, allocations: t.live.len() }
    }

    /// Every allocation that lives now, by address.
    pub fn live(&self) -> Vec<AllocInfo> {
        self.read_table().live.values().map(|a| a.info()).collect()
    }

    /// The allocations as a launch sees them, by address.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Alloc>> {
        self.read_table().live.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip_and_ends_are_guarded() {
        let m = Memory::new(1 << 20);
        let a = m.alloc(100, 1).unwrap();
        let b = m.alloc(100, 1024).unwrap();
        assert!(b.is_multiple_of(1024) && b - (a + 100) >= RED_ZONE);
        m.write(a + 90, &[7; 10]).unwrap();
        let mut out = [0; 10];
        m.read(a + 90, &mut out).unwrap();
        assert_eq!(out, [7; 10]);
        assert!(m.write(a + 91, &[7; 10]).unwrap_err().to_string().contains("run 1 past the end"));
        m.free(a).unwrap();
        assert!(m.read(a, &mut out).unwrap_err().to_string().contains("freed"));
        assert!(m.free(a).is_err());
        assert!(m.alloc(1 << 20, 1).is_err());
        assert_eq!(m.stats().used, 100);
    }

    #[test]
    fn written_bytes_are_tracked_one_by_one() {
        let m = Memory::new(1 << 20);
        let p = m.alloc(300, 1).unwrap();
        let a = m.containing(p, 300).unwrap();
        assert_eq!(a.unwritten(0, 300), Some(0));
        m.fill(p + 3, &[1, 2], 100).unwrap();
        assert_eq!((a.unwritten(3, 200), a.unwritten(2, 5), a.unwritten(3, 201)), (None, Some(2), Some(203)));
        let q = m.alloc(300, 1).unwrap();
        m.copy(q, p, 300).unwrap();
        let b = m.containing(q, 300).unwrap();
        assert_eq!(
            (b.unwritten(0, 300), b.unwritten(3, 200), b.unwritten(200, 100)),
            (Some(0), None, Some(203))
        );
    }
}
