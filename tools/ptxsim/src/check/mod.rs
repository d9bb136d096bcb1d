//! Checks that run beside the kernel, and how their findings are kept.

pub(crate) mod global;
pub(crate) mod shared;

use crate::exec::{Cx, Flow, Stop};
use crate::report::{Checks, Fault, FaultKind, Party, Place, Report, ReportKind};

pub(crate) const UNINIT: Checks = Checks::UNINIT;
pub(crate) const SHARED_RACE: Checks = Checks::SHARED_RACE;
pub(crate) const GLOBAL_RACE: Checks = Checks::GLOBAL_RACE;
pub(crate) const SYNC: Checks = Checks::SYNC;
pub(crate) const ASYNC: Checks = Checks::ASYNC;

/// The other side of a race, before it is put in words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Other {
    pub block: [u32; 3],
    pub warp: Option<u32>,
    pub access: &'static str,
    pub pc: Option<u32>,
}

impl Cx {
    pub fn check(&mut self, c: Checks) -> bool {
        self.worker().checks.has(c)
    }

    /// The instruction that runs now.
    pub fn here(&self) -> u32 {
        self.pc.wrapping_sub(1)
    }

    fn thread(&mut self, lane: u32) -> [u32; 3] {
        let w = self.warp();
        let l = lane as usize & 31;
        [w.tid[0][l], w.tid[1][l], w.tid[2][l]]
    }

    fn place(&mut self, pc: u32) -> Place {
        let prog = self.prog();
        prog.place(pc, self.worker().ast)
    }

    /// Keeps a finding of lane `lane` at the running instruction.
    pub fn report(
        &mut self,
        lane: u32,
        kind: ReportKind,
        message: String,
        address: Option<u64>,
        other: Option<Other>,
    ) {
        self.report_at(self.here(), 1 << (lane & 31), kind, message, address, other);
    }

    /// Keeps a finding of the first lane of `mask` at `pc`; repeats of a kind at an instruction are only counted.
    pub fn report_at(
        &mut self,
        pc: u32,
        mask: u32,
        kind: ReportKind,
        message: String,
        address: Option<u64>,
        other: Option<Other>,
    ) {
        let block = self.block().ctaid;
        let index = self.block().index;
        let thread = self.thread(mask.trailing_zeros());
        let place = self.place(pc);
        let other = other.map(|o| Party {
            block: o.block,
            warp: o.warp,
            access: o.access,
            place: o.pc.map(|pc| self.place(pc)),
        });
        let kernel = self.prog().name.clone();
        let w = self.worker();
        *w.found.entry(kind).or_insert(0) += 1;
        if let Some((_, r)) = w.reports.get_mut(&(kind, pc)) {
            r.count += 1;
        } else {
            w.reports.insert(
                (kind, pc),
                (index, Report { kind, message, kernel, place, block, thread, address, other, count: 1 }),
            );
        }
    }

    /// Ends the launch with a fault of `lane` at the running instruction.
    pub fn fault(&mut self, lane: u32, kind: FaultKind, message: String, address: Option<u64>) -> Flow {
        self.fault_at(self.here(), 1 << (lane & 31), kind, message, address);
        self.stop = Stop::Fault;
        Flow::Stop
    }

    pub fn fault_at(&mut self, pc: u32, mask: u32, kind: FaultKind, message: String, address: Option<u64>) {
        self.report_at(pc, mask, ReportKind::Fault(kind), message.clone(), address, None);
        let fault = Fault {
            kind,
            message,
            place: self.place(pc),
            block: self.block().ctaid,
            thread: self.thread(mask.trailing_zeros()),
        };
        let index = self.block().index;
        let w = self.worker();
        if w.fault.as_ref().is_none_or(|f| f.0 > index) {
            w.fault = Some((index, fault));
        }
    }
}
