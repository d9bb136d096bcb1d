//! Python pickles, read as data: no opcode that would import, call or build anything is ever followed.
//!
//! A pickle is a program for a stack machine. Those of the published data sets push numbers, strings, lists and dicts and
//! nothing else (protocols 0 to 2, some from Python 2, whose `str` is bytes), so this machine knows only the opcodes for
//! these, of all protocols up to 5, and refuses the others by name. It has no recursion: objects lie in one table and
//! refer to each other by number, so that a file can neither nest deeper than the stack is, nor grow by repeating what it
//! memoized. [`Pickle::read`] then reads the table into a Rust type with serde, as a JSON file is read, so that
//! the same type serves both.

use crate::{Error, Result};
use serde::de::{self, DeserializeOwned, IntoDeserializer, Visitor};
use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;

/// Objects of one file: two hundred for each of the 142,209 expressions of the largest data set.
const MAX_OBJECTS: usize = 1 << 25;
/// Containers in one another, and marks on the stack. The published files have five.
const MAX_DEPTH: u8 = 64;

/// A Python object; those that it holds are numbers of objects.
#[derive(Debug)]
enum Object {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Box<str>),
    Bytes(Box<[u8]>),
    /// A list or a tuple.
    List(Vec<u32>),
    Dict(Vec<[u32; 2]>),
}

/// What a pickle says.
#[derive(Debug)]
pub struct Pickle {
    objects: Vec<Object>,
    root: u32,
}

impl Pickle {
    /// Runs the pickle in `bytes`. A Python 2 `str` is UTF-8 where it can be and else Latin-1. What follows the pickle
    /// is ignored, as Python does.
    ///
    /// # Errors
    /// [`Error::File`] naming `path`, the opcode and its offset: an opcode that is not for plain data, a value that does not
    /// fit (integers of more than 64 bits), more than 33 million objects, containers more than 64 deep, or a file that ends early.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut machine = Machine { bytes, ..Machine::default() };
        machine.run().map_err(|expected| {
            let at = machine.opcode_at;
            let found = match bytes.get(at) {
                Some(&op) => format!("opcode {} at byte {at}", name(op)),
                None => format!("the end of the file at byte {at}"),
            };
            Error::file(path, format!("a pickle of plain data: {expected}"), found)
        })
    }

    /// The whole as a `T`, as serde_json would read the same data.
    ///
    /// # Errors
    /// [`Error::Field`] naming `path` and the field.
    pub fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<T> {
        // What the file says once may be read several times, but not without end.
        let references = |o: &Object| match o {
            Object::List(list) => list.len(),
            Object::Dict(dict) => 2 * dict.len(),
            _ => 0,
        };
        let visits = Cell::new(1000 + 4 * self.objects.iter().map(references).sum::<usize>());
        let value = Value { pickle: self, id: self.root, visits: &visits, depth: 0 };
        serde_path_to_error::deserialize(value).map_err(|e| Error::Field {
            path: path.into(),
            field: e.path().to_string(),
            expected: "the published layout".into(),
            found: e.inner().to_string(),
        })
    }
}

/// The stack machine. Errors say what was expected of the opcode at `opcode_at`.
#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    opcode_at: usize,
    objects: Vec<Object>,
    /// By object: how deep containers lie in it, as far as that was known when it was filled.
    depths: Vec<u8>,
    stack: Vec<u32>,
    /// Heights of the stack at marks.
    marks: Vec<usize>,
    memo: HashMap<u64, u32>,
}

type Step<T = ()> = std::result::Result<T, String>;

impl Machine<'_> {
    fn run(&mut self) -> Step<Pickle> {
        loop {
            self.opcode_at = self.at;
            let op = self.take(1).map_err(|_| "a STOP at its end")?[0];
            match op {
                b'.' => {
                    let root = self.pop()?;
                    return Ok(Pickle { objects: std::mem::take(&mut self.objects), root });
                }
                0x80 => match self.take(1)?[0] {
                    0..=5 => {}
                    v => return Err(format!("protocol 0 to 5, not {v}")),
                },
                0x95 => {
                    let bytes = self.size(8)?;
                    if bytes > self.bytes.len() - self.at {
                        return Err("a frame that fits the file".into());
                    }
                }
                b'(' => {
                    if self.marks.len() == usize::from(MAX_DEPTH) {
                        return Err(format!("at most {MAX_DEPTH} marks"));
                    }
                    self.marks.push(self.stack.len());
                }
                b'0' if self.stack.len() == self.floor() => drop(self.marked()?),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.marked()?),
                b'2' => {
                    let top = self.pop()?;
                    self.stack.extend([top, top]);
                }
                b'N' => self.push(Object::None)?,
                0x88 => self.push(Object::Bool(true))?,
                0x89 => self.push(Object::Bool(false))?,
                b'K' => {
                    let v = self.size(1)? as i64;
                    self.push(Object::Int(v))?;
                }
                b'M' => {
                    let v = self.size(2)? as i64;
                    self.push(Object::Int(v))?;
                }
                b'J' => {
                    let v = i32::from_le_bytes(self.array()?);
                    self.push(Object::Int(v.into()))?;
                }
                b'I' => {
                    let object = match self.line()? {
                        b"00" => Object::Bool(false),
                        b"01" => Object::Bool(true),
                        line => Object::Int(number(line)?),
                    };
                    self.push(object)?;
                }
                b'L' => {
                    let line = self.line()?;
                    let v = number(line.strip_suffix(b"L").unwrap_or(line))?;
                    self.push(Object::Int(v))?;
                }
                0x8a | 0x8b => {
                    let bytes = self.size(if op == 0x8a { 1 } else { 4 })?;
                    let little = self.take(bytes)?;
                    let sign = little.last().map_or(0, |b| if b & 0x80 != 0 { 0xFF } else { 0 });
                    let fits = little.iter().skip(8).all(|&b| b == sign)
                        && little.get(7).is_none_or(|b| b & 0x80 == sign & 0x80);
                    if !fits {
                        return Err("an integer of at most 64 bits".into());
                    }
                    let mut v = [sign; 8];
                    v.iter_mut().zip(little).for_each(|(v, b)| *v = *b);
                    self.push(Object::Int(i64::from_le_bytes(v)))?;
                }
                b'F' => {
                    let v = text(self.line()?).and_then(|s| s.trim().parse().ok());
                    self.push(Object::Float(v.ok_or("a decimal number")?))?;
                }
                b'G' => {
                    let v = f64::from_be_bytes(self.array()?);
                    self.push(Object::Float(v))?;
                }
                b'S' => {
                    let line = self.line()?.trim_ascii();
                    let v = python2(unquoted(line).ok_or("a quoted string")?);
                    self.push(Object::Str(v))?;
                }
                b'U' | b'T' => {
                    let bytes = self.size(if op == b'U' { 1 } else { 4 })?;
                    let v = python2(self.take(bytes)?.to_vec());
                    self.push(Object::Str(v))?;
                }
                b'V' => {
                    let v = raw_unicode(self.line()?).ok_or("Unicode characters")?;
                    self.push(Object::Str(v.into()))?;
                }
                0x8c | b'X' | 0x8d => {
                    let bytes = self.size(length_width(op))?;
                    let v = text(self.take(bytes)?).ok_or("UTF-8")?.into();
                    self.push(Object::Str(v))?;
                }
                b'C' | b'B' | 0x8e | 0x96 => {
                    let bytes = self.size(length_width(op))?;
                    let v = self.take(bytes)?.into();
                    self.push(Object::Bytes(v))?;
                }
                b']' | b')' => self.push(Object::List(Vec::new()))?,
                b'}' => self.push(Object::Dict(Vec::new()))?,
                b'l' | b't' => {
                    let items = self.marked()?;
                    self.container(Object::List(Vec::new()), &items)?;
                }
                b'd' => {
                    let items = self.marked()?;
                    self.container(Object::Dict(Vec::new()), &items)?;
                }
                0x85..=0x87 => {
                    let first = self.stack.len().checked_sub(usize::from(op - 0x84));
                    let first = first.filter(|&first| first >= self.floor()).ok_or(EMPTY)?;
                    let items = self.stack.split_off(first);
                    self.container(Object::List(Vec::new()), &items)?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.fill(&[item])?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.fill(&[key, value])?;
                }
                b'e' | b'u' => {
                    let items = self.marked()?;
                    self.fill(&items)?;
                }
                b'p' | b'q' | b'r' | 0x94 => {
                    let key = self.memo_key(op)?;
                    let &top = self.stack[self.floor()..].last().ok_or(EMPTY)?;
                    self.memo.insert(key, top);
                }
                b'g' | b'h' | b'j' => {
                    let key = self.memo_key(op)?;
                    let &object = self.memo.get(&key).ok_or("something memoized")?;
                    self.stack.push(object);
                    if self.stack.len() > MAX_OBJECTS {
                        return Err(format!("at most {MAX_OBJECTS} objects on the stack"));
                    }
                }
                _ => {
                    return Err(
                        "numbers, strings, lists and dicts only (nothing is imported or called)".into()
                    );
                }
            }
        }
    }

    fn take(&mut self, bytes: usize) -> Step<&[u8]> {
        let end = self.at.checked_add(bytes).filter(|&end| end <= self.bytes.len());
        let taken = &self.bytes[self.at..end.ok_or("a file that does not end inside it")?];
        self.at += bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// A little-endian unsigned number of `width` bytes.
    fn size(&mut self, width: usize) -> Step<usize> {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(self.take(width)?);
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| "a length of 64 bits".into())
    }

    /// Up to the next newline, which is passed.
    fn line(&mut self) -> Step<&[u8]> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&b| b == b'\n').ok_or("a line that ends")?;
        self.at += end + 1;
        Ok(&rest[..end])
    }

    /// The key of a PUT or GET in any of their codings.
    fn memo_key(&mut self, op: u8) -> Step<u64> {
        match op {
            b'p' | b'g' => u64::try_from(number(self.line()?)?).map_err(|_| "a memo key from 0".into()),
            b'q' | b'h' => self.size(1).map(|k| k as u64),
            b'r' | b'j' => self.size(4).map(|k| k as u64),
            _ => Ok(self.memo.len() as u64),
        }
    }

    /// Where the stack begins for the opcodes after the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Step<u32> {
        if self.stack.len() == self.floor() {
            return Err(EMPTY.into());
        }
        self.stack.pop().ok_or_else(|| EMPTY.into())
    }

    /// Everything after the last mark, which is taken off.
    fn marked(&mut self) -> Step<Vec<u32>> {
        let mark = self.marks.pop().ok_or("a mark below")?;
        Ok(self.stack.split_off(mark))
    }

    fn push(&mut self, object: Object) -> Step {
        if self.objects.len() == MAX_OBJECTS || self.stack.len() == MAX_OBJECTS {
            return Err(format!("at most {MAX_OBJECTS} objects"));
        }
        self.stack.push(self.objects.len() as u32);
        self.objects.push(object);
        self.depths.push(0);
        Ok(())
    }

    fn container(&mut self, empty: Object, items: &[u32]) -> Step {
        self.push(empty)?;
        self.fill(items)
    }

    /// Adds to the list or dict on top of the stack: items, or keys and values in turn.
    fn fill(&mut self, items: &[u32]) -> Step {
        let &id = self.stack[self.floor()..].last().ok_or(EMPTY)?;
        let inner = items.iter().map(|&i| self.depths[i as usize]).max();
        let depth = self.depths[id as usize].max(inner.map_or(0, |d| d + 1));
        if depth >= MAX_DEPTH {
            return Err(format!("lists and dicts at most {MAX_DEPTH} deep"));
        }
        self.depths[id as usize] = depth;
        match &mut self.objects[id as usize] {
            Object::List(list) => list.extend_from_slice(items),
            Object::Dict(dict) => {
                let (pairs, []) = items.as_chunks::<2>() else {
                    return Err("a value for each key".into());
                };
                dict.extend_from_slice(pairs);
            }
            _ => return Err("a list or dict to fill".into()),
        }
        Ok(())
    }
}

const EMPTY: &str = "an object on the stack";

/// Bytes of the length that follows the opcode of a string.
fn length_width(op: u8) -> usize {
    match op {
        0x8c | b'C' => 1,
        b'X' | b'B' => 4,
        _ => 8,
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// A decimal number of at most 64 bits.
fn number(line: &[u8]) -> Step<i64> {
    text(line)
        .and_then(|s| s.trim().parse().ok())
        .ok_or_else(|| "a decimal integer of at most 64 bits".into())
}

/// A Python 2 `str`, which says nothing of its encoding: UTF-8 (so also ASCII), else Latin-1.
fn python2(bytes: Vec<u8>) -> Box<str> {
    match String::from_utf8(bytes) {
        Ok(s) => s.into(),
        Err(e) => e.as_bytes().iter().map(|&b| char::from(b)).collect::<String>().into(),
    }
}

/// The bytes of a Python string literal.
fn unquoted(literal: &[u8]) -> Option<Vec<u8>> {
    let [quote @ (b'\'' | b'"'), inner @ .., end] = literal else { return None };
    if quote != end {
        return None;
    }
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner.iter().copied();
    while let Some(b) = rest.next() {
        if b != b'\\' {
            bytes.push(b);
            continue;
        }
        let digit = |b: u8, radix| char::from(b).to_digit(radix);
        bytes.push(match rest.next()? {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'a' => 7,
            b'b' => 8,
            b'v' => 11,
            b'f' => 12,
            b'x' => (digit(rest.next()?, 16)? * 16 + digit(rest.next()?, 16)?) as u8,
            first @ b'0'..=b'7' => {
                let mut value = u32::from(first - b'0');
                for _ in 0..2 {
                    let Some(d) = rest.clone().next().and_then(|b| digit(b, 8)) else { break };
                    value = value * 8 + d;
                    rest.next();
                }
                u8::try_from(value).ok()?
            }
            same @ (b'\\' | b'\'' | b'"') => same,
            _ => return None,
        });
    }
    Some(bytes)
}

/// Python's codec raw-unicode-escape: Latin-1, and `\uXXXX` and `\UXXXXXXXX`. Pairs of surrogates are one character.
fn raw_unicode(line: &[u8]) -> Option<String> {
    let mut s = String::with_capacity(line.len());
    let mut high = None;
    let mut at = 0;
    while let Some(&b) = line.get(at) {
        let digits = match (b, line.get(at + 1)) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => 0,
        };
        let mut code = u32::from(b);
        if digits > 0 {
            let hex = text(line.get(at + 2..at + 2 + digits)?).filter(|h| !h.starts_with('+'))?;
            code = u32::from_str_radix(hex, 16).ok()?;
            at += 1 + digits;
        } else if let (b'\\', Some(&next)) = (b, line.get(at + 1)) {
            // Neither this backslash nor what follows it opens an escape.
            s.push('\\');
            code = next.into();
            at += 1;
        }
        at += 1;
        match (high.take(), code) {
            (None, 0xD800..=0xDBFF) => high = Some(code),
            (Some(high), 0xDC00..=0xDFFF) => {
                s.push(char::from_u32(0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00))?)
            }
            (None, _) => s.push(char::from_u32(code)?),
            (Some(_), _) => return None,
        }
    }
    if high.is_none() { Some(s) } else { None }
}

/// An opcode as Python's `pickletools` calls it.
fn name(op: u8) -> String {
    let name = match op {
        b'c' => "GLOBAL",
        0x93 => "STACK_GLOBAL",
        b'R' => "REDUCE",
        b'b' => "BUILD",
        b'i' => "INST",
        b'o' => "OBJ",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        b'P' => "PERSID",
        b'Q' => "BINPERSID",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        b'.' => "STOP",
        0x80 => "PROTO",
        0x95 => "FRAME",
        b'(' => "MARK",
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'N' => "NONE",
        0x88 => "NEWTRUE",
        0x89 => "NEWFALSE",
        b'K' => "BININT1",
        b'M' => "BININT2",
        b'J' => "BININT",
        b'I' => "INT",
        b'L' => "LONG",
        0x8a => "LONG1",
        0x8b => "LONG4",
        b'F' => "FLOAT",
        b'G' => "BINFLOAT",
        b'S' => "STRING",
        b'U' => "SHORT_BINSTRING",
        b'T' => "BINSTRING",
        b'V' => "UNICODE",
        0x8c => "SHORT_BINUNICODE",
        b'X' => "BINUNICODE",
        0x8d => "BINUNICODE8",
        b'C' => "SHORT_BINBYTES",
        b'B' => "BINBYTES",
        0x8e => "BINBYTES8",
        0x96 => "BYTEARRAY8",
        b']' => "EMPTY_LIST",
        b')' => "EMPTY_TUPLE",
        b'}' => "EMPTY_DICT",
        b'l' => "LIST",
        b't' => "TUPLE",
        b'd' => "DICT",
        0x85 => "TUPLE1",
        0x86 => "TUPLE2",
        0x87 => "TUPLE3",
        b'a' => "APPEND",
        b's' => "SETITEM",
        b'e' => "APPENDS",
        b'u' => "SETITEMS",
        b'p' => "PUT",
        b'q' => "BINPUT",
        b'r' => "LONG_BINPUT",
        0x94 => "MEMOIZE",
        b'g' => "GET",
        b'h' => "BINGET",
        b'j' => "LONG_BINGET",
        _ => return format!("0x{op:02x}, which no protocol has,"),
    };
    name.into()
}

/// One object, for serde.
#[derive(Clone, Copy)]
struct Value<'a> {
    pickle: &'a Pickle,
    id: u32,
    /// How many more may be visited.
    visits: &'a Cell<usize>,
    depth: u8,
}

impl<'a> Value<'a> {
    fn inner(&self, id: u32) -> Value<'a> {
        Value { id, depth: self.depth + 1, ..*self }
    }
}

impl<'de> de::Deserializer<'de> for Value<'_> {
    type Error = de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, Self::Error> {
        // What is memoized can be in many places, and even inside itself.
        if self.visits.get() == 0 || self.depth == MAX_DEPTH {
            return Err(de::Error::custom("objects that hold themselves, or that repeat without end"));
        }
        self.visits.set(self.visits.get() - 1);
        match &self.pickle.objects[self.id as usize] {
            Object::None => visitor.visit_unit(),
            Object::Bool(v) => visitor.visit_bool(*v),
            Object::Int(v) => visitor.visit_i64(*v),
            Object::Float(v) => visitor.visit_f64(*v),
            Object::Str(v) => visitor.visit_str(v),
            Object::Bytes(v) => visitor.visit_bytes(v),
            Object::List(list) => {
                visitor.visit_seq(de::value::SeqDeserializer::new(list.iter().map(|&id| self.inner(id))))
            }
            Object::Dict(dict) => visitor.visit_map(de::value::MapDeserializer::new(
                dict.iter().map(|&[k, v]| (self.inner(k), self.inner(v))),
            )),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, Self::Error> {
        match self.pickle.objects[self.id as usize] {
            Object::None => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(
        self,
        visitor: V,
    ) -> std::result::Result<V::Value, Self::Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier
    }
}

impl IntoDeserializer<'_> for Value<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
