//! Traffic of one request: sectors of global memory, wavefronts of shared memory.
//!
//! A global request takes one transfer for each distinct 32-byte sector that its lanes touch. Shared memory has 32 banks of
//! 4 bytes: a wavefront serves one word a bank, words that several lanes share count once. Accesses of 8 bytes a lane are
//! served by half warps, of 16 by quarter warps (CUDA C++ Best Practices Guide, "Coalesced Access to Global Memory", "Shared
//! Memory and Memory Banks").

use super::{Cx, LANES};

/// Traffic of one instruction, added up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub requests: u64,
    pub sectors: u64,
    pub bytes: u64,
    pub shared_requests: u64,
    pub wavefronts: u64,
    pub ideal: u64,
}

impl Traffic {
    pub fn add(&mut self, t: &Traffic) {
        self.requests += t.requests;
        self.sectors += t.sectors;
        self.bytes += t.bytes;
        self.shared_requests += t.shared_requests;
        self.wavefronts += t.wavefronts;
        self.ideal += t.ideal;
    }
}

/// Counts a global request of `size` bytes a lane.
#[inline(always)]
pub(crate) fn global(cx: &mut Cx, addr: &[u64; LANES], mask: u32, size: u32) {
    let (sectors, bytes) = coalesce(addr, mask, size);
    let pc = cx.here() as usize;
    let t = &mut cx.worker().traffic[pc];
    t.requests += 1;
    t.sectors += sectors;
    t.bytes += bytes;
}

/// Distinct sectors and distinct bytes of a request.
#[inline(always)]
pub(crate) fn coalesce(addr: &[u64; LANES], mask: u32, size: u32) -> (u64, u64) {
    let size = u64::from(size);
    let mut contiguous = mask == u32::MAX;
    for l in 0..LANES {
        contiguous &= addr[l] == addr[0].wrapping_add(l as u64 * size);
    }
    if contiguous {
        let last = addr[0].wrapping_add(32 * size - 1);
        return ((last >> 5).wrapping_sub(addr[0] >> 5) + 1, 32 * size);
    }
    if mask == u32::MAX {
        let (mut falls, mut sectors, mut places) = (0u64, 1u64, 1u64);
        for l in 1..LANES {
            falls += u64::from(addr[l] < addr[l - 1]);
            sectors += u64::from(addr[l] >> 5 != addr[l - 1] >> 5);
            places += u64::from(addr[l] != addr[l - 1]);
        }
        if falls == 0 {
            return (sectors, places * size);
        }
    }
    scattered(addr, mask, size)
}

#[inline(never)]
fn scattered(addr: &[u64; LANES], mask: u32, size: u64) -> (u64, u64) {
    let mut sorted = [0u64; LANES];
    let mut n = 0;
    for l in 0..LANES {
        if mask >> l & 1 != 0 {
            sorted[n] = addr[l];
            n += 1;
        }
    }
    let sorted = &mut sorted[..n];
    sorted.sort_unstable();
    let changes =
        |shift: u32| 1 + sorted.windows(2).filter(|w| w[0] >> shift != w[1] >> shift).count() as u64;
    (changes(5), changes(0) * size)
}

/// Counts a shared request of `size` bytes a lane.
#[inline(always)]
pub(crate) fn shared(cx: &mut Cx, at: &[u32; LANES], mask: u32, size: u32) {
    let (waves, ideal) = wavefronts(at, mask, size);
    add_shared(cx, waves, ideal);
}

#[inline(always)]
pub(crate) fn add_shared(cx: &mut Cx, waves: u64, ideal: u64) {
    let pc = cx.here() as usize;
    let t = &mut cx.worker().traffic[pc];
    t.shared_requests += 1;
    t.wavefronts += waves;
    t.ideal += ideal;
}

/// Wavefronts of a request, and what it would take without conflicts.
#[inline(always)]
pub(crate) fn wavefronts(at: &[u32; LANES], mask: u32, size: u32) -> (u64, u64) {
    if mask == u32::MAX {
        let mut contiguous = true;
        for l in 0..LANES {
            contiguous &= at[l] == at[0].wrapping_add(l as u32 * size);
        }
        if contiguous {
            let n = u64::from(size.div_ceil(4));
            return (n, n);
        }
    }
    let group = match size {
        16 => 8,
        8 => 16,
        _ => 32,
    };
    if size == 16 {
        return quarters(at, mask);
    }
    conflicts(at, mask, size, group)
}

/// 16 bytes a lane: four neighbouring banks each, so eight lanes with distinct `address / 16 mod 8` take one wavefront.
#[inline(always)]
fn quarters(at: &[u32; LANES], mask: u32) -> (u64, u64) {
    let (mut waves, mut ideal) = (0, 0);
    for q in 0..4 {
        if mask >> (8 * q) & 0xff == 0 {
            continue;
        }
        ideal += 1;
        let mut seen = 0u32;
        for l in 8 * q..8 * q + 8 {
            seen |= 1 << (at[l] >> 4 & 7);
        }
        waves += if seen == 0xff { 1 } else { conflicts(at, mask & 0xff << (8 * q), 16, 8).0 };
    }
    (waves, ideal)
}

#[inline(never)]
fn conflicts(at: &[u32; LANES], mask: u32, size: u32, group: usize) -> (u64, u64) {
    let (mut waves, mut ideal) = (0, 0);
    for first in (0..LANES).step_by(group) {
        let mut words: [[u32; LANES]; 32] = [[0; LANES]; 32];
        let mut counts = [0usize; 32];
        let mut any = false;
        for l in first..first + group {
            if mask >> l & 1 == 0 {
                continue;
            }
            any = true;
            for w in at[l] / 4..=(at[l] + size - 1) / 4 {
                let bank = (w % 32) as usize;
                let n = counts[bank];
                if !words[bank][..n].contains(&w) && n < LANES {
                    words[bank][n] = w;
                    counts[bank] += 1;
                }
            }
        }
        waves += counts.iter().copied().max().unwrap_or(0) as u64;
        ideal += u64::from(any);
    }
    (waves, ideal)
}
