//! Forms that compilers seldom write: the rest of what `OPCODES` lists.

use crate::harness::{Want::Bits, *};
use half::{bf16, f16};

const M32: u64 = 0xffff_ffff;

fn numbers(f: &[f32], to: fn(f32) -> u16) -> Vec<u64> {
    f.iter().map(|&v| to(v).into()).collect()
}

#[test]
fn products_of_24_bits() {
    let v = integers(32);
    for (ty, signed) in [("u32", false), ("s32", true)] {
        let x = |v: u64| {
            let v = (v & 0xff_ffff) as i128;
            if signed && v >> 23 == 1 { v - (1 << 24) } else { v }
        };
        for (part, shift) in [("lo", 0), ("hi", 16)] {
            let product = |r: &[u64]| (x(r[0]) * x(r[1])) >> shift;
            check(&format!("mul24.{part}.{ty} $d, $a, $b;"), &["b32"; 3], &all([&v, &v]), |r| {
                Bits(product(r) as u64 & M32)
            });
            check(&format!("mad24.{part}.{ty} $d, $a, $b, $c;"), &["b32"; 4], &all([&v, &v, &v]), |r| {
                Bits((product(r) + r[2] as i128) as u64 & M32)
            });
        }
    }
}

#[test]
fn masks_extensions_and_nth_bits() {
    let v = [0, 1, 5, 8, 31, 32, 33, 40, 64, 0xffff_ffff];
    let (clamp, wrap) = ((|n: u64| n.min(32)) as fn(u64) -> u64, (|n: u64| n & 31) as fn(u64) -> u64);
    for (mode, n) in [("clamp", clamp), ("wrap", wrap)] {
        check(&format!("bmsk.{mode}.b32 $d, $a, $b;"), &["b32"; 3], &all([&v, &v]), |r| {
            Bits(((1u64 << n(r[1])) - 1) << n(r[0]) & M32)
        });
        for (ty, signed) in [("u32", false), ("s32", true)] {
            check(&format!("szext.{mode}.{ty} $d, $a, $b;"), &["b32"; 3], &all([&integers(32), &v]), |r| {
                let n = n(r[1]);
                let low = r[0] & ((1 << n) - 1);
                let negative = signed && n > 0 && low >> (n - 1) == 1;
                Bits(if negative { low | M32 & !((1 << n) - 1) } else { low })
            });
        }
    }
    let offsets: Vec<u64> = (-4..=4).map(|n: i32| u64::from(n as u32)).collect();
    check("fns.b32 $d, $a, $b, $c;", &["b32"; 4], &all([&integers(32), &[0, 3, 16, 31], &offsets]), |r| {
        let set = |i: &u64| r[0] >> i & 1 == 1;
        let n = r[2] as u32 as i32;
        let found = match n {
            0 => Some(r[1]).filter(set),
            1.. => (r[1]..32).filter(set).nth(n as usize - 1),
            _ => (0..=r[1]).rev().filter(set).nth(-n as usize - 1),
        };
        Bits(found.unwrap_or(M32))
    });
}

#[test]
fn carries_of_every_width_and_type() {
    for (bits, ones) in [(32u32, M32), (64, u64::MAX)] {
        let v: Vec<u64> = integers(bits);
        let some = [v[0], v[1], v[5], v[8], v[11]];
        let (b, quads) = (format!("b{bits}"), all([&some, &v, &some, &v]));
        let types = [&*b; 5];
        // {$b $a} and {$e $c}.
        let wide = |lo: u64, hi: u64| u128::from(lo) | u128::from(hi) << bits;
        let high = |w: u128| Bits((w >> bits) as u64 & ones);
        for (ty, signed) in [("u", false), ("s", true)] {
            let (t, low) = (format!("{ty}{bits}"), format!(".reg .{b} %l;"));
            check(&format!("{low} add.cc.{t} %l, $a, $c; addc.{t} $d, $b, $e;"), &types, &quads, |r| {
                high(wide(r[0], r[1]).wrapping_add(wide(r[2], r[3])))
            });
            check(&format!("{low} sub.cc.{t} %l, $a, $c; subc.{t} $d, $b, $e;"), &types, &quads, |r| {
                high(wide(r[0], r[1]).wrapping_sub(wide(r[2], r[3])))
            });
            // The carry and the borrow out of both words.
            let carry = format!("{low} add.cc.{t} %l, $a, $c; addc.cc.{t} %l, $b, $e; addc.{t} $d, 0, 0;");
            check(&carry, &types, &quads, |r| {
                let low = u64::from(u128::from(r[0]) + u128::from(r[2]) > ones.into());
                Bits(u64::from(u128::from(r[1]) + u128::from(r[3]) + u128::from(low) > ones.into()))
            });
            let borrow = format!("{low} sub.cc.{t} %l, $a, $c; subc.cc.{t} %l, $b, $e; subc.{t} $d, 0, 0;");
            check(&borrow, &types, &quads, |r| {
                Bits(if wide(r[0], r[1]) < wide(r[2], r[3]) { ones } else { 0 })
            });
            // $a * $b + {$e $c}, and with the carry of the low halves once more.
            let x = |v: u64| {
                if signed { i128::from((v << (64 - bits)) as i64 >> (64 - bits)) } else { i128::from(v) }
            };
            let product = |r: &[u64]| {
                if bits == 64 && !signed {
                    (u128::from(r[0]) * u128::from(r[1])) as i128
                } else {
                    x(r[0]) * x(r[1])
                }
            };
            let mul = format!("{low} mad.lo.cc.{t} %l, $a, $b, $c; madc.hi.{t} $d, $a, $b, $e;");
            check(&mul, &types, &quads, |r| high((product(r) as u128).wrapping_add(wide(r[2], r[3]))));
            let lo =
                format!("{low} add.cc.{t} %l, $a, $c; madc.lo.cc.{t} %l, $a, $b, $e; addc.{t} $d, 0, 0;");
            check(&lo, &types, &quads, |r| {
                let carry = u128::from(r[0]) + u128::from(r[2]) > ones.into();
                let low = u128::from(r[0].wrapping_mul(r[1]) & ones);
                Bits(u64::from(low + u128::from(r[3]) + u128::from(carry) > ones.into()))
            });
        }
    }
}

#[test]
fn integers_with_relu() {
    let v = integers(32);
    let x = |v: u64| i64::from(v as u32 as i32);
    check("min.relu.s32 $d, $a, $b;", &["b32"; 3], &all([&v, &v]), |r| {
        Bits(x(r[0]).min(x(r[1])).max(0) as u64)
    });
    check("max.relu.s32 $d, $a, $b;", &["b32"; 3], &all([&v, &v]), |r| {
        Bits(x(r[0]).max(x(r[1])).max(0) as u64)
    });
    let w = [0, 0x0001_ffff, 0x7fff_8000, 0x8000_7fff, 0xffff_0001, 0x1234_fedc];
    for (op, f) in [("min", i16::min as fn(i16, i16) -> i16), ("max", i16::max)] {
        check(&format!("{op}.s16x2.relu $d, $a, $b;"), &["b32"; 3], &all([&w, &w]), |r| {
            let half = |s: u32| u64::from(f((r[0] >> s) as i16, (r[1] >> s) as i16).max(0) as u16) << s;
            Bits(half(0) | half(16))
        });
    }
}

#[test]
fn untyped_selections_and_comparisons() {
    for bits in [16, 32, 64] {
        let (b, v) = (format!("b{bits}"), integers(bits));
        let (b, pairs) = (&*b, all([&v, &v]));
        check(&format!("selp.{b} $d, $a, $b, $c;"), &[b, b, b, "pred"], &all([&v, &v, &[0, 1]]), |r| {
            Bits(r[1 - r[2] as usize])
        });
        for (op, equal) in [("eq", 1), ("ne", 0)] {
            let want = |r: &[u64]| if r[0] == r[1] { equal } else { 1 - equal };
            check(&format!("setp.{op}.{b} $d, $a, $b;"), &["pred", b, b], &pairs, |r| Bits(want(r)));
            check(&format!("set.{op}.s32.{b} $d, $a, $b;"), &["b32", b, b], &pairs, |r| Bits(want(r) * M32));
        }
    }
    let d = f64s();
    check(
        "slct.f64.f32 $d, $a, $b, $c;",
        &["b64", "b64", "b64", "b32"],
        &all([&d[..4], &d[..4], &f32s()]),
        |r| Bits(if f32::from_bits(r[2] as u32) >= 0.0 { r[0] } else { r[1] }),
    );
    // A subnormal selector below zero is -0.
    check("slct.ftz.u32.f32 $d, 1, 2, $c;", &["b32"; 4], &all([&[0], &[0], &f32s()]), |r| {
        let c = f32::from_bits(r[2] as u32);
        Bits(if c >= 0.0 || c.is_subnormal() { 1 } else { 2 })
    });
    let v = integers(32);
    for (op, f) in
        [("lo", u64::lt as fn(&u64, &u64) -> bool), ("ls", u64::le), ("hi", u64::gt), ("hs", u64::ge)]
    {
        check(&format!("set.{op}.u32.u32 $d, $a, $b;"), &["b32"; 3], &all([&v, &v]), |r| {
            Bits(u64::from(f(&r[0], &r[1])) * M32)
        });
    }
    let one = [
        ("f32", 0x3f80_0000, "b32"),
        ("f16", 0x3c00, "b16"),
        ("bf16", 0x3f80, "b16"),
        ("u16", 0xffff, "b16"),
        ("s16", 0xffff, "b16"),
    ];
    for (op, f) in
        [("and", (|a, b| a & b) as fn(bool, bool) -> bool), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)]
    {
        for (ty, yes, b) in one {
            check(
                &format!("set.gt.{op}.{ty}.u32 $d, $a, $b, $c;"),
                &[b, "b32", "b32", "pred"],
                &all([&v, &v, &[0, 1]]),
                |r| Bits(if f(r[0] > r[1], r[2] == 1) { yes } else { 0 }),
            );
        }
    }
    check("set.lt.u32.f64 $d, $a, $b;", &["b32", "b64", "b64"], &all([&d, &d]), |r| {
        Bits(u64::from(f64::from_bits(r[0]) < f64::from_bits(r[1])) * M32)
    });
    let s = f32s();
    check("set.lt.ftz.u32.f32 $d, $a, $b;", &["b32"; 3], &all([&s, &s]), |r| {
        let x = |v: u64| f32::from_bits(v as u32);
        let x = |v: u64| if x(v).is_subnormal() { 0.0 } else { x(v) };
        Bits(u64::from(x(r[0]) < x(r[1])) * M32)
    });
    let h = numbers(&[0.0, -0.0, 1.0, -2.5, f32::INFINITY, f32::NAN], |v| f16::from_f32(v).to_bits());
    check("set.le.f16.f16 $d, $a, $b;", &["b16"; 3], &all([&h, &h]), |r| {
        Bits(u64::from(f16::from_bits(r[0] as u16) <= f16::from_bits(r[1] as u16)) * 0x3c00)
    });
    // Both halves, each with its predicate.
    let b = numbers(&[0.0, -0.0, 1.0, -2.5, f32::INFINITY, f32::NAN], |v| bf16::from_f32(v).to_bits());
    for (ty, v) in [("f16x2", &h), ("bf16x2", &b)] {
        let x = |v: u64| {
            if ty == "f16x2" { f16::from_bits(v as u16).to_f32() } else { bf16::from_bits(v as u16).to_f32() }
        };
        let code = format!(
            ".reg .b32 %x, %y; .reg .pred %p; .reg .u32 %k; mov.b32 %x, {{$a, $b}}; mov.b32 %y, {{$c, $e}}; setp.lt.{ty} %p|%end, %x, %y;\n\
             selp.u32 $d, 1, 0, %p; selp.u32 %k, 2, 0, %end; or.b32 $d, $d, %k;"
        );
        check(&code, &["b32", "b16", "b16", "b16", "b16"], &all([v, v, v, v]), |r| {
            Bits(u64::from(x(r[0]) < x(r[2])) | u64::from(x(r[1]) < x(r[3])) << 1)
        });
    }
}

/// `set` of pairs: each half for itself.
#[test]
fn packed_halves_are_compared_each_for_itself() {
    let h = numbers(&[0.0, -0.0, 1.0, -2.5, f32::INFINITY, f32::NAN], |v| f16::from_f32(v).to_bits());
    let b = numbers(&[0.0, -0.0, 1.0, -2.5, f32::INFINITY, f32::NAN], |v| bf16::from_f32(v).to_bits());
    for (ty, v, one) in [("f16x2", &h, 0x3c00), ("bf16x2", &b, 0x3f80)] {
        let x = |v: u64| {
            if ty == "f16x2" { f16::from_bits(v as u16).to_f32() } else { bf16::from_bits(v as u16).to_f32() }
        };
        for (to, one) in [(ty, one), ("u32", 0xffff), ("s32", 0xffff)] {
            for (combine, last) in [("", ""), (".and", ", %p")] {
                let code = format!(
                    ".reg .b32 %x, %y; .reg .pred %p; setp.eq.u32 %p, 0, 1; mov.b32 %x, {{$a, $b}}; mov.b32 %y, {{$c, $e}};\n\
                     set.lt{combine}.{to}.{ty} $d, %x, %y{last};"
                );
                check(&code, &["b32", "b16", "b16", "b16", "b16"], &all([v, v, v, v]), |r| {
                    let half = |a: u64, b: u64| if x(a) < x(b) && combine.is_empty() { one } else { 0 };
                    Bits(half(r[0], r[2]) | half(r[1], r[3]) << 16)
                });
            }
        }
    }
    let tiny = [0u64, 1, 0x8001, 0x03ff, 0x0400, 0x8400];
    let code =
        ".reg .b32 %x, %y; mov.b32 %x, {$a, $b}; mov.b32 %y, {$b, $a}; set.gt.ftz.f16x2.f16x2 $d, %x, %y;";
    check(code, &["b32", "b16", "b16"], &all([&tiny, &tiny]), |r| {
        let x = |b: u64| if b & 0x7c00 == 0 { 0.0 } else { f16::from_bits(b as u16).to_f32() };
        let half = |a: u64, b: u64| if x(a) > x(b) { 0x3c00 } else { 0 };
        Bits(half(r[0], r[1]) | half(r[1], r[0]) << 16)
    });
}

/// `abs` and `neg` of f16 flush subnormals where they are told to.
#[test]
fn signs_of_flushed_halves() {
    let v = [0u64, 0x8000, 1, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x8400, 0x3c00, 0xfc00];
    let flush = |b: u64| if b & 0x7c00 == 0 { b & 0x8000 } else { b };
    for (op, f) in [("abs", (|b| b & 0x7fff) as fn(u64) -> u64), ("neg", |b| b ^ 0x8000)] {
        check(&format!("{op}.ftz.f16 $d, $a;"), &["b16"; 2], &all([&v]), |r| Bits(f(flush(r[0]))));
        let code = format!(".reg .b32 %x; mov.b32 %x, {{$a, $b}}; {op}.ftz.f16x2 $d, %x;");
        check(&code, &["b32", "b16", "b16"], &all([&v, &v]), |r| Bits(f(flush(r[0])) | f(flush(r[1])) << 16));
    }
}

/// No blank is needed between the parts of a declaration.
#[test]
fn declarations_without_blanks() {
    check(
        ".reg.b16 %x; .reg.b32 %y; .reg.f32 %z; .reg.pred %p; .local.align 4 .b32 l; cvt.u16.u32 %x, $a; cvt.u32.u16 %y, %x;\n\
         st.local.u32 [l], %y; ld.local.u32 $d, [l];",
        &["b32"; 2],
        &all([&[0x12345, 7]]),
        |r| Bits(r[0] & 0xffff),
    );
}

#[test]
fn moves_of_every_type() {
    for (types, b, bits) in
        [("b16 u16 s16", "b16", 16), ("b32 u32 s32 f32", "b32", 32), ("b64 u64 s64 f64", "b64", 64)]
    {
        for ty in types.split(' ') {
            check(&format!("mov.{ty} $d, $a;"), &[b, b], &all([&integers(bits)]), |r| Bits(r[0]));
        }
    }
    check("mov.pred $d, $a;", &["pred", "pred"], &all([&[0, 1]]), |r| Bits(r[0]));
}

#[test]
fn packed_halves_of_every_kind() {
    let f = [0.0f32, -0.0, 1.0, -1.5, 0.1, 3e-6, -40000.0, 6e4, f32::INFINITY];
    type Half = (&'static str, fn(u64) -> f64, fn(f64) -> u64, Vec<u64>);
    let halves: [Half; 2] = [
        ("f16", |v| f16::from_bits(v as u16).to_f64(), f16_bits, numbers(&f, |v| f16::from_f32(v).to_bits())),
        (
            "bf16",
            |v| bf16::from_bits(v as u16).to_f64(),
            bf16_bits,
            numbers(&f, |v| bf16::from_f32(v).to_bits()),
        ),
    ];
    for (ty, x, to, v) in halves {
        let format = if ty == "f16" { F16 } else { BF16 };
        let two: Vec<u64> = v.iter().zip(v.iter().rev()).map(|(a, b)| a << 16 | b).collect();
        let each = |r: &[u64], f: &dyn Fn(f64, f64) -> f64| {
            let half = |s: u64| to(f(x(r[0] >> s & 0xffff), x(r[1] >> s & 0xffff))) << s;
            Bits(half(0) | half(16))
        };
        let pairs = all([&two, &two]);
        check(&format!("sub.{ty}x2 $d, $a, $b;"), &["b32"; 3], &pairs, |r| {
            each(r, &|a, b| {
                let (hi, lo) = two_sum(a, -b);
                round(hi, lo, format, Mode::Rn)
            })
        });
        let min = |a: f64, b: f64| if a < b || a == b && a.is_sign_negative() { a } else { b };
        check(&format!("min.{ty}x2 $d, $a, $b;"), &["b32"; 3], &pairs, |r| each(r, &min));
        check(&format!("abs.{ty}x2 $d, $a;"), &["b32"; 2], &all([&two]), |r| Bits(r[0] & 0x7fff_7fff));
        check(&format!("neg.{ty}x2 $d, $a;"), &["b32"; 2], &all([&two]), |r| Bits(r[0] ^ 0x8000_8000));
        // The smaller or larger magnitude, with the product of the signs.
        let signed =
            |v: f64, a: f64, b: f64| if a.is_sign_negative() != b.is_sign_negative() { -v } else { v };
        for (op, f) in [("min", f64::min as fn(f64, f64) -> f64), ("max", f64::max)] {
            let f = |a: f64, b: f64| signed(f(a.abs(), b.abs()), a, b);
            check(&format!("{op}.xorsign.abs.{ty}x2 $d, $a, $b;"), &["b32"; 3], &pairs, |r| each(r, &f));
            check(&format!("{op}.xorsign.abs.{ty} $d, $a, $b;"), &["b16"; 3], &all([&v, &v]), |r| {
                Bits(to(f(x(r[0]), x(r[1]))))
            });
            if ty == "f16" {
                let single: Vec<u64> = [0.0f32, -0.0, 1.0, -1.5, 1e30, -1e-30, f32::INFINITY]
                    .map(|v| v.to_bits().into())
                    .to_vec();
                let x = |v: u64| f64::from(f32::from_bits(v as u32));
                check(
                    &format!("{op}.xorsign.abs.f32 $d, $a, $b;"),
                    &["b32"; 3],
                    &all([&single, &single]),
                    |r| Bits(u64::from((f(x(r[0]), x(r[1])) as f32).to_bits())),
                );
            }
        }
    }
}

/// PTX ISA: `ex2` of f16 within 2^-9.9, of bf16 within 2^-7 (relative); `tanh` of f16 within 2^-10.987, of bf16 within 2^-8 (absolute).
#[test]
fn approximate_functions_of_halves() {
    let f = [-6.0f32, -1.25, -0.1, 0.0, 0.01, 0.5, 1.0, 3.0, 9.5];
    for (ty, from, to, ex2, tanh) in [
        (
            "f16",
            (|v: u64| f16::from_bits(v as u16).to_f64()) as fn(u64) -> f64,
            (|v| f16::from_f32(v).to_bits()) as fn(f32) -> u16,
            2f64.powf(-9.9),
            2f64.powf(-10.987),
        ),
        (
            "bf16",
            |v| bf16::from_bits(v as u16).to_f64(),
            |v| bf16::from_f32(v).to_bits(),
            2f64.powi(-7),
            2f64.powi(-8),
        ),
    ] {
        let v = numbers(&f, to);
        let ftz = if ty == "bf16" { ".ftz" } else { "" };
        for (op, f) in
            [(format!("ex2.approx{ftz}"), f64::exp2 as fn(f64) -> f64), ("tanh.approx".into(), f64::tanh)]
        {
            let close = |got: u64, a: u64| {
                let (want, got) = (f(from(a)), from(got));
                let bound = if op.starts_with("ex2") { want * ex2 } else { tanh };
                assert!((got - want).abs() <= bound, "{op}.{ty} of {} gives {got}, not {want}", from(a));
            };
            let singles = all([&v]);
            for (row, got) in singles.iter().zip(run(&format!("{op}.{ty} $d, $a;"), &["b16"; 2], &singles)) {
                close(got, row[0]);
            }
            let pairs: Vec<Vec<u64>> = v.iter().zip(v.iter().rev()).map(|(a, b)| vec![a << 16 | b]).collect();
            for (row, got) in pairs.iter().zip(run(&format!("{op}.{ty}x2 $d, $a;"), &["b32"; 2], &pairs)) {
                close(got & 0xffff, row[0] & 0xffff);
                close(got >> 16, row[0] >> 16);
            }
        }
    }
}

#[test]
fn doubles_of_every_kind() {
    let w = f64s();
    type Is = fn(f64) -> bool;
    let kinds: [(&str, Is); 6] = [
        ("finite", f64::is_finite),
        ("infinite", f64::is_infinite),
        ("number", |v| !v.is_nan()),
        ("notanumber", f64::is_nan),
        ("normal", |v| v.is_normal() || v == 0.0),
        ("subnormal", f64::is_subnormal),
    ];
    for (op, f) in kinds {
        check(&format!("testp.{op}.f64 $d, $a;"), &["pred", "b64"], &all([&w]), |r| {
            Bits(f(f64::from_bits(r[0])).into())
        });
    }
    // Only the upper 32 bits of operand and result count.
    let some: Vec<u64> = [0.25f64, 2.0, 3.0, 1e-200, 1e200, 7.5e15].map(f64::to_bits).to_vec();
    for (row, got) in all([&some]).iter().zip(run("rsqrt.approx.f64 $d, $a;", &["b64"; 2], &all([&some]))) {
        let want = 1.0 / f64::from_bits(row[0]).sqrt();
        assert!((f64::from_bits(got) / want - 1.0).abs() < 2f64.powi(-19), "{row:x?}");
    }
    for (name, _) in MODES {
        let both = format!(
            ".reg .f64 %x, %y; mad.{name}.f64 %x, $a, $b, $c; fma.{name}.f64 %y, $a, $b, $c; xor.b64 $d, %x, %y;"
        );
        check(&both, &["b64"; 4], &all([&w, &w[..9], &w[..9]]), |_| Bits(0));
        let s = f32s();
        let both = format!(
            ".reg .f32 %x, %y; mad.{name}.ftz.sat.f32 %x, $a, $b, $c; fma.{name}.ftz.sat.f32 %y, $a, $b, $c; xor.b32 $d, %x, %y;"
        );
        check(&both, &["b32"; 4], &all([&s, &s[..9], &s[..9]]), |_| Bits(0));
    }
}

#[test]
fn every_qualifier_of_loads_and_stores() {
    let own = ".shared .align 8 .b8 own[512]; .reg .u32 %q; mov.u32 %q, own; mad.lo.u32 %q, %t, 8, %q;";
    let rows = all([&[5], &[7, 0xffff_ffff]]);
    for q in [
        "weak.global",
        "relaxed.cta.global",
        "relaxed.cluster.global",
        "acquire.cta.global",
        "acquire.cluster.global",
        "global.L1::evict_normal",
        "global.L1::evict_unchanged",
        "global.L1::evict_first",
        "global.L1::evict_last",
        "global.L2::64B",
    ] {
        check(&format!("ld.{q}.u32 $d, [%in];"), &["b32", "b32"], &rows, |r| Bits(r[0]));
    }
    for q in [
        "weak.global",
        "relaxed.cluster.global",
        "relaxed.sys.global",
        "global.L1::evict_normal",
        "global.L1::evict_unchanged",
        "global.L1::evict_first",
        "global.L1::evict_last",
        "global.L1::no_allocate",
    ] {
        check(&format!("st.{q}.u32 [%in], $b; ld.global.u32 $d, [%in];"), &["b32"; 3], &rows, |r| Bits(r[1]));
    }
    for space in ["shared::cta", "shared::cluster"] {
        check(&format!("{own} st.{space}.u32 [%q], $b; ld.{space}.u32 $d, [%q];"), &["b32"; 3], &rows, |r| {
            Bits(r[1])
        });
    }
    for (ty, b, bits) in [("s8", "b16", 8), ("s16", "b16", 16), ("s32", "b32", 32), ("s64", "b64", 64)] {
        check(
            &format!("st.global.{ty} [%in], $b; ld.global.u{bits} $d, [%in];"),
            &[b; 3],
            &all([&[0], &integers(bits)]),
            |r| Bits(r[1]),
        );
    }
    for (types, b, bits) in [
        ("b8 u8 s8", "b16", 8),
        ("b16 u16 s16", "b16", 16),
        ("b32 u32 s32 f32", "b32", 32),
        ("b64 u64 s64 f64", "b64", 64),
    ] {
        for ty in types.split(' ') {
            // Values without their sign bit, so that extension does not show: `loads_extend_as_their_type_says` looks at that.
            let v: Vec<u64> = integers(bits).iter().map(|v| v & (u64::MAX >> (65 - bits))).collect();
            check(&format!("ldu.global.{ty} $d, [%in];"), &[b, b], &all([&v]), |r| Bits(r[0]));
        }
    }
    check(".reg .b32 %x; ldu.global.v2.u32 {%x, $d}, [%in];", &["b32", "b64"], &all([&integers(64)]), |r| {
        Bits(r[0] >> 32)
    });
    check(
        ".reg .b32 %x, %y, %z; ldu.global.v4.u32 {%x, %y, %z, $d}, [%in];",
        &["b32", "b64", "b64"],
        &all([&[1], &integers(64)]),
        |r| Bits(r[1] >> 32),
    );
    // Hints that need an operand or an instruction of their own.
    for policy in [
        "fractional.L2::evict_first.b64 %p, 0.5;",
        "fractional.L2::evict_last.L2::evict_unchanged.b64 %p;",
        "fractional.L2::evict_normal.b64 %p;",
        "range.global.L2::evict_last.L2::evict_unchanged.b64 %p, [%in], 128, 256;",
        "cvt.L2.b64 %p, %in;",
    ] {
        let code = format!(
            ".reg .b64 %p; createpolicy.{policy} st.global.L2::cache_hint.u32 [%in], $b, %p; atom.global.add.L2::cache_hint.u32 %t, [%in], 1, %p;\n\
             red.global.add.L2::cache_hint.u32 [%in], 1, %p; ld.global.L2::cache_hint.u32 $d, [%in], %p;"
        );
        check(&code, &["b32"; 3], &rows, |r| Bits((r[1] + 2) & M32));
    }
    for hint in [
        "prefetch.global.L1 [%in];",
        "prefetch.global.L2::evict_last [%in];",
        "prefetch.global.L2::evict_normal [%in];",
        "prefetch.local.L1 [%in];",
        "prefetch.const.tensormap [%in];",
        "prefetch.param.tensormap [in];",
        "prefetchu.L1 [%in];",
        "applypriority.global.L2::evict_normal [%in], 128;",
        "membar.cta;",
        "membar.gl;",
        "membar.sys;",
        "pmevent 3;",
        "pmevent.mask 5;",
    ] {
        check(&format!("{hint} ld.global.u32 $d, [%in];"), &["b32"; 2], &rows, |r| Bits(r[0]));
    }
}

#[test]
fn every_qualifier_of_atomics() {
    let own = ".shared .align 8 .b8 own[512]; .reg .u32 %q; mov.u32 %q, own; mad.lo.u32 %q, %t, 8, %q; st.shared.u32 [%q], $a;";
    let v = integers(32);
    let rows = all([&v, &v]);
    let sum = |r: &[u64]| (r[0] + r[1]) & M32;
    for order in ["relaxed", "acquire", "release", "acq_rel"] {
        for scope in ["cta", "cluster", "gpu", "sys"] {
            for (setup, space, p) in [("", "global", "%in"), (own, "shared::cta", "%q")] {
                let load = if space == "global" { "ld.global" } else { "ld.shared" };
                check(
                    &format!(
                        "{setup} atom.{order}.{scope}.{space}.add.u32 %i, [{p}], $b; {load}.u32 $d, [{p}];"
                    ),
                    &["b32"; 3],
                    &rows,
                    |r| Bits(sum(r)),
                );
                if matches!(order, "relaxed" | "release") {
                    check(
                        &format!(
                            "{setup} red.{order}.{scope}.{space}.add.u32 [{p}], $b; {load}.u32 $d, [{p}];"
                        ),
                        &["b32"; 3],
                        &rows,
                        |r| Bits(sum(r)),
                    );
                }
            }
        }
    }
    check(&format!("{own} atom.shared::cluster.add.u32 $d, [%q], $b;"), &["b32"; 3], &rows, |r| Bits(r[0]));
    check(
        &format!("{own} red.shared::cluster.add.u32 [%q], $b; ld.shared.u32 $d, [%q];"),
        &["b32"; 3],
        &rows,
        |r| Bits(sum(r)),
    );
    let h = integers(16);
    check(
        ".reg .b16 %x; atom.global.cas.b16 %x, [%in], $b, $c; ld.global.b16 $d, [%in];",
        &["b16"; 4],
        &all([&h, &h, &h[..3]]),
        |r| Bits(if r[0] == r[1] { r[2] } else { r[0] }),
    );
    let f = [0.0f32, 1.5, -2.25, 100.0, 0.1];
    let (a, b) = (numbers(&f, |v| f16::from_f32(v).to_bits()), numbers(&f, |v| bf16::from_f32(v).to_bits()));
    for (ty, v) in [("f16", &a), ("bf16", &b)] {
        let add = |r: &[u64]| {
            let (x, y) = (r[0] as u16, r[1] as u16);
            Bits(
                if ty == "f16" {
                    (f16::from_bits(x) + f16::from_bits(y)).to_bits()
                } else {
                    (bf16::from_bits(x) + bf16::from_bits(y)).to_bits()
                }
                .into(),
            )
        };
        check(
            &format!(".reg .b16 %x; atom.global.add.noftz.{ty} %x, [%in], $b; ld.global.b16 $d, [%in];"),
            &["b16"; 3],
            &all([v, v]),
            add,
        );
        check(
            &format!("red.global.add.noftz.{ty} [%in], $b; ld.global.b16 $d, [%in];"),
            &["b16"; 3],
            &all([v, v]),
            add,
        );
    }
}

#[test]
fn every_space_of_addresses() {
    // Bits 0 to 3: what `isspacep` says of a shared, a parameter's, a local and a global address.
    let addresses = ".shared .align 8 .b8 s[8]; .local .align 8 .b8 l[8]; .reg .u64 %s, %m, %l, %g; .reg .pred %p; .reg .u32 %x;\n\
                     mov.u64 %s, s; cvta.shared::cta.u64 %s, %s; mov.u64 %m, in; cvta.param::entry.u64 %m, %m; mov.u64 %l, l; cvta.local.u64 %l, %l;\n\
                     cvta.global.u64 %g, %in; mov.u32 $d, 0;\n";
    let spaces = [
        ("shared::cta", 1),
        ("shared::cluster", 1),
        ("param", 2),
        ("param::entry", 2),
        ("local", 4),
        ("global", 8),
    ];
    for (space, want) in spaces {
        let ask = |p: &str, bit: u32| {
            format!("isspacep.{space} %p, {p}; selp.u32 %x, {bit}, 0, %p; or.b32 $d, $d, %x;\n")
        };
        let code = [addresses.into(), ask("%s", 1), ask("%m", 2), ask("%l", 4), ask("%g", 8)].concat();
        check(&code, &["b32"], &[vec![]], |_| Bits(want));
    }
    // A kernel's parameter through a generic address, and by its qualified name.
    check(
        ".reg .u64 %m; mov.u64 %m, n; cvta.param.u64 %m, %m; ld.u32 $d, [%m];",
        &["b32"],
        &[vec![], vec![]],
        |_| Bits(2),
    );
    check("ld.param::entry.u32 $d, [n];", &["b32"], &[vec![], vec![]], |_| Bits(2));
    check(
        ".shared .align 8 .b8 s[8]; .reg .u64 %s; mov.u64 %s, s; cvta.shared::cluster.u64 %s, %s; st.u32 [%s], 9; ld.shared.u32 $d, [s];",
        &["b32"],
        &[vec![]],
        |_| Bits(9),
    );
}

#[test]
fn barriers_of_every_kind() {
    let rows: Vec<Vec<u64>> = (0..64).map(|i| vec![i]).collect();
    // The first warp writes and arrives, the second waits and reads.
    for (arrive, wait) in [
        ("bar.arrive 1, 64;", "bar.sync 1, 64;"),
        ("bar.cta.arrive 1, 64;", "bar.cta.sync 1, 64;"),
        ("barrier.cta.arrive.aligned 1, 64;", "barrier.cta.sync.aligned 1, 64;"),
        ("barrier.arrive 1, 64;", "barrier.sync 1, 64;"),
    ] {
        let code = format!(
            ".shared .align 4 .b8 w[128]; .reg .pred %p; .reg .u32 %q, %l; and.b32 %l, %t, 31; mov.u32 %q, w; mad.lo.u32 %q, %l, 4, %q;\n\
             setp.lt.u32 %p, %t, 32; mov.b32 $d, $a; @!%p bra last;\nst.shared.u32 [%q], $a; {arrive} bra.uni end;\n\
             last: {wait} ld.shared.u32 $d, [%q];\nend:"
        );
        check(&code, &["b32", "b32"], &rows, |r| Bits(r[0] % 32));
    }
    let odd: Vec<Vec<u64>> = (0..64).map(|i| vec![i % 2]).collect();
    for (op, want) in [("and", 0), ("or", 1)] {
        check(&format!("barrier.cta.red.{op}.aligned.pred $d, 0, $a;"), &["pred", "pred"], &odd, |_| {
            Bits(want)
        });
    }
    // A cluster of one block.
    for (arrive, wait) in [
        ("arrive", "wait"),
        ("arrive.release.aligned", "wait.acquire.aligned"),
        ("arrive.relaxed", "wait.aligned"),
    ] {
        let code = format!("barrier.cluster.{arrive}; mov.b32 $d, $a; barrier.cluster.{wait};");
        check(&code, &["b32", "b32"], &rows, |r| Bits(r[0]));
    }
    // Each block's own shared memory among that of its cluster.
    let own = ".shared .align 4 .b8 w[256]; .reg .u32 %q, %r0, %r1; .reg .u64 %g; mov.u32 %q, w; mad.lo.u32 %q, %t, 4, %q; st.shared.u32 [%q], $a;";
    check(
        &format!("{own} mapa.shared::cluster.u32 %q, %q, 0; ld.shared::cluster.u32 $d, [%q];"),
        &["b32", "b32"],
        &rows,
        |r| Bits(r[0]),
    );
    check(
        &format!("{own} cvt.u64.u32 %g, %q; cvta.shared.u64 %g, %g; mapa.u64 %g, %g, 0; ld.u32 $d, [%g];"),
        &["b32", "b32"],
        &rows,
        |r| Bits(r[0]),
    );
    let ranks = "getctarank.shared::cluster.u32 %r0, %q; cvt.u64.u32 %g, %q; cvta.shared.u64 %g, %g; getctarank.u64 %r1, %g; or.b32 $d, %r0, %r1;";
    check(&format!("{own} {ranks}"), &["b32", "b32"], &rows, |_| Bits(0));
    let hints = "griddepcontrol.launch_dependents; griddepcontrol.wait; setmaxnreg.inc.sync.aligned.u32 128; setmaxnreg.dec.sync.aligned.u32 64; mov.b32 $d, $a;";
    check(hints, &["b32", "b32"], &rows, |r| Bits(r[0]));
}

#[test]
fn ends_and_jumps_of_every_kind() {
    use ptxsim::{FaultKind, LaunchConfig, LoadedModule, Memory, Options, launch};
    for end in ["exit;", "ret;", "ret.uni;"] {
        check(
            &format!(".reg .u64 %v; mov.u64 %v, 7; st.global.u64 [%out], %v; {end}"),
            &["b32"],
            &[vec![]],
            |_| Bits(7),
        );
    }
    let code = "ts: .branchtargets zero, one; brx.idx.uni $a, ts; zero: mov.u32 $d, 100; bra.uni end; one: mov.u32 $d, 200; end:";
    for i in 0..2 {
        check(code, &["b32", "b32"], &[vec![i]], |r| Bits(100 * (r[0] + 1)));
    }
    for end in ["trap", "brkpt"] {
        let ptx =
            format!(".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k() {{ {end}; ret; }}\n");
        let memory = Memory::new(1 << 20);
        let module = LoadedModule::load(module(&ptx).into(), &memory).unwrap();
        let report = launch(&memory, &module, "k", &LaunchConfig::new(1, 32), &Options::default()).unwrap();
        assert_eq!(report.fault.unwrap().kind, FaultKind::Trap);
    }
    // Parameters of a function by their qualified name.
    let ptx = ".version 9.0\n.target sm_80\n.address_size 64\n\
        .func (.param .b32 y) next(.param .b32 x) { .reg .b32 %x; ld.param::func.b32 %x, [x]; add.u32 %x, %x, 1; st.param::func.b32 [y], %x; ret; }\n\
        .visible .entry k(.param .u64 out) { .reg .b64 %o; .reg .b32 %y; ld.param.u64 %o, [out];\n\
        { .param .b32 a; .param .b32 b; st.param.b32 [a], 41; call.uni (b), next, (a); ld.param.b32 %y, [b]; }\n st.global.u32 [%o], %y; ret; }\n";
    let memory = Memory::new(1 << 20);
    let module = LoadedModule::load(module(ptx).into(), &memory).unwrap();
    let out = memory.alloc(4, 4).unwrap();
    let report =
        launch(&memory, &module, "k", &LaunchConfig::new(1, 1).arg(out), &Options::default()).unwrap();
    assert!(report.is_clean(), "{:?}", report.fault);
    let mut y = [0; 4];
    memory.read(out, &mut y).unwrap();
    assert_eq!(u32::from_le_bytes(y), 42);
}
