//! Words, numbers and punctuation of PTX (PTX ISA "Syntax").

use crate::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Tok<'a> {
    /// Names, directives and opcodes with their modifiers: `%tid.x`, `.reg`, `ld.global.L2::128B.v4.u32`.
    Word(&'a str),
    Int(u64),
    F32(u32),
    F64(u64),
    Str(&'a str),
    Punct(u8),
    End,
}

pub(crate) struct Lexer<'a> {
    text: &'a [u8],
    source: &'a str,
    at: usize,
    pub line: u32,
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'%' | b'.')
}

impl<'a> Lexer<'a> {
    pub fn new(source: &'a str) -> Lexer<'a> {
        Lexer { text: source.as_bytes(), source, at: 0, line: 1 }
    }

    fn peek(&self, n: usize) -> u8 {
        self.text.get(self.at + n).copied().unwrap_or(0)
    }

    fn skip_blank(&mut self) -> Result<()> {
        loop {
            match self.peek(0) {
                b'\n' => {
                    self.line += 1;
                    self.at += 1;
                }
                b' ' | b'\t' | b'\r' | 0x0b | 0x0c => self.at += 1,
                b'/' if self.peek(1) == b'/' => {
                    while self.at < self.text.len() && self.peek(0) != b'\n' {
                        self.at += 1;
                    }
                }
                b'/' if self.peek(1) == b'*' => {
                    let start = self.line;
                    self.at += 2;
                    while !(self.peek(0) == b'*' && self.peek(1) == b'/') {
                        if self.at >= self.text.len() {
                            return Err(Error::parse(start, "comment without end"));
                        }
                        self.line += u32::from(self.peek(0) == b'\n');
                        self.at += 1;
                    }
                    self.at += 2;
                }
                _ => return Ok(()),
            }
        }
    }

    pub fn next(&mut self) -> Result<Tok<'a>> {
        self.skip_blank()?;
        let b = self.peek(0);
        if self.at >= self.text.len() || b == 0 {
            return Ok(Tok::End);
        }
        let start = self.at;
        if b.is_ascii_digit() {
            return self.number();
        }
        if is_word(b) {
            loop {
                if is_word(self.peek(0)) {
                    self.at += 1;
                } else if self.peek(0) == b':' && self.peek(1) == b':' {
                    self.at += 2;
                } else {
                    break;
                }
            }
            let word = &self.source[start..self.at];
            // `.reg.b32` is two words: no blank is needed before the type.
            if let Some(end) = word.get(1..).and_then(|w| w.find('.')).map(|n| n + 1)
                && matches!(
                    &word[..end],
                    ".reg" | ".param" | ".local" | ".shared" | ".global" | ".const" | ".v2" | ".v4"
                )
            {
                self.at = start + end;
                return Ok(Tok::Word(&word[..end]));
            }
            return Ok(Tok::Word(word));
        }
        if b == b'"' {
            self.at += 1;
            while self.peek(0) != b'"' {
                if self.at >= self.text.len() || self.peek(0) == b'\n' {
                    return Err(Error::parse(self.line, "string without end"));
                }
                self.at += 1;
            }
            self.at += 1;
            // The bytes between two ASCII quotes of a str are a str.
            return Ok(Tok::Str(&self.source[start + 1..self.at - 1]));
        }
        if b.is_ascii() {
            self.at += 1;
            return Ok(Tok::Punct(b));
        }
        let c = self.source[start..].chars().next().unwrap_or('?');
        Err(Error::parse(self.line, format!("unexpected character `{c}`")))
    }

    fn number(&mut self) -> Result<Tok<'a>> {
        let start = self.at;
        while self.peek(0).is_ascii_alphanumeric()
            || self.peek(0) == b'.'
            || (matches!(self.peek(0), b'+' | b'-') && self.float_exponent(start))
        {
            self.at += 1;
        }
        let text = &self.source[start..self.at];
        let bad = || Error::parse(self.line, format!("`{text}` is not a number"));
        let hex = |s: &str, digits: usize| {
            if s.len() == digits { u64::from_str_radix(s, 16).map_err(|_| bad()) } else { Err(bad()) }
        };
        match text.as_bytes() {
            [b'0', b'f' | b'F', ..] => return Ok(Tok::F32(hex(&text[2..], 8)? as u32)),
            [b'0', b'd' | b'D', ..] => return Ok(Tok::F64(hex(&text[2..], 16)?)),
            _ => {}
        }
        let (digits, radix) = match text.as_bytes() {
            [b'0', b'x' | b'X', ..] => (&text[2..], 16),
            [b'0', b'b' | b'B', ..] => (&text[2..], 2),
            _ if text.contains(['.', 'e', 'E']) => {
                return text.parse::<f64>().map(|v| Tok::F64(v.to_bits())).map_err(|_| bad());
            }
            [b'0', b'0'..=b'7', ..] => (&text[1..], 8),
            _ => (text, 10),
        };
        let digits = digits.trim_end_matches(['u', 'U', 'l', 'L']);
        u64::from_str_radix(digits, radix).map(Tok::Int).map_err(|_| bad())
    }

    /// Whether the sign here belongs to the exponent of a decimal number that began at `start`.
    fn float_exponent(&self, start: usize) -> bool {
        let t = &self.text[start..self.at];
        matches!(t.last(), Some(b'e' | b'E'))
            && !matches!(t, [b'0', b'x' | b'X' | b'f' | b'F' | b'd' | b'D', ..])
    }
}
