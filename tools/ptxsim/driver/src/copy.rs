//! Copies and fills: what they are, whether their ranges exist, and doing them.

use std::sync::Arc;

use ptxsim::{AllocKind, Memory};

use crate::abi::lock;
use crate::errors::*;
use crate::state::driver;

/// Where bytes are.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// Host memory that the driver did not hand out.
    Pageable(usize),
    /// A device address, or pinned or managed host memory.
    Device(u64),
    /// Bytes taken from pageable memory when the copy was submitted.
    Taken(Arc<Vec<u8>>),
}

impl Place {
    /// What an address of the unified address space is.
    pub fn of(address: u64) -> Place {
        if memory_of(address).is_ok() { Place::Device(address) } else { Place::Pageable(address as usize) }
    }
    fn plus(&self, offset: u64) -> Place {
        match self {
            Place::Pageable(at) => Place::Pageable(at.wrapping_add(offset as usize)),
            Place::Device(at) => Place::Device(at.wrapping_add(offset)),
            Place::Taken(bytes) => Place::Taken(bytes.clone()),
        }
    }
}

/// `depth` slices of `height` rows of `width` bytes; a row or slice starts `pitch` or `slice` bytes after the one before.
#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    pub dst: Place,
    pub src: Place,
    pub width: usize,
    pub height: usize,
    pub depth: usize,
    pub dst_pitch: usize,
    pub dst_slice: usize,
    pub src_pitch: usize,
    pub src_slice: usize,
}

impl Copy {
    /// `bytes` in one piece.
    pub fn linear(dst: Place, src: Place, bytes: usize) -> Copy {
        Copy {
            dst,
            src,
            width: bytes,
            height: 1,
            depth: 1,
            dst_pitch: bytes,
            dst_slice: bytes,
            src_pitch: bytes,
            src_slice: bytes,
        }
    }

    fn is_empty(&self) -> bool {
        self.width == 0 || self.height == 0 || self.depth == 0
    }

    /// Bytes from the first to behind the last one of a side.
    fn span(&self, pitch: usize, slice: usize) -> Result<u64> {
        let last = |n: usize, step: usize| (n - 1).checked_mul(step);
        last(self.height, pitch)
            .and_then(|rows| last(self.depth, slice)?.checked_add(rows)?.checked_add(self.width))
            .map(|span| span as u64)
            .ok_or(CUDA_ERROR_INVALID_VALUE)
    }

    /// Checks both sides.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for rows that overlap, a null host pointer, or a device range outside its allocation.
    pub fn check(&self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let overlap = |pitch: usize, slice: usize| {
            (self.height > 1 && pitch < self.width)
                || (self.depth > 1
                    && slice < pitch.saturating_mul(self.height - 1).saturating_add(self.width))
        };
        if overlap(self.dst_pitch, self.dst_slice) || overlap(self.src_pitch, self.src_slice) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        check_place(&self.dst, self.span(self.dst_pitch, self.dst_slice)?)?;
        check_place(&self.src, self.span(self.src_pitch, self.src_slice)?)
    }

    /// Whether the program may change the source, or wait for the destination, as soon as the call returns: the source
    /// is then read at once, and the call returns only when the destination is written.
    pub fn reads_pageable(&self) -> bool {
        matches!(self.src, Place::Pageable(_)) && !self.is_empty()
    }
    /// See [`Copy::reads_pageable`].
    pub fn writes_pageable(&self) -> bool {
        matches!(self.dst, Place::Pageable(_)) && !self.is_empty()
    }

    /// The copy with its pageable source read now.
    pub fn taken(mut self) -> Copy {
        if self.reads_pageable() {
            let mut bytes = vec![0; self.width * self.height * self.depth];
            for (i, row) in bytes.chunks_exact_mut(self.width).enumerate() {
                let at = (i / self.height) * self.src_slice + (i % self.height) * self.src_pitch;
                if let Place::Pageable(src) = self.src.plus(at as u64) {
                    // SAFETY: the program passed this host range as readable.
                    unsafe { std::ptr::copy_nonoverlapping(src as *const u8, row.as_mut_ptr(), row.len()) };
                }
            }
            self.src = Place::Taken(Arc::new(bytes));
            (self.src_pitch, self.src_slice) = (self.width, self.width * self.height);
        }
        self
    }

    /// Copies.
    ///
    /// # Errors
    /// `CUDA_ERROR_ILLEGAL_ADDRESS` if a device range has gone since it was checked.
    pub fn run(&self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let packed =
            |pitch, slice| pitch == self.width && (self.depth == 1 || slice == self.width * self.height);
        if packed(self.dst_pitch, self.dst_slice) && packed(self.src_pitch, self.src_slice) {
            return move_bytes(&self.dst, &self.src, 0, self.width * self.height * self.depth);
        }
        for z in 0..self.depth {
            for y in 0..self.height {
                let (d, s) =
                    (z * self.dst_slice + y * self.dst_pitch, z * self.src_slice + y * self.src_pitch);
                let taken = if matches!(self.src, Place::Taken(_)) { s } else { 0 };
                move_bytes(&self.dst.plus(d as u64), &self.src.plus(s as u64), taken, self.width)?;
            }
        }
        Ok(())
    }
}

/// `height` rows of `width` elements of 1, 2 or 4 bytes, all of one value.
#[derive(Clone, Debug, PartialEq)]
pub struct Fill {
    pub dst: u64,
    pub pattern: Vec<u8>,
    pub width: usize,
    pub height: usize,
    pub pitch: usize,
}

impl Fill {
    /// Checks the range.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for a misaligned address, rows that overlap, or a range outside its allocation.
    pub fn check(&self) -> Result<()> {
        if self.width == 0 || self.height == 0 {
            return Ok(());
        }
        let size = self.pattern.len();
        let row = self.width.checked_mul(size).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        let rows = self.height > 1;
        if !self.dst.is_multiple_of(size as u64)
            || (rows && (self.pitch < row || !self.pitch.is_multiple_of(size)))
        {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let span = (self.height - 1).checked_mul(self.pitch).and_then(|s| s.checked_add(row));
        check_place(&Place::Device(self.dst), span.ok_or(CUDA_ERROR_INVALID_VALUE)? as u64)
    }

    /// Fills.
    ///
    /// # Errors
    /// `CUDA_ERROR_ILLEGAL_ADDRESS` if the range has gone since it was checked.
    pub fn run(&self) -> Result<()> {
        if self.width == 0 || self.height == 0 {
            return Ok(());
        }
        let memory = memory_of(self.dst).map_err(|_| CUDA_ERROR_ILLEGAL_ADDRESS)?;
        for y in 0..self.height {
            memory
                .fill(self.dst + (y * self.pitch) as u64, &self.pattern, self.width as u64)
                .map_err(|_| CUDA_ERROR_ILLEGAL_ADDRESS)?;
        }
        Ok(())
    }
}

/// The memory in which an address is allocated or mapped.
///
/// # Errors
/// `CUDA_ERROR_INVALID_VALUE` if there is none.
pub fn memory_of(address: u64) -> Result<&'static Memory> {
    let devices = &driver()?.devices;
    devices.iter().map(|d| &d.memory).find(|m| m.find(address).is_some()).ok_or(CUDA_ERROR_INVALID_VALUE)
}

/// The device that owns an address; `None` for host memory.
pub fn device_of(address: u64) -> Option<usize> {
    let devices = &driver().ok()?.devices;
    let owns = |m: &Memory| m.find(address).is_some_and(|a| a.kind == AllocKind::Device);
    devices.iter().position(|d| owns(&d.memory))
}

fn check_place(place: &Place, bytes: u64) -> Result<()> {
    match *place {
        Place::Pageable(at) => (at != 0).then_some(()).ok_or(CUDA_ERROR_INVALID_VALUE),
        Place::Taken(_) => Ok(()),
        Place::Device(at) => {
            let range = memory_of(at)?.find(at).ok_or(CUDA_ERROR_INVALID_VALUE)?;
            (bytes <= range.bytes - (at - range.addr)).then_some(()).ok_or(CUDA_ERROR_INVALID_VALUE)
        }
    }
}

/// Moves `bytes`; `taken` is where they start in a taken source.
fn move_bytes(dst: &Place, src: &Place, taken: usize, bytes: usize) -> Result<()> {
    let gone = |_| CUDA_ERROR_ILLEGAL_ADDRESS;
    match (dst, src) {
        (Place::Device(d), Place::Device(s)) => {
            let (to, from) = (memory_of(*d).map_err(gone)?, memory_of(*s).map_err(gone)?);
            if std::ptr::eq(to, from) || from.find(*d).is_some() {
                return from.copy(*d, *s, bytes as u64).map_err(|_| CUDA_ERROR_ILLEGAL_ADDRESS);
            }
            let mut buffer = vec![0; bytes];
            from.read(*s, &mut buffer).map_err(|_| CUDA_ERROR_ILLEGAL_ADDRESS)?;
            to.write(*d, &buffer).map_err(|_| CUDA_ERROR_ILLEGAL_ADDRESS)
        }
        (Place::Device(d), Place::Taken(b)) => {
            let memory = memory_of(*d).map_err(gone)?;
            memory.write(*d, &b[taken..taken + bytes]).map_err(|_| CUDA_ERROR_ILLEGAL_ADDRESS)
        }
        (Place::Device(d), Place::Pageable(s)) => {
            // SAFETY: the program passed this host range as readable.
            let bytes = unsafe { std::slice::from_raw_parts(*s as *const u8, bytes) };
            memory_of(*d).map_err(gone)?.write(*d, bytes).map_err(|_| CUDA_ERROR_ILLEGAL_ADDRESS)
        }
        (Place::Pageable(d), Place::Device(s)) => {
            // SAFETY: the program passed this host range as writable.
            let bytes = unsafe { std::slice::from_raw_parts_mut(*d as *mut u8, bytes) };
            memory_of(*s).map_err(gone)?.read(*s, bytes).map_err(|_| CUDA_ERROR_ILLEGAL_ADDRESS)
        }
        (Place::Pageable(d), Place::Pageable(s)) => {
            // SAFETY: the program passed both host ranges; they may overlap.
            unsafe { std::ptr::copy(*s as *const u8, *d as *mut u8, bytes) };
            Ok(())
        }
        (Place::Pageable(d), Place::Taken(b)) => {
            // SAFETY: the program passed this host range as writable.
            unsafe { std::ptr::copy_nonoverlapping(b[taken..taken + bytes].as_ptr(), *d as *mut u8, bytes) };
            Ok(())
        }
        // Nothing makes a copy into bytes that were taken.
        (Place::Taken(_), _) => Err(CUDA_ERROR_INVALID_VALUE),
    }
}

/// Whether a host address lies in memory that the driver knows (pinned, registered or managed).
pub fn is_known_host(address: u64) -> Result<bool> {
    let host = lock(&driver()?.host);
    Ok(host.range(..=address).next_back().is_some_and(|(at, r)| address - at < r.bytes))
}
