//! PTX to a [`Program`]: each instruction gets its handler, each register its slot, each branch its meeting point.

mod alloc;
mod arith;
mod float;
mod flow;
mod matrix;
mod memory;
mod moves;
pub(crate) mod opcodes;
mod sync;

use std::collections::HashMap;

use crate::ast::{Ast, Base, Function, Inst, Operand, RegId, Space, Ty, VarId};
use crate::counters::Class;
use crate::exec::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::exec::{Handler, LANES, Row, handler, moves as mv};
use crate::program::{Call, Layout, MemOp, Op, OpInfo, Program, System, Table, Target};
use crate::{Error, Result};

/// A slot before registers have their places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Slot {
    None,
    Def(RegId),
    Use(RegId),
    /// Read and written.
    Both(RegId),
    /// As it is: a constant's slot, or `SINK`.
    Raw(u16),
}

/// Where the index of an instruction's slot list goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ListAt {
    Nowhere,
    X,
    Y,
    /// Into `regs` of memory form `x`.
    Mem,
}

/// What follows an instruction.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Next {
    Fall,
    /// To the instruction that an AST index names, too.
    Jump(u32),
    Table(Vec<u32>),
    /// Nothing.
    End,
}

/// A decoded instruction before registers have their places.
#[derive(Clone)]
pub(crate) struct Pre {
    pub f: Handler,
    pub guard: Option<(RegId, bool)>,
    pub s: [Slot; 5],
    pub list: Vec<Slot>,
    pub list_at: ListAt,
    pub imm: u64,
    pub x: u32,
    pub y: u32,
    /// `y` is the slot of this predicate.
    pub y_pred: Option<RegId>,
    pub next: Next,
    pub class: Class,
    pub line: u32,
    pub loc: u32,
    pub name: u32,
}

/// Tables that all functions of a program share.
pub(crate) struct Tables {
    pub consts: Vec<Row>,
    const_of: HashMap<(u64, bool), u16>,
    pub mem: Vec<MemOp>,
    pub names: Vec<String>,
    name_of: HashMap<String, u32>,
    pub mma: Vec<crate::tensor::mma::Mma>,
    pub wmma: Vec<crate::tensor::wmma::Wmma>,
    pub moves: Vec<crate::tensor::wmma::WmmaMove>,
    pub copies: Vec<crate::exec::bulk::BulkOp>,
    pub wgmma: Vec<crate::exec::wgmma::WgmmaOp>,
    pub calls: Vec<(Call, String)>,
    pub has_fences: bool,
    /// Bytes of local memory and of static shared memory handed out.
    pub local: u32,
    pub shared: u32,
    pub shared_of: HashMap<String, u32>,
}

/// Where names of the module lie.
pub(crate) trait Resolve {
    /// Address of a global or constant variable, or of a function.
    fn address(&self, name: &str) -> Option<u64>;
}

/// Largest number of decoded instructions.
const MAX_OPS: usize = 1 << 22;

/// Decodes `kernel` and every function it calls, for a module whose names `resolve` places.
pub(crate) fn decode(ast: &Ast, kernel: &Function, resolve: &dyn Resolve) -> Result<Program> {
    let mut t = Tables::new();
    place_all_shared(ast, kernel, &mut t)?;
    let mut functions: Vec<&Function> = vec![kernel];
    let mut bodies = Vec::new();
    let mut k = 0;
    while k < functions.len() {
        let body = decode_function(ast, functions[k], resolve, &mut t, &mut None)?;
        for name in &body.callees {
            let name = ast.aliases.iter().find(|a| a.0 == *name).map_or(name, |a| &a.1);
            if !functions.iter().any(|f| f.name == *name) {
                let f = ast.functions.iter().find(|f| f.name == *name);
                let f = f
                    .filter(|f| f.has_body && !f.kernel)
                    .ok_or_else(|| Error::NotFound { what: "function", name: name.clone() })?;
                functions.push(f);
            }
        }
        bodies.push(body);
        k += 1;
        if k == functions.len() && t.calls.iter().any(|c| matches!(c.0.target, Target::Register(_))) {
            // A pointer may be that of any function that a variable's initial value names.
            let named = |f: &&Function| ast.vars.iter().any(|v| v.relocs.iter().any(|r| r.symbol == f.name));
            for f in ast.functions.iter().filter(|f| f.has_body && !f.kernel).filter(named) {
                if !functions.iter().any(|g| g.name == f.name) {
                    functions.push(f);
                }
            }
        }
    }
    alloc::assemble(ast, kernel, &functions, bodies, t, resolve)
}

/// Gives every shared variable that the kernel and its functions name its place.
fn place_all_shared(ast: &Ast, kernel: &Function, t: &mut Tables) -> Result<()> {
    let by_name: HashMap<&str, &Function> = ast.functions.iter().map(|f| (f.name.as_str(), f)).collect();
    let shared: HashMap<&str, &crate::ast::Var> = ast
        .vars
        .iter()
        .filter(|v| v.space == Space::Shared && v.bytes > 0)
        .map(|v| (v.name.as_str(), v))
        .collect();
    let mut reached = vec![kernel];
    let mut k = 0;
    while k < reached.len() {
        let f = reached[k];
        for v in f.vars.iter().filter(|v| v.space == Space::Shared) {
            t.place_shared(&format!("{}.{}.{}", f.name, v.name, v.line), v.bytes, v.align, v.line)?;
        }
        let mut names = Vec::new();
        f.insts.iter().flat_map(|i| &i.operands).for_each(|o| symbols(o, &mut names));
        for n in names {
            let n = ast.aliases.iter().find(|a| a.0 == n).map_or(n, |a| &a.1);
            if let Some(v) = shared.get(n) {
                t.place_shared(n, v.bytes, v.align, v.line)?;
            } else if let Some(g) = by_name.get(n)
                && !reached.iter().any(|f| f.name == g.name)
            {
                reached.push(g);
            }
        }
        k += 1;
    }
    Ok(())
}

/// Names of the module in an operand.
fn symbols<'a>(o: &'a Operand, out: &mut Vec<&'a str>) {
    match o {
        Operand::Symbol(n, _) | Operand::Addr { base: Base::Symbol(n), .. } => out.push(n),
        Operand::Vector(v) | Operand::List(v) => v.iter().for_each(|o| symbols(o, out)),
        _ => {}
    }
}

/// Every instruction of a function, tried one by one: the first error of each line.
pub(crate) fn probe(ast: &Ast, f: &Function) -> Vec<Option<Error>> {
    struct Anywhere;
    impl Resolve for Anywhere {
        fn address(&self, _: &str) -> Option<u64> {
            Some(0)
        }
    }
    let mut errors = Some(vec![None; f.insts.len()]);
    let mut t = Tables::new();
    if let Err(e) = decode_function(ast, f, &Anywhere, &mut t, &mut errors) {
        return vec![Some(e); f.insts.len()];
    }
    errors.unwrap_or_default()
}

impl Tables {
    fn new() -> Tables {
        Tables {
            consts: Vec::new(),
            const_of: HashMap::new(),
            mem: Vec::new(),
            names: Vec::new(),
            name_of: HashMap::new(),
            mma: Vec::new(),
            wmma: Vec::new(),
            moves: Vec::new(),
            copies: Vec::new(),
            wgmma: Vec::new(),
            calls: Vec::new(),
            has_fences: false,
            local: 0,
            shared: 0,
            shared_of: HashMap::new(),
        }
    }

    fn place_shared(&mut self, name: &str, bytes: u64, align: u32, line: u32) -> Result<u64> {
        if let Some(&at) = self.shared_of.get(name) {
            return Ok(u64::from(at));
        }
        let at = u64::from(self.shared).next_multiple_of(u64::from(align));
        if at + bytes > 1 << 20 {
            return Err(Error::parse(line, format!("more than 1 MiB of shared memory with `{name}`")));
        }
        self.shared = (at + bytes) as u32;
        self.shared_of.insert(name.to_string(), at as u32);
        Ok(at)
    }

    /// Slot of a constant row.
    fn constant(&mut self, value: u64, wide: bool) -> Option<u16> {
        let value = if wide { value } else { value & 0xffff_ffff };
        if let Some(&s) = self.const_of.get(&(value, wide)) {
            return Some(s);
        }
        let at = self.consts.len();
        if at + 2 >= 0x7fff {
            return None;
        }
        if wide {
            let words = [value as u32, (value >> 32) as u32];
            let row: Row = std::array::from_fn(|i| words[i % 2]);
            self.consts.extend([row, row]);
        } else {
            self.consts.push([value as u32; LANES]);
        }
        let s = at as u16 | 0x8000;
        self.const_of.insert((value, wide), s);
        Some(s)
    }

    fn name(&mut self, text: &str) -> u32 {
        if let Some(&n) = self.name_of.get(text) {
            return n;
        }
        self.names.push(text.to_string());
        let n = (self.names.len() - 1) as u32;
        self.name_of.insert(text.to_string(), n);
        n
    }
}

/// A decoded function, registers still by number.
pub(crate) struct FnBody {
    pub pre: Vec<Pre>,
    /// First decoded instruction of each AST instruction, and one past the last.
    pub start: Vec<u32>,
    pub regs: Vec<Ty>,
    pub params: Vec<(u32, u32)>,
    pub results: Vec<(u32, u32)>,
    pub local: (u32, u32),
    pub callees: Vec<String>,
}

fn decode_function(
    ast: &Ast,
    f: &Function,
    resolve: &dyn Resolve,
    t: &mut Tables,
    errors: &mut Option<Vec<Option<Error>>>,
) -> Result<FnBody> {
    let local = t.local;
    let mut d = Decoder {
        ast,
        f,
        resolve,
        t,
        regs: f.regs.clone(),
        pre: Vec::new(),
        places: vec![None; f.vars.len()],
        carry: None,
        inst: None,
        callees: Vec::new(),
        param_bytes: 0,
        param_cells: Vec::new(),
        result_cells: Vec::new(),
    };
    d.place_params()?;
    let mut start = Vec::with_capacity(f.insts.len() + 1);
    for (i, inst) in f.insts.iter().enumerate() {
        start.push(d.pre.len() as u32);
        if d.pre.len() > MAX_OPS {
            return Err(Error::parse(inst.line, "too many instructions"));
        }
        d.inst = Some(inst);
        if let Err(e) = d.instruction(inst) {
            match errors {
                Some(list) => list[i] = Some(e),
                None => return Err(e),
            }
        }
    }
    start.push(d.pre.len() as u32);
    // A path that runs off the end ends there.
    let end = Inst { guard: None, opcode: "ret".into(), operands: Vec::new(), line: f.line, loc: 0 };
    d.inst = Some(&end);
    d.instruction(&end)?;
    let cells = |d: &Decoder, ids: &[VarId]| {
        ids.iter()
            .map(|&v| (d.places[v as usize].unwrap_or(0) as u32, f.vars[v as usize].bytes as u32))
            .collect()
    };
    let (mut params, mut results): (Vec<_>, Vec<_>) =
        if f.kernel { Default::default() } else { (cells(&d, &f.params), cells(&d, &f.results)) };
    params.append(&mut d.param_cells);
    results.append(&mut d.result_cells);
    let (pre, regs, callees) = (d.pre, d.regs, d.callees);
    Ok(FnBody { pre, start, regs, params, results, local: (local / 4, t.local.div_ceil(4)), callees })
}

pub(crate) struct Decoder<'a> {
    ast: &'a Ast,
    f: &'a Function,
    resolve: &'a dyn Resolve,
    t: &'a mut Tables,
    regs: Vec<Ty>,
    pre: Vec<Pre>,
    /// Offset of each variable in its space, once it has one.
    places: Vec<Option<u64>>,
    /// The carry flag, a predicate.
    carry: Option<RegId>,
    inst: Option<&'a Inst>,
    callees: Vec<String>,
    param_bytes: u32,
    /// Cells of parameters and results that are registers.
    param_cells: Vec<(u32, u32)>,
    result_cells: Vec<(u32, u32)>,
}

/// Parts of an opcode that have not been understood yet.
pub(crate) struct Mods<'a> {
    pub full: &'a str,
    pub line: u32,
    parts: Vec<&'a str>,
}

impl<'a> Mods<'a> {
    fn new(inst: &'a Inst) -> Mods<'a> {
        Mods { full: &inst.opcode, line: inst.line, parts: inst.opcode.split('.').collect() }
    }
    /// The first part.
    fn base(&mut self) -> &'a str {
        self.parts.remove(0)
    }
    /// Takes `part` if it is there.
    pub fn has(&mut self, part: &str) -> bool {
        let at = self.parts.iter().position(|p| *p == part);
        if let Some(i) = at {
            self.parts.remove(i);
        }
        at.is_some()
    }
    /// Takes the first of these parts that is there.
    pub fn one_of(&mut self, list: &[&'static str]) -> Option<&'static str> {
        list.iter().copied().find(|p| self.has(p))
    }
    /// Takes the first part that is a type.
    pub fn ty(&mut self) -> Result<Ty> {
        let at = self.parts.iter().position(|p| Ty::parse(p).is_some());
        match at.map(|i| self.parts.remove(i)).and_then(Ty::parse) {
            Some(t) => Ok(t),
            None => Err(self.unknown("it has no type")),
        }
    }
    /// Takes the next part, whatever it is.
    pub fn take(&mut self) -> Option<&'a str> {
        (!self.parts.is_empty()).then(|| self.parts.remove(0))
    }
    pub fn rest(&self) -> &[&'a str] {
        &self.parts
    }
    pub fn unknown(&self, detail: &str) -> Error {
        Error::unsupported(self.line, self.full, detail)
    }
    /// Everything must have been understood.
    pub fn done(&self) -> Result<()> {
        match self.parts.first() {
            None => Ok(()),
            Some(p) => Err(self.unknown(&format!("modifier `.{p}`"))),
        }
    }
}

impl Decoder<'_> {
    fn line(&self) -> u32 {
        self.inst.map_or(0, |i| i.line)
    }
    fn bad<T>(&self, message: impl Into<String>) -> Result<T> {
        let op = self.inst.map_or("", |i| &i.opcode);
        Err(Error::parse(self.line(), format!("`{op}`: {}", message.into())))
    }

    /// An instruction with handler `f`, ready to be pushed.
    fn pre(&mut self, f: Handler, class: Class) -> Pre {
        let (line, loc, guard, name) = match self.inst {
            Some(i) => (i.line, i.loc, i.guard, self.t.name(&i.opcode)),
            None => (0, 0, None, 0),
        };
        Pre {
            f,
            guard,
            s: [Slot::None; 5],
            list: Vec::new(),
            list_at: ListAt::Nowhere,
            imm: 0,
            x: 0,
            y: 0,
            y_pred: None,
            next: Next::Fall,
            class,
            line,
            loc,
            name,
        }
    }
    fn push(&mut self, p: Pre) {
        self.pre.push(p);
    }
    /// Pushes an instruction with these slots.
    fn emit(&mut self, f: Handler, class: Class, slots: &[Slot]) -> &mut Pre {
        let mut p = self.pre(f, class);
        p.s[..slots.len()].copy_from_slice(slots);
        self.pre.push(p);
        let at = self.pre.len() - 1;
        &mut self.pre[at]
    }
    fn temp(&mut self, ty: Ty) -> RegId {
        self.regs.push(ty);
        (self.regs.len() - 1) as RegId
    }

    fn operands<const N: usize>(&self, inst: &'_ Inst) -> Result<[Operand; N]> {
        let n = inst.operands.len();
        inst.operands.clone().try_into().or_else(|_| self.bad(format!("takes {N} operands, has {n}")))
    }

    fn reg_ty(&self, r: RegId) -> Ty {
        self.regs[r as usize]
    }

    fn constant(&mut self, value: u64, wide: bool) -> Result<Slot> {
        match self.t.constant(value, wide) {
            Some(s) => Ok(Slot::Raw(s)),
            None => self.bad("too many different constants in one kernel"),
        }
    }

    /// A source of type `ty`.
    fn src(&mut self, op: &Operand, ty: Ty) -> Result<Slot> {
        let wide = ty.bytes() == 8;
        match op {
            Operand::Reg(r) => {
                let have = self.reg_ty(*r);
                if have == Ty::Pred || (have.bytes() == 8) != wide || have == Ty::B128 {
                    return self.bad(format!("a {}-byte register where {ty:?} is expected", have.bytes()));
                }
                Ok(Slot::Use(*r))
            }
            Operand::Int(v) if ty == Ty::F32 => self.constant(u64::from((*v as i64 as f32).to_bits()), false),
            Operand::Int(v) if ty == Ty::F64 => self.constant((*v as i64 as f64).to_bits(), true),
            Operand::Int(v) => self.constant(if ty.bytes() == 2 { v & 0xffff } else { *v }, wide),
            Operand::F32(v) if ty == Ty::F64 => self.constant(f64::from(f32::from_bits(*v)).to_bits(), true),
            Operand::F32(v) => self.constant(u64::from(*v), wide),
            Operand::F64(v) if wide => self.constant(*v, true),
            Operand::F64(v) => self.constant(u64::from((f64::from_bits(*v) as f32).to_bits()), false),
            Operand::Var(v, off) => {
                let (at, _) = self.place(*v)?;
                self.constant(at.wrapping_add(*off as u64), wide)
            }
            Operand::Symbol(name, off) => {
                let at = self.symbol(name)?.1;
                self.constant(at.wrapping_add(*off as u64), wide)
            }
            Operand::Special(name) => {
                let r = self.temp(if wide { Ty::B64 } else { Ty::B32 });
                self.special(name, r, wide)?;
                Ok(Slot::Use(r))
            }
            other => self.bad(format!("operand {other:?} where a value of type {ty:?} is expected")),
        }
    }

    /// A destination of type `ty`; `_` goes to a register that nobody reads.
    fn dst(&mut self, op: &Operand, ty: Ty) -> Result<Slot> {
        match op {
            Operand::Reg(r) => {
                let have = self.reg_ty(*r);
                if have == Ty::Pred || (have.bytes() == 8) != (ty.bytes() == 8) || have == Ty::B128 {
                    return self.bad(format!("a {}-byte register where {ty:?} is expected", have.bytes()));
                }
                Ok(Slot::Def(*r))
            }
            Operand::Sink => Ok(Slot::Def(self.temp(if ty.bytes() == 8 { Ty::B64 } else { Ty::B32 }))),
            other => self.bad(format!("operand {other:?} where a register is expected")),
        }
    }

    /// A predicate source and whether it is negated.
    fn pred(&mut self, op: &Operand) -> Result<(Slot, bool)> {
        match op {
            Operand::Reg(r) if self.reg_ty(*r) == Ty::Pred => Ok((Slot::Use(*r), false)),
            Operand::NotReg(r) if self.reg_ty(*r) == Ty::Pred => Ok((Slot::Use(*r), true)),
            // Predicate slot 0 is always true.
            Operand::Int(v) => Ok((Slot::Raw(0), *v == 0)),
            other => self.bad(format!("operand {other:?} where a predicate is expected")),
        }
    }
    fn pred_dst(&mut self, op: &Operand) -> Result<Slot> {
        match op {
            Operand::Reg(r) if self.reg_ty(*r) == Ty::Pred => Ok(Slot::Def(*r)),
            Operand::Sink => Ok(Slot::Def(self.temp(Ty::Pred))),
            other => self.bad(format!("operand {other:?} where a predicate is expected")),
        }
    }

    /// Space and address of a name of the module.
    fn symbol(&mut self, name: &str) -> Result<(Space, u64)> {
        if let Some(v) = self.ast.vars.iter().find(|v| v.name == name) {
            if v.space == Space::Shared {
                return Ok((Space::Shared, self.shared_symbol(name)?));
            }
            return match self.resolve.address(name) {
                Some(a) => Ok((v.space, a)),
                None => Err(Error::NotFound { what: "symbol", name: name.into() }),
            };
        }
        if self.ast.functions.iter().any(|f| f.name == name) || self.ast.aliases.iter().any(|a| a.0 == name) {
            let to = self.ast.aliases.iter().find(|a| a.0 == name).map_or(name, |a| a.1.as_str());
            if self.ast.functions.iter().any(|f| f.name == to && f.has_body && !f.kernel) {
                self.callees.push(to.to_string());
            }
            return Ok((Space::Generic, self.resolve.address(to).unwrap_or(0)));
        }
        Err(Error::parse(self.line(), format!("`{name}` is not declared")))
    }

    /// Offset of a shared variable of the module; `extern` arrays start where the static ones end.
    fn shared_symbol(&mut self, name: &str) -> Result<u64> {
        if let Some(&at) = self.t.shared_of.get(name) {
            return Ok(u64::from(at));
        }
        let Some(v) = self.ast.vars.iter().find(|v| v.name == name) else {
            return Err(Error::NotFound { what: "symbol", name: name.into() });
        };
        if v.bytes == 0 {
            // Dynamic shared memory starts where the static variables end, all of which have their place by now.
            return Ok(u64::from(self.t.shared.next_multiple_of(16)));
        }
        let (bytes, align) = (v.bytes, v.align);
        self.t.place_shared(name, bytes, align, self.line())
    }
    fn place_local(&mut self, bytes: u64, align: u32) -> Result<u64> {
        let at = u64::from(self.t.local).next_multiple_of(u64::from(align.max(8)));
        if at + bytes > 512 << 10 {
            return self.bad("more than 512 KiB of local memory a thread");
        }
        self.t.local = (at + bytes) as u32;
        Ok(at)
    }

    /// Kernel parameters lie in the parameter buffer, those of functions in local memory.
    fn place_params(&mut self) -> Result<()> {
        let mut at = 0u64;
        for &v in &self.f.params {
            let var = &self.f.vars[v as usize];
            if self.f.kernel {
                at = at.next_multiple_of(u64::from(var.align));
                self.places[v as usize] = Some(at);
                at += var.bytes;
                if at > 32 << 10 {
                    return Err(Error::parse(var.line, "more than 32 KiB of parameters"));
                }
            } else {
                self.places[v as usize] = Some(self.place_local(var.bytes.max(8), var.align)?);
            }
        }
        self.param_bytes = at as u32;
        if !self.f.kernel {
            for &v in &self.f.results {
                let var = &self.f.vars[v as usize];
                self.places[v as usize] = Some(self.place_local(var.bytes.max(8), var.align)?);
            }
            // Parameters that are registers travel through cells, too.
            for &r in &self.f.param_regs {
                let at = self.place_local(8, 8)?;
                self.param_cells.push((at as u32, 8));
                self.local_cell(at, Slot::Def(r), self.reg_ty(r).bytes() == 8, true)?;
            }
            for _ in &self.f.result_regs {
                let at = self.place_local(8, 8)?;
                self.result_cells.push((at as u32, 8));
            }
        }
        Ok(())
    }

    /// Address of a variable in its space, and that space (a function's parameters are in local memory).
    fn place(&mut self, v: VarId) -> Result<(u64, Space)> {
        let var = &self.f.vars[v as usize];
        let space = match var.space {
            Space::Param if !(self.f.kernel && self.f.params.contains(&v)) => Space::Local,
            s => s,
        };
        if let Some(at) = self.places[v as usize] {
            return Ok((at, space));
        }
        let at = match space {
            Space::Local => self.place_local(var.bytes.max(8), var.align)?,
            Space::Shared => {
                let name = format!("{}.{}.{}", self.f.name, var.name, var.line);
                self.t.place_shared(&name, var.bytes, var.align, var.line)?
            }
            Space::Global | Space::Const => {
                match self.resolve.address(&format!("{}.{}", self.f.name, var.name)) {
                    Some(a) => a,
                    None => return self.bad(format!("`{}` has no address", var.name)),
                }
            }
            _ => return self.bad(format!("`{}` cannot be addressed", var.name)),
        };
        self.places[v as usize] = Some(at);
        Ok((at, space))
    }

    /// The slot of an address's base, its offset, whether the slot is 64 bits wide, and the space its name implies.
    fn address(&mut self, op: &Operand) -> Result<(Slot, i64, bool, Option<Space>)> {
        let Operand::Addr { base, offset, .. } = op else {
            return self.bad(format!("operand {op:?} where an address is expected"));
        };
        match base {
            Base::Reg(r) => match self.reg_ty(*r).bytes() {
                8 => Ok((Slot::Use(*r), *offset, true, None)),
                4 if self.reg_ty(*r) != Ty::Pred => Ok((Slot::Use(*r), *offset, false, None)),
                _ => self.bad("an address in a register of less than 32 bits"),
            },
            Base::Imm => Ok((self.constant(*offset as u64, true)?, 0, true, None)),
            Base::Var(v) => {
                let (at, space) = self.place(*v)?;
                Ok((self.constant(at.wrapping_add(*offset as u64), true)?, 0, true, Some(space)))
            }
            Base::Symbol(name) => {
                let (space, at) = self.symbol(name)?;
                Ok((self.constant(at.wrapping_add(*offset as u64), true)?, 0, true, Some(space)))
            }
        }
    }

    fn mem(&mut self, m: MemOp) -> u32 {
        self.t.mem.push(m);
        (self.t.mem.len() - 1) as u32
    }

    fn special(&mut self, name: &str, r: RegId, wide: bool) -> Result<()> {
        let lane = |f: &dyn Fn(u32) -> u32| -> Row { std::array::from_fn(|i| f(i as u32)) };
        let row = match name {
            "%laneid" => Some(lane(&|i| i)),
            "%lanemask_eq" => Some(lane(&|i| 1 << i)),
            "%lanemask_le" => Some(lane(&|i| u32::MAX >> (31 - i))),
            "%lanemask_lt" => Some(lane(&|i| (1 << i) - 1)),
            "%lanemask_ge" => Some(lane(&|i| u32::MAX << i)),
            "%lanemask_gt" => Some(lane(&|i| u32::MAX.wrapping_shl(i) << 1)),
            _ => None,
        };
        if let Some(row) = row {
            // Lane-dependent constants are keyed by what no 32-bit constant can be.
            let key = (u64::MAX - u64::from(self.t.name(name)), false);
            let at = match self.t.const_of.get(&key) {
                Some(&at) => at,
                None => {
                    self.t.consts.push(row);
                    let at = (self.t.consts.len() - 1) as u16 | 0x8000;
                    self.t.const_of.insert(key, at);
                    at
                }
            };
            let s = Slot::Raw(at);
            let f = if wide { handler::<crate::exec::convert::ZextU32>() } else { handler::<mv::Mov32>() };
            self.emit(f, Class::Move, &[Slot::Def(r), s]);
            return Ok(());
        }
        let Some((sreg, _)) = mv::Sreg::of(name) else {
            return Err(Error::unsupported(self.line(), name, "unknown special register"));
        };
        let p = self.emit(handler::<mv::Special>(), Class::Move, &[Slot::Def(r)]);
        p.imm = sreg as u64;
        p.y = u32::from(wide);
        Ok(())
    }

    fn instruction(&mut self, inst: &Inst) -> Result<()> {
        if inst.guard.is_some_and(|(r, _)| self.reg_ty(r) != Ty::Pred) {
            return self.bad("its guard is no predicate");
        }
        let mut m = Mods::new(inst);
        let base = m.base();
        match opcodes::unknown_part(base, m.rest()) {
            // `.branchtargets` and the like, which the parser keeps.
            _ if base.is_empty() => {}
            Ok(None) => {}
            Ok(Some(part)) => return Err(m.unknown(&format!("modifier `.{part}`"))),
            Err(()) => return Err(m.unknown("unknown instruction")),
        }
        if self.control(base, &mut m, inst)?
            || self.moves(base, &mut m, inst)?
            || self.loads(base, &mut m, inst)?
            || self.integer(base, &mut m, inst)?
            || self.floating(base, &mut m, inst)?
            || self.synchronise(base, &mut m, inst)?
            || self.matrices(base, &mut m, inst)?
        {
            return Ok(());
        }
        Err(m.unknown("unknown instruction"))
    }
}

/// The base of a space's window among generic addresses.
fn window(space: Space) -> Option<u64> {
    match space {
        Space::Global | Space::Const | Space::Generic => Some(0),
        Space::Shared | Space::Cluster => Some(SHARED_WINDOW),
        Space::Local => Some(LOCAL_WINDOW),
        Space::Param => Some(PARAM_WINDOW),
    }
}

/// Picks an instantiation by flags: `by_flags!(Type, a, b)` is `Type<a, b>`.
macro_rules! by_flags {
    ($($t:ident)::+, $a:expr) => {
        if $a { $crate::exec::handler::<$($t)::+<true>>() } else { $crate::exec::handler::<$($t)::+<false>>() }
    };
    ($($t:ident)::+, $a:expr, $b:expr) => {
        match ($a, $b) {
            (false, false) => $crate::exec::handler::<$($t)::+<false, false>>(),
            (false, true) => $crate::exec::handler::<$($t)::+<false, true>>(),
            (true, false) => $crate::exec::handler::<$($t)::+<true, false>>(),
            (true, true) => $crate::exec::handler::<$($t)::+<true, true>>(),
        }
    };
}
use by_flags;

/// Picks `Type<CMP>` for the comparison number `$cmp`.
macro_rules! by_cmp {
    // Integers are always ordered.
    (int $h:ident, $($t:ident)::+, $cmp:expr) => {
        match $cmp {
            0 => $crate::exec::$h::<$($t)::+<0>>(),
            1 => $crate::exec::$h::<$($t)::+<1>>(),
            2 => $crate::exec::$h::<$($t)::+<2>>(),
            3 => $crate::exec::$h::<$($t)::+<3>>(),
            4 => $crate::exec::$h::<$($t)::+<4>>(),
            _ => $crate::exec::$h::<$($t)::+<5>>(),
        }
    };
    ($h:ident, $($t:ident)::+, $cmp:expr $(, $g:expr)*) => {
        match $cmp {
            0 => $crate::exec::$h::<$($t)::+<0 $(, $g)*>>(),
            1 => $crate::exec::$h::<$($t)::+<1 $(, $g)*>>(),
            2 => $crate::exec::$h::<$($t)::+<2 $(, $g)*>>(),
            3 => $crate::exec::$h::<$($t)::+<3 $(, $g)*>>(),
            4 => $crate::exec::$h::<$($t)::+<4 $(, $g)*>>(),
            5 => $crate::exec::$h::<$($t)::+<5 $(, $g)*>>(),
            6 => $crate::exec::$h::<$($t)::+<6 $(, $g)*>>(),
            7 => $crate::exec::$h::<$($t)::+<7 $(, $g)*>>(),
            8 => $crate::exec::$h::<$($t)::+<8 $(, $g)*>>(),
            9 => $crate::exec::$h::<$($t)::+<9 $(, $g)*>>(),
            10 => $crate::exec::$h::<$($t)::+<10 $(, $g)*>>(),
            11 => $crate::exec::$h::<$($t)::+<11 $(, $g)*>>(),
            12 => $crate::exec::$h::<$($t)::+<12 $(, $g)*>>(),
            _ => $crate::exec::$h::<$($t)::+<13 $(, $g)*>>(),
        }
    };
}
use by_cmp;

#[allow(unused_imports, reason = "shared by the decoder's parts")]
use {Layout as _, Op as _, OpInfo as _, System as _, Table as _, Target as _};
