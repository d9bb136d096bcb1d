//! Conversions of device-side `printf` (CUDA C++ Programming Guide, "Formatted Output").

/// One conversion specification.
#[derive(Default)]
pub(crate) struct Spec {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
    /// 64-bit integer.
    pub long: bool,
}

impl Spec {
    /// Reads a specification after its `%`; `*` takes an argument. Answers its conversion, or `None` at the end of the format.
    pub fn read(
        &mut self,
        chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
        mut arg: impl FnMut(bool) -> u64,
    ) -> Option<char> {
        loop {
            match *chars.peek()? {
                '-' => self.left = true,
                '+' => self.plus = true,
                ' ' => self.space = true,
                '#' => self.alternate = true,
                '0' => self.zero = true,
                _ => break,
            }
            chars.next();
        }
        self.width = number(chars, &mut arg);
        if chars.peek() == Some(&'.') {
            chars.next();
            self.precision = Some(number(chars, &mut arg));
        }
        loop {
            let c = chars.next()?;
            match c {
                'l' | 'j' | 'z' | 't' | 'L' => self.long = true,
                'h' => {}
                _ => return Some(c),
            }
        }
    }

    /// Writes `value` (an f64's bits for floating-point conversions) as C would.
    pub fn write(&self, out: &mut String, kind: char, value: u64, string: Option<&str>) {
        let body = match kind {
            'd' | 'i' => {
                let v = if self.long { value as i64 } else { i64::from(value as i32) };
                self.number(v < 0, v.unsigned_abs().to_string())
            }
            'u' => self.number(false, self.unsigned(value).to_string()),
            'x' => self.number(
                false,
                format!("{}{:x}", if self.alternate { "0x" } else { "" }, self.unsigned(value)),
            ),
            'X' => self.number(
                false,
                format!("{}{:X}", if self.alternate { "0X" } else { "" }, self.unsigned(value)),
            ),
            'o' => self.number(false, format!("{:o}", self.unsigned(value))),
            'p' => format!("{value:#x}"),
            'c' => ((value as u8) as char).to_string(),
            's' => {
                let s = string.unwrap_or("");
                s.chars().take(self.precision.unwrap_or(usize::MAX)).collect()
            }
            _ => self.float(kind, f64::from_bits(value)),
        };
        let fill = self.width.saturating_sub(body.chars().count());
        if self.left {
            out.push_str(&body);
            out.extend(std::iter::repeat_n(' ', fill));
        } else if self.zero && !matches!(kind, 's' | 'c' | 'p') {
            let sign = body.len() - body.trim_start_matches(['-', '+', ' ']).len();
            out.push_str(&body[..sign]);
            out.extend(std::iter::repeat_n('0', fill));
            out.push_str(&body[sign..]);
        } else {
            out.extend(std::iter::repeat_n(' ', fill));
            out.push_str(&body);
        }
    }

    fn unsigned(&self, v: u64) -> u64 {
        if self.long { v } else { u64::from(v as u32) }
    }
    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, _, _) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        }
    }
    fn number(&self, negative: bool, digits: String) -> String {
        let zeros = self.precision.unwrap_or(0).saturating_sub(digits.len());
        format!("{}{}{digits}", self.sign(negative), "0".repeat(zeros))
    }
    fn float(&self, kind: char, v: f64) -> String {
        let sign = self.sign(v.is_sign_negative() && !v.is_nan());
        let a = v.abs();
        let p = self.precision.unwrap_or(6).min(60);
        let body = if v.is_nan() {
            "nan".into()
        } else if v.is_infinite() {
            "inf".into()
        } else {
            match kind {
                'e' | 'E' => exponent(a, p),
                'g' | 'G' => general(a, p.max(1), self.alternate),
                _ => format!("{a:.p$}"),
            }
        };
        let body = if kind.is_ascii_uppercase() { body.to_uppercase() } else { body };
        format!("{sign}{body}")
    }
}

/// Digits, or `*`, at most 4096.
fn number(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, arg: &mut impl FnMut(bool) -> u64) -> usize {
    if chars.peek() == Some(&'*') {
        chars.next();
        return (arg(false) as usize & 0xffff_ffff).min(4096);
    }
    let mut n = 0usize;
    while let Some(d) = chars.peek().and_then(|c| c.to_digit(10)) {
        n = (n * 10 + d as usize).min(4096);
        chars.next();
    }
    n
}
/// `1.5e+00`
fn exponent(a: f64, p: usize) -> String {
    let s = format!("{a:.p$e}");
    let (m, e) = s.split_once('e').unwrap_or((&s, "0"));
    let e: i32 = e.parse().unwrap_or(0);
    format!("{m}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs())
}
fn general(a: f64, p: usize, keep: bool) -> String {
    let e: i32 = format!("{a:.*e}", p - 1).split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let trim = |s: String| match (keep, s.contains('.')) {
        (false, true) => s.trim_end_matches('0').trim_end_matches('.').to_string(),
        _ => s,
    };
    if e < -4 || e >= p as i32 {
        let s = exponent(a, p - 1);
        let (m, rest) = s.split_once('e').unwrap_or((&s, "+00"));
        format!("{}e{rest}", trim(m.to_string()))
    } else {
        trim(format!("{a:.*}", (p as i32 - 1 - e).max(0) as usize))
    }
}
