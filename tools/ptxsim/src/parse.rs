//! PTX text to [`Ast`]: directives, declarations, scopes and statements. Recursion is bounded, and so is the memory that
//! a declaration can ask for.

use std::collections::HashMap;

use crate::ast::*;
use crate::lex::{Lexer, Tok};
use crate::{Error, Result};

/// Nested scopes and nested initialisers.
const MAX_DEPTH: usize = 64;
/// Registers a function may declare.
const MAX_REGS: u64 = 1 << 22;
/// Bytes a variable may have.
const MAX_VAR: u64 = 1 << 36;
/// Bytes the initialised part of a variable may have.
const MAX_INIT: u64 = 1 << 28;

pub(crate) fn parse(text: &str) -> Result<Ast> {
    let mut lexer = Lexer::new(text);
    let tok = lexer.next()?;
    let mut p = Parser { line: lexer.line, lexer, tok, ast: Ast::default(), loc: 0 };
    p.ast.locs.push((0, 0));
    p.module()?;
    Ok(p.ast)
}

/// What a name of a function means.
#[derive(Clone, Copy)]
enum Name {
    Reg(RegId),
    /// `%r<n>`: the names `%r0 .. %r(n-1)`.
    Range(RegId, u32),
    Var(VarId),
    Label(LabelId),
}

#[derive(Default)]
struct Scope<'a> {
    names: HashMap<String, Name>,
    /// Labels not declared when they were used: instruction, operand, name.
    pending: Vec<(usize, usize, &'a str)>,
}

/// The body being parsed.
struct Body<'a> {
    f: Function,
    scopes: Vec<Scope<'a>>,
}

/// Stands for a label that is not declared yet.
const UNRESOLVED: LabelId = LabelId::MAX;

struct Parser<'a> {
    lexer: Lexer<'a>,
    tok: Tok<'a>,
    /// Line of `tok`.
    line: u32,
    ast: Ast,
    loc: u32,
}

impl<'a> Parser<'a> {
    fn bump(&mut self) -> Result<Tok<'a>> {
        let t = self.tok;
        self.tok = self.lexer.next()?;
        self.line = self.lexer.line;
        Ok(t)
    }
    fn fail<T>(&self, expected: &str) -> Result<T> {
        let found = match self.tok {
            Tok::Word(w) => format!("`{w}`"),
            Tok::Punct(c) => format!("`{}`", c as char),
            Tok::End => "the end of the text".into(),
            Tok::Str(s) => format!("\"{s}\""),
            Tok::Int(v) => format!("{v}"),
            Tok::F32(_) | Tok::F64(_) => "a floating-point number".into(),
        };
        Err(Error::parse(self.line, format!("expected {expected}, found {found}")))
    }
    fn eat(&mut self, c: u8) -> Result<bool> {
        let yes = self.tok == Tok::Punct(c);
        if yes {
            self.bump()?;
        }
        Ok(yes)
    }
    fn expect(&mut self, c: u8) -> Result<()> {
        if self.eat(c)? { Ok(()) } else { self.fail(&format!("`{}`", c as char)) }
    }
    fn word(&mut self, what: &str) -> Result<&'a str> {
        match self.tok {
            Tok::Word(w) => {
                self.bump()?;
                Ok(w)
            }
            _ => self.fail(what),
        }
    }
    fn eat_word(&mut self, w: &str) -> Result<bool> {
        let yes = self.tok == Tok::Word(w);
        if yes {
            self.bump()?;
        }
        Ok(yes)
    }
    fn int(&mut self) -> Result<u64> {
        match self.tok {
            Tok::Int(v) => {
                self.bump()?;
                Ok(v)
            }
            _ => self.fail("an integer"),
        }
    }
    fn small(&mut self) -> Result<u32> {
        let v = self.int()?;
        u32::try_from(v).or_else(|_| self.fail("a 32-bit integer"))
    }
    fn signed(&mut self) -> Result<i64> {
        let negative = self.eat(b'-')?;
        let v = self.int()? as i64;
        Ok(if negative { v.wrapping_neg() } else { v })
    }
    fn unsupported<T>(&self, directive: &str) -> Result<T> {
        Err(Error::unsupported(self.line, directive, "unknown directive"))
    }

    fn module(&mut self) -> Result<()> {
        loop {
            match self.tok {
                Tok::End => return Ok(()),
                Tok::Punct(b';') => {
                    self.bump()?;
                }
                Tok::Word(w) => match w {
                    ".version" => {
                        self.bump()?;
                        let v = match self.bump()? {
                            Tok::F64(v) => f64::from_bits(v),
                            Tok::Int(v) => v as f64,
                            _ => return self.fail("a version"),
                        };
                        self.ast.version = (v as u32, ((v - v.trunc()) * 10.0).round() as u32);
                    }
                    ".target" => {
                        self.bump()?;
                        self.ast.target = self.word("a target")?.to_string();
                        while self.eat(b',')? {
                            self.word("a target option")?;
                        }
                    }
                    ".address_size" => {
                        self.bump()?;
                        if self.int()? != 64 {
                            return self.fail("`.address_size 64`");
                        }
                    }
                    ".alias" => {
                        self.bump()?;
                        let a = self.word("a function name")?.to_string();
                        self.expect(b',')?;
                        let b = self.word("a function name")?.to_string();
                        self.expect(b';')?;
                        self.ast.aliases.push((a, b));
                    }
                    ".pragma" => self.pragma()?,
                    ".file" => self.file()?,
                    ".loc" => self.loc()?,
                    ".section" => self.section()?,
                    _ => self.definition()?,
                },
                _ => return self.fail("a directive"),
            }
        }
    }

    fn pragma(&mut self) -> Result<()> {
        self.bump()?;
        loop {
            match self.bump()? {
                Tok::Str(_) => {}
                _ => return self.fail("a string"),
            }
            if !self.eat(b',')? {
                return self.expect(b';');
            }
        }
    }

    fn file(&mut self) -> Result<()> {
        self.bump()?;
        let n = self.small()?;
        let Tok::Str(name) = self.bump()? else { return self.fail("a file name") };
        self.ast.files.insert(n, name.to_string());
        while self.eat(b',')? {
            self.int()?;
        }
        Ok(())
    }

    /// `.loc file line column [, function_name label [+ offset], inlined_at file line column]`
    fn loc(&mut self) -> Result<()> {
        self.bump()?;
        let (file, line) = (self.small()?, self.small()?);
        self.int()?;
        self.ast.locs.push((file, line));
        self.loc = (self.ast.locs.len() - 1) as u32;
        while self.eat(b',')? {
            match self.word("`function_name` or `inlined_at`")? {
                "function_name" => {
                    self.word("a label")?;
                    if self.eat(b'+')? {
                        self.int()?;
                    }
                }
                "inlined_at" => {
                    for _ in 0..3 {
                        self.int()?;
                    }
                }
                w => return Err(Error::parse(self.line, format!("unknown .loc attribute `{w}`"))),
            }
        }
        Ok(())
    }

    /// Debug sections carry nothing that runs.
    fn section(&mut self) -> Result<()> {
        self.bump()?;
        self.word("a section name")?;
        self.expect(b'{')?;
        while !self.eat(b'}')? {
            if self.tok == Tok::End {
                return self.fail("`}`");
            }
            self.bump()?;
        }
        Ok(())
    }

    /// A variable or function of the module, with its linking directives.
    fn definition(&mut self) -> Result<()> {
        let mut external = false;
        loop {
            let Tok::Word(w) = self.tok else { return self.fail("a declaration") };
            match w {
                ".visible" | ".weak" | ".common" => {}
                ".extern" => external = true,
                ".entry" => return self.function(true, external),
                ".func" => return self.function(false, external),
                ".global" | ".const" | ".shared" => {
                    self.bump()?;
                    let space = space_of(w);
                    return loop {
                        let v = self.variable(space, external)?;
                        self.ast.vars.push(v);
                        if !self.eat(b',')? {
                            break self.expect(b';');
                        }
                    };
                }
                _ => return self.unsupported(w),
            }
            self.bump()?;
        }
    }

    /// `.align 4 .b32 name[2][3] = {...}`, after its space.
    fn variable(&mut self, space: Space, external: bool) -> Result<Var> {
        let line = self.line;
        let mut align = None;
        let mut lanes = 1u64;
        let ty = loop {
            let w = self.word("a type")?;
            match w {
                ".align" => align = Some(self.small()?),
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                ".v8" => lanes = 8,
                ".attribute" => {
                    self.expect(b'(')?;
                    while !self.eat(b')')? {
                        if self.tok == Tok::End {
                            return self.fail("`)`");
                        }
                        self.bump()?;
                    }
                }
                ".ptr" | ".global" | ".shared" | ".const" | ".local" | ".param" => {}
                _ => match w.strip_prefix('.').and_then(Ty::parse) {
                    Some(Ty::Pred) | None => {
                        return Err(Error::parse(line, format!("`{w}` is not a type of a variable")));
                    }
                    Some(t) => break t,
                },
            }
        };
        // `.ptr .global .align 8` follow the type of a kernel parameter.
        while let Tok::Word(w @ (".ptr" | ".global" | ".shared" | ".const" | ".local" | ".align")) = self.tok
        {
            self.bump()?;
            if w == ".align" {
                self.int()?;
            }
        }
        let name = self.word("a name")?.to_string();
        let element = u64::from(ty.bytes()) * lanes;
        let mut dims = Vec::new();
        let mut open = false;
        while self.eat(b'[')? {
            if self.eat(b']')? {
                open = true;
                dims.push(0);
            } else {
                dims.push(self.int()?);
                self.expect(b']')?;
            }
        }
        let mut bytes = dims.iter().try_fold(element, |n, &d| n.checked_mul(d)).unwrap_or(u64::MAX);
        if bytes > MAX_VAR {
            return Err(Error::parse(line, format!("variable `{name}` is larger than {MAX_VAR} bytes")));
        }
        let align = align.unwrap_or(element as u32);
        if !align.is_power_of_two() || align > 1 << 20 {
            return Err(Error::parse(
                line,
                format!("variable `{name}`: alignment {align} is not a power of two up to 2^20"),
            ));
        }
        let mut v = Var { space, name, align, bytes, init: Vec::new(), relocs: Vec::new(), external, line };
        if self.eat(b'=')? {
            self.initialiser(&mut v, ty.bytes(), 0)?;
            if open && v.bytes == 0 {
                bytes = (v.init.len() as u64).next_multiple_of(element.max(1));
                v.bytes = bytes;
            }
            if v.init.len() as u64 > bytes {
                return Err(Error::parse(
                    line,
                    format!("variable `{}` has {bytes} bytes, its initialiser {}", v.name, v.init.len()),
                ));
            }
        }
        Ok(v)
    }

    /// Nested braces are laid out one after the other, as nvcc writes full rows.
    fn initialiser(&mut self, v: &mut Var, size: u32, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return self.fail("fewer nested braces");
        }
        if self.eat(b'{')? {
            while !self.eat(b'}')? {
                self.initialiser(v, size, depth + 1)?;
                if !self.eat(b',')? {
                    self.expect(b'}')?;
                    break;
                }
            }
            return Ok(());
        }
        if v.init.len() as u64 >= MAX_INIT {
            return self.fail("a shorter initialiser");
        }
        let negative = self.eat(b'-')?;
        let sign = |x: u64| if negative { (x as i64).wrapping_neg() as u64 } else { x };
        let value = match self.bump()? {
            Tok::Int(x) => sign(x),
            Tok::F32(x) => u64::from(x),
            Tok::F64(x) if size == 4 => {
                let f = f64::from_bits(x) as f32;
                u64::from((if negative { -f } else { f }).to_bits())
            }
            Tok::F64(x) => x ^ (u64::from(negative) << 63),
            Tok::Word(name) => {
                let (name, shift) = if self.tok == Tok::Punct(b'(') { self.masked(name)? } else { (name, 0) };
                let name = match name {
                    "generic" => {
                        self.expect(b'(')?;
                        let n = self.word("a symbol")?;
                        self.expect(b')')?;
                        n
                    }
                    n => n,
                };
                let addend = match self.tok {
                    Tok::Punct(b'+') => {
                        self.bump()?;
                        self.signed()?
                    }
                    Tok::Punct(b'-') => self.signed()?,
                    _ => 0,
                };
                let offset = v.init.len() as u64;
                v.relocs.push(Reloc { offset, bytes: size, shift, symbol: name.to_string(), addend });
                0
            }
            _ => return self.fail("a value"),
        };
        if size > 8 {
            return self.fail("elements of at most 8 bytes in an initialiser");
        }
        v.init.extend_from_slice(&value.to_le_bytes()[..size as usize]);
        Ok(())
    }

    /// `0xFF00(symbol)` is lexed as a number; a word before `(` can only be `generic`.
    fn masked(&mut self, name: &'a str) -> Result<(&'a str, u32)> {
        if name == "generic" { Ok((name, 0)) } else { self.fail("`generic(symbol)`") }
    }

    fn function(&mut self, kernel: bool, external: bool) -> Result<()> {
        let line = self.line;
        self.bump()?;
        let mut b =
            Body { f: Function { kernel, line, ..Function::default() }, scopes: vec![Scope::default()] };
        while self.eat_word(".attribute")? {
            self.expect(b'(')?;
            while !self.eat(b')')? {
                if self.bump()? == Tok::End {
                    return self.fail("`)`");
                }
            }
        }
        if !kernel && self.tok == Tok::Punct(b'(') {
            self.params(&mut b, true)?;
        }
        b.f.name = self.word("a function name")?.to_string();
        if self.tok == Tok::Punct(b'(') {
            self.params(&mut b, false)?;
        }
        loop {
            match self.tok {
                Tok::Word(w) => {
                    self.bump()?;
                    match w {
                        ".noreturn" | ".explicitcluster" | ".blocksareclusters" => {}
                        ".maxntid" => {
                            let [x, y, z] = self.triple()?;
                            b.f.max_threads = x.checked_mul(y).and_then(|v| v.checked_mul(z));
                        }
                        ".reqntid" => b.f.required_block = Some(self.triple()?),
                        ".reqnctapercluster" => b.f.required_cluster = Some(self.triple()?),
                        ".maxnreg" => b.f.max_registers = Some(self.small()?),
                        ".minnctapersm"
                        | ".maxnctapersm"
                        | ".maxclusterrank"
                        | ".abi_preserve"
                        | ".abi_preserve_control" => {
                            self.small()?;
                        }
                        _ => return self.unsupported(w),
                    }
                }
                Tok::Punct(b';') => {
                    self.bump()?;
                    break;
                }
                Tok::Punct(b'{') => {
                    self.bump()?;
                    b.f.has_body = true;
                    self.block(&mut b, 0)?;
                    break;
                }
                _ if external => break,
                _ => return self.fail("a function body"),
            }
        }
        if let Some(&(_, _, name)) = b.scopes[0].pending.first() {
            return Err(Error::parse(line, format!("function `{}`: `{name}` is not declared", b.f.name)));
        }
        match self.ast.functions.iter().position(|f| f.name == b.f.name) {
            Some(i) if self.ast.functions[i].has_body && b.f.has_body => {
                Err(Error::parse(line, format!("function `{}` is defined twice", b.f.name)))
            }
            Some(_) if !b.f.has_body => Ok(()),
            Some(i) => {
                self.ast.functions[i] = b.f;
                Ok(())
            }
            None => {
                self.ast.functions.push(b.f);
                Ok(())
            }
        }
    }

    fn triple(&mut self) -> Result<[u32; 3]> {
        let mut t = [self.small()?, 1, 1];
        for v in &mut t[1..] {
            if self.eat(b',')? {
                *v = self.small()?;
            }
        }
        Ok(t)
    }

    fn params(&mut self, b: &mut Body<'a>, results: bool) -> Result<()> {
        self.expect(b'(')?;
        while !self.eat(b')')? {
            match self.word("`.param` or `.reg`")? {
                ".param" => {
                    let v = self.variable(Space::Param, false)?;
                    let id = b.f.vars.len() as VarId;
                    let name = v.name.clone();
                    b.f.vars.push(v);
                    if results {
                        b.f.results.push(id)
                    } else {
                        b.f.params.push(id)
                    }
                    b.scopes[0].names.insert(name, Name::Var(id));
                }
                ".reg" => {
                    let w = self.word("a type")?;
                    let Some(ty) = w.strip_prefix('.').and_then(Ty::parse) else {
                        return self.fail("a register type");
                    };
                    let name = self.word("a register name")?;
                    let id = b.f.regs.len() as RegId;
                    b.f.regs.push(ty);
                    if results {
                        b.f.result_regs.push(id)
                    } else {
                        b.f.param_regs.push(id)
                    }
                    b.scopes[0].names.insert(name.into(), Name::Reg(id));
                }
                w => {
                    return Err(Error::parse(self.line, format!("expected `.param` or `.reg`, found `{w}`")));
                }
            }
            if !self.eat(b',')? {
                self.expect(b')')?;
                break;
            }
        }
        Ok(())
    }

    /// Statements up to the closing brace.
    fn block(&mut self, b: &mut Body<'a>, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return self.fail("fewer nested scopes");
        }
        loop {
            match self.tok {
                Tok::Punct(b'}') => {
                    self.bump()?;
                    return Ok(());
                }
                Tok::Punct(b'{') => {
                    self.bump()?;
                    b.scopes.push(Scope::default());
                    self.block(b, depth + 1)?;
                    let inner = b.scopes.pop().unwrap_or_default();
                    if let Some(outer) = b.scopes.last_mut() {
                        outer.pending.extend(inner.pending);
                    }
                }
                Tok::Punct(b';') => {
                    self.bump()?;
                }
                Tok::Punct(b'@') => {
                    self.bump()?;
                    let not = self.eat(b'!')?;
                    let name = self.word("a predicate")?;
                    let Some(r) = self.register(b, name) else {
                        return Err(Error::parse(self.line, format!("predicate `{name}` is not declared")));
                    };
                    let op = self.word("an instruction")?;
                    self.instruction(b, Some((r, not)), op)?;
                }
                Tok::Word(w) if w.starts_with('.') => self.local_directive(b, w)?,
                Tok::Word(w) => {
                    let line = self.line;
                    self.bump()?;
                    if self.eat(b':')? {
                        self.label(b, w, line)?;
                    } else {
                        self.instruction(b, None, w)?;
                    }
                }
                _ => return self.fail("a statement"),
            }
        }
    }

    fn label(&mut self, b: &mut Body<'a>, name: &'a str, line: u32) -> Result<()> {
        let id = b.f.labels.len() as LabelId;
        b.f.labels.push(b.f.insts.len() as u32);
        let Some(scope) = b.scopes.last_mut() else { return self.fail("a scope") };
        if scope.names.insert(name.into(), Name::Label(id)).is_some() {
            return Err(Error::parse(line, format!("`{name}` is declared twice")));
        }
        let pending = std::mem::take(&mut scope.pending);
        for (i, place, wanted) in pending {
            if wanted != name {
                scope.pending.push((i, place, wanted));
            } else if let Some(op) = b.f.insts.get_mut(i).and_then(|inst| inst.operands.get_mut(place)) {
                *op = Operand::Label(id);
            }
        }
        Ok(())
    }

    fn local_directive(&mut self, b: &mut Body<'a>, w: &'a str) -> Result<()> {
        match w {
            ".loc" => self.loc(),
            ".pragma" => self.pragma(),
            ".reg" => {
                self.bump()?;
                let t = self.word("a type")?;
                let ty = match t {
                    ".v2" | ".v4" => return self.unsupported(".reg with a vector type"),
                    _ => match t.strip_prefix('.').and_then(Ty::parse) {
                        Some(t) => t,
                        None => return Err(Error::parse(self.line, format!("`{t}` is not a register type"))),
                    },
                };
                loop {
                    let name = self.word("a register name")?;
                    let base = b.f.regs.len() as RegId;
                    let (n, entry) = if self.eat(b'<')? {
                        let n = self.int()?;
                        self.expect(b'>')?;
                        (n, Name::Range(base, n as u32))
                    } else {
                        (1, Name::Reg(base))
                    };
                    if n.saturating_add(u64::from(base)) > MAX_REGS {
                        return Err(Error::parse(self.line, format!("more than {MAX_REGS} registers")));
                    }
                    b.f.regs.extend(std::iter::repeat_n(ty, n as usize));
                    if let Some(scope) = b.scopes.last_mut() {
                        scope.names.insert(name.into(), entry);
                    }
                    if !self.eat(b',')? {
                        return self.expect(b';');
                    }
                }
            }
            ".shared" | ".local" | ".param" | ".const" | ".global" => {
                self.bump()?;
                loop {
                    let v = self.variable(space_of(w), false)?;
                    let name = v.name.clone();
                    let id = b.f.vars.len() as VarId;
                    b.f.vars.push(v);
                    if let Some(scope) = b.scopes.last_mut() {
                        scope.names.insert(name, Name::Var(id));
                    }
                    if !self.eat(b',')? {
                        return self.expect(b';');
                    }
                }
            }
            ".branchtargets" => {
                self.bump()?;
                // Kept as an instruction, at the place of the label before it.
                let mut operands = Vec::new();
                loop {
                    let name = self.word("a label")?;
                    operands.push(self.label_operand(b, name, b.f.insts.len(), operands.len()));
                    if !self.eat(b',')? {
                        break;
                    }
                }
                self.expect(b';')?;
                b.f.insts.push(Inst {
                    guard: None,
                    opcode: ".branchtargets".into(),
                    operands,
                    line: self.line,
                    loc: 0,
                });
                Ok(())
            }
            ".callprototype" | ".calltargets" => {
                while !matches!(self.tok, Tok::Punct(b';') | Tok::End) {
                    self.bump()?;
                }
                self.expect(b';')
            }
            _ => self.unsupported(w),
        }
    }

    fn label_operand(&self, b: &mut Body<'a>, name: &'a str, inst: usize, place: usize) -> Operand {
        for s in b.scopes.iter().rev() {
            if let Some(&Name::Label(l)) = s.names.get(name) {
                return Operand::Label(l);
            }
        }
        if let Some(s) = b.scopes.last_mut() {
            s.pending.push((inst, place, name));
        }
        Operand::Label(UNRESOLVED)
    }

    fn lookup(&self, b: &Body<'a>, name: &str) -> Option<Name> {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        for s in b.scopes.iter().rev() {
            if let Some(n) = s.names.get(name)
                && !matches!(n, Name::Range(..))
            {
                return Some(*n);
            }
            // `%r12` of `%r<20>`; the digits may also belong to the prefix, as in `%rd1<5>`.
            for d in (1..=digits).rev() {
                let (prefix, number) = name.split_at(name.len() - d);
                if d > 1 && number.starts_with('0') {
                    continue;
                }
                if let (Some(&Name::Range(base, n)), Ok(i)) = (s.names.get(prefix), number.parse::<u32>())
                    && i < n
                {
                    return Some(Name::Reg(base + i));
                }
            }
        }
        None
    }

    fn register(&self, b: &Body<'a>, name: &str) -> Option<RegId> {
        match self.lookup(b, name) {
            Some(Name::Reg(r)) => Some(r),
            _ => None,
        }
    }

    fn instruction(&mut self, b: &mut Body<'a>, guard: Option<(RegId, bool)>, opcode: &'a str) -> Result<()> {
        let (line, loc) = (self.line, self.loc);
        let mut operands = Vec::new();
        let jump = opcode == "bra" || opcode.starts_with("bra.") || opcode.starts_with("brx.");
        let index = b.f.insts.len();
        if !self.eat(b';')? {
            loop {
                let place = operands.len();
                if jump
                    && let Tok::Word(name) = self.tok
                    && self.register(b, name).is_none()
                {
                    self.bump()?;
                    let op = self.label_operand(b, name, index, place);
                    operands.push(op);
                } else {
                    let op = self.operand(b, 0)?;
                    operands.push(op);
                }
                if !self.eat(b',')? {
                    self.expect(b';')?;
                    break;
                }
            }
        }
        b.f.insts.push(Inst { guard, opcode: opcode.into(), operands, line, loc });
        Ok(())
    }

    fn operand(&mut self, b: &Body<'a>, depth: usize) -> Result<Operand> {
        if depth > 8 {
            return self.fail("a simpler operand");
        }
        let first = match self.tok {
            Tok::Punct(b'{') => {
                self.bump()?;
                Operand::Vector(self.list(b, b'}', depth)?)
            }
            Tok::Punct(b'(') => {
                self.bump()?;
                Operand::List(self.list(b, b')', depth)?)
            }
            Tok::Punct(b'!') => {
                self.bump()?;
                let name = self.word("a predicate")?;
                match self.register(b, name) {
                    Some(r) => Operand::NotReg(r),
                    None => {
                        return Err(Error::parse(self.line, format!("predicate `{name}` is not declared")));
                    }
                }
            }
            Tok::Punct(b'[') => {
                self.bump()?;
                self.address(b, depth)?
            }
            Tok::Punct(b'-') => {
                self.bump()?;
                match self.bump()? {
                    Tok::Int(v) => Operand::Int((v as i64).wrapping_neg() as u64),
                    Tok::F32(v) => Operand::F32(v ^ 1 << 31),
                    Tok::F64(v) => Operand::F64(v ^ 1 << 63),
                    _ => return self.fail("a number"),
                }
            }
            Tok::Int(v) => {
                self.bump()?;
                Operand::Int(v)
            }
            Tok::F32(v) => {
                self.bump()?;
                Operand::F32(v)
            }
            Tok::F64(v) => {
                self.bump()?;
                Operand::F64(v)
            }
            Tok::Word("_") => {
                self.bump()?;
                Operand::Sink
            }
            Tok::Word(name) => {
                self.bump()?;
                match self.lookup(b, name) {
                    Some(Name::Reg(r)) => Operand::Reg(r),
                    Some(Name::Var(v)) => Operand::Var(v, self.plus()?),
                    Some(Name::Label(l)) => Operand::Label(l),
                    _ if name.starts_with('%') => Operand::Special(name.to_string()),
                    _ if name == "WARP_SZ" => Operand::Int(32),
                    _ => Operand::Symbol(name.to_string(), self.plus()?),
                }
            }
            _ => return self.fail("an operand"),
        };
        if self.eat(b'|')? {
            let second = self.operand(b, depth + 1)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn plus(&mut self) -> Result<i64> {
        match self.tok {
            Tok::Punct(b'+') => {
                self.bump()?;
                self.signed()
            }
            Tok::Punct(b'-') => self.signed(),
            _ => Ok(0),
        }
    }

    fn list(&mut self, b: &Body<'a>, end: u8, depth: usize) -> Result<Vec<Operand>> {
        let mut out = Vec::new();
        while !self.eat(end)? {
            out.push(self.operand(b, depth + 1)?);
            if !self.eat(b',')? {
                self.expect(end)?;
                break;
            }
        }
        Ok(out)
    }

    fn address(&mut self, b: &Body<'a>, depth: usize) -> Result<Operand> {
        let (base, mut offset) = match self.tok {
            Tok::Int(_) | Tok::Punct(b'-') => (Base::Imm, self.signed()?),
            Tok::Word(name) => {
                self.bump()?;
                match self.lookup(b, name) {
                    Some(Name::Reg(r)) => (Base::Reg(r), 0),
                    Some(Name::Var(v)) => (Base::Var(v), 0),
                    _ if name.starts_with('%') => {
                        return Err(Error::parse(self.line, format!("register `{name}` is not declared")));
                    }
                    _ => (Base::Symbol(name.to_string()), 0),
                }
            }
            _ => return self.fail("an address"),
        };
        offset += self.plus()?;
        let mut coords = Vec::new();
        if self.eat(b',')? {
            match self.operand(b, depth + 1)? {
                Operand::Vector(v) => coords = v,
                _ => return self.fail("`{coordinates}`"),
            }
        }
        self.expect(b']')?;
        Ok(Operand::Addr { base, offset, coords })
    }
}

fn space_of(w: &str) -> Space {
    match w {
        ".global" => Space::Global,
        ".const" => Space::Const,
        ".shared" => Space::Shared,
        ".local" => Space::Local,
        _ => Space::Param,
    }
}
