//! Copies between host and device: pinned memory and a stream of their own, so that they run beside kernels and beside the CPU's work.

use super::driver::{Context, Driver, Event, Pinned, Stream, name};
use crate::device::Choice;
use crate::{Error, Result};
use cudarc::driver::result as cu;
use rayon::prelude::*;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of each of the two pinned pieces that data passes through.
const PIECE: usize = 8 << 20;
/// Bytes of a piece that one thread fills: reading a mapped file takes several to keep up with the copies.
const PART: usize = 1 << 20;

/// Two pinned pieces: while one is copied, the other is filled or emptied. Small uploads stand side by side in a piece, so that many can be
/// queued behind a plan that runs.
pub struct Transfers {
    stream: Stream,
    pieces: [Piece; 2],
    next: usize,
    /// After the last copy to the device.
    uploaded: Event,
    /// Whether kernels have not been told yet to wait for it.
    pending: bool,
}

struct Piece {
    memory: Pinned,
    /// Bytes of it that were taken since it was last waited for.
    used: usize,
    /// After the last copy that uses it.
    done: Event,
}

impl Transfers {
    pub fn new() -> Driver<Self> {
        let piece = || Ok(Piece { memory: Pinned::new(PIECE)?, used: 0, done: Event::new()? });
        Ok(Self {
            stream: Stream::new()?,
            pieces: [piece()?, piece()?],
            next: 0,
            uploaded: Event::new()?,
            pending: false,
        })
    }

    /// Queues a copy of `data` to address `to`; returns when `data` may change. `progress` is called with the bytes of each piece.
    ///
    /// # Safety
    /// The device memory is there, and no kernel that is in flight uses it.
    pub unsafe fn upload(&mut self, to: u64, data: &[u8], progress: &mut dyn FnMut(usize)) -> Driver<()> {
        for (i, part) in data.chunks(PIECE).enumerate() {
            if self.pieces[self.next].used + part.len() > PIECE {
                self.next ^= 1;
                self.pieces[self.next].done.wait()?;
                self.pieces[self.next].used = 0;
            }
            let piece = &mut self.pieces[self.next];
            let staged = &mut piece.memory.bytes_mut()[piece.used..][..part.len()];
            piece.used += part.len();
            fill(staged, part);
            // SAFETY: the caller's promise; these bytes of the piece are not touched before `done`.
            unsafe { cu::memcpy_htod_async(to + (i * PIECE) as u64, staged, self.stream.raw()) }?;
            piece.done.record(&self.stream)?;
            progress(part.len());
        }
        self.uploaded.record(&self.stream)?;
        self.pending = true;
        Ok(())
    }

    /// Makes copies from now on start after `event`.
    pub fn after(&self, event: Option<&Event>) -> Driver<()> {
        event.map_or(Ok(()), |e| self.stream.wait_for(e))
    }

    /// Makes what is queued on `stream` from now on start after all uploads so far.
    pub fn before(&mut self, stream: &Stream) -> Driver<()> {
        if std::mem::take(&mut self.pending) { stream.wait_for(&self.uploaded) } else { Ok(()) }
    }

    /// Copies `bytes` bytes from address `from`, piece by piece, after all uploads so far.
    ///
    /// # Safety
    /// The device memory is there, and no kernel that is in flight writes it.
    pub unsafe fn download(&mut self, from: u64, bytes: usize, take: &mut dyn FnMut(&[u8])) -> Driver<()> {
        let range = |i: usize| i * PIECE..bytes.min((i + 1) * PIECE);
        let n = bytes.div_ceil(PIECE);
        let first = self.next;
        for i in 0..=n {
            if i < n {
                let piece = &mut self.pieces[(first + i) % 2];
                piece.done.wait()?;
                piece.used = PIECE; // whoever fills it waits
                let (range, stream) = (range(i), self.stream.raw());
                let staged = &mut piece.memory.bytes_mut()[..range.len()];
                // SAFETY: the caller's promise; the piece is not touched before `done`.
                unsafe { cu::memcpy_dtoh_async(staged, from + range.start as u64, stream) }?;
                piece.done.record(&self.stream)?;
            }
            if i > 0 {
                let piece = &self.pieces[(first + i - 1) % 2];
                piece.done.wait()?;
                take(&piece.memory.bytes()[..range(i - 1).len()]);
            }
        }
        Ok(())
    }

    /// Returns when all copies are done.
    pub fn wait(&self) -> Driver<()> {
        self.stream.wait()
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        let _ = self.wait();
    }
}

/// Pinned memory that reads wait in for the host, behind plans that are queued.
pub struct Downloads {
    free: Mutex<Vec<(Pinned, Event)>>,
    choice: Choice,
    context: Arc<Context>,
}

// SAFETY: driver objects may be used from any thread; they are behind a lock.
unsafe impl Send for Downloads {}
// SAFETY: as above.
unsafe impl Sync for Downloads {}

/// Values on their way from the device.
pub struct Download {
    /// The event is after the copy into the memory.
    slot: Option<(Pinned, Event)>,
    bytes: usize,
    home: Arc<Downloads>,
}

// SAFETY: driver objects may be used from any thread.
unsafe impl Send for Download {}

impl Downloads {
    pub fn new(choice: Choice, context: Arc<Context>) -> Self {
        Self { free: Mutex::default(), choice, context }
    }

    fn free(&self) -> MutexGuard<'_, Vec<(Pinned, Event)>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a copy of `bytes` bytes from address `from` on `stream`.
    ///
    /// # Safety
    /// The device memory is there until the stream is done.
    pub unsafe fn queue(self: &Arc<Self>, from: u64, bytes: usize, stream: &Stream) -> Driver<Download> {
        self.context.enter()?;
        let kept = {
            let mut free = self.free();
            let fits = free.iter().position(|(memory, _)| memory.bytes().len() >= bytes);
            fits.map(|i| free.swap_remove(i))
        };
        let slot = match kept {
            Some(slot) => slot,
            None => (Pinned::new(bytes.next_power_of_two())?, Event::new()?),
        };
        let mut download = Download { slot: Some(slot), bytes, home: Arc::clone(self) };
        let (memory, copied) = download.slot.as_mut().expect("it was just put there");
        // One that nobody waited for may still be on its way.
        copied.wait()?;
        // SAFETY: the caller's promise; the memory is not touched before `copied`.
        unsafe { cu::memcpy_dtoh_async(&mut memory.bytes_mut()[..bytes], from, stream.raw()) }?;
        copied.record(stream)?;
        Ok(download)
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            self.free().clear();
        }
    }
}

impl Download {
    /// The 32-bit words, once they are there.
    pub(crate) fn wait(self) -> Result<Vec<u32>> {
        let (memory, copied) = self.slot.as_ref().expect("only `drop` takes it");
        let ready = self.home.context.enter().and_then(|()| copied.wait());
        ready.map_err(|e| Error::Device {
            device: self.home.choice.to_string(),
            expected: "kernels that end without a fault".into(),
            found: name(e),
        })?;
        Ok(memory.bytes()[..self.bytes].as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect())
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.home.free().push(slot);
        }
    }
}

/// Copies `from` to `to`, large ones by all threads.
fn fill(to: &mut [u8], from: &[u8]) {
    if from.len() <= PART {
        return to.copy_from_slice(from);
    }
    to.par_chunks_mut(PART).zip(from.par_chunks(PART)).for_each(|(to, from)| to.copy_from_slice(from));
}
