//! The floating-point formats below f32: f16, bf16, tf32, e4m3 and e5m2.
//!
//! | format | sign, exponent, fraction bits | bias | largest finite | infinities | canonical NaN |
//! | --- | --- | --- | --- | --- | --- |
//! | f16  | 1, 5, 10 | 15  | 65504 | yes | `0x7fff` |
//! | bf16 | 1, 8, 7  | 127 | 3.3895e38 | yes | `0x7fff` |
//! | tf32 | 1, 8, 10, then 13 ignored bits of a 32-bit register | 127 | 3.4012e38 | yes | `0x7fffffff` |
//! | e4m3 | 1, 4, 3  | 7   | 448 | no (only `S.1111.111` is NaN) | `0x7f` |
//! | e5m2 | 1, 5, 2  | 15  | 57344 | yes | `0x7f` |
//!
//! Source: PTX ISA 9.0, "Alternate Floating-Point Data Formats" and `cvt`.
//!
//! [`Format::from_f64`] and [`Format::from_int`] round once from the exact value with any mode that `cvt`
//! has; the `*_to_f32` and `f32_to_*` functions are branch-free versions of the common cases, which
//! compilers vectorise. Tests compare all of them with arithmetic that shares no code with them.

/// Rounding of a result that the format cannot hold exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// `.rn`: to nearest, ties to even.
    NearestEven,
    /// `.rna`: to nearest, ties away from zero.
    NearestAway,
    /// `.rz`: towards zero.
    Zero,
    /// `.rm`: towards minus infinity.
    Down,
    /// `.rp`: towards plus infinity.
    Up,
}

/// What `cvt` does with a value after, or instead of, rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Narrow {
    /// Rounding mode.
    pub round: Round,
    /// `.satfinite`: infinities and values too large become the largest finite value of their sign.
    pub satfinite: bool,
    /// `.relu`: negative values, -0 included, become +0; NaN stays.
    pub relu: bool,
}

impl Narrow {
    /// Rounding only.
    pub const fn new(round: Round) -> Self {
        Self { round, satfinite: false, relu: false }
    }
}

/// A floating-point format narrower than f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of an f32.
    Bf16,
    /// The tensor cores' 19-bit format, kept in the upper bits of 32.
    Tf32,
    /// FP8 with 4 exponent bits, no infinities.
    E4m3,
    /// FP8 with 5 exponent bits.
    E5m2,
}

impl Format {
    const fn exp_bits(self) -> u32 {
        match self {
            Self::F16 | Self::E5m2 => 5,
            Self::Bf16 | Self::Tf32 => 8,
            Self::E4m3 => 4,
        }
    }

    const fn man_bits(self) -> u32 {
        match self {
            Self::F16 | Self::Tf32 => 10,
            Self::Bf16 => 7,
            Self::E4m3 => 3,
            Self::E5m2 => 2,
        }
    }

    /// Position of the format's lowest bit in its register.
    const fn low_bit(self) -> u32 {
        if matches!(self, Self::Tf32) { 13 } else { 0 }
    }

    const fn bias(self) -> i32 {
        (1 << (self.exp_bits() - 1)) - 1
    }

    /// Bits, without sign and `low_bit`, of the largest finite value.
    const fn max_finite(self) -> u64 {
        match self {
            Self::E4m3 => 0x7e,
            _ => self.infinity() - 1,
        }
    }

    /// Bits, without sign and `low_bit`, of an infinity; in e4m3, which has none, the first encoding beyond.
    const fn infinity(self) -> u64 {
        match self {
            Self::E4m3 => 0x7f,
            _ => ((1 << self.exp_bits()) - 1) << self.man_bits(),
        }
    }

    /// The NaN that conversions produce.
    pub const fn nan(self) -> u32 {
        match self {
            Self::F16 | Self::Bf16 => 0x7fff,
            Self::Tf32 => 0x7fff_ffff,
            Self::E4m3 | Self::E5m2 => 0x7f,
        }
    }

    /// `x` rounded to the format: its bits, in the low 8, 16 or 32 of the result.
    pub fn from_f64(self, x: f64, how: Narrow) -> u32 {
        let bits = x.to_bits();
        let exp = (bits >> 52 & 0x7ff) as i32;
        let man = bits & ((1 << 52) - 1);
        match exp {
            0x7ff if man != 0 => self.nan(),
            0x7ff => self.finish(x.is_sign_negative(), u64::MAX, how),
            0 => self.round(x.is_sign_negative(), man, -1074, how),
            _ => self.round(x.is_sign_negative(), man | 1 << 52, exp - 1075, how),
        }
    }

    /// `x` rounded to the format.
    pub fn from_f32(self, x: f32, how: Narrow) -> u32 {
        self.from_f64(f64::from(x), how)
    }

    /// The integer `x` rounded to the format. `|x|` must be below 2^64, as every PTX integer is.
    pub fn from_int(self, x: i128, how: Narrow) -> u32 {
        self.round(x < 0, x.unsigned_abs() as u64, 0, how)
    }

    /// `(-1)^neg * sig * 2^exp` rounded.
    fn round(self, neg: bool, sig: u64, exp: i32, how: Narrow) -> u32 {
        if sig == 0 {
            return self.finish(neg, 0, how);
        }
        let lead = exp + 63 - sig.leading_zeros() as i32; // exponent of the leading bit
        let min_exp = 1 - self.bias();
        let drop = lead.max(min_exp) - self.man_bits() as i32 - exp; // bits below the last place
        let (kept, rest, half) = match drop {
            ..=0 => (sig << -drop, 0, 1),
            1..=63 => (sig >> drop, sig & ((1 << drop) - 1), 1 << (drop - 1)),
            64 => (0, sig, 1 << 63),
            _ => (0, 1, 2), // less than half of the last place
        };
        let up = match how.round {
            Round::NearestEven => rest > half || rest == half && kept & 1 == 1,
            Round::NearestAway => rest >= half,
            Round::Zero => false,
            Round::Down => neg && rest != 0,
            Round::Up => !neg && rest != 0,
        };
        // A carry out of the fraction moves on into the exponent by itself.
        let scale = u64::try_from(lead - min_exp).unwrap_or(0);
        self.finish(neg, (scale << self.man_bits()) + kept + u64::from(up), how)
    }

    /// Puts the sign on rounded bits, which may lie past the largest finite value.
    fn finish(self, neg: bool, bits: u64, how: Narrow) -> u32 {
        if how.relu && neg {
            return 0;
        }
        let truncates = match how.round {
            Round::NearestEven | Round::NearestAway => false,
            Round::Zero => true,
            Round::Down => !neg,
            Round::Up => neg,
        };
        let bits = if bits <= self.max_finite() {
            bits
        } else if how.satfinite || truncates && bits != u64::MAX {
            self.max_finite()
        } else {
            self.infinity()
        };
        let sign = u64::from(neg) << (self.exp_bits() + self.man_bits());
        ((sign | bits) << self.low_bit()) as u32
    }

    /// The value of the format's `bits`, exactly; a NaN is `0x7fffffff`.
    pub fn to_f32(self, bits: u32) -> f32 {
        match self {
            Self::F16 => canonical(f16_to_f32(bits as u16)),
            Self::Bf16 => canonical(bf16_to_f32(bits as u16)),
            Self::Tf32 => canonical(tf32_to_f32(bits)),
            Self::E4m3 => e4m3_to_f32(bits as u8),
            Self::E5m2 => canonical(e5m2_to_f32(bits as u8)),
        }
    }
}

/// The NaN of single-precision results, `0x7fffffff`.
pub const F32_NAN: f32 = f32::from_bits(0x7fff_ffff);

/// `x`, with every NaN replaced by `0x7fffffff`.
#[inline(always)]
pub fn canonical(x: f32) -> f32 {
    // On the bits: compilers may take any NaN for any other where they see floats.
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff_ffff } else { bits })
}

/// An IEEE-like value of `MAN` fraction bits below an exponent with this `BIAS`, sign at bit `SIGN`.
///
/// An all-ones exponent is infinity or NaN, payload kept.
#[inline(always)]
fn widen<const MAN: u32, const BIAS: u32, const SIGN: u32>(bits: u32) -> f32 {
    let one = 1 << 23; // of the f32 exponent
    let exp_mask = ((1 << (SIGN - MAN)) - 1) << 23;
    let shifted = (bits & ((1 << SIGN) - 1)) << (23 - MAN);
    let rebiased = shifted + (127 - BIAS) * one;
    // A subnormal m*2^(1-BIAS-MAN): read as a normal number of the lowest exponent, less that number's implicit one.
    let base = (128 - BIAS) * one;
    let subnormal = (f32::from_bits(shifted + base) - f32::from_bits(base)).to_bits();
    let magnitude = match shifted & exp_mask {
        0 => subnormal,
        e if e == exp_mask => shifted | (0xff * one),
        _ => rebiased,
    };
    f32::from_bits(magnitude | (bits >> SIGN & 1) << 31)
}

/// The value of f16 bits; NaN payloads are kept.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    widen::<10, 15, 15>(u32::from(bits))
}

/// The value of bf16 bits; NaN payloads are kept.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The value of a register that holds a tf32: its low 13 bits are ignored.
#[inline(always)]
pub fn tf32_to_f32(bits: u32) -> f32 {
    f32::from_bits(bits & !0x1fff)
}

/// The value of e5m2 bits.
#[inline(always)]
pub fn e5m2_to_f32(bits: u8) -> f32 {
    widen::<2, 15, 7>(u32::from(bits))
}

/// The value of e4m3 bits; NaN is `0x7fffffff`.
#[inline(always)]
pub fn e4m3_to_f32(bits: u8) -> f32 {
    let magnitude = u32::from(bits & 0x7f);
    if magnitude == 0x7f {
        return F32_NAN;
    }
    // Unlike IEEE, exponent 15 holds normal numbers; one more exponent bit keeps `widen` from seeing all ones.
    let wide = widen::<3, 7, 8>(magnitude);
    f32::from_bits(wide.to_bits() | u32::from(bits >> 7) << 31)
}

/// `x` to bf16, nearest even; any NaN to `0x7fff`.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if x.is_nan() { 0x7fff } else { rounded }
}

/// `x` to f16, nearest even; any NaN to `0x7fff`.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // Below 2^-14: adding 1/2 makes the FPU round at f16's last place, 2^-24.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
    let out = match magnitude {
        m if m > 0x7f80_0000 => 0x7fff,
        m if m >= 0x4780_0000 => 0x7c00, // 65536 and more
        m if m < 0x3880_0000 => subnormal,
        _ => normal, // rounds up to infinity by itself from 65520 on
    };
    let sign = if x.is_nan() { 0 } else { bits >> 16 & 0x8000 };
    (out | sign) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Format; 5] = [Format::F16, Format::Bf16, Format::Tf32, Format::E4m3, Format::E5m2];
    const MODES: [Round; 5] = [Round::NearestEven, Round::NearestAway, Round::Zero, Round::Down, Round::Up];

    /// (exponent bits, fraction bits, bias, bits of the register below the format, has infinities)
    fn traits(f: Format) -> (u32, u32, i32, u32, bool) {
        match f {
            Format::F16 => (5, 10, 15, 0, true),
            Format::Bf16 => (8, 7, 127, 0, true),
            Format::Tf32 => (8, 10, 127, 13, true),
            Format::E4m3 => (4, 3, 7, 0, false),
            Format::E5m2 => (5, 2, 15, 0, true),
        }
    }

    /// The value by its definition, in f64.
    fn value(f: Format, code: u32) -> f64 {
        let (e, m, bias, _, inf) = traits(f);
        let sign = if code >> (e + m) & 1 == 1 { -1.0 } else { 1.0 };
        let (exp, man) = ((code >> m & ((1 << e) - 1)) as i32, code & ((1 << m) - 1));
        let top = exp == (1 << e) - 1;
        if top && inf {
            return if man == 0 { sign * f64::INFINITY } else { f64::NAN };
        }
        if top && man == (1 << m) - 1 {
            return f64::NAN;
        }
        let frac = f64::from(man) / f64::from(1u32 << m);
        match exp {
            0 => sign * frac * 2f64.powi(1 - bias),
            _ => sign * (1.0 + frac) * 2f64.powi(exp - bias),
        }
    }

    #[test]
    fn every_encoding_has_its_value() {
        for f in ALL {
            let (e, m, _, low, _) = traits(f);
            for code in 0..1u32 << (e + m + 1) {
                let (want, got) = (value(f, code), f.to_f32(code << low));
                match want.is_nan() {
                    true => assert_eq!(got.to_bits(), 0x7fff_ffff, "{f:?} {code:#x}"),
                    false => assert_eq!(f64::from(got).to_bits(), want.to_bits(), "{f:?} {code:#x}"),
                }
            }
        }
        assert_eq!(Format::Tf32.to_f32(0x3f80_1fff), 1.0, "the low 13 bits are ignored");
    }

    /// Rounds by looking both neighbours up and comparing distances; every quantity is exact in f64.
    fn reference(f: Format, finite: &[f64], x: f64, how: Narrow) -> u32 {
        let (e, m, _, low, inf) = traits(f);
        let neg = x.is_sign_negative();
        if x.is_nan() {
            return f.nan();
        }
        if how.relu && neg {
            return 0;
        }
        let a = x.abs();
        let up = match how.round {
            Round::Up => !neg,
            Round::Down => neg,
            _ => false,
        };
        let down = how.round == Round::Zero || matches!(how.round, Round::Up | Round::Down) && !up;
        let n = finite.len() - 1; // code of the largest finite
        // The step past the largest finite value, where an infinity would lie were it a number.
        let past = finite[n] + (finite[n] - finite[n - 1]);
        let i = finite.partition_point(|&v| v <= a) - 1; // finite[i] <= a
        let next = if i < n { finite[i + 1] } else { past };
        let mut code = i;
        if a != finite[i] {
            let (lo, hi) = (a - finite[i], next - a);
            code += usize::from(match how.round {
                Round::NearestEven => hi < lo || hi == lo && i % 2 == 1,
                Round::NearestAway => hi <= lo,
                _ => up && !down,
            });
        }
        if a.is_infinite() && inf && !how.satfinite {
            code = n + 1;
        } else if a.is_infinite() || a > past {
            code = if how.satfinite || down { n } else { n + 1 };
        }
        if how.satfinite {
            code = code.min(n);
        }
        (code as u32 | u32::from(neg) << (e + m)) << low
    }

    #[test]
    fn rounding_is_that_of_the_neighbours() {
        for f in ALL {
            let (e, m, _, _, _) = traits(f);
            let finite: Vec<f64> =
                (0..1u32 << (e + m)).map(|c| value(f, c)).take_while(|v| v.is_finite()).collect();
            let past = 2.0 * finite[finite.len() - 1] - finite[finite.len() - 2];
            let mut xs = vec![0.0, past, 2.0 * past, 1e300, f64::INFINITY, 5e-324, f64::MIN_POSITIVE];
            let step = (finite.len() / 8192).max(1); // tf32 and bf16: a sample; the rest all
            for w in finite.windows(2).step_by(step).chain(finite.windows(2).rev().take(40)) {
                let mid = (w[0] + w[1]) / 2.0;
                xs.extend([
                    w[0],
                    mid.next_down(),
                    mid,
                    mid.next_up(),
                    w[1].next_down(),
                    w[1],
                    w[1].next_up(),
                ]);
            }
            let beyond = (finite[finite.len() - 1] + past) / 2.0;
            xs.extend([beyond.next_down(), beyond, beyond.next_up(), past.next_down(), f64::NAN]);
            for x in xs.iter().flat_map(|&x| [x, -x]) {
                for round in MODES {
                    for (satfinite, relu) in [(false, false), (true, false), (true, true), (false, true)] {
                        if f == Format::E4m3 && !satfinite {
                            continue; // PTX has no such conversion: e4m3 could not hold the overflow
                        }
                        let how = Narrow { round, satfinite, relu };
                        let want = if x.is_nan() { f.nan() } else { reference(f, &finite, x, how) };
                        let got = f.from_f64(x, how);
                        assert_eq!(got, want, "{f:?} {x:e} {how:?}: got {got:#x}, expected {want:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn integers_round_once() {
        let rn = Narrow::new(Round::NearestEven);
        // 2^24 + 2^16 + 1 lies just above a tie of bf16; through f32 it would become the tie.
        assert_eq!(Format::Bf16.from_int((1 << 24) + (1 << 16) + 1, rn), 0x4b81);
        assert_eq!(Format::Bf16.from_int((1 << 24) + (1 << 16), rn), 0x4b80);
        assert_eq!(Format::F16.from_int(65519, rn), 0x7bff);
        assert_eq!(Format::F16.from_int(65520, rn), 0x7c00);
        assert_eq!(Format::F16.from_int(-65520, Narrow::new(Round::Zero)), 0xfbff);
        assert_eq!(Format::F16.from_int(i128::from(u64::MAX), Narrow::new(Round::Zero)), 0x7bff);
        assert_eq!(Format::Bf16.from_int(i128::from(i64::MIN), rn), 0xdf00);
        assert_eq!(Format::F16.from_int(0, rn), 0);
    }

    #[test]
    fn fast_conversions_agree_with_the_general_one() {
        let rn = Narrow::new(Round::NearestEven);
        let mut x = 1u32;
        let sampled = (0..400_000).map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x
        });
        // Every f16 and bf16 pattern with the low bits that decide a rounding.
        let edges = (0..=u16::MAX).flat_map(|h| {
            let wide = f16_to_f32(h).to_bits();
            let tie = [0, 0x0fff, 0x1000, 0x1001, 0x1fff];
            let bf = [0, 0x7fff, 0x8000, 0x8001, 0xffff];
            tie.map(|t| wide | t).into_iter().chain(bf.map(|t| u32::from(h) << 16 | t))
        });
        for bits in sampled.chain(edges) {
            let v = f32::from_bits(bits);
            assert_eq!(u32::from(f32_to_bf16(v)), Format::Bf16.from_f32(v, rn), "{bits:#x}");
            assert_eq!(u32::from(f32_to_f16(v)), Format::F16.from_f32(v, rn), "{bits:#x}");
        }
    }
}
