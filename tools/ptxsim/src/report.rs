//! What a launch answers: the fault that ended it, what the checks found, and the counters.

use serde::Serialize;
use std::collections::BTreeMap;

use crate::Counters;

/// Which checks run; all by default. Bounds and alignment are always enforced: they end the launch as a GPU would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Checks(u32);

impl Checks {
    /// Reads of global or shared bytes that nobody wrote.
    pub const UNINIT: Checks = Checks(1);
    /// Shared-memory races between warps that no barrier orders, and conflicting writes of one instruction.
    pub const SHARED_RACE: Checks = Checks(2);
    /// Global-memory races between blocks of one launch that no atomic orders.
    pub const GLOBAL_RACE: Checks = Checks(4);
    /// Barriers, shuffles, votes and matrix instructions reached by a part of their threads.
    pub const SYNC: Checks = Checks(8);
    /// Asynchronous copies: reads of bytes in flight, missing proxy fences, wgmma registers before the wait.
    pub const ASYNC: Checks = Checks(16);
    /// Memory still allocated when its context ends.
    pub const LEAK: Checks = Checks(32);
    /// Every check.
    pub const ALL: Checks = Checks(63);
    /// No check.
    pub const NONE: Checks = Checks(0);
    const NAMES: [(&'static str, Checks); 6] = [
        ("uninit", Checks::UNINIT),
        ("shared-race", Checks::SHARED_RACE),
        ("global-race", Checks::GLOBAL_RACE),
        ("sync", Checks::SYNC),
        ("async", Checks::ASYNC),
        ("leak", Checks::LEAK),
    ];

    /// Whether all checks of `other` are on.
    pub fn has(self, other: Checks) -> bool {
        self.0 & other.0 == other.0
    }
    /// These checks and those of `other`.
    pub fn with(self, other: Checks) -> Checks {
        Checks(self.0 | other.0)
    }
    /// These checks without those of `other`.
    pub fn without(self, other: Checks) -> Checks {
        Checks(self.0 & !other.0)
    }
    /// Reads `all`, `none`, or a comma-separated list of `uninit shared-race global-race sync async leak`, each with
    /// an optional leading `-` that switches it off (`all,-uninit`).
    ///
    /// # Errors
    /// The word that is none of these.
    pub fn parse(list: &str) -> std::result::Result<Checks, String> {
        let mut checks = Checks::NONE;
        for word in list.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            let (off, name) = word.strip_prefix('-').map_or((false, word), |w| (true, w));
            let found = match name {
                "all" => Checks::ALL,
                "none" => Checks::NONE,
                _ => match Checks::NAMES.iter().find(|(n, _)| *n == name) {
                    Some((_, c)) => *c,
                    None => {
                        return Err(format!(
                            "`{name}` is not a check; known: all, none, uninit, shared-race, global-race, sync, async, leak"
                        ));
                    }
                },
            };
            checks = if off { checks.without(found) } else { checks.with(found) };
        }
        Ok(checks)
    }
}

impl Default for Checks {
    fn default() -> Checks {
        Checks::ALL
    }
}

/// What ends a launch; the driver turns each kind into the error code that a GPU would give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// An access outside every allocation, or to freed memory (`CUDA_ERROR_ILLEGAL_ADDRESS`).
    IllegalAddress,
    /// An address that is no multiple of the access size (`CUDA_ERROR_MISALIGNED_ADDRESS`).
    MisalignedAddress,
    /// A generic address used in a space it does not point to (`CUDA_ERROR_INVALID_ADDRESS_SPACE`).
    InvalidAddressSpace,
    /// An operand or state that the instruction does not allow (`CUDA_ERROR_ILLEGAL_INSTRUCTION`).
    IllegalInstruction,
    /// A jump outside the program (`CUDA_ERROR_INVALID_PC`).
    InvalidPc,
    /// `trap` or `brkpt` (`CUDA_ERROR_LAUNCH_FAILED`).
    Trap,
    /// A failed `assert` (`CUDA_ERROR_ASSERT`).
    Assert,
    /// No thread can go on: all wait for each other (`CUDA_ERROR_LAUNCH_TIMEOUT`).
    Deadlock,
    /// The instruction limit was reached (`CUDA_ERROR_LAUNCH_TIMEOUT`).
    Timeout,
    /// Call depth or local memory exhausted (`CUDA_ERROR_LAUNCH_FAILED`).
    StackOverflow,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReportKind {
    /// The launch ended with a fault here.
    Fault(FaultKind),
    /// A global byte was read that nobody wrote.
    UninitGlobal,
    /// A shared byte was read that nobody wrote.
    UninitShared,
    /// A local byte was read that nobody wrote.
    UninitLocal,
    /// Two warps touched a shared byte, one of them writing, with no barrier between.
    SharedRace,
    /// Lanes of one store wrote different values to one byte.
    WriteConflict,
    /// Two blocks touched a global byte, one of them writing, with no atomic that orders them.
    GlobalRace,
    /// A shared byte was touched while an asynchronous copy to or from it was in flight.
    InFlight,
    /// A barrier was reached by a part of the threads that it waits for.
    PartialBarrier,
    /// A `.sync` instruction whose mask does not fit the lanes that reached it, or a lane read from outside it.
    WrongMask,
    /// An `.aligned` instruction reached by a divergent warp.
    DivergentAligned,
    /// Shared bytes written by ordinary stores were read by the async proxy without `fence.proxy.async`.
    MissingProxyFence,
    /// A wgmma register was touched before `wgmma.wait_group`, or `wgmma.fence` was missing.
    WgmmaRegister,
    /// An mbarrier was used before its init, re-initialised while live, or given too many arrivals.
    Mbarrier,
    /// A block ended with asynchronous copies that nobody waited for.
    Unwaited,
    /// Memory was still allocated when its context ended.
    Leak,
}

impl ReportKind {
    /// The name that reports and JSON use.
    pub fn name(self) -> String {
        let debug = match self {
            ReportKind::Fault(f) => format!("{f:?}"),
            k => format!("{k:?}"),
        };
        let mut out = String::new();
        for c in debug.chars() {
            if c.is_ascii_uppercase() && !out.is_empty() {
                out.push('-');
            }
            out.push(c.to_ascii_lowercase());
        }
        out
    }
}

/// Where in the program: the PTX line and, with `-lineinfo`, the CUDA C++ line.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Place {
    /// 1-based line of the PTX text.
    pub ptx_line: u32,
    /// The instruction's opcode with its modifiers.
    pub opcode: String,
    /// CUDA source file and 1-based line.
    pub source: Option<(String, u32)>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some((file, line)) = &self.source {
            write!(f, "{file}:{line} ")?;
        }
        write!(f, "(PTX line {}, {})", self.ptx_line, self.opcode)
    }
}

/// The other side of a race.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Party {
    /// Its block.
    pub block: [u32; 3],
    /// Its warp within the block, where it is known.
    pub warp: Option<u32>,
    /// "read", "write", "atomic" or "copy in flight".
    pub access: &'static str,
    /// Its instruction, where it is known.
    pub place: Option<Place>,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What was found.
    pub kind: ReportKind,
    /// The finding in words, complete with address and sizes.
    pub message: String,
    /// The kernel.
    pub kernel: String,
    /// The instruction.
    pub place: Place,
    /// The block.
    pub block: [u32; 3],
    /// The first thread concerned.
    pub thread: [u32; 3],
    /// The address, in the space of the access.
    pub address: Option<u64>,
    /// The other party of a race.
    pub other: Option<Party>,
    /// How often this kind was found at this instruction.
    pub count: u64,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ([bx, by, bz], [tx, ty, tz]) = (self.block, self.thread);
        write!(
            f,
            "{}: {}\n    kernel {}, block ({bx},{by},{bz}), thread ({tx},{ty},{tz})",
            self.place, self.message, self.kernel
        )?;
        if let Some(o) = &self.other {
            let [x, y, z] = o.block;
            write!(f, "\n    other party: {} by block ({x},{y},{z})", o.access)?;
            if let Some(w) = o.warp {
                write!(f, " warp {w}")?;
            }
            if let Some(p) = &o.place {
                write!(f, " at {p}")?;
            }
        }
        if self.count > 1 {
            write!(f, "\n    {} times in all", self.count)?;
        }
        Ok(())
    }
}

/// Why a launch ended early.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The kind, from which the driver's error code follows.
    pub kind: FaultKind,
    /// In words.
    pub message: String,
    /// The instruction.
    pub place: Place,
    /// The block.
    pub block: [u32; 3],
    /// The first thread concerned.
    pub thread: [u32; 3],
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ([bx, by, bz], [tx, ty, tz]) = (self.block, self.thread);
        write!(f, "{}: {}, block ({bx},{by},{bz}), thread ({tx},{ty},{tz})", self.place, self.message)
    }
}

/// What one launch did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LaunchReport {
    /// The kernel's name.
    pub kernel: String,
    /// Blocks and threads a block.
    pub grid: [u32; 3],
    /// Threads a block.
    pub block: [u32; 3],
    /// Why it ended early, if it did.
    pub fault: Option<Fault>,
    /// One entry for each kind and instruction, the first [`Options::max_reports`](crate::Options::max_reports).
    pub reports: Vec<Report>,
    /// How often each kind was found, the ones not kept in `reports` included.
    pub found: BTreeMap<String, u64>,
    /// What was counted; empty if counters are off.
    pub counters: Counters,
    /// What the kernel printed, blocks in order.
    pub output: String,
    /// Wall time of the simulation, in seconds.
    pub seconds: f64,
}

impl LaunchReport {
    /// Whether the launch ended without a fault and no check found anything.
    pub fn is_clean(&self) -> bool {
        self.fault.is_none() && self.found.is_empty()
    }
}
