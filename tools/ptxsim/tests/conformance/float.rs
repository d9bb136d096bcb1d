//! Floating point: arithmetic in every rounding mode, comparisons, conversions, approximate functions, half precision.

use crate::harness::*;
use Want::{Bits, NanF64, Near};

/// An operand of an `.ftz` instruction: subnormals are zeros of their sign.
fn flush(v: f64) -> f64 {
    if v.abs() < f64::from(f32::MIN_POSITIVE) { 0f64.copysign(v) } else { v }
}
fn flush_if(ftz: bool, v: f64) -> f64 {
    if ftz { flush(v) } else { v }
}

/// `x + y + error`, rounded, with the sign that a zero sum has.
fn sum(x: f64, y: f64, f: Format, mode: Mode) -> f64 {
    let (hi, lo) = two_sum(x, y);
    if hi == 0.0 {
        // Zeros of one sign keep it; otherwise the sum is -0 only when rounding down.
        return if x == 0.0 && y == 0.0 && x.is_sign_negative() == y.is_sign_negative() {
            x
        } else if mode == Mode::Rm {
            -0.0
        } else {
            0.0
        };
    }
    round(hi, lo, f, mode)
}
fn quotient(x: f64, y: f64, f: Format, mode: Mode) -> f64 {
    let q = x / y;
    let lo = if q.is_finite() && y.is_finite() { (-q).mul_add(y, x) / y } else { 0.0 };
    round(q, lo, f, mode)
}
fn root(x: f64, f: Format, mode: Mode) -> f64 {
    let q = x.sqrt();
    let lo = if q > 0.0 && q.is_finite() { (-q).mul_add(q, x) / (2.0 * q) } else { 0.0 };
    round(q, lo, f, mode)
}

#[test]
fn f32_add_sub_mul_fma() {
    let v = f32s();
    let few: Vec<u64> = v.iter().copied().step_by(3).chain([0x8000_0000, 0x7f80_0000, 0xff80_0000]).collect();
    let (pairs, triples) = (all([&v, &v]), all([&few, &v, &few]));
    for (name, mode) in MODES {
        for (z, ftz) in [("", false), (".ftz", true)] {
            for (sat, clamp) in [("", false), (".sat", true)] {
                let x = |b| flush_if(ftz, from_f32(b));
                let end = |v: f64| {
                    let v = flush_if(ftz, v);
                    // `.sat`: 0..1, NaN gives +0.
                    f32_bits(if !clamp {
                        v
                    } else if v.is_nan() || v <= 0.0 {
                        0.0
                    } else {
                        v.min(1.0)
                    })
                };
                let m = format!("{name}{z}{sat}.f32");
                check(&format!("add.{m} $d, $a, $b;"), &["b32"; 3], &pairs, |r| {
                    end(sum(x(r[0]), x(r[1]), F32, mode))
                });
                check(&format!("sub.{m} $d, $a, $b;"), &["b32"; 3], &pairs, |r| {
                    end(sum(x(r[0]), -x(r[1]), F32, mode))
                });
                check(&format!("mul.{m} $d, $a, $b;"), &["b32"; 3], &pairs, |r| {
                    end(round(x(r[0]) * x(r[1]), 0.0, F32, mode))
                });
                check(&format!("fma.{m} $d, $a, $b, $c;"), &["b32"; 4], &triples, |r| {
                    end(sum(x(r[0]) * x(r[1]), x(r[2]), F32, mode))
                });
            }
        }
    }
}

#[test]
fn f32_default_forms_round_to_nearest() {
    let v = f32s();
    let x = |b: u64| f32::from_bits(b as u32);
    let end = |v: f32| f32_bits(v.into());
    check("add.f32 $d, $a, $b;", &["b32"; 3], &all([&v, &v]), |r| end(x(r[0]) + x(r[1])));
    check("sub.f32 $d, $a, $b;", &["b32"; 3], &all([&v, &v]), |r| end(x(r[0]) - x(r[1])));
    check("mul.f32 $d, $a, $b;", &["b32"; 3], &all([&v, &v]), |r| end(x(r[0]) * x(r[1])));
    check("mad.rn.f32 $d, $a, $b, $c;", &["b32"; 4], &all([&v, &v, &v[..9]]), |r| {
        end(x(r[0]).mul_add(x(r[1]), x(r[2])))
    });
}

#[test]
fn f32_divide_root_reciprocal() {
    let v = f32s();
    for (name, mode) in MODES {
        for (z, ftz) in [("", false), (".ftz", true)] {
            let x = |b| flush_if(ftz, from_f32(b));
            let end = |v: f64| f32_bits(flush_if(ftz, v));
            let m = format!("{name}{z}.f32");
            check(&format!("div.{m} $d, $a, $b;"), &["b32"; 3], &all([&v, &v]), |r| {
                end(quotient(x(r[0]), x(r[1]), F32, mode))
            });
            check(&format!("rcp.{m} $d, $a;"), &["b32"; 2], &all([&v]), |r| {
                end(quotient(1.0, x(r[0]), F32, mode))
            });
            check(&format!("sqrt.{m} $d, $a;"), &["b32"; 2], &all([&v]), |r| end(root(x(r[0]), F32, mode)));
        }
    }
}

#[test]
fn f32_min_max_abs_neg_copysign() {
    let v = f32s();
    let pairs = all([&v, &v]);
    let lesser = |a: f64, b: f64| if a < b || a == b && a.is_sign_negative() { a } else { b };
    for (z, ftz) in [("", false), (".ftz", true)] {
        let x = |b| flush_if(ftz, from_f32(b));
        // One NaN gives the other operand, or NaN with `.NaN`; -0 is below +0.
        let pick = |r: &[u64], nan: bool, f: &dyn Fn(f64, f64) -> f64| {
            let (a, b) = (x(r[0]), x(r[1]));
            match (a.is_nan(), b.is_nan()) {
                (false, false) => f(a, b),
                (true, false) if !nan => b,
                (false, true) if !nan => a,
                _ => f64::NAN,
            }
        };
        let greater = |a: f64, b: f64| -lesser(-a, -b);
        for (n, nan) in [("", false), (".NaN", true)] {
            check(&format!("min{z}{n}.f32 $d, $a, $b;"), &["b32"; 3], &pairs, |r| {
                f32_bits(pick(r, nan, &lesser))
            });
            check(&format!("max{z}{n}.f32 $d, $a, $b;"), &["b32"; 3], &pairs, |r| {
                f32_bits(pick(r, nan, &greater))
            });
        }
        let numbers: Vec<u64> = v.iter().copied().filter(|&b| !from_f32(b).is_nan()).collect();
        check(&format!("abs{z}.f32 $d, $a;"), &["b32"; 2], &all([&numbers]), |r| f32_bits(x(r[0]).abs()));
        check(&format!("neg{z}.f32 $d, $a;"), &["b32"; 2], &all([&numbers]), |r| f32_bits(-x(r[0])));
    }
    // The sign of the first operand, the magnitude of the second.
    check("copysign.f32 $d, $a, $b;", &["b32"; 3], &pairs, |r| Bits(r[0] & 0x8000_0000 | r[1] & 0x7fff_ffff));
    let w = f64s();
    check("copysign.f64 $d, $a, $b;", &["b64"; 3], &all([&w, &w]), |r| {
        Bits(r[0] & (1 << 63) | r[1] & !(1 << 63))
    });
    for (op, f) in [
        ("finite", f32::is_finite as fn(f32) -> bool),
        ("infinite", f32::is_infinite),
        ("notanumber", f32::is_nan),
        ("number", |v| !v.is_nan()),
        ("normal", |v| v.is_normal() || v == 0.0),
        ("subnormal", f32::is_subnormal),
    ] {
        check(&format!("testp.{op}.f32 $d, $a;"), &["pred", "b32"], &all([&v]), |r| {
            Bits(f(f32::from_bits(r[0] as u32)).into())
        });
    }
}

type Compare = fn(f64, f64) -> bool;
/// Ordered ones are false if an operand is NaN, the others true.
#[allow(clippy::neg_cmp_op_on_partial_ord, reason = "that NaN makes the negation true is the point")]
const COMPARISONS: [(&str, Compare); 14] = [
    ("eq", |a, b| a == b),
    ("ne", |a, b| a != b && !a.is_nan() && !b.is_nan()),
    ("lt", |a, b| a < b),
    ("le", |a, b| a <= b),
    ("gt", |a, b| a > b),
    ("ge", |a, b| a >= b),
    ("equ", |a, b| a == b || a.is_nan() || b.is_nan()),
    ("neu", |a, b| a != b),
    ("ltu", |a, b| !(a >= b)),
    ("leu", |a, b| !(a > b)),
    ("gtu", |a, b| !(a <= b)),
    ("geu", |a, b| !(a < b)),
    ("num", |a, b| !a.is_nan() && !b.is_nan()),
    ("nan", |a, b| a.is_nan() || b.is_nan()),
];

#[test]
fn comparisons() {
    let (v, w) = (f32s(), f64s());
    let h: Vec<u64> = vec![0, 0x8000, 1, 0x3c00, 0xbc00, 0x3e00, 0x7c00, 0xfc00, 0x7e00, 0x7b80];
    for (op, f) in COMPARISONS {
        for (z, ftz) in [("", false), (".ftz", true)] {
            let x = |b| flush_if(ftz, from_f32(b));
            check(&format!("setp.{op}{z}.f32 $d, $a, $b;"), &["pred", "b32", "b32"], &all([&v, &v]), |r| {
                Bits(f(x(r[0]), x(r[1])).into())
            });
        }
        check(&format!("set.{op}.f32.f32 $d, $a, $b;"), &["b32"; 3], &all([&v, &v]), |r| {
            Bits(if f(from_f32(r[0]), from_f32(r[1])) { 0x3f80_0000 } else { 0 })
        });
        check(&format!("set.{op}.u32.f32 $d, $a, $b;"), &["b32"; 3], &all([&v, &v]), |r| {
            Bits(if f(from_f32(r[0]), from_f32(r[1])) { 0xffff_ffff } else { 0 })
        });
        check(&format!("setp.{op}.f64 $d, $a, $b;"), &["pred", "b64", "b64"], &all([&w, &w]), |r| {
            Bits(f(f64::from_bits(r[0]), f64::from_bits(r[1])).into())
        });
        check(&format!("setp.{op}.f16 $d, $a, $b;"), &["pred", "b16", "b16"], &all([&h, &h]), |r| {
            Bits(f(from_f16(r[0]), from_f16(r[1])).into())
        });
        // `.ftz`: subnormals of f16 count as zeros.
        let x = |b: u64| if b & 0x7c00 == 0 { 0.0 } else { from_f16(b) };
        check(&format!("setp.{op}.ftz.f16 $d, $a, $b;"), &["pred", "b16", "b16"], &all([&h, &h]), |r| {
            Bits(f(x(r[0]), x(r[1])).into())
        });
        let code = format!(
            ".reg .b32 %x, %y; .reg .pred %p; mov.b32 %x, {{$a, 0}}; mov.b32 %y, {{$b, 0}}; setp.{op}.ftz.f16x2 $d|%p, %x, %y;"
        );
        check(&code, &["pred", "b16", "b16"], &all([&h, &h]), |r| Bits(f(x(r[0]), x(r[1])).into()));
        check(&format!("setp.{op}.bf16 $d, $a, $b;"), &["pred", "b16", "b16"], &all([&h, &h]), |r| {
            Bits(f(from_bf16(r[0]), from_bf16(r[1])).into())
        });
    }
    let rows = all([&v[..4], &v[..4], &v]);
    // `slct`: the first where c >= 0 (-0 too), the second otherwise and for NaN.
    check("slct.f32.f32 $d, $a, $b, $c;", &["b32"; 4], &rows, |r| {
        Bits(if from_f32(r[2]) >= 0.0 { r[0] } else { r[1] })
    });
    check("selp.f32 $d, $a, $b, $c;", &["b32", "b32", "b32", "pred"], &all([&v, &v[..4], &[0, 1]]), |r| {
        Bits(r[1 - r[2] as usize])
    });
    check("selp.f64 $d, $a, $b, $c;", &["b64", "b64", "b64", "pred"], &all([&w, &w[..4], &[0, 1]]), |r| {
        Bits(r[1 - r[2] as usize])
    });
}

#[test]
fn f64_arithmetic() {
    let w = f64s();
    let x = f64::from_bits;
    let end = |v: f64| if v.is_nan() { NanF64 } else { Bits(v.to_bits()) };
    // A host result moved to the side that its exact error names.
    let directed = |hi: f64, lo: f64, mode: Mode| {
        let down = lo < 0.0;
        match mode {
            _ if lo == 0.0 || !hi.is_finite() => hi,
            Mode::Rm if down => hi.next_down(),
            Mode::Rp if !down => hi.next_up(),
            Mode::Rz if down && hi > 0.0 => hi.next_down(),
            Mode::Rz if !down && hi < 0.0 => hi.next_up(),
            _ => hi,
        }
    };
    // Sums that stay finite and products whose error is representable: there the exact error is known.
    let some: Vec<u64> =
        w.iter().copied().filter(|&b| !x(b).is_finite() || (1e-100..1e100).contains(&x(b).abs())).collect();
    for (name, mode) in MODES {
        check(&format!("add.{name}.f64 $d, $a, $b;"), &["b64"; 3], &all([&some, &some]), |r| {
            let (hi, lo) = two_sum(x(r[0]), x(r[1]));
            end(if hi == 0.0 { if mode == Mode::Rm { -0.0 } else { 0.0 } } else { directed(hi, lo, mode) })
        });
        check(&format!("mul.{name}.f64 $d, $a, $b;"), &["b64"; 3], &all([&some, &some]), |r| {
            let p = x(r[0]) * x(r[1]);
            end(directed(p, if p.is_finite() { x(r[0]).mul_add(x(r[1]), -p) } else { 0.0 }, mode))
        });
        check(&format!("div.{name}.f64 $d, $a, $b;"), &["b64"; 3], &all([&some, &some]), |r| {
            let q = x(r[0]) / x(r[1]);
            let exact = !q.is_finite() || !x(r[1]).is_finite();
            end(directed(
                q,
                if exact { 0.0 } else { (-q).mul_add(x(r[1]), x(r[0])) * x(r[1]).signum() },
                mode,
            ))
        });
        check(&format!("sqrt.{name}.f64 $d, $a;"), &["b64"; 2], &all([&some]), |r| {
            let q = x(r[0]).sqrt();
            end(directed(q, if q.is_finite() { (-q).mul_add(q, x(r[0])) } else { 0.0 }, mode))
        });
    }
    let pairs = all([&w, &w]);
    check("add.f64 $d, $a, $b;", &["b64"; 3], &pairs, |r| end(x(r[0]) + x(r[1])));
    check("sub.f64 $d, $a, $b;", &["b64"; 3], &pairs, |r| end(x(r[0]) - x(r[1])));
    check("mul.f64 $d, $a, $b;", &["b64"; 3], &pairs, |r| end(x(r[0]) * x(r[1])));
    check("div.rn.f64 $d, $a, $b;", &["b64"; 3], &pairs, |r| end(x(r[0]) / x(r[1])));
    check("fma.rn.f64 $d, $a, $b, $c;", &["b64"; 4], &all([&w, &w, &w[..12]]), |r| {
        end(x(r[0]).mul_add(x(r[1]), x(r[2])))
    });
    check("rcp.rn.f64 $d, $a;", &["b64"; 2], &all([&w]), |r| end(1.0 / x(r[0])));
    let lesser = |a: f64, b: f64| {
        if a.is_nan() {
            b
        } else if b.is_nan() || a < b || a == b && a.is_sign_negative() {
            a
        } else {
            b
        }
    };
    check("min.f64 $d, $a, $b;", &["b64"; 3], &pairs, |r| end(lesser(x(r[0]), x(r[1]))));
    check("max.f64 $d, $a, $b;", &["b64"; 3], &pairs, |r| end(-lesser(-x(r[0]), -x(r[1]))));
    let numbers: Vec<u64> = w.iter().copied().filter(|&b| !x(b).is_nan()).collect();
    check("abs.f64 $d, $a;", &["b64"; 2], &all([&numbers]), |r| end(x(r[0]).abs()));
    check("neg.f64 $d, $a;", &["b64"; 2], &all([&numbers]), |r| end(-x(r[0])));
}

/// Directed rounding where results are subnormal, and where what is rounded away is.
#[test]
fn f64_results_near_zero() {
    // Values of 24 bits: products are exact, sums of a product and a value a rounded sum and its error.
    let v: Vec<f64> = [1.0f32, 1.5, 3.0, 0.1, 1.000_000_1, 0.999_999_94, 5.432_1, 7e-9, 1e4]
        .iter()
        .flat_map(|&x| [f64::from(x), -f64::from(x)])
        .collect();
    let scaled = |x: f64, by: i32| x * 2f64.powi(by / 2) * 2f64.powi(by - by / 2);
    for shift in [1000, 1021, 1050, 1074, 1090] {
        // Operands of which one is smaller by that power of two.
        let bits: Vec<u64> = v.iter().map(|x| x.to_bits()).collect();
        let small = Format { p: 53, emin: shift - 1022, max: f64::MAX };
        let want = |v: f64| Bits(scaled(v, -shift).to_bits());
        let x = f64::from_bits;
        // `$a` and `$b` times 2^-(shift / 2) and 2^-(shift - shift / 2), `$c` times both.
        let (half, rest) = (2f64.powi(-(shift / 2)).to_bits(), 2f64.powi(shift / 2 - shift).to_bits());
        let scale = |r: char, by: u64| format!("mul.rn.f64 ${r}, ${r}, 0d{by:016x}; ");
        let (a, b) = (scale('a', half), scale('b', rest));
        let whole = |r: char| scale(r, half) + &scale(r, rest);
        for (name, mode) in MODES {
            let pairs = all([&bits, &bits]);
            check(&format!("{a}{b}mul.{name}.f64 $d, $a, $b;"), &["b64"; 3], &pairs, |r| {
                want(round(x(r[0]) * x(r[1]), 0.0, small, mode))
            });
            check(
                &format!(
                    "{a}.reg .f64 %y; mov.f64 %y, 0d{rest:016x}; rcp.rn.f64 %y, %y; mul.rn.f64 $b, $b, %y; div.{name}.f64 $d, $a, $b;"
                ),
                &["b64"; 3],
                &pairs,
                |r| want(quotient(x(r[0]), x(r[1]), small, mode)),
            );
            // The addend is exact where it does not lose bits itself.
            let addends: Vec<u64> = [1.0f64, -1.0, 3.0, -12.0, 4096.0, -1e6].map(f64::to_bits).to_vec();
            if shift <= 1074 {
                check(
                    &format!("{a}{b}{}fma.{name}.f64 $d, $a, $b, $c;", whole('c')),
                    &["b64"; 4],
                    &all([&bits, &bits, &addends]),
                    |r| want(sum(x(r[0]) * x(r[1]), x(r[2]), small, mode)),
                );
            }
        }
    }
    let f64s = Format { p: 53, emin: -1022, max: f64::MAX };
    let small: Vec<u64> = [1.0f64, 2.0, 3.0, 5.0, 1e5].map(|v| scaled(v, -1074).to_bits()).to_vec();
    for (name, mode) in MODES {
        check(&format!("sqrt.{name}.f64 $d, $a;"), &["b64"; 2], &all([&small]), |r| {
            let v = f64::from_bits(r[0]) * 2f64.powi(537) * 2f64.powi(537);
            Bits((root(v, f64s, mode) * 2f64.powi(-537)).to_bits())
        });
        // A product beyond every value, and a sum that is not.
        let huge = (2f64.powi(1000).to_bits(), 2f64.powi(25).to_bits(), (-f64::MAX).to_bits());
        let rows = vec![vec![huge.0, huge.1, huge.2]];
        check(&format!("fma.{name}.f64 $d, $a, $b, $c;"), &["b64"; 4], &rows, |_| {
            // 2^1025 - (2^1024 - 2^971) is 2^1024 + 2^971, too large again.
            Bits(if matches!(mode, Mode::Rz | Mode::Rm) {
                f64::MAX.to_bits()
            } else {
                f64::INFINITY.to_bits()
            })
        });
        let rows = vec![vec![2f64.powi(1000).to_bits(), 2f64.powi(24).to_bits(), huge.2]];
        check(&format!("fma.{name}.f64 $d, $a, $b, $c;"), &["b64"; 4], &rows, |_| {
            Bits(2f64.powi(971 - 1).to_bits() + (1 << 52))
        });
    }
}

/// A 16-bit format: its name, its bounds, from and to bits.
type Half = (&'static str, Format, fn(u64) -> f64, fn(f64) -> u64);
const HALVES: [Half; 2] = [("f16", F16, from_f16, f16_bits), ("bf16", BF16, from_bf16, bf16_bits)];

/// Values of both formats: zeros, subnormals, ones, large, infinities, NaN.
const HALF_VALUES: [u64; 20] = [
    0, 0x8000, 1, 0x8001, 0x03ff, 0x0400, 0x3c00, 0xbc00, 0x3c01, 0x3555, 0x4248, 0xc248, 0x7bff, 0xfbff,
    0x7c00, 0xfc00, 0x7f80, 0xff80, 0x3f80, 0x7fff,
];

#[test]
fn half_precision_arithmetic() {
    let v = HALF_VALUES;
    let (pairs, triples) = (all([&v, &v]), all([&v, &v[5..14], &v[1..16]]));
    for (ty, f, from, to) in HALVES {
        let end = |v: f64| Bits(to(v));
        let x = from;
        let nearest = |hi: f64, lo: f64| round(hi, lo, f, Mode::Rn);
        let add = |a: f64, b: f64| sum(a, b, f, Mode::Rn);
        check(&format!("add.rn.{ty} $d, $a, $b;"), &["b16"; 3], &pairs, |r| end(add(x(r[0]), x(r[1]))));
        check(&format!("sub.rn.{ty} $d, $a, $b;"), &["b16"; 3], &pairs, |r| end(add(x(r[0]), -x(r[1]))));
        check(&format!("mul.rn.{ty} $d, $a, $b;"), &["b16"; 3], &pairs, |r| {
            end(nearest(x(r[0]) * x(r[1]), 0.0))
        });
        check(&format!("fma.rn.{ty} $d, $a, $b, $c;"), &["b16"; 4], &triples, |r| {
            end(add(x(r[0]) * x(r[1]), x(r[2])))
        });
        check(&format!("fma.rn.relu.{ty} $d, $a, $b, $c;"), &["b16"; 4], &triples, |r| {
            let v = add(x(r[0]) * x(r[1]), x(r[2]));
            // relu: negative results become +0, NaN the canonical one.
            end(if v <= 0.0 { 0.0 } else { v })
        });
        let lesser = |a: f64, b: f64| {
            if a.is_nan() {
                b
            } else if b.is_nan() || a < b || a == b && a.is_sign_negative() {
                a
            } else {
                b
            }
        };
        check(&format!("min.{ty} $d, $a, $b;"), &["b16"; 3], &pairs, |r| end(lesser(x(r[0]), x(r[1]))));
        check(&format!("max.{ty} $d, $a, $b;"), &["b16"; 3], &pairs, |r| end(-lesser(-x(r[0]), -x(r[1]))));
        check(&format!("max.NaN.{ty} $d, $a, $b;"), &["b16"; 3], &pairs, |r| {
            let (a, b) = (x(r[0]), x(r[1]));
            end(if a.is_nan() || b.is_nan() { f64::NAN } else { -lesser(-a, -b) })
        });
        let numbers: Vec<u64> = v.iter().copied().filter(|&b| !x(b).is_nan()).collect();
        check(&format!("neg.{ty} $d, $a;"), &["b16"; 2], &all([&numbers]), |r| Bits(r[0] ^ 0x8000));
        check(&format!("abs.{ty} $d, $a;"), &["b16"; 2], &all([&numbers]), |r| Bits(r[0] & 0x7fff));
        // Packed: the same in both halves.
        let two = [0x3c00_0001, 0xfbff_8001, 0x0400_4248, 0x7c00_3f80, 0x7fff_3555];
        let both = |f: &dyn Fn(u64) -> f64| Bits(to(f(16)) << 16 | to(f(0)));
        let h = |r: &[u64], i: usize, s: u64| x(r[i] >> s & 0xffff);
        check(&format!("add.rn.{ty}x2 $d, $a, $b;"), &["b32"; 3], &all([&two, &two]), |r| {
            both(&|s| add(h(r, 0, s), h(r, 1, s)))
        });
        check(&format!("mul.rn.{ty}x2 $d, $a, $b;"), &["b32"; 3], &all([&two, &two]), |r| {
            both(&|s| nearest(h(r, 0, s) * h(r, 1, s), 0.0))
        });
        check(&format!("fma.rn.{ty}x2 $d, $a, $b, $c;"), &["b32"; 4], &all([&two, &two, &two]), |r| {
            both(&|s| add(h(r, 0, s) * h(r, 1, s), h(r, 2, s)))
        });
        check(&format!("max.{ty}x2 $d, $a, $b;"), &["b32"; 3], &all([&two, &two]), |r| {
            both(&|s| -lesser(-h(r, 0, s), -h(r, 1, s)))
        });
    }
    // f16 alone knows .ftz and .sat.
    let subnormal = |v: f64| if v.abs() < 2f64.powi(-14) { 0f64.copysign(v) } else { v };
    check("add.ftz.f16 $d, $a, $b;", &["b16"; 3], &pairs, |r| {
        Bits(f16_bits(subnormal(sum(subnormal(from_f16(r[0])), subnormal(from_f16(r[1])), F16, Mode::Rn))))
    });
    check("mul.sat.f16 $d, $a, $b;", &["b16"; 3], &pairs, |r| {
        let v = round(from_f16(r[0]) * from_f16(r[1]), 0.0, F16, Mode::Rn);
        Bits(f16_bits(if v.is_nan() || v <= 0.0 { 0.0 } else { v.min(1.0) }))
    });
}

#[test]
fn float_to_integer() {
    let modes = [
        ("rni", f64::round_ties_even as fn(f64) -> f64),
        ("rzi", f64::trunc),
        ("rmi", f64::floor),
        ("rpi", f64::ceil),
    ];
    let (mut v, mut w) = (f32s(), f64s());
    let edges = [
        -0.5f32,
        0.5,
        126.5,
        127.5,
        -128.5,
        254.5,
        255.5,
        32767.5,
        65535.5,
        2147483520.0,
        -2147483648.0,
        4294967040.0,
        2147483648.0,
        9.2e18,
        -9.3e18,
        1.8e19,
    ];
    v.extend(edges.map(|f| u64::from(f.to_bits())));
    w.extend(edges.map(|f| f64::from(f).to_bits()));
    for (mode, whole) in modes {
        for (ty, signed, bits) in [
            ("u8", false, 8),
            ("s8", true, 8),
            ("u16", false, 16),
            ("s16", true, 16),
            ("u32", false, 32),
            ("s32", true, 32),
            ("u64", false, 64),
            ("s64", true, 64u32),
        ] {
            let (lo, hi) = if signed {
                (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
            } else {
                (0, (1i128 << bits) - 1)
            };
            let register = if bits == 8 { 16 } else { bits };
            let size = format!("b{register}");
            let end = |v: f64, from64: bool| {
                // NaN gives zero, unless one side has 64 bits: then the top bit.
                let n = if !v.is_nan() {
                    (whole(v) as i128).clamp(lo, hi)
                } else if from64 || bits == 64 {
                    1 << (bits - 1)
                } else {
                    0
                };
                Bits((n as u64) & (u64::MAX >> (64 - register)))
            };
            // The NaN of narrow integers from f64 is left out: the ISA's sentence and its table differ there.
            let w: Vec<u64> =
                w.iter().copied().filter(|&b| bits >= 32 || !f64::from_bits(b).is_nan()).collect();
            check(&format!("cvt.{mode}.{ty}.f32 $d, $a;"), &[&size, "b32"], &all([&v]), |r| {
                end(from_f32(r[0]), false)
            });
            check(&format!("cvt.{mode}.ftz.{ty}.f32 $d, $a;"), &[&size, "b32"], &all([&v]), |r| {
                end(flush(from_f32(r[0])), false)
            });
            check(&format!("cvt.{mode}.{ty}.f64 $d, $a;"), &[&size, "b64"], &all([&w]), |r| {
                end(f64::from_bits(r[0]), true)
            });
            if bits >= 16 {
                check(&format!("cvt.{mode}.{ty}.f16 $d, $a;"), &[&size, "b16"], &all([&HALF_VALUES]), |r| {
                    end(from_f16(r[0]), false)
                });
            }
        }
        // To a whole number of the same format.
        let keep = |v: f64, s: f64| if v == 0.0 { v.copysign(s) } else { v };
        check(&format!("cvt.{mode}.f32.f32 $d, $a;"), &["b32"; 2], &all([&v]), |r| {
            f32_bits(keep(whole(from_f32(r[0])), from_f32(r[0])))
        });
        check(&format!("cvt.{mode}.ftz.f32.f32 $d, $a;"), &["b32"; 2], &all([&v]), |r| {
            f32_bits(keep(whole(flush(from_f32(r[0]))), from_f32(r[0])))
        });
        let numbers: Vec<u64> = w.iter().copied().filter(|&b| !f64::from_bits(b).is_nan()).collect();
        check(&format!("cvt.{mode}.f64.f64 $d, $a;"), &["b64"; 2], &all([&numbers]), |r| {
            Bits(keep(whole(f64::from_bits(r[0])), f64::from_bits(r[0])).to_bits())
        });
    }
}

#[test]
fn integer_to_float() {
    for (name, mode) in MODES {
        for (ty, signed, bits) in [
            ("u8", false, 8),
            ("s8", true, 8),
            ("u16", false, 16),
            ("s16", true, 16),
            ("u32", false, 32),
            ("s32", true, 32),
            ("u64", false, 64),
            ("s64", true, 64u32),
        ] {
            let size = format!("b{}", bits.max(16));
            let mut v = integers(bits);
            if bits >= 32 {
                v.extend([0x0100_0001, 0x0100_0003, 0x7fff_ff40, 0x7fff_ffc0]);
            }
            let x = |b: u64| {
                let n =
                    if signed { i128::from((b << (64 - bits)) as i64 >> (64 - bits)) } else { i128::from(b) };
                (n as f64, (n - n as f64 as i128) as f64)
            };
            check(&format!("cvt.{name}.f32.{ty} $d, $a;"), &["b32", &size], &all([&v]), |r| {
                f32_bits(round(x(r[0]).0, x(r[0]).1, F32, mode))
            });
            check(&format!("cvt.{name}.f64.{ty} $d, $a;"), &["b64", &size], &all([&v]), |r| {
                let (hi, lo) = x(r[0]);
                Bits(round(hi, lo, Format { p: 53, emin: -1022, max: f64::MAX }, mode).to_bits())
            });
            // `.sat`: between 0 and 1.
            for (to, size_to, one) in
                [("f32", "b32", 0x3f80_0000), ("f64", "b64", 1f64.to_bits()), ("f16", "b16", 0x3c00)]
            {
                if bits > 8 || to != "f16" {
                    check(&format!("cvt.{name}.sat.{to}.{ty} $d, $a;"), &[size_to, &size], &all([&v]), |r| {
                        Bits(if x(r[0]).0 >= 1.0 { one } else { 0 })
                    });
                }
            }
            if bits > 8 {
                check(&format!("cvt.{name}.f16.{ty} $d, $a;"), &["b16", &size], &all([&v]), |r| {
                    Bits(f16_bits(round(x(r[0]).0, x(r[0]).1, F16, mode)))
                });
            }
        }
    }
}

#[test]
fn float_to_float() {
    let (v, w) = (f32s(), f64s());
    // Values on both sides of ties of the narrow formats.
    let mut v: Vec<u64> = v;
    v.extend([
        0x3f80_8000,
        0x3f81_8000,
        0x3f80_8001,
        0x3f80_7fff,
        0x3f80_1000,
        0x3f80_3000,
        0x3f80_1001,
        0x3300_0000,
        0x3380_0000,
        0x33c0_0000,
        0x477f_efff,
        0x477f_f000,
        0x7f7f_8000,
        0x0000_8000,
        0x0001_8000,
    ]);
    for (name, mode) in MODES {
        check(&format!("cvt.{name}.f32.f64 $d, $a;"), &["b32", "b64"], &all([&w]), |r| {
            f32_bits(round(f64::from_bits(r[0]), 0.0, F32, mode))
        });
        check(&format!("cvt.{name}.f16.f32 $d, $a;"), &["b16", "b32"], &all([&v]), |r| {
            Bits(f16_bits(round(from_f32(r[0]), 0.0, F16, mode)))
        });
        check(&format!("cvt.{name}.f16.f64 $d, $a;"), &["b16", "b64"], &all([&w]), |r| {
            Bits(f16_bits(round(f64::from_bits(r[0]), 0.0, F16, mode)))
        });
    }
    for (name, mode) in [("rn", Mode::Rn), ("rz", Mode::Rz)] {
        check(&format!("cvt.{name}.bf16.f32 $d, $a;"), &["b16", "b32"], &all([&v]), |r| {
            Bits(bf16_bits(round(from_f32(r[0]), 0.0, BF16, mode)))
        });
        let relu = |v: f64| if v <= 0.0 { 0.0 } else { v };
        check(&format!("cvt.{name}.relu.bf16.f32 $d, $a;"), &["b16", "b32"], &all([&v]), |r| {
            Bits(bf16_bits(relu(round(from_f32(r[0]), 0.0, BF16, mode))))
        });
        // The first operand goes to the upper half.
        let pairs = all([&v, &v[..7]]);
        check(&format!("cvt.{name}.bf16x2.f32 $d, $a, $b;"), &["b32"; 3], &pairs, |r| {
            let h = |i: usize| bf16_bits(round(from_f32(r[i]), 0.0, BF16, mode));
            Bits(h(0) << 16 | h(1))
        });
        check(&format!("cvt.{name}.f16x2.f32 $d, $a, $b;"), &["b32"; 3], &pairs, |r| {
            let h = |i: usize| f16_bits(round(from_f32(r[i]), 0.0, F16, mode));
            Bits(h(0) << 16 | h(1))
        });
    }
    check("cvt.f64.f32 $d, $a;", &["b64", "b32"], &all([&v]), |r| {
        if from_f32(r[0]).is_nan() { NanF64 } else { Bits(from_f32(r[0]).to_bits()) }
    });
    check("cvt.ftz.f64.f32 $d, $a;", &["b64", "b32"], &all([&v]), |r| {
        if from_f32(r[0]).is_nan() { NanF64 } else { Bits(flush(from_f32(r[0])).to_bits()) }
    });
    check("cvt.f32.f16 $d, $a;", &["b32", "b16"], &all([&HALF_VALUES]), |r| f32_bits(from_f16(r[0])));
    let numbers: Vec<u64> = HALF_VALUES.iter().copied().filter(|&b| !from_bf16(b).is_nan()).collect();
    check("cvt.f32.bf16 $d, $a;", &["b32", "b16"], &all([&numbers]), |r| f32_bits(from_bf16(r[0])));
    check("cvt.f64.f16 $d, $a;", &["b64", "b16"], &all([&HALF_VALUES]), |r| {
        if from_f16(r[0]).is_nan() { NanF64 } else { Bits(from_f16(r[0]).to_bits()) }
    });
    check("cvt.sat.f32.f32 $d, $a;", &["b32"; 2], &all([&v]), |r| {
        let v = from_f32(r[0]);
        f32_bits(if v.is_nan() || v <= 0.0 { 0.0 } else { v.min(1.0) })
    });
    let finite: Vec<u64> = v.iter().copied().filter(|&b| from_f32(b).is_finite()).collect();
    check("cvt.rna.tf32.f32 $d, $a;", &["b32"; 2], &all([&finite]), |r| {
        Bits(((round(from_f32(r[0]), 0.0, TF32, Mode::Rna)) as f32).to_bits().into())
    });
    // fp8: to nearest, what is too large becomes the largest; the first operand goes to the upper byte.
    let v: Vec<u64> = v
        .iter()
        .copied()
        .chain(
            [300.0f32, 447.0, 448.0, 470.0, 1e-3, 2e-3, 0.017, 0.0146, 57344.0, 61440.0, 1e-5]
                .map(|f| f.to_bits().into()),
        )
        .collect();
    for (ty, f, e, m, nan) in [("e4m3", E4M3, 4, 3, 0x7f), ("e5m2", E5M2, 5, 2, 0x7f)] {
        let one = |b: u64| {
            let r = round(from_f32(b), 0.0, f, Mode::Rn);
            small_bits(if r.is_infinite() { f.max.copysign(r) } else { r }, f, e, m, nan)
        };
        check(
            &format!("cvt.rn.satfinite.{ty}x2.f32 $d, $a, $b;"),
            &["b16", "b32", "b32"],
            &all([&v, &v[..7]]),
            |r| Bits(one(r[0]) << 8 | one(r[1])),
        );
    }
}

#[test]
fn approximate_functions_within_their_documented_errors() {
    let v = f32s();
    let numbers: Vec<u64> =
        [-20.0f32, -3.0, -1.0, -0.3, -0.01, 0.01, 0.3, 0.7, 0.99, 1.0, 1.01, 1.7, 3.0, 6.2, 20.0, 90.0]
            .map(|f| f.to_bits().into())
            .to_vec();
    for z in ["", ".ftz"] {
        let ftz = !z.is_empty();
        let x = |b| flush_if(ftz, from_f32(b));
        // `relative` of the value, or exactly the special value.
        let end = |v: f64, relative: f64| {
            let v = if v.abs() > f64::from(f32::MAX) * (1.0 + 2f64.powi(-25)) {
                f64::INFINITY.copysign(v)
            } else {
                v
            };
            let v = flush_if(ftz, v);
            if v.is_nan() || v == 0.0 || v.is_infinite() {
                f32_bits(v)
            } else {
                Near(v, (v.abs() * relative).max(f64::from(f32::from_bits(1))))
            }
        };
        check(&format!("rcp.approx{z}.f32 $d, $a;"), &["b32"; 2], &all([&v]), |r| {
            end(1.0 / x(r[0]), 2f64.powi(-23))
        });
        check(&format!("sqrt.approx{z}.f32 $d, $a;"), &["b32"; 2], &all([&v]), |r| {
            end(x(r[0]).sqrt(), 2f64.powi(-23))
        });
        check(&format!("rsqrt.approx{z}.f32 $d, $a;"), &["b32"; 2], &all([&v]), |r| {
            end(1.0 / x(r[0]).sqrt(), 2f64.powf(-22.9))
        });
        check(&format!("ex2.approx{z}.f32 $d, $a;"), &["b32"; 2], &all([&v, &[0]]), |r| {
            end(x(r[0]).exp2(), 2f64.powf(-22.5))
        });
        check(&format!("ex2.approx{z}.f32 $d, $a;"), &["b32"; 2], &all([&numbers]), |r| {
            end(x(r[0]).exp2(), 2f64.powf(-22.5))
        });
        check(&format!("lg2.approx{z}.f32 $d, $a;"), &["b32"; 2], &all([&v]), |r| {
            let w = x(r[0]).log2();
            if w.is_finite() && w != 0.0 { Near(w, 2f64.powi(-22) * w.abs().max(1.0)) } else { f32_bits(w) }
        });
        for (op, f) in [("sin", f64::sin as fn(f64) -> f64), ("cos", f64::cos)] {
            let near: Vec<u64> =
                numbers.iter().copied().filter(|&b| from_f32(b).abs() < std::f64::consts::TAU).collect();
            check(&format!("{op}.approx{z}.f32 $d, $a;"), &["b32"; 2], &all([&near]), |r| {
                Near(f(x(r[0])), 2f64.powf(-20.5))
            });
        }
        check(&format!("div.full{z}.f32 $d, $a, $b;"), &["b32"; 3], &all([&numbers, &numbers]), |r| {
            end(x(r[0]) / x(r[1]), 2f64.powi(-22))
        });
        check(&format!("div.approx{z}.f32 $d, $a, $b;"), &["b32"; 3], &all([&numbers, &numbers]), |r| {
            end(x(r[0]) / x(r[1]), 2f64.powi(-22))
        });
    }
    check("tanh.approx.f32 $d, $a;", &["b32"; 2], &all([&numbers]), |r| {
        Near(from_f32(r[0]).tanh(), from_f32(r[0]).tanh().abs() * 2f64.powi(-11))
    });
    let halves = [0x3c00, 0xbc00, 0x3555, 0xc248, 0x0001, 0x4400, 0];
    check("ex2.approx.f16 $d, $a;", &["b16"; 2], &all([&halves]), |r| {
        Bits(f16_bits(round(from_f16(r[0]).exp2(), 0.0, F16, Mode::Rn)))
    });
    check("tanh.approx.f16 $d, $a;", &["b16"; 2], &all([&halves]), |r| {
        Bits(f16_bits(round(from_f16(r[0]).tanh(), 0.0, F16, Mode::Rn)))
    });
}
