//! Every change that a batch makes on disk goes through here, so that a test can make any one of them fail.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// How an injected failure looks to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `ENOSPC`, nothing written.
    Full,
    /// `EIO`, nothing written.
    Io,
    /// Half of the bytes written, then `ENOSPC`.
    Short,
}

/// The disk; [`Disk::default`] is the one that works.
#[derive(Debug, Default)]
pub struct Disk {
    fault: Option<(Fault, u64)>,
    steps: AtomicU64,
}

impl Disk {
    /// A disk whose change number `n`, from 0, fails, and every later one too, as on a disk that is full.
    pub fn failing(fault: Fault, n: u64) -> Self {
        Self { fault: Some((fault, n)), steps: AtomicU64::new(0) }
    }

    /// Changes made or tried so far.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// The fault of this change, if it has one.
    fn step(&self) -> Option<Fault> {
        let n = self.steps.fetch_add(1, Ordering::Relaxed);
        self.fault.and_then(|(fault, first)| (n >= first).then_some(fault))
    }

    fn check(&self) -> io::Result<()> {
        match self.step() {
            None => Ok(()),
            Some(Fault::Io) => Err(io::Error::from_raw_os_error(libc::EIO)),
            Some(Fault::Full | Fault::Short) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        }
    }

    /// Writes all of `bytes` where `file` stands.
    pub(super) fn write(&self, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        match self.step() {
            None => file.write_all(bytes),
            Some(Fault::Io) => Err(io::Error::from_raw_os_error(libc::EIO)),
            Some(Fault::Full) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            Some(Fault::Short) => {
                file.write_all(&bytes[..bytes.len() / 2])?;
                Err(io::Error::from_raw_os_error(libc::ENOSPC))
            }
        }
    }

    pub(super) fn sync(&self, file: &File) -> io::Result<()> {
        self.check()?;
        file.sync_data()
    }

    pub(super) fn truncate(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.check()?;
        file.set_len(bytes)
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.check().and_then(|()| fs::rename(from, to)).map_err(Error::io(to, "rename to it"))
    }

    pub(super) fn remove(&self, path: &Path) -> Result<()> {
        match self.check().and_then(|()| fs::remove_file(path)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(path, "remove")(e)),
            _ => Ok(()),
        }
    }

    pub(super) fn make_dir(&self, dir: &Path) -> Result<()> {
        let make = || if dir.is_dir() { Ok(()) } else { self.check().and_then(|()| fs::create_dir_all(dir)) };
        make().map_err(Error::io(dir, "create the folder"))
    }

    /// Writes a file whole or not at all: `PATH.tmp`, sync, rename. One process writes a path at a time: what a killed one left is written over.
    pub(super) fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".tmp");
        let temporary = path.with_file_name(name);
        let write = || {
            let file = File::create(&temporary)?;
            self.write(&file, bytes)?;
            self.sync(&file)
        };
        let written = write().map_err(Error::io(path, "write")).and_then(|()| self.rename(&temporary, path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary); // of no use to anybody
        }
        written
    }
}
