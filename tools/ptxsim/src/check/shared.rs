//! Which warp touched each shared byte last, and what orders it before the next access.
//!
//! Each granule of 4 bytes has a word for its last write and one for the reads since. Time is the block's own counter of
//! synchronisations: an access carries the stamp of its warp's current segment, and warp `w` knows, for each warp `v`, up to
//! which stamp the accesses of `v` happened before its own (a vector clock). A full barrier brings every warp to the
//! present, so the usual check is one comparison with the warp's `floor`.
//!
//! Where warps touch different bytes of one granule, the records that do not fit into its words lie in a side table, until a
//! full barrier makes them superfluous.

use std::collections::HashMap;

use super::{ASYNC, Other, SHARED_RACE, UNINIT};
use crate::exec::Cx;
use crate::report::ReportKind;

/// Up to which stamp each warp's accesses are ordered before.
pub(crate) type Clock = [u32; 32];

/// Bits of a write word: stamp 17, async proxy 1, atomic 1, warp 5, bytes of the write 4, bytes ever written 4.
const STAMP_SHIFT: u32 = 15;
const BY_ASYNC: u32 = 1 << 14;
const ATOMIC: u32 = 1 << 13;
/// Of a read word: all its readers' accesses were strong.
const STRONG_READ: u64 = 1 << 4;
/// The stamp of bytes in flight.
const FLIGHT: u32 = (1 << 17) - 1;
/// Stamps after which everything counts as ordered once, to start over.
const LAST_STAMP: u32 = FLIGHT - 40;

/// How a warp touches shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    Read,
    Write,
    Atomic,
    /// Volatile, relaxed, acquire and release accesses: no race with each other, nor with atomics.
    StrongRead,
    StrongWrite,
    /// Bytes of an asynchronous copy, from issue until the wait.
    Issue,
    /// The same bytes when the wait is over.
    Land,
    /// A read by the async proxy (bulk stores, wgmma).
    AsyncRead,
}

/// An access to some bytes of a granule whose words hold another one.
#[derive(Clone, Copy, Debug)]
struct Aside {
    /// Its warps: one that wrote, or all that read.
    warps: u32,
    stamp: u32,
    bytes: u32,
    wrote: bool,
    atomic: bool,
    pc: u32,
}

#[derive(Default)]
pub(crate) struct SharedShadow {
    pub on: bool,
    writes: Vec<u32>,
    /// By granule, what its words do not hold.
    aside: HashMap<u32, Vec<Aside>>,
    /// Warps that read 32, stamp of the first since the last write 24, 4 bits of which [`STRONG_READ`] is used, bytes 4.
    reads: Vec<u64>,
    write_pc: Vec<u32>,
    read_pc: Vec<u32>,
    clocks: Vec<Clock>,
    floor: Vec<u32>,
    segment: Vec<u32>,
    /// Stamp of each warp's last `fence.proxy.async`.
    fenced: Vec<u32>,
    now: u32,
    nwarps: usize,
}

impl Touch {
    fn reads_only(self) -> bool {
        matches!(self, Touch::Read | Touch::StrongRead)
    }
    fn strong(self) -> bool {
        matches!(self, Touch::Atomic | Touch::StrongRead | Touch::StrongWrite)
    }
}

impl SharedShadow {
    pub fn reset(&mut self, bytes: u32, nwarps: usize) {
        self.on = bytes > 0;
        self.nwarps = nwarps;
        let n = bytes.div_ceil(4) as usize;
        self.writes.clear();
        self.writes.resize(n, 0);
        self.reads.clear();
        self.reads.resize(n, 0);
        self.write_pc.resize(n, 0);
        self.read_pc.resize(n, 0);
        self.clocks.clear();
        self.clocks.resize(nwarps, [0; 32]);
        self.floor.clear();
        self.floor.resize(nwarps, 0);
        self.segment.clear();
        self.segment.resize(nwarps, 1);
        self.fenced.clear();
        self.fenced.resize(nwarps, 0);
        self.aside.clear();
        self.now = 1;
    }

    fn tick(&mut self) -> u32 {
        self.now += 1;
        if self.now >= LAST_STAMP {
            // Everything so far counts as ordered; bytes in flight stay so.
            for w in &mut self.writes {
                if *w >> STAMP_SHIFT != FLIGHT {
                    *w &= 0xf;
                }
            }
            self.reads.fill(0);
            self.aside.clear();
            self.clocks.fill([0; 32]);
            self.floor.fill(0);
            self.segment.fill(1);
            self.fenced.fill(1);
            self.now = 2;
        }
        self.now
    }

    fn refloor(&mut self, w: usize) {
        let c = &self.clocks[w];
        self.floor[w] = (0..self.nwarps).filter(|&v| v != w).map(|v| c[v]).min().unwrap_or(self.now);
    }

    /// Everybody, ended warps included, has met at a barrier.
    pub fn full_barrier(&mut self) {
        if !self.on {
            return;
        }
        let t = self.tick();
        self.aside.clear();
        for w in 0..self.nwarps {
            self.clocks[w] = [t - 1; 32];
            self.floor[w] = t - 1;
            self.segment[w] = t;
        }
    }

    /// The warps of `members` have met; those of `waiting` go on knowing what all of them did.
    pub fn partial_barrier(&mut self, members: u32, waiting: u32, released: &Clock) {
        if !self.on {
            return;
        }
        let t = self.tick();
        let mut joined = *released;
        for v in 0..self.nwarps {
            if waiting >> v & 1 != 0 {
                for k in 0..32 {
                    joined[k] = joined[k].max(self.clocks[v][k]);
                }
                joined[v] = t - 1;
            }
        }
        let _ = members;
        for w in 0..self.nwarps {
            if waiting >> w & 1 != 0 {
                self.clocks[w] = joined;
                self.segment[w] = t;
                self.refloor(w);
            }
        }
    }

    /// What warp `w` knows and did so far, for others to acquire; its later accesses are not part of it.
    pub fn release(&mut self, w: usize, into: &mut Clock) {
        if !self.on {
            return;
        }
        for k in 0..32 {
            into[k] = into[k].max(self.clocks[w][k]);
        }
        into[w] = into[w].max(self.segment[w]);
        let t = self.tick();
        self.segment[w] = t;
    }

    /// Warp `w` learns what was released.
    pub fn acquire(&mut self, w: usize, from: &Clock) {
        if !self.on {
            return;
        }
        for k in 0..32 {
            self.clocks[w][k] = self.clocks[w][k].max(from[k]);
        }
        // A copy that this warp started has landed: what it does from now on comes after.
        if from[w] >= self.segment[w] {
            self.segment[w] = self.tick();
        }
        self.refloor(w);
    }

    /// `fence.proxy.async` by warp `w`.
    pub fn proxy_fence(&mut self, w: usize) {
        if self.on {
            self.fenced[w] = self.now;
            self.segment[w] = self.tick();
        }
    }

    /// A range is in flight to shared memory from now on; answers the first thing wrong.
    pub fn issue(&mut self, w: usize, at: u32, bytes: u32, pc: u32) -> Option<Bad> {
        if self.on { self.touch(w, at, bytes, Touch::Issue, pc) } else { None }
    }

    /// A range that warp `w` had copied has landed; what `into` releases includes it.
    pub fn land(&mut self, w: usize, at: u32, bytes: u32, into: &mut Clock) {
        if !self.on {
            return;
        }
        let t = self.tick();
        let word = t << STAMP_SHIFT | BY_ASYNC | (w as u32) << 8 | 0xff;
        let (first, last) = (at as usize / 4, (at + bytes).div_ceil(4) as usize);
        if let Some(words) = self.writes.get_mut(first..last) {
            words.fill(word);
        }
        into[w] = into[w].max(t);
    }

    /// A read by the async proxy on behalf of warp `w`: also wants a proxy fence after ordinary writes.
    pub fn async_read(&mut self, w: usize, at: u32, bytes: u32, pc: u32) -> Option<Bad> {
        if !self.on || bytes == 0 {
            return None;
        }
        if let Some(bad) = self.touch(w, at, bytes, Touch::Read, pc) {
            return Some(bad);
        }
        for g in at as usize / 4..(at + bytes).div_ceil(4) as usize {
            let word = self.writes[g];
            let (stamp, owner) = (word >> STAMP_SHIFT, (word >> 8 & 31) as usize);
            if word & BY_ASYNC == 0 && stamp > self.fenced[owner].max(self.fenced[w]) {
                return Some(Bad::Unfenced { at: 4 * g as u32, owner, pc: self.write_pc[g] });
            }
        }
        None
    }

    /// Marks bytes as written without an owner (copies by other blocks, initialised variables).
    pub fn mark(&mut self, at: u32, bytes: u32) {
        if !self.on {
            return;
        }
        for b in at..at + bytes {
            if let Some(w) = self.writes.get_mut(b as usize / 4) {
                *w = (*w | 1 << (b % 4)) & 0xf;
            }
        }
    }

    /// Touches `bytes` at `at` by warp `w`; answers the first thing wrong.
    #[inline(always)]
    fn touch(&mut self, w: usize, at: u32, bytes: u32, touch: Touch, pc: u32) -> Option<Bad> {
        let (first, last) = (at / 4, (at + bytes - 1) / 4);
        let (floor, segment) = (self.floor[w], self.segment[w]);
        let me = (w as u32) << 8;
        if at.is_multiple_of(4) && bytes.is_multiple_of(4) && self.aside.is_empty() {
            let (a, b) = (first as usize, last as usize + 1);
            let bad = match touch {
                Touch::Read => {
                    read_range(&self.writes[a..b], &mut self.reads[a..b], w as u32, floor, segment)
                }
                Touch::Write => {
                    let new = segment << STAMP_SHIFT | me | 0xff;
                    write_range(&mut self.writes[a..b], &mut self.reads[a..b], w as u32, floor, new)
                }
                Touch::Issue => {
                    // Bytes in flight count as written, so that a read is reported for the flight alone.
                    let new = FLIGHT << STAMP_SHIFT | me | 0xff;
                    write_range(&mut self.writes[a..b], &mut self.reads[a..b], w as u32, floor, new)
                }
                Touch::Land => {
                    self.writes[a..b].fill(segment << STAMP_SHIFT | me | 0xff);
                    false
                }
                Touch::Atomic | Touch::StrongRead | Touch::StrongWrite | Touch::AsyncRead => true,
            };
            if !bad {
                let pcs = if touch == Touch::Read { &mut self.read_pc } else { &mut self.write_pc };
                if touch != Touch::Land {
                    pcs[a..b].fill(pc);
                }
                return None;
            }
        }
        let mut found = None;
        for g in first..=last {
            let lo = if g == first { at % 4 } else { 0 };
            let hi = if g == last { (at + bytes - 1) % 4 } else { 3 };
            let mask = (0xf >> (3 - (hi - lo))) << lo & 0xf;
            let bad = self.granule(w, g as usize, mask, touch, pc);
            if found.is_none() {
                found = bad;
            }
        }
        found
    }

    /// Touches 16 bytes a lane; answers the lanes that need a closer look, for which nothing was done.
    #[inline(always)]
    fn quads(&mut self, w: usize, at: &[u32; 32], mask: u32, touch: Touch, pc: u32) -> u32 {
        let (floor, segment, w) = (self.floor[w], self.segment[w], w as u32);
        let mut top = 0;
        for l in 0..32 {
            top = top.max(if mask >> l & 1 != 0 { at[l] } else { 0 });
        }
        if top as usize / 4 + 4 > self.writes.len() || !self.aside.is_empty() {
            return mask;
        }
        let mut odd = 0;
        for l in 0..32 {
            if mask >> l & 1 == 0 {
                continue;
            }
            let g = at[l] as usize / 4;
            // SAFETY: `top` is the largest of these addresses, and all four lists have as many elements as `writes`.
            let (writes, reads, write_pc, read_pc) = unsafe {
                (
                    &mut *self.writes.as_mut_ptr().add(g).cast::<[u32; 4]>(),
                    &mut *self.reads.as_mut_ptr().add(g).cast::<[u64; 4]>(),
                    &mut *self.write_pc.as_mut_ptr().add(g).cast::<[u32; 4]>(),
                    &mut *self.read_pc.as_mut_ptr().add(g).cast::<[u32; 4]>(),
                )
            };
            let (pcs, bad) = match touch {
                Touch::Read => (read_pc, read_quad(writes, reads, w, floor, segment)),
                Touch::Write => {
                    (write_pc, write_quad(writes, reads, w, floor, segment << STAMP_SHIFT | w << 8 | 0xff))
                }
                Touch::Issue => {
                    (write_pc, write_quad(writes, reads, w, floor, FLIGHT << STAMP_SHIFT | w << 8 | 0xff))
                }
                Touch::Land => {
                    *writes = [segment << STAMP_SHIFT | w << 8 | 0xff; 4];
                    continue;
                }
                Touch::Atomic | Touch::StrongRead | Touch::StrongWrite | Touch::AsyncRead => (write_pc, true),
            };
            if bad {
                odd |= 1 << l;
            } else {
                *pcs = [pc; 4];
            }
        }
        odd
    }

    /// One granule, byte by byte.
    #[inline(never)]
    fn granule(&mut self, w: usize, g: usize, mask: u32, touch: Touch, pc: u32) -> Option<Bad> {
        let word = self.writes[g];
        let (stamp, owner, bytes, init) =
            (word >> STAMP_SHIFT, (word >> 8 & 31) as usize, word >> 4 & 0xf, word & 0xf);
        let at = 4 * g as u32 + mask.trailing_zeros();
        let mut bad = None;
        let ordered = |stamp: u32, v: usize, clock: &Clock| v == w || stamp <= clock[v];
        let me = (w as u32) << 8;
        if touch == Touch::Land {
            self.writes[g] = self.segment[w] << STAMP_SHIFT | me | mask << 4 | init | mask;
            return None;
        }
        let overlap = bytes & mask != 0;
        if overlap && stamp == FLIGHT {
            bad = Some(Bad::Flight { at, owner, pc: self.write_pc[g] });
        } else if overlap
            && stamp != 0
            && !ordered(stamp, owner, &self.clocks[w])
            && !(touch.strong() && word & ATOMIC != 0)
        {
            bad = Some(Bad::Race { at, owner, pc: self.write_pc[g], wrote: true });
        }
        if touch.reads_only() || touch == Touch::Atomic {
            let missing = mask & !init;
            if missing != 0 && bad.is_none() {
                bad = Some(Bad::Unwritten { at: 4 * g as u32 + missing.trailing_zeros() });
            }
        }
        if !self.aside.is_empty()
            && let Some(list) = self.aside.get_mut(&(g as u32))
        {
            for a in list.iter_mut() {
                let both_strong = a.atomic && touch.strong();
                let conflict = a.bytes & mask != 0 && (a.wrote || !touch.reads_only()) && !both_strong;
                let other = (0..self.nwarps)
                    .find(|&v| a.warps >> v & 1 != 0 && !ordered(a.stamp, v, &self.clocks[w]));
                if let (true, None, Some(owner)) = (conflict, &bad, other) {
                    bad = Some(Bad::Race { at, owner, pc: a.pc, wrote: a.wrote });
                }
                if !touch.reads_only() {
                    a.bytes &= !mask;
                }
            }
            list.retain(|a| a.bytes != 0);
            if list.is_empty() {
                self.aside.remove(&(g as u32));
            }
        }
        let r = self.reads[g];
        let (readers, rstamp, rbytes) = ((r >> 32) as u32, (r >> 8) as u32 & 0xff_ffff, r as u32 & 0xf);
        let read = Aside {
            warps: readers,
            stamp: rstamp,
            bytes: rbytes,
            wrote: false,
            atomic: r & STRONG_READ != 0,
            pc: self.read_pc[g],
        };
        if touch.reads_only() {
            let strong = if touch == Touch::StrongRead { STRONG_READ } else { 0 };
            let alike = r & STRONG_READ == strong;
            let live =
                (0..self.nwarps).any(|v| readers >> v & 1 != 0 && !ordered(rstamp, v, &self.clocks[w]));
            self.reads[g] = if live && rbytes == mask && alike {
                r | 1 << (32 + w)
            } else if readers == 1 << w && rstamp == self.segment[w] && alike {
                r | u64::from(mask)
            } else {
                // Readers of bytes that this one leaves out are still to be heard of.
                self.set_aside(g, Aside { bytes: if live { rbytes } else { rbytes & !mask }, ..read });
                1 << (32 + w) | u64::from(self.segment[w]) << 8 | strong | u64::from(mask)
            };
            self.read_pc[g] = pc;
            return bad;
        }
        if bad.is_none() && rbytes & mask != 0 && !(touch.strong() && read.atomic) {
            let reader =
                (0..self.nwarps).find(|&v| readers >> v & 1 != 0 && !ordered(rstamp, v, &self.clocks[w]));
            if let Some(v) = reader {
                bad = Some(Bad::Race { at, owner: v, pc: self.read_pc[g], wrote: false });
            }
        }
        let stamp = if touch == Touch::Issue { FLIGHT } else { self.segment[w] };
        let atomic = if touch.strong() { ATOMIC } else { 0 };
        // A write of other bytes of the same warp's segment is part of one record.
        let keep = if stamp == word >> STAMP_SHIFT && owner == w { bytes } else { 0 };
        let written = |word: u32, bytes: u32, pc: u32| Aside {
            warps: 1 << (word >> 8 & 31),
            stamp: word >> STAMP_SHIFT,
            bytes,
            wrote: true,
            atomic: word & ATOMIC != 0,
            pc,
        };
        self.set_aside(g, Aside { bytes: rbytes & !mask, ..read });
        if stamp != FLIGHT && word >> STAMP_SHIFT == FLIGHT && !overlap {
            // The bytes in flight are the ones to remember.
            self.writes[g] = word | mask;
            self.set_aside(g, written(stamp << STAMP_SHIFT | atomic | me, mask, pc));
        } else {
            if word >> STAMP_SHIFT != FLIGHT {
                self.set_aside(g, written(word, bytes & !mask & !keep, self.write_pc[g]));
            }
            self.writes[g] = stamp << STAMP_SHIFT | atomic | me | (mask | keep) << 4 | init | mask;
            self.write_pc[g] = pc;
        }
        self.reads[g] = 0;
        bad
    }
}

impl SharedShadow {
    /// Keeps an access whose place another one takes, unless a full barrier came since, or there was none.
    fn set_aside(&mut self, g: usize, a: Aside) {
        // What all warps know to be past cannot race with anything.
        if a.bytes == 0
            || a.warps == 0
            || a.stamp <= self.floor[..self.nwarps].iter().copied().min().unwrap_or(0)
        {
            return;
        }
        let list = self.aside.entry(g as u32).or_default();
        let alike = |b: &&mut Aside| {
            (b.bytes, b.wrote, b.stamp, b.atomic) == (a.bytes, a.wrote, a.stamp, a.atomic) && !b.wrote
        };
        match list.iter_mut().find(alike) {
            Some(b) => b.warps |= a.warps,
            None => list.push(a),
        }
    }
}

/// [`read_range`] of four granules that are alike; others are looked at one by one.
#[inline(always)]
fn read_quad(writes: &[u32; 4], reads: &mut [u64; 4], w: u32, floor: u32, segment: u32) -> bool {
    let (x, r) = (writes[0], reads[0]);
    if *writes != [x; 4] || *reads != [r; 4] {
        return read_range(writes, reads, w, floor, segment);
    }
    let limit = ((floor + 1) << STAMP_SHIFT).wrapping_sub(1);
    let own = (x >> 8 & 31 == w) & (x >> STAMP_SHIFT != FLIGHT);
    if (x & 0xf != 0xf) | !((x <= limit) | own) {
        return true;
    }
    let mine = 1 << (32 + w) | u64::from(segment) << 8 | 0xf;
    if r != mine {
        let stale = (r >> 8) & 0xff_ffff <= u64::from(floor);
        if !stale && r & 0xff != 0xf {
            return true;
        }
        *reads = [if stale { mine } else { r | 1 << (32 + w) | 0xf }; 4];
    }
    false
}

/// [`write_range`] of four granules that are alike; others are looked at one by one.
#[inline(always)]
fn write_quad(writes: &mut [u32; 4], reads: &mut [u64; 4], w: u32, floor: u32, new: u32) -> bool {
    let (x, r) = (writes[0], reads[0]);
    if *writes != [x; 4] || *reads != [r; 4] {
        return write_range(writes, reads, w, floor, new);
    }
    let limit = ((floor + 1) << STAMP_SHIFT).wrapping_sub(1);
    let own = (x >> 8 & 31 == w) & (x >> STAMP_SHIFT != FLIGHT);
    let stale = (r >> 8) & 0xff_ffff <= u64::from(floor);
    if !((x <= limit) | own) | !(stale | (r >> 32 == 1 << w)) {
        return true;
    }
    *writes = [new; 4];
    *reads = [0; 4];
    false
}

/// Reads of whole granules; true if any needs a closer look (nothing is changed for it then).
#[inline(always)]
fn read_range(writes: &[u32], reads: &mut [u64], w: u32, floor: u32, segment: u32) -> bool {
    let limit = ((floor + 1) << STAMP_SHIFT).wrapping_sub(1);
    let mut odd = false;
    for &x in writes.iter() {
        let own = x >> 8 & 31 == w && x >> STAMP_SHIFT != FLIGHT;
        odd |= x & 0xf != 0xf || !(x <= limit || own);
    }
    for &r in reads.iter() {
        odd |= r & 0xff != 0xf && (r >> 8) as u32 & 0xff_ffff > floor;
    }
    if odd {
        return true;
    }
    let mine = 1 << (32 + w) | u64::from(segment) << 8 | 0xf;
    for r in reads.iter_mut() {
        let stale = (*r >> 8) as u32 & 0xff_ffff <= floor;
        *r = if stale { mine } else { *r | 1 << (32 + w) | 0xf };
    }
    false
}

/// Writes of whole granules; true if any needs a closer look (nothing is changed then).
#[inline(always)]
fn write_range(writes: &mut [u32], reads: &mut [u64], w: u32, floor: u32, new: u32) -> bool {
    let limit = ((floor + 1) << STAMP_SHIFT).wrapping_sub(1);
    let me = 1u64 << w;
    let mut odd = false;
    for (&x, &r) in writes.iter().zip(reads.iter()) {
        let own = x >> 8 & 31 == w && x >> STAMP_SHIFT != FLIGHT;
        let stale = (r >> 8) as u32 & 0xff_ffff <= floor;
        odd |= !(x <= limit || own) || !(stale || r >> 32 == me);
    }
    if odd {
        return true;
    }
    writes.fill(new);
    reads.fill(0);
    false
}

pub(crate) enum Bad {
    Unwritten { at: u32 },
    Race { at: u32, owner: usize, pc: u32, wrote: bool },
    Flight { at: u32, owner: usize, pc: u32 },
    Unfenced { at: u32, owner: usize, pc: u32 },
}

/// Notes the access of the lanes of `mask`, `bytes` each, to the shared memory of block `rank` of the cluster.
///
/// `at` are offsets inside it; a whole-warp access to neighbouring bytes is one range.
#[inline(always)]
pub(crate) fn access(cx: &mut Cx, rank: u16, at: &[u32; 32], mask: u32, bytes: u32, touch: Touch) {
    access_at(cx, cx.here(), rank, at, mask, bytes, touch);
}

/// As [`access`], for an instruction that ran earlier.
#[inline(always)]
pub(crate) fn access_at(
    cx: &mut Cx,
    pc: u32,
    rank: u16,
    at: &[u32; 32],
    mask: u32,
    bytes: u32,
    touch: Touch,
) {
    if rank != cx.block().rank {
        // Clocks know the warps of one block: accesses from others only leave their mark.
        if !touch.reads_only() {
            for l in 0..32 {
                if mask >> l & 1 != 0 {
                    cx.peer(rank).shadow.mark(at[l], bytes);
                }
            }
        }
        return;
    }
    let w = cx.warp().index as usize;
    let shadow = &mut cx.block().shadow;
    if mask == u32::MAX {
        let mut contiguous = true;
        for l in 0..32 {
            contiguous &= at[l] == at[0].wrapping_add(l as u32 * bytes);
        }
        if contiguous {
            if let Some(bad) = shadow.touch(w, at[0], 32 * bytes, touch, pc) {
                let off = bad.at();
                tell(cx, pc, (off.saturating_sub(at[0])) / bytes, bad, touch);
            }
            return;
        }
    }
    let shadow = &mut cx.block().shadow;
    let mut m = if bytes == 16 { shadow.quads(w, at, mask, touch, pc) } else { mask };
    while m != 0 {
        let l = m.trailing_zeros();
        m &= m - 1;
        let shadow = &mut cx.block().shadow;
        if let Some(bad) = shadow.touch(w, at[l as usize], bytes, touch, pc) {
            tell(cx, pc, l, bad, touch);
        }
    }
}

impl Bad {
    fn at(&self) -> u32 {
        match *self {
            Bad::Unwritten { at }
            | Bad::Race { at, .. }
            | Bad::Flight { at, .. }
            | Bad::Unfenced { at, .. } => at,
        }
    }
}

#[cold]
#[inline(never)]
pub(crate) fn tell(cx: &mut Cx, pc: u32, lane: u32, bad: Bad, touch: Touch) {
    let block = cx.block().ctaid;
    let verb = match touch {
        Touch::Read | Touch::StrongRead | Touch::AsyncRead => "reads",
        Touch::Atomic => "updates",
        Touch::Issue => "starts an asynchronous copy to",
        _ => "writes",
    };
    let (kind, message, at, other) = match bad {
        Bad::Unwritten { at } => {
            if !cx.check(UNINIT) {
                return;
            }
            (ReportKind::UninitShared, format!("reads shared byte {at:#x}, which nobody wrote"), at, None)
        }
        Bad::Race { at, owner, pc, wrote } => {
            if !cx.check(SHARED_RACE) {
                return;
            }
            let access = if wrote { "write" } else { "read" };
            let m = format!(
                "{verb} shared byte {at:#x} while no barrier orders it after the {access} of warp {owner}"
            );
            (
                ReportKind::SharedRace,
                m,
                at,
                Some(Other { block, warp: Some(owner as u32), access, pc: Some(pc) }),
            )
        }
        Bad::Unfenced { at, owner, pc } => {
            if !cx.check(ASYNC) {
                return;
            }
            let m = format!(
                "the async proxy reads shared byte {at:#x}, which warp {owner} wrote with no fence.proxy.async between"
            );
            (
                ReportKind::MissingProxyFence,
                m,
                at,
                Some(Other { block, warp: Some(owner as u32), access: "write", pc: Some(pc) }),
            )
        }
        Bad::Flight { at, owner, pc } => {
            if !cx.check(ASYNC) {
                return;
            }
            let m = format!(
                "{verb} shared byte {at:#x} while an asynchronous copy to it by warp {owner} is in flight"
            );
            (
                ReportKind::InFlight,
                m,
                at,
                Some(Other { block, warp: Some(owner as u32), access: "copy in flight", pc: Some(pc) }),
            )
        }
    };
    cx.report_at(pc, 1 << (lane & 31), kind, message, Some(u64::from(at)), other);
}

/// Lanes of one store that write different values to one byte.
#[inline(always)]
pub(crate) fn write_conflict(
    cx: &mut Cx,
    at: &[u64; 32],
    mask: u32,
    bytes: u32,
    values: &[u64; 32],
    keep: u64,
) {
    // Rising addresses, the usual case, cannot meet.
    let mut rising = true;
    for l in 1..32 {
        rising &= at[l] >= at[l - 1].wrapping_add(u64::from(bytes));
    }
    if !rising {
        conflict_among(cx, at, mask, values, keep);
    }
}

#[inline(never)]
fn conflict_among(cx: &mut Cx, at: &[u64; 32], mask: u32, values: &[u64; 32], keep: u64) {
    if !cx.check(SHARED_RACE) {
        return;
    }
    let mut sorted = [u64::MAX; 32];
    (0..32).filter(|l| mask >> l & 1 != 0).for_each(|l| sorted[l] = at[l]);
    sorted.sort_unstable();
    if sorted[..mask.count_ones() as usize].windows(2).all(|w| w[0] != w[1]) {
        return;
    }
    let mut m = mask;
    while m != 0 {
        let l = m.trailing_zeros() as usize;
        m &= m - 1;
        let same = crate::exec::bits(|k| m >> k & 1 != 0 && at[k] == at[l]);
        let mut s = same;
        while s != 0 {
            let k = s.trailing_zeros() as usize;
            s &= s - 1;
            if (values[k] ^ values[l]) & keep != 0 {
                let message = format!(
                    "lanes {l} and {k} write different values to address {:#x} in one instruction",
                    at[l]
                );
                cx.report(k as u32, ReportKind::WriteConflict, message, Some(at[l]), None);
                return;
            }
        }
        m &= !same;
    }
}
