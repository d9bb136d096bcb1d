//! A decoded kernel: instructions with their slots, handlers and side tables.

use crate::counters::Class;
use crate::exec::{Handler, Row};
use crate::tensor;

/// One instruction, ready to run.
#[derive(Clone, Copy)]
pub(crate) struct Op {
    pub f: Handler,
    /// Slots: destination first. Bit 15 selects the constants.
    pub s: [u16; 5],
    /// Predicate slot times two, plus one if negated; slot 0 is always true.
    pub guard: u16,
    pub imm: u64,
    /// Index into a side table, by opcode.
    pub x: u32,
    /// Small modifiers, by opcode.
    pub y: u32,
}

/// What messages and counters need of an instruction.
#[derive(Clone, Debug)]
pub(crate) struct OpInfo {
    pub line: u32,
    pub loc: u32,
    /// Index into [`Program::names`].
    pub name: u32,
    pub class: Class,
}

/// A memory access's static part.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MemOp {
    pub offset: i64,
    /// Bytes of an element.
    pub bytes: u8,
    /// Elements.
    pub vec: u8,
    /// Sign-extend to the register.
    pub signed: bool,
    /// The address register has 64 bits.
    pub wide: bool,
    /// Volatile, relaxed, acquire or release: ordered with other such accesses, so no race with them.
    pub strong: bool,
    pub acquire: bool,
    pub release: bool,
    /// The registers have 64 bits where the elements have fewer.
    pub reg_wide: bool,
    /// Slots of the elements, in [`Program::extra`].
    pub regs: u32,
}

/// A jump to one of several places.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub targets: Vec<u32>,
}

/// A kernel with every function it may call.
pub(crate) struct Program {
    pub name: String,
    pub ops: Vec<Op>,
    pub info: Vec<OpInfo>,
    pub names: Vec<String>,
    /// Constants, one row each (two for 64 bits).
    pub consts: Vec<Row>,
    pub extra: Vec<u16>,
    pub mem: Vec<MemOp>,
    pub tables: Vec<Table>,
    pub mma: Vec<tensor::mma::Mma>,
    pub calls: Vec<Call>,
    pub wmma: Vec<tensor::wmma::Wmma>,
    pub moves: Vec<tensor::wmma::WmmaMove>,
    pub copies: Vec<crate::exec::bulk::BulkOp>,
    pub wgmma: Vec<crate::exec::wgmma::WgmmaOp>,
    /// Rows of a warp's register file.
    pub rows: usize,
    pub preds: usize,
    /// Bytes of local memory a thread.
    pub local_bytes: u32,
    pub static_shared: u32,
    pub param_bytes: u32,
    /// 32-bit registers a thread needs at once.
    pub registers: u32,
    /// The functions that the program holds; the kernel is the first.
    pub functions: Vec<Layout>,
    /// Whether blocks order their accesses by fences, acquires and releases.
    pub has_fences: bool,
    pub has_wgmma: bool,
    /// Rows that each instruction reads, and writes; only in programs with wgmma.
    pub reads: Vec<Vec<u16>>,
    pub writes: Vec<Vec<u16>>,
}

/// A call: where to, and which local cells of the caller hold arguments and results.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub target: Target,
    /// Local address and size of each argument and result cell.
    pub args: Vec<(u32, u32)>,
    pub results: Vec<(u32, u32)>,
}

/// A function's share of the program: every function has slots and local memory of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// The address that stands for it in function pointers.
    pub address: u64,
    /// First instruction.
    pub entry: u32,
    /// Local address and size of its parameters and results.
    pub params: Vec<(u32, u32)>,
    pub results: Vec<(u32, u32)>,
    /// Rows; those below `wide` belong to 64-bit registers.
    pub rows: (u32, u32),
    pub wide: u32,
    pub preds: (u32, u32),
    /// Words of local memory.
    pub local: (u32, u32),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Target {
    /// Index into [`Program::functions`].
    Entry(u32),
    /// Slot of a register with a function's address.
    Register(u16),
    /// `vprintf`, `__assertfail`, `malloc`, `free`.
    System(System),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum System {
    Printf,
    Assert,
    Malloc,
    Free,
}

impl Program {
    /// The place of instruction `pc` in words.
    pub fn place(&self, pc: u32, files: &crate::ast::Ast) -> crate::Place {
        let Some(i) = self.info.get(pc as usize) else { return crate::Place::default() };
        let source = files.locs.get(i.loc as usize).filter(|l| l.0 != 0).map(|&(file, line)| {
            let name = files.files.get(&file).cloned().unwrap_or_else(|| format!("file {file}"));
            (name, line)
        });
        crate::Place { ptx_line: i.line, opcode: self.names[i.name as usize].clone(), source }
    }

    /// Shape and operations of a matrix instruction.
    pub fn tensor_work(&self, pc: u32) -> Option<(String, u64)> {
        let i = self.info.get(pc as usize)?;
        let name = &self.names[i.name as usize];
        let op = &self.ops[pc as usize];
        if let Some(rest) = name.strip_prefix("wgmma.mma_async.sync.aligned.") {
            // Four warps make one of them.
            return Some((rest.into(), self.wgmma.get(op.x as usize)?.form.flops() / 4));
        }
        if let Some(rest) = name.strip_prefix("wmma.mma.") {
            return Some((rest.replace("sync.aligned.", ""), self.wmma.get(op.x as usize)?.flops()));
        }
        let rest = name.strip_prefix("mma.sync.aligned.")?;
        Some((rest.replace("row.col.", ""), self.mma.get(op.x as usize)?.flops()))
    }
}
