//! A PTX module as text says it, names resolved: registers, variables and labels are numbers.

use std::collections::HashMap;

/// State spaces of variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Generic,
    Global,
    Const,
    Shared,
    /// `shared::cluster`: shared memory of any block of the cluster.
    Cluster,
    Local,
    Param,
}

/// Fundamental types (PTX ISA "Fundamental Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ty {
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
    Pred,
}

impl Ty {
    pub fn parse(s: &str) -> Option<Ty> {
        Some(match s {
            "b8" => Ty::B8,
            "b16" => Ty::B16,
            "b32" => Ty::B32,
            "b64" => Ty::B64,
            "b128" => Ty::B128,
            "u8" => Ty::U8,
            "u16" => Ty::U16,
            "u32" => Ty::U32,
            "u64" => Ty::U64,
            "s8" => Ty::S8,
            "s16" => Ty::S16,
            "s32" => Ty::S32,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "f16x2" => Ty::F16x2,
            "bf16" => Ty::Bf16,
            "bf16x2" => Ty::Bf16x2,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            "pred" => Ty::Pred,
            _ => return None,
        })
    }
    /// Bytes of a value (a predicate has none; 1 is answered).
    pub fn bytes(self) -> u32 {
        match self {
            Ty::B8 | Ty::U8 | Ty::S8 | Ty::Pred => 1,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 => 2,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::F16x2 | Ty::Bf16x2 => 4,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => 8,
            Ty::B128 => 16,
        }
    }
    pub fn is_float(self) -> bool {
        matches!(self, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 | Ty::F32 | Ty::F64)
    }
    pub fn is_signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }
}

pub(crate) type RegId = u32;
pub(crate) type VarId = u32;
pub(crate) type LabelId = u32;

/// What an address or a value is based on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Base {
    Reg(RegId),
    Imm,
    /// A variable of the function (shared, local, param).
    Var(VarId),
    /// A variable or function of the module.
    Symbol(String),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    Reg(RegId),
    /// `!p`
    NotReg(RegId),
    /// Integer literal.
    Int(u64),
    /// `0f...`
    F32(u32),
    /// `0d...` or a decimal floating-point literal.
    F64(u64),
    /// A special register, with its component: `%tid.x`.
    Special(String),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `a|b`
    Pair(Box<Operand>, Box<Operand>),
    /// `(a, b)` of a call.
    List(Vec<Operand>),
    /// `[base+offset]` or `[base, {coordinates}]`
    Addr {
        base: Base,
        offset: i64,
        coords: Vec<Operand>,
    },
    /// Address of a variable of the function, plus an offset.
    Var(VarId, i64),
    /// A name of the module, plus an offset.
    Symbol(String, i64),
    Label(LabelId),
    /// `_`
    Sink,
}

#[derive(Clone, Debug)]
pub(crate) struct Inst {
    /// `@p` or `@!p` (true: negated).
    pub guard: Option<(RegId, bool)>,
    pub opcode: Box<str>,
    pub operands: Vec<Operand>,
    pub line: u32,
    /// Index into [`Ast::locs`], 0 for none.
    pub loc: u32,
}

/// A value that an initialiser places: `bytes` of the address of `symbol + addend`, shifted right by `shift` bits.
#[derive(Clone, Debug)]
pub(crate) struct Reloc {
    pub offset: u64,
    pub bytes: u32,
    pub shift: u32,
    pub symbol: String,
    pub addend: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct Var {
    pub space: Space,
    pub name: String,
    pub align: u32,
    pub bytes: u64,
    /// Empty if not initialised.
    pub init: Vec<u8>,
    pub relocs: Vec<Reloc>,
    /// `.extern` without a size: dynamic shared memory, or a variable of another module.
    pub external: bool,
    pub line: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Function {
    pub name: String,
    pub kernel: bool,
    pub line: u32,
    /// Variables of the function; parameters first, results next.
    pub vars: Vec<Var>,
    pub params: Vec<VarId>,
    pub results: Vec<VarId>,
    /// Parameters and results that are registers (`.reg` parameters of a `.func`).
    pub param_regs: Vec<RegId>,
    pub result_regs: Vec<RegId>,
    pub regs: Vec<Ty>,
    pub insts: Vec<Inst>,
    /// Instruction index of each label.
    pub labels: Vec<u32>,
    pub has_body: bool,
    pub max_threads: Option<u32>,
    pub required_block: Option<[u32; 3]>,
    pub required_cluster: Option<[u32; 3]>,
    pub max_registers: Option<u32>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Ast {
    pub version: (u32, u32),
    pub target: String,
    pub files: HashMap<u32, String>,
    /// File number and line of each `.loc`; entry 0 is "none".
    pub locs: Vec<(u32, u32)>,
    pub vars: Vec<Var>,
    pub functions: Vec<Function>,
    /// `.alias a, b`
    pub aliases: Vec<(String, String)>,
}
