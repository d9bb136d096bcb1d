//! Weights on the device: copied into one allocation through pinned memory while the next part is read from disk, or on the simulated driver,
//! where they would not fit twice, read by the kernels in the mapped files.

use super::Cuda;
use super::driver::Registered;
use crate::device::Choice;
use crate::graph::{DType, Place};
use crate::plan::ALIGN;
use crate::{Error, Result};
use half::bf16;
use std::borrow::Cow;

/// Weights of more bytes are read in place by the simulated driver; `MLLMSEG_SIM_IN_PLACE` sets another number.
const IN_PLACE: usize = 2 << 30;
/// What kernels need of a weight's address: the widest load.
const LOAD: usize = 16;
/// Pages that are registered.
const PAGE: usize = 4096;

impl Cuda {
    /// Makes the weights, and what was derived from them, readable by kernels.
    pub(super) fn load_weights(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let bound = self.weights.clone();
        let sources = bound.weight_ids().into_iter().map(|id| {
            let bytes: &[u8] = bytemuck::cast_slice(bound.weight(id));
            (Place::Weight(id), Cow::Borrowed(bytes))
        });
        let derived = (0..).zip(bound.all_derived());
        let derived = derived.map(|(id, (dtype, v))| (Place::Derived(id), Cow::Owned(encode(*dtype, v))));
        let (in_place, copied): (Vec<_>, Vec<_>) = match self.limit_in_place()? {
            Some(limit) if sources.clone().map(|s| s.1.len()).sum::<usize>() > limit => {
                let aligned = |s: &(Place, Cow<[u8]>)| s.1.as_ptr().addr().is_multiple_of(LOAD);
                sources.partition(aligned)
            }
            _ => (Vec::new(), sources.collect()),
        };
        let derived_bytes = |d: &(DType, Vec<f32>)| d.1.len() * d.0.bytes(2);
        let sizes = copied.iter().map(|s| s.1.len()).chain(bound.all_derived().iter().map(derived_bytes));
        let total: usize = sizes.map(padded).sum();
        self.register(&in_place)?;
        if total == 0 {
            return Ok(());
        }
        let arena = self.allocate_bytes("weights", total)?;
        let (mut at, mut done) = (arena.at, 0u64);
        self.weight_arena = Some(arena);
        for (place, source) in copied.into_iter().chain(derived) {
            self.weights_at.insert(place, at);
            let mut progress = |n: usize| {
                done += n as u64;
                progress(done, total as u64);
            };
            // SAFETY: the arena has room for every source, and no kernel runs yet.
            unsafe { self.transfers.get_mut().upload(at, &source, &mut progress) }
                .map_err(|e| self.error("the weights on the device", e))?;
            at += padded(source.len()) as u64;
        }
        self.transfers.get_mut().wait().map_err(|e| self.error("the weights on the device", e))
    }

    /// From how many bytes on weights are read in place; `None`: never.
    fn limit_in_place(&self) -> Result<Option<usize>> {
        const NAME: &str = "MLLMSEG_SIM_IN_PLACE";
        match std::env::var(NAME) {
            _ if self.choice != Choice::Sim => Ok(None),
            Err(_) => Ok(Some(IN_PLACE)),
            Ok(v) => v.parse().map(Some).map_err(|_| Error::usage(NAME, "a number of bytes", v)),
        }
    }

    /// Registers the pages that hold the sources, and notes where kernels find each.
    fn register(&mut self, sources: &[(Place, Cow<[u8]>)]) -> Result<()> {
        let mut spans: Vec<(usize, usize)> = sources
            .iter()
            .filter(|s| !s.1.is_empty())
            .map(|s| {
                let at = s.1.as_ptr().addr();
                (at / PAGE * PAGE, (at + s.1.len()).next_multiple_of(PAGE))
            })
            .collect();
        spans.sort_unstable();
        let mut merged: Vec<(usize, usize)> = Vec::new();
        for (start, end) in spans {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        for (start, end) in merged {
            // SAFETY: whole pages of mapped files or of vectors, which `self.weights` keeps until after the registration is dropped.
            let registered = unsafe { Registered::new(start, end - start) }
                .map_err(|e| self.error("the weights' files readable by kernels", e))?;
            for (place, bytes) in sources {
                let at = bytes.as_ptr().addr();
                if (start..end).contains(&at) {
                    self.weights_at.insert(*place, registered.device + (at - start) as u64);
                }
            }
            self.registered.push(registered);
        }
        Ok(())
    }
}

fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN)
}

/// Values as a device holds them.
pub(super) fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::Act | DType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => bytemuck::cast_slice(values).to_vec(),
    }
}
