//! Which block touched each global byte in this launch, and which bytes were touched at all.
//!
//! One 32-bit word for each 8 bytes: launch epoch 6 bits, state 2, bytes 8, block 16. Blocks that synchronise through
//! memory (a fence, then an atomic or a strong store; a strong load, then a fence) order their accesses: a block
//! that has acquired what another released is never in a race with it.
//!
//! Where blocks touch different bytes of one word, the records that it does not hold lie in a side table of the launch, as
//! long as that has room.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use super::{GLOBAL_RACE, Other, UNINIT};
use crate::exec::Cx;
use crate::launch::Region;
use crate::memory::Alloc;
use crate::report::ReportKind;

/// How a block touches global memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    Read,
    Write,
    /// Atomics and volatile, relaxed, acquire or release accesses.
    Strong {
        writes: bool,
    },
}

const READ: u32 = 0;
const WRITE: u32 = 1;
const STRONG: u32 = 2;
/// Several blocks.
const MANY: u32 = 0xffff;

/// Blocks whose accesses are released at an address, as a bit set.
pub(crate) type Blocks = Vec<u64>;

/// Words that the side table holds, at most: 2 MB or so.
const ASIDE: usize = 1 << 15;

/// What the blocks of one launch told each other.
#[derive(Default)]
pub(crate) struct Sync {
    released: Mutex<HashMap<u64, Blocks>>,
    /// By address of 8 bytes, words that were replaced by those of blocks which touched other bytes of them.
    aside: Mutex<HashMap<u64, Vec<u32>>>,
    /// One bit of 4096 for each of these addresses, by hash: most need no look at the table.
    filter: Filter,
}

struct Filter([AtomicU64; 64]);

impl Default for Filter {
    fn default() -> Filter {
        Filter([const { AtomicU64::new(0) }; 64])
    }
}

impl Filter {
    #[inline(always)]
    fn place(&self, at: u64) -> (&AtomicU64, u64) {
        let h = (at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
        (&self.0[(h / 64) as usize], 1 << (h % 64))
    }
}

impl Sync {
    /// Whether the table may hold words of the 8 bytes at `at`.
    #[inline(always)]
    fn may_hold(&self, at: u64) -> bool {
        let (word, bit) = self.filter.place(at);
        word.load(Relaxed) & bit != 0
    }

    /// Keeps the bytes of `old` that are not in `mask`.
    #[cold]
    #[inline(never)]
    fn set_aside(&self, at: u64, old: u32, mask: u32) {
        let mut table = self.aside.lock().unwrap_or_else(|e| e.into_inner());
        if table.len() < ASIDE {
            let (word, bit) = self.filter.place(at);
            word.fetch_or(bit, Relaxed);
            let list = table.entry(at).or_default();
            let old = old & !(mask << 16);
            if list.len() < 16 && !list.contains(&old) {
                list.push(old);
            }
        }
    }

    /// The word set aside that an access to the bytes of `mask` races with, and the bytes of all that are; a write takes the
    /// place of what it covers.
    #[cold]
    #[inline(never)]
    fn against(&self, at: u64, block: u32, mask: u32, touch: Touch) -> (Option<u32>, u32) {
        let mut table = self.aside.lock().unwrap_or_else(|e| e.into_inner());
        let Some(list) = table.get_mut(&at) else { return (None, 0) };
        let known = list.iter().fold(0, |m, w| m | w >> 16 & 0xff);
        let state = state_of(touch);
        let race = list.iter().copied().find(|w| {
            let (was, bytes, owner) = (w >> 24 & 3, w >> 16 & 0xff, w & 0xffff);
            bytes & mask != 0 && owner != block && (was != state || state == WRITE)
        });
        if state == WRITE {
            list.iter_mut().for_each(|w| *w &= !(mask << 16));
            list.retain(|w| w >> 16 & 0xff != 0);
        }
        (race, known)
    }
}

fn state_of(touch: Touch) -> u32 {
    match touch {
        Touch::Read => READ,
        Touch::Write => WRITE,
        Touch::Strong { .. } => STRONG,
    }
}

fn join(into: &mut Blocks, from: &[u64]) {
    if into.len() < from.len() {
        into.resize(from.len(), 0);
    }
    into.iter_mut().zip(from).for_each(|(a, b)| *a |= b);
}
pub(crate) fn insert(set: &mut Blocks, block: u64) {
    let w = (block / 64) as usize;
    if set.len() <= w {
        set.resize(w + 1, 0);
    }
    set[w] |= 1 << (block % 64);
}
fn contains(set: &Blocks, block: u64) -> bool {
    set.get((block / 64) as usize).is_some_and(|w| w >> (block % 64) & 1 != 0)
}

/// A strong access to `addr` by the running block: whether a read acquires now or at the next fence, whether a write
/// releases or ends what was released there. Releases come before the access itself and acquisitions after it, so that whoever
/// sees the value sees the release.
pub(crate) fn synchronise(cx: &mut Cx, addr: u64, acquires: Option<bool>, releases: Option<bool>) {
    let block = cx.block().index;
    let w = cx.worker();
    let mut table = w.sync.released.lock().unwrap_or_else(|e| e.into_inner());
    if let (Some(now), Some(r)) = (acquires, table.get(&addr)) {
        let known = if now { &mut w.acquired } else { &mut w.unfenced };
        join(known.entry(block).or_default(), r);
    }
    match releases {
        Some(true) => {
            let r = table.entry(addr).or_default();
            join(r, w.acquired.entry(block).or_default());
            insert(r, block);
        }
        Some(false) => {
            table.remove(&addr);
        }
        None => {}
    }
}

/// A fence of the running block: what its relaxed reads saw is acquired.
pub(crate) fn fence(cx: &mut Cx) {
    let block = cx.block().index;
    let w = cx.worker();
    if let Some(seen) = w.unfenced.remove(&block) {
        join(w.acquired.entry(block).or_default(), &seen);
    }
}

/// Clears the shadows that the epochs of this launch would be confused with.
pub(crate) fn begin(allocs: &[std::sync::Arc<Alloc>], launch: u32) -> u32 {
    let round = launch / 63;
    for a in allocs {
        if a.shadow_epoch.swap(round, Relaxed) != round {
            a.clear_shadow();
        }
    }
    launch % 63 + 1
}

/// Notes the access of `bytes` at offset `off` of an allocation; the word it conflicts with, if it races. Bytes not touched before
/// are added to `distinct`.
#[expect(clippy::too_many_arguments, reason = "an access, its place and its author")]
#[inline(always)]
fn touch(
    sync: &Sync,
    alloc: &Alloc,
    off: u64,
    bytes: u64,
    epoch: u32,
    block: u32,
    touch: Touch,
    distinct: &mut u64,
) -> Option<u32> {
    let shadow = alloc.shadow();
    if !off.is_multiple_of(16) || !bytes.is_multiple_of(16) {
        return touch_part(sync, alloc.addr, shadow, off, bytes, epoch, block, touch, distinct);
    }
    // Words that such an access leaves as they are: read by all, read by this block, written by this block.
    let full = |state: u32, owner: u32| {
        let w = u64::from(epoch << 26 | state << 24 | 0xff << 16 | owner);
        w << 32 | w
    };
    let (many, own, written) = (full(READ, MANY), full(READ, block), full(WRITE, block));
    let (many, own) = if touch == Touch::Read { (many, own) } else { (written, written) };
    let written = if matches!(touch, Touch::Strong { .. }) { full(STRONG, MANY) } else { written };
    let mut race = None;
    for (k, cell) in shadow[(off / 16) as usize..((off + bytes) / 16) as usize].iter().enumerate() {
        let pair = cell.load(Acquire);
        if pair == many || pair == own || pair == written {
            continue;
        }
        let (lo, hi) = (pair as u32, (pair >> 32) as u32);
        let at = alloc.addr + off + 16 * k as u64;
        let plain = !sync.may_hold(at) && !sync.may_hold(at + 8);
        if plain && (lo == hi || (lo >> 26 != epoch && hi >> 26 != epoch)) {
            // Both words change alike.
            let (new, fresh, bad) = step(lo, epoch, block, 0xff, touch);
            let new = u64::from(new) << 32 | u64::from(new);
            if cell.compare_exchange(pair, new, Release, Relaxed).is_ok() {
                *distinct += 2 * u64::from(fresh.count_ones());
                race = race.or(bad);
                continue;
            }
        }
        let at = off + 16 * k as u64;
        let bad = touch_part(sync, alloc.addr, shadow, at, 16, epoch, block, touch, distinct);
        race = race.or(bad);
    }
    race
}

/// [`touch`] of any bytes.
#[expect(clippy::too_many_arguments, reason = "those of `touch`, with what it looked up")]
#[inline(never)]
fn touch_part(
    sync: &Sync,
    base: u64,
    shadow: &[AtomicU64],
    off: u64,
    bytes: u64,
    epoch: u32,
    block: u32,
    touch: Touch,
    distinct: &mut u64,
) -> Option<u32> {
    let mut race = None;
    let (first, last) = (off / 8, (off + bytes - 1) / 8);
    for g in first..=last {
        let lo = if g == first { off % 8 } else { 0 };
        let hi = if g == last { (off + bytes - 1) % 8 } else { 7 };
        let mask = ((0xffu32 >> (7 - (hi - lo))) << lo) & 0xff;
        let cell = &shadow[(g / 2) as usize];
        let shift = (g % 2) as u32 * 32;
        loop {
            // Who sees a word that replaced another sees that one set aside.
            let pair = cell.load(Acquire);
            let mut known = 0;
            if sync.may_hold(base + 8 * g) {
                let (bad, bytes) = sync.against(base + 8 * g, block, mask, touch);
                (race, known) = (race.or(bad), bytes);
            }
            let old = (pair >> shift) as u32;
            let (new, fresh, bad) = step(old, epoch, block, mask, touch);
            if new == old {
                break;
            }
            let (bytes, owner) = (old >> 16 & 0xff, old & 0xffff);
            if old >> 26 == epoch && owner != block && bytes & !mask != 0 && new & 0xffff == block {
                sync.set_aside(base + 8 * g, old, mask);
            }
            let changed = pair & !(0xffff_ffff << shift) | u64::from(new) << shift;
            if cell.compare_exchange_weak(pair, changed, Release, Relaxed).is_ok() {
                *distinct += u64::from((fresh & !known).count_ones());
                race = race.or(bad);
                break;
            }
        }
    }
    race
}

/// The word after an access, the bytes that are new, and the block or state word it conflicts with.
#[inline(always)]
fn step(old: u32, epoch: u32, block: u32, mask: u32, touch: Touch) -> (u32, u32, Option<u32>) {
    let state = state_of(touch);
    let word = |state: u32, mask: u32, block: u32| epoch << 26 | state << 24 | mask << 16 | block;
    if old >> 26 != epoch {
        return (word(state, mask, block), mask, None);
    }
    let (was, bytes, owner) = (old >> 24 & 3, old >> 16 & 0xff, old & 0xffff);
    let fresh = mask & !bytes;
    if owner == block {
        let s = if was == WRITE || state == WRITE { WRITE } else { was.max(state) };
        return (word(s, bytes | mask, block), fresh, None);
    }
    let apart = bytes & mask == 0;
    // Blocks that read bytes of their own may write these later: they are not yet taken together.
    if was == state && state != WRITE && !(apart && state == READ && owner != MANY) {
        return (word(state, bytes | mask, MANY), fresh, None);
    }
    if apart {
        // Other bytes of the granule: the last to come is kept.
        return (word(state, mask, block), fresh, None);
    }
    (word(state, bytes | mask, block), fresh, Some(old))
}

/// Notes the accesses of the lanes of `mask` to one allocation, `bytes` each.
#[inline(always)]
pub(crate) fn access(cx: &mut Cx, region: &Region, addr: &[u64; 32], mask: u32, bytes: u32, how: Touch) {
    // SAFETY: the launch holds an Arc of every allocation in its table of regions.
    let alloc: &Alloc = unsafe { &*region.alloc };
    let reads = how != Touch::Write && !matches!(how, Touch::Strong { writes: true });
    let (races, uninit) = (cx.worker().track_distinct, cx.worker().checks.has(UNINIT));
    let mut contiguous = mask == u32::MAX;
    if contiguous {
        for l in 0..32 {
            contiguous &= addr[l] == addr[0].wrapping_add(l as u64 * u64::from(bytes));
        }
    }
    let uninit = reads && uninit && !alloc.is_written();
    let (epoch, block) = (cx.worker().epoch, (cx.block().index % u64::from(MANY)) as u32);
    let sync = cx.worker().sync;
    let mut distinct = 0;
    let mut m = if contiguous { 1 } else { mask };
    let length = u64::from(bytes) * if contiguous { 32 } else { 1 };
    while m != 0 {
        let l = m.trailing_zeros();
        m &= m - 1;
        let off = addr[l as usize] - region.start;
        if uninit && let Some(bad) = alloc.unwritten(off, length) {
            tell_unwritten(cx, alloc, l + ((bad - off) / u64::from(bytes)) as u32, bad);
        }
        if !reads {
            alloc.mark(off, length);
        }
        if races && let Some(word) = touch(sync, alloc, off, length, epoch, block, how, &mut distinct) {
            tell(cx, l, addr[l as usize], word, how);
        }
    }
    cx.worker().distinct += distinct;
}

#[cold]
#[inline(never)]
fn tell_unwritten(cx: &mut Cx, alloc: &Alloc, lane: u32, bad: u64) {
    let at = alloc.addr + bad;
    let m = format!(
        "reads global byte {at:#x} ({bad} bytes into the {}-byte allocation at {:#x}), which nobody wrote",
        alloc.bytes, alloc.addr
    );
    cx.report(lane, ReportKind::UninitGlobal, m, Some(at), None);
}

#[cold]
#[inline(never)]
fn tell(cx: &mut Cx, lane: u32, at: u64, word: u32, how: Touch) {
    if !cx.check(GLOBAL_RACE) {
        return;
    }
    let (was, owner) = (word >> 24 & 3, word & 0xffff);
    let block = cx.block().index;
    if let Some(seen) = cx.worker().acquired.get(&block) {
        let ordered =
            if owner == MANY { seen.iter().any(|w| *w != 0) } else { contains(seen, u64::from(owner)) };
        if ordered {
            return;
        }
    }
    let access = match was {
        READ => "read",
        WRITE => "write",
        _ => "atomic",
    };
    let verb = match how {
        Touch::Read => "reads",
        Touch::Write => "writes",
        Touch::Strong { .. } => "updates",
    };
    let grid = cx.worker().grid;
    let coords = |b: u64| {
        let (x, y) = (u64::from(grid[0]), u64::from(grid[1]));
        [(b % x) as u32, (b / x % y) as u32, (b / x / y) as u32]
    };
    let (who, other) = if owner == MANY {
        ("several blocks".to_string(), None)
    } else {
        let c = coords(u64::from(owner));
        (
            format!("block ({},{},{})", c[0], c[1], c[2]),
            Some(Other { block: c, warp: None, access, pc: None }),
        )
    };
    let m = format!(
        "{verb} global address {at:#x}, which {who} touched in the same launch ({access}) with nothing that orders the two"
    );
    cx.report(lane, ReportKind::GlobalRace, m, Some(at), other);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What accesses `(block, first byte, bytes, how)` in this order race with, of the 8 bytes at address 0x100.
    fn races(accesses: &[(u32, u64, u64, Touch)]) -> Vec<bool> {
        let (sync, shadow, mut distinct) = (Sync::default(), [AtomicU64::new(0)], 0);
        let one = |&(block, off, bytes, how): &(u32, u64, u64, Touch)| {
            touch_part(&sync, 0x100, &shadow, off, bytes, 1, block, how, &mut distinct).is_some()
        };
        accesses.iter().map(one).collect()
    }

    #[test]
    fn blocks_that_update_elements_of_their_own_do_not_race() {
        use Touch::{Read, Write};
        let reads = [(1, 0, 2, Read), (2, 2, 2, Read), (3, 4, 2, Read)];
        let writes = [(2, 2, 2, Write), (3, 4, 2, Write), (1, 0, 2, Write)];
        assert_eq!(races(&[reads, writes].concat()), [false; 6]);
        // Whoever reads or writes an element of another block does, whichever came between.
        for other in [Read, Write] {
            let found = races(&[&reads[..], &[(4, 4, 2, other)], &writes].concat());
            assert!(found[3..].contains(&true), "{other:?}: {found:?}");
        }
        // What all have read, nobody may write.
        let all = [(1, 0, 4, Read), (2, 0, 4, Read), (3, 4, 4, Read), (1, 2, 2, Write)];
        assert_eq!(races(&all), [false, false, false, true]);
    }
}
