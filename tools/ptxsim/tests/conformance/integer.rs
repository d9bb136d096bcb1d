//! Integer, logic, shift and bit-field instructions; comparisons and selections.

use crate::harness::{Want::Bits, all, check, integers};

fn mask(bits: u32) -> u64 {
    if bits == 64 { u64::MAX } else { (1 << bits) - 1 }
}
/// The value of an operand of a signed or unsigned type.
fn value(v: u64, signed: bool, bits: u32) -> i128 {
    let v = v & mask(bits);
    if signed && v >> (bits - 1) & 1 == 1 { i128::from(v) - (1 << bits) } else { i128::from(v) }
}
fn cut(v: i128, bits: u32) -> u64 {
    v as u64 & mask(bits)
}

const TYPES: [(&str, bool, u32); 6] = [
    ("u16", false, 16),
    ("s16", true, 16),
    ("u32", false, 32),
    ("s32", true, 32),
    ("u64", false, 64),
    ("s64", true, 64),
];

fn size(bits: u32) -> &'static str {
    match bits {
        8 | 16 => "b16",
        32 => "b32",
        _ => "b64",
    }
}

#[test]
fn add_sub_mul_div_rem_min_max() {
    for (ty, signed, bits) in TYPES {
        let (b, v) = (size(bits), integers(bits));
        let pairs = all([&v, &v]);
        let x = |v| value(v, signed, bits);
        let two = |op: &str, f: &dyn Fn(i128, i128) -> i128| {
            check(&format!("{op}.{ty} $d, $a, $b;"), &[b, b, b], &pairs, |r| {
                Bits(cut(f(x(r[0]), x(r[1])), bits))
            });
        };
        two("add", &|a, b| a + b);
        two("sub", &|a, b| a - b);
        two("mul.lo", &|a, b| a.wrapping_mul(b));
        two("mul.hi", &|a, b| {
            if bits == 64 && !signed { ((a as u128 * b as u128) >> 64) as i128 } else { (a * b) >> bits }
        });
        two("min", &i128::min);
        two("max", &i128::max);
        let divisible: Vec<_> = pairs
            .iter()
            .filter(|r| r[1] != 0 && !(signed && x(r[1]) == -1 && x(r[0]) == -(1 << (bits - 1))))
            .cloned()
            .collect();
        let divide = |op: &str, f: &dyn Fn(i128, i128) -> i128| {
            check(&format!("{op}.{ty} $d, $a, $b;"), &[b, b, b], &divisible, |r| {
                Bits(cut(f(x(r[0]), x(r[1])), bits))
            });
        };
        divide("div", &|a, b| a / b);
        divide("rem", &|a, b| a % b);
        if bits < 64 {
            let wide = size(bits * 2);
            check(&format!("mul.wide.{ty} $d, $a, $b;"), &[wide, b, b], &pairs, |r| {
                Bits(cut(x(r[0]) * x(r[1]), bits * 2))
            });
            let v2 = integers(bits * 2);
            check(&format!("mad.wide.{ty} $d, $a, $b, $c;"), &[wide, b, b, wide], &all([&v, &v, &v2]), |r| {
                Bits(cut(x(r[0]) * x(r[1]) + value(r[2], signed, bits * 2), bits * 2))
            });
        }
        let triples = all([&v, &v, &v]);
        check(&format!("mad.lo.{ty} $d, $a, $b, $c;"), &[b, b, b, b], &triples, |r| {
            Bits(cut(x(r[0]).wrapping_mul(x(r[1])).wrapping_add(x(r[2])), bits))
        });
        if bits == 32 {
            check(&format!("mad.hi.{ty} $d, $a, $b, $c;"), &[b, b, b, b], &triples, |r| {
                Bits(cut(((x(r[0]) * x(r[1])) >> 32) + x(r[2]), bits))
            });
        }
        check(&format!("sad.{ty} $d, $a, $b, $c;"), &[b, b, b, b], &triples, |r| {
            Bits(cut((x(r[0]) - x(r[1])).abs() + x(r[2]), bits))
        });
        if signed {
            let singles = all([&v]);
            check(&format!("neg.{ty} $d, $a;"), &[b, b], &singles, |r| Bits(cut(-x(r[0]), bits)));
            check(&format!("abs.{ty} $d, $a;"), &[b, b], &singles, |r| Bits(cut(x(r[0]).abs(), bits)));
        }
    }
}

#[test]
fn saturating_add_sub_and_mad() {
    let v = integers(32);
    let x = |v| value(v, true, 32);
    let clamp = |v: i128| Bits(cut(v.clamp(i32::MIN.into(), i32::MAX.into()), 32));
    check("add.sat.s32 $d, $a, $b;", &["b32"; 3], &all([&v, &v]), |r| clamp(x(r[0]) + x(r[1])));
    check("sub.sat.s32 $d, $a, $b;", &["b32"; 3], &all([&v, &v]), |r| clamp(x(r[0]) - x(r[1])));
    check("mad.hi.sat.s32 $d, $a, $b, $c;", &["b32"; 4], &all([&v, &v, &v]), |r| {
        clamp(((x(r[0]) * x(r[1])) >> 32) + x(r[2]))
    });
}

#[test]
fn packed_16_bit() {
    let v = [0, 0x0001_ffff, 0x7fff_8000, 0x8000_7fff, 0xffff_0001, 0x1234_fedc];
    let each = |r: &[u64], f: &dyn Fn(u16, u16) -> u16| {
        let half = |s: u32| u64::from(f((r[0] >> s) as u16, (r[1] >> s) as u16)) << s;
        Bits(half(0) | half(16))
    };
    let s = |f: fn(i16, i16) -> i16| move |a: u16, b: u16| f(a as i16, b as i16) as u16;
    check("add.u16x2 $d, $a, $b;", &["b32"; 3], &all([&v, &v]), |r| each(r, &u16::wrapping_add));
    check("add.s16x2 $d, $a, $b;", &["b32"; 3], &all([&v, &v]), |r| each(r, &u16::wrapping_add));
    check("min.u16x2 $d, $a, $b;", &["b32"; 3], &all([&v, &v]), |r| each(r, &u16::min));
    check("max.u16x2 $d, $a, $b;", &["b32"; 3], &all([&v, &v]), |r| each(r, &u16::max));
    check("min.s16x2 $d, $a, $b;", &["b32"; 3], &all([&v, &v]), |r| each(r, &s(i16::min)));
    check("max.s16x2 $d, $a, $b;", &["b32"; 3], &all([&v, &v]), |r| each(r, &s(i16::max)));
}

#[test]
fn carry_chains() {
    let v = integers(32);
    let quads = all([&v, &v, &v, &v]);
    let wide = |lo: u64, hi: u64| u128::from(lo) | u128::from(hi) << 32;
    // {$b $a} + {$e $c}: the high word, which has the carry.
    check(".reg .b32 %l; add.cc.u32 %l, $a, $c; addc.u32 $d, $b, $e;", &["b32"; 5], &quads, |r| {
        Bits((wide(r[0], r[1]) + wide(r[2], r[3])) as u64 >> 32)
    });
    check(".reg .b32 %l; sub.cc.u32 %l, $a, $c; subc.u32 $d, $b, $e;", &["b32"; 5], &quads, |r| {
        Bits(wide(r[0], r[1]).wrapping_sub(wide(r[2], r[3])) as u64 >> 32)
    });
    check(
        ".reg .b32 %l; add.cc.u32 %l, $a, $c; addc.cc.u32 %l, $b, $e; addc.u32 $d, 0, 0;",
        &["b32"; 5],
        &quads,
        |r| Bits(((wide(r[0], r[1]) + wide(r[2], r[3])) >> 64) as u64),
    );
    check(
        ".reg .b32 %l; mad.lo.cc.u32 %l, $a, $b, $c; madc.hi.u32 $d, $a, $b, $e;",
        &["b32"; 5],
        &quads,
        |r| Bits((u128::from(r[0]) * u128::from(r[1]) + wide(r[2], r[3])) as u64 >> 32),
    );
    let v = integers(64);
    check(".reg .b64 %l; add.cc.u64 %l, $a, $b; addc.u64 $d, $c, 0;", &["b64"; 4], &all([&v, &v, &v]), |r| {
        Bits(r[2].wrapping_add(u64::from(r[0].checked_add(r[1]).is_none())))
    });
}

#[test]
fn logic_and_lop3() {
    for bits in [16, 32, 64] {
        let (b, v) = (size(bits), integers(bits));
        let pairs = all([&v, &v]);
        check(&format!("and.b{bits} $d, $a, $b;"), &[b; 3], &pairs, |r| Bits(r[0] & r[1]));
        check(&format!("or.b{bits} $d, $a, $b;"), &[b; 3], &pairs, |r| Bits(r[0] | r[1]));
        check(&format!("xor.b{bits} $d, $a, $b;"), &[b; 3], &pairs, |r| Bits(r[0] ^ r[1]));
        check(&format!("not.b{bits} $d, $a;"), &[b; 2], &all([&v]), |r| Bits(!r[0] & mask(bits)));
        check(&format!("cnot.b{bits} $d, $a;"), &[b; 2], &all([&v]), |r| Bits(u64::from(r[0] == 0)));
    }
    let p = [0, 1];
    check("and.pred $d, $a, $b;", &["pred"; 3], &all([&p, &p]), |r| Bits(r[0] & r[1]));
    check("or.pred $d, $a, $b;", &["pred"; 3], &all([&p, &p]), |r| Bits(r[0] | r[1]));
    check("xor.pred $d, $a, $b;", &["pred"; 3], &all([&p, &p]), |r| Bits(r[0] ^ r[1]));
    check("not.pred $d, $a;", &["pred"; 2], &all([&p]), |r| Bits(1 - r[0]));
    let v = integers(32);
    for table in [0x00u64, 0x1b, 0x80, 0x96, 0xca, 0xe8, 0xfe, 0xff] {
        check(&format!("lop3.b32 $d, $a, $b, $c, {table};"), &["b32"; 4], &all([&v, &v, &v]), |r| {
            let bit = |i: u64| table >> ((r[0] >> i & 1) << 2 | (r[1] >> i & 1) << 1 | (r[2] >> i & 1)) & 1;
            Bits((0..32).map(|i| bit(i) << i).sum())
        });
    }
    // With a predicate: whether the result is not 0, combined with another.
    for (op, f) in [("or", (|a, b| a || b) as fn(bool, bool) -> bool), ("and", |a, b| a && b)] {
        let code = format!(".reg .b32 %x; lop3.{op}.b32 %x|$d, $a, $b, -1, 0x80, $c;");
        check(&code, &["pred", "b32", "b32", "pred"], &all([&v, &v, &[0, 1]]), |r| {
            Bits(f(r[0] & r[1] != 0, r[2] == 1).into())
        });
        let code = format!("lop3.{op}.b32 _|$d, $a, $b, -1, 0x80, !$c;");
        check(&code, &["pred", "b32", "b32", "pred"], &all([&v, &v, &[0, 1]]), |r| {
            Bits(f(r[0] & r[1] != 0, r[2] == 0).into())
        });
    }
    check(".reg .pred %p; lop3.or.b32 $d|%p, $a, $b, -1, 0x80, %p;", &["b32"; 3], &all([&v, &v]), |r| {
        Bits(r[0] & r[1])
    });
}

#[test]
fn shifts_past_the_width() {
    let by = [0, 1, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 0x8000_0000, 0xffff_ffff];
    for bits in [16, 32, 64] {
        let (b, v) = (size(bits), integers(bits));
        let rows = all([&v, &by]);
        let n = |r: &[u64]| r[1].min(127) as u32;
        check(&format!("shl.b{bits} $d, $a, $b;"), &[b, b, "b32"], &rows, |r| {
            Bits(cut(i128::from(r[0]).checked_shl(n(r)).filter(|_| n(r) < 64).unwrap_or(0), bits))
        });
        check(&format!("shr.u{bits} $d, $a, $b;"), &[b, b, "b32"], &rows, |r| {
            Bits(cut(i128::from(r[0]) >> n(r), bits))
        });
        check(&format!("shr.b{bits} $d, $a, $b;"), &[b, b, "b32"], &rows, |r| {
            Bits(cut(i128::from(r[0]) >> n(r), bits))
        });
        check(&format!("shr.s{bits} $d, $a, $b;"), &[b, b, "b32"], &rows, |r| {
            Bits(cut(value(r[0], true, bits) >> n(r), bits))
        });
    }
    let v = integers(32);
    let rows = all([&v, &v, &by]);
    let wide = |r: &[u64]| r[1] << 32 | r[0];
    check("shf.l.wrap.b32 $d, $a, $b, $c;", &["b32"; 4], &rows, |r| Bits((wide(r) << (r[2] & 31)) >> 32));
    check("shf.r.wrap.b32 $d, $a, $b, $c;", &["b32"; 4], &rows, |r| {
        Bits((wide(r) >> (r[2] & 31)) & mask(32))
    });
    check("shf.l.clamp.b32 $d, $a, $b, $c;", &["b32"; 4], &rows, |r| Bits((wide(r) << r[2].min(32)) >> 32));
    check("shf.r.clamp.b32 $d, $a, $b, $c;", &["b32"; 4], &rows, |r| {
        Bits((wide(r) >> r[2].min(32)) & mask(32))
    });
}

#[test]
fn bit_counting() {
    for bits in [32, 64] {
        let (b, v) = (size(bits), integers(bits));
        let rows = all([&v]);
        check(&format!("popc.b{bits} $d, $a;"), &["b32", b], &rows, |r| Bits(r[0].count_ones().into()));
        check(&format!("clz.b{bits} $d, $a;"), &["b32", b], &rows, |r| {
            Bits(u64::from(r[0].leading_zeros()) - u64::from(64 - bits))
        });
        check(&format!("brev.b{bits} $d, $a;"), &[b, b], &rows, |r| Bits(r[0].reverse_bits() >> (64 - bits)));
        for (ty, signed) in [("u", false), ("s", true)] {
            // The highest bit that differs from the sign; all ones if there is none.
            let found = |v: u64| {
                let v = if signed && v >> (bits - 1) == 1 { !v & mask(bits) } else { v };
                (v != 0).then(|| 63 - v.leading_zeros())
            };
            check(&format!("bfind.{ty}{bits} $d, $a;"), &["b32", b], &rows, |r| {
                Bits(found(r[0]).map_or(mask(32), u64::from))
            });
            check(&format!("bfind.shiftamt.{ty}{bits} $d, $a;"), &["b32", b], &rows, |r| {
                Bits(found(r[0]).map_or(mask(32), |i| u64::from(bits - 1 - i)))
            });
        }
    }
}

#[test]
fn bit_fields() {
    let at = [0, 1, 7, 16, 31, 32, 40, 63, 64, 255, 256];
    for bits in [32, 64] {
        let (b, v) = (size(bits), integers(bits));
        let rows = all([&v, &at, &at]);
        for (ty, signed) in [("u", false), ("s", true)] {
            // PTX ISA, bfe: position and length are 8 bits; past the top the sign of the highest bit taken, or zero.
            check(&format!("bfe.{ty}{bits} $d, $a, $b, $c;"), &[b, b, "b32", "b32"], &rows, |r| {
                let (pos, len) = (r[1] & 255, r[2] & 255);
                let top = u64::from(bits) - 1;
                let sign = signed && len > 0 && r[0] >> (pos + len - 1).min(top) & 1 == 1;
                Bits(
                    (0..=top)
                        .map(|i| {
                            (if i < len && pos + i <= top { r[0] >> (pos + i) & 1 } else { sign.into() }) << i
                        })
                        .sum(),
                )
            });
        }
        let (short, some) = (integers(bits)[4..8].to_vec(), [0, 3, 31, 33, 64, 255]);
        check(
            &format!("bfi.b{bits} $d, $a, $b, $c, $e;"),
            &[b, b, b, "b32", "b32"],
            &all([&short, &v, &some, &some]),
            |r| {
                let (pos, len) = (r[2] & 255, r[3] & 255);
                Bits(
                    (0..u64::from(bits))
                        .map(|i| {
                            (if i >= pos && i < pos + len { r[0] >> (i - pos) & 1 } else { r[1] >> i & 1 })
                                << i
                        })
                        .sum(),
                )
            },
        );
    }
}

#[test]
fn permutations_of_bytes() {
    let v = [0x8372_6150, 0xf4e5_d6c7, 0];
    let select = [0x3210, 0x7654, 0x0123, 0xba98, 0xfedc, 0x0808, 0x5140, 0xffff, 0x1_2345, 2, 3, 5];
    let byte = |r: &[u64], i: u64| ((r[1] << 32 | r[0]) >> (8 * (i & 7))) & 255;
    let four = |f: &dyn Fn(u64) -> u64| Bits((0..4).map(|i| f(i) << (8 * i)).sum());
    check("prmt.b32 $d, $a, $b, $c;", &["b32"; 4], &all([&v, &v, &select]), |r| {
        four(&|i| {
            let s = r[2] >> (4 * i) & 15;
            let b = byte(r, s);
            if s & 8 != 0 { if b & 128 != 0 { 255 } else { 0 } } else { b }
        })
    });
    let rows = all([&v, &v, &[0, 1, 2, 3, 7]]);
    let mode = |name: &str, f: fn(u64, u64) -> u64| {
        check(&format!("prmt.b32.{name} $d, $a, $b, $c;"), &["b32"; 4], &rows, |r| {
            four(&|i| byte(r, f(r[2] & 3, i)))
        });
    };
    mode("f4e", |c, i| c + i);
    mode("b4e", |c, i| (c + 8 - i) & 7);
    mode("rc8", |c, _| c);
    mode("ecl", |c, i| c.max(i));
    mode("ecr", |c, i| c.min(i));
    mode("rc16", |c, i| (c & 1) * 2 + (i & 1));
}

#[test]
fn comparisons_and_selections() {
    for (ty, signed, bits) in TYPES {
        let (b, v) = (size(bits), integers(bits));
        let pairs = all([&v, &v]);
        let x = |v| value(v, signed, bits);
        for (op, f) in [
            ("eq", i128::eq as fn(&i128, &i128) -> bool),
            ("ne", i128::ne),
            ("lt", i128::lt),
            ("le", i128::le),
            ("gt", i128::gt),
            ("ge", i128::ge),
        ] {
            check(&format!("setp.{op}.{ty} $d, $a, $b;"), &["pred", b, b], &pairs, |r| {
                Bits(f(&x(r[0]), &x(r[1])).into())
            });
            check(&format!("set.{op}.u32.{ty} $d, $a, $b;"), &["b32", b, b], &pairs, |r| {
                Bits(if f(&x(r[0]), &x(r[1])) { mask(32) } else { 0 })
            });
        }
        let p = [0, 1];
        check(&format!("selp.{ty} $d, $a, $b, $c;"), &[b, b, b, "pred"], &all([&v, &v, &p]), |r| {
            Bits(if r[2] == 1 { r[0] } else { r[1] })
        });
        for ty in [ty, &format!("b{bits}")] {
            check(
                &format!("slct.{ty}.s32 $d, $a, $b, $c;"),
                &[b, b, b, "b32"],
                &all([&v, &v, &integers(32)]),
                |r| Bits(if value(r[2], true, 32) >= 0 { r[0] } else { r[1] }),
            );
        }
    }
    let v = integers(32);
    for (op, f) in
        [("lo", u64::lt as fn(&u64, &u64) -> bool), ("ls", u64::le), ("hi", u64::gt), ("hs", u64::ge)]
    {
        check(&format!("setp.{op}.u32 $d, $a, $b;"), &["pred", "b32", "b32"], &all([&v, &v]), |r| {
            Bits(f(&r[0], &r[1]).into())
        });
    }
    let rows = all([&v, &v, &[0, 1]]);
    for (op, f) in
        [("and", (|a, b| a & b) as fn(bool, bool) -> bool), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)]
    {
        check(&format!("setp.lt.{op}.u32 $d, $a, $b, !$c;"), &["pred", "b32", "b32", "pred"], &rows, |r| {
            Bits(f(r[0] < r[1], r[2] == 0).into())
        });
        // The second predicate has the opposite comparison.
        check(
            &format!(".reg .pred %p; setp.lt.{op}.u32 %p|$d, $a, $b, $c;"),
            &["pred", "b32", "b32", "pred"],
            &rows,
            |r| Bits(f(r[0] >= r[1], r[2] == 1).into()),
        );
    }
}

#[test]
fn guards_take_the_lanes_they_name() {
    let v = integers(32);
    check("mov.b32 $d, $a; @$b add.u32 $d, $d, 1;", &["b32", "b32", "pred"], &all([&v, &[0, 1]]), |r| {
        Bits((r[0] + r[1]) & mask(32))
    });
    check("mov.b32 $d, $a; @!$b add.u32 $d, $d, 1;", &["b32", "b32", "pred"], &all([&v, &[0, 1]]), |r| {
        Bits((r[0] + 1 - r[1]) & mask(32))
    });
}

#[test]
fn dot_products() {
    let v = [0, 0x7f80_ff01, 0x8080_8080, 0xffff_ffff, 0x0102_0304, 0x7fff_8000];
    let rows = all([&v, &v, &integers(32)]);
    for (ta, sa) in [("s32", true), ("u32", false)] {
        for (tb, sb) in [("s32", true), ("u32", false)] {
            let x = |v: u64, at: u64, bits, signed| value(v >> at, signed, bits);
            check(&format!("dp4a.{ta}.{tb} $d, $a, $b, $c;"), &["b32"; 4], &rows, |r| {
                Bits(cut(
                    (0..4).map(|i| x(r[0], 8 * i, 8, sa) * x(r[1], 8 * i, 8, sb)).sum::<i128>()
                        + i128::from(r[2]),
                    32,
                ))
            });
            for (half, at) in [("lo", 0), ("hi", 16)] {
                check(&format!("dp2a.{half}.{ta}.{tb} $d, $a, $b, $c;"), &["b32"; 4], &rows, |r| {
                    Bits(cut(
                        (0..2).map(|i| x(r[0], 16 * i, 16, sa) * x(r[1], at + 8 * i, 8, sb)).sum::<i128>()
                            + i128::from(r[2]),
                        32,
                    ))
                });
            }
        }
    }
}

#[test]
fn integer_conversions() {
    let types = [("u8", false, 8), ("s8", true, 8)].into_iter().chain(TYPES);
    for (to, sto, bto) in types.clone() {
        for (from, sfrom, bfrom) in types.clone() {
            let rows = all([&integers(bfrom)]);
            // A result narrower than its register is extended as its type says.
            let wide = if bto == 8 { 16 } else { bto };
            let x = |r: &[u64]| value(r[0], sfrom, bfrom);
            check(&format!("cvt.{to}.{from} $d, $a;"), &[size(bto), size(bfrom)], &rows, |r| {
                Bits(cut(value(cut(x(r), bto), sto, bto), wide))
            });
            let (lo, hi) =
                if sto { (-(1i128 << (bto - 1)), (1i128 << (bto - 1)) - 1) } else { (0, (1i128 << bto) - 1) };
            // `.sat` is legal where it can do something.
            if bto < bfrom || bto == bfrom && sto != sfrom || sfrom && !sto {
                check(&format!("cvt.sat.{to}.{from} $d, $a;"), &[size(bto), size(bfrom)], &rows, |r| {
                    Bits(cut(x(r).clamp(lo, hi), wide))
                });
            }
        }
    }
}

#[test]
fn moves_that_pack_and_unpack() {
    let v = integers(32);
    check("mov.b64 $d, {$a, $b};", &["b64", "b32", "b32"], &all([&v, &v]), |r| Bits(r[1] << 32 | r[0]));
    check(".reg .b32 %l; mov.b64 {%l, $d}, $a;", &["b32", "b64"], &all([&integers(64)]), |r| {
        Bits(r[0] >> 32)
    });
    check(".reg .b32 %l; mov.b64 {$d, %l}, $a;", &["b32", "b64"], &all([&integers(64)]), |r| {
        Bits(r[0] & mask(32))
    });
    check("mov.b32 $d, {$a, $b};", &["b32", "b16", "b16"], &all([&integers(16), &integers(16)]), |r| {
        Bits(r[1] << 16 | r[0])
    });
    check(".reg .b16 %l; mov.b32 {%l, $d}, $a;", &["b16", "b32"], &all([&v]), |r| Bits(r[0] >> 16));
    check(
        "mov.b64 $d, {$a, $b, $c, $e};",
        &["b64", "b16", "b16", "b16", "b16"],
        &all([&[1, 0xffff], &[2], &[3, 0x8000], &[4]]),
        |r| Bits(r[3] << 48 | r[2] << 32 | r[1] << 16 | r[0]),
    );
    check("mov.u32 $d, 0xdeadbeef;", &["b32"], &[vec![]], |_| Bits(0xdead_beef));
    check("mov.b32 $d, 0f3F800000;", &["b32"], &[vec![]], |_| Bits(0x3f80_0000));
    check("mov.b64 $d, 0d3FF0000000000000;", &["b64"], &[vec![]], |_| Bits(0x3ff0_0000_0000_0000));
    check("mov.u64 $d, -2;", &["b64"], &[vec![]], |_| Bits(u64::MAX - 1));
}
