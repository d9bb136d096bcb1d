//! Loads and stores of every space, size and vector; atomics; state spaces and addresses.

use crate::harness::{Want::Bits, all, check, integers};

/// Bytes `at..at + bits / 8` of a word, extended to the register.
fn field(v: u64, at: u64, bits: u64, signed: bool, register: u64) -> u64 {
    let v = v >> (8 * at) & (u64::MAX >> (64 - bits));
    let v = if signed { ((v << (64 - bits)) as i64 >> (64 - bits)) as u64 } else { v };
    v & (u64::MAX >> (64 - register))
}

const SIZES: [(&str, u64, bool); 12] = [
    ("u8", 8, false),
    ("s8", 8, true),
    ("b8", 8, false),
    ("u16", 16, false),
    ("s16", 16, true),
    ("b16", 16, false),
    ("u32", 32, false),
    ("s32", 32, true),
    ("f32", 32, false),
    ("u64", 64, false),
    ("s64", 64, true),
    ("f64", 64, false),
];

#[test]
fn loads_extend_as_their_type_says() {
    let v = [0x8091_a2b3_c4d5_e6f7, 0x7f6e_5d4c_3b2a_1908];
    // A thread's own 16 bytes in each space, and how they are reached.
    let spaces = [
        ("global", "mov.u64 %p, %in;"),
        (
            "shared",
            ".shared .align 16 .b8 mine[1024]; .reg .u32 %q; mov.u32 %q, mine; mad.lo.u32 %q, %t, 16, %q; cvt.u64.u32 %p, %q;",
        ),
        ("local", ".local .align 16 .b8 mine[16]; mov.u64 %p, mine;"),
        ("", "mov.u64 %p, %in;"),
        (
            "",
            ".shared .align 16 .b8 mine[1024]; .reg .u32 %q; mov.u32 %q, mine; mad.lo.u32 %q, %t, 16, %q; cvt.u64.u32 %p, %q; cvta.shared.u64 %p, %p;",
        ),
        ("", ".local .align 16 .b8 mine[16]; mov.u64 %p, mine; cvta.local.u64 %p, %p;"),
    ];
    for (space, address) in spaces {
        let dot = if space.is_empty() { String::new() } else { format!(".{space}") };
        for (ty, bits, signed) in SIZES {
            for register in [16, 32, 64] {
                if register < bits || (ty.starts_with('f') || ty == "b8") && register != bits.max(16) {
                    continue;
                }
                for at in (0..8).step_by(bits as usize / 8) {
                    let code =
                        format!(".reg .u64 %p; {address} st{dot}.b64 [%p], $a; ld{dot}.{ty} $d, [%p+{at}];");
                    check(&code, &[&format!("b{register}"), "b64"], &all([&v]), |r| {
                        Bits(field(r[0], at, bits, signed, register))
                    });
                }
            }
            // A store changes its own bytes only.
            let at = 8 - bits / 8;
            let code = format!(
                ".reg .u64 %p; {address} st{dot}.b64 [%p], $a; st{dot}.{} [%p+{at}], $b; ld{dot}.b64 $d, [%p];",
                ty.replace('s', "u")
            );
            check(
                &code,
                &["b64", "b64", &format!("b{}", bits.max(16))],
                &all([&v, &[0x1122_3344_5566_7788]]),
                |r| {
                    let m = if bits == 64 { 0 } else { u64::MAX >> bits };
                    Bits(r[0] & m | field(r[1], 0, bits, false, 64) << (8 * at))
                },
            );
        }
    }
}

#[test]
fn qualifiers_do_not_change_values() {
    for q in [
        "ca",
        "cg",
        "cs",
        "lu",
        "cv",
        "nc",
        "volatile",
        "relaxed.gpu",
        "acquire.sys",
        "L1::no_allocate",
        "L2::128B",
        "nc.L1::no_allocate.L2::256B",
    ] {
        let load = match q {
            "volatile" => "ld.volatile.global.u32".to_owned(),
            "relaxed.gpu" | "acquire.sys" => format!("ld.{q}.global.u32"),
            _ => format!("ld.global.{q}.u32"),
        };
        check(&format!("{load} $d, [%in];"), &["b32", "b32"], &all([&[5, 0xffff_ffff]]), |r| Bits(r[0]));
    }
    for store in [
        "st.global.wb",
        "st.global.cg",
        "st.global.cs",
        "st.global.wt",
        "st.volatile.global",
        "st.relaxed.gpu.global",
        "st.release.cta.global",
    ] {
        check(
            &format!("{store}.u32 [%in], $b; ld.global.u32 $d, [%in];"),
            &["b32"; 3],
            &all([&[5], &[7, 0xffff_ffff]]),
            |r| Bits(r[1]),
        );
    }
    check("ldu.global.u32 $d, [%in];", &["b32", "b32"], &all([&[5]]), |r| Bits(r[0]));
    check("prefetch.global.L2 [%in]; ld.global.u32 $d, [%in];", &["b32", "b32"], &all([&[5]]), |r| {
        Bits(r[0])
    });
}

#[test]
fn vectors() {
    let v = [0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00];
    // in: two 64-bit words a thread.
    check(
        ".reg .b64 %x; ld.global.v2.b64 {$d, %x}, [%in]; xor.b64 $d, $d, %x;",
        &["b64"; 3],
        &all([&v, &v]),
        |r| Bits(r[0] ^ r[1]),
    );
    check(
        ".reg .b32 %x<3>; ld.global.v4.u32 {%x0, %x1, %x2, $d}, [%in]; sub.u32 $d, $d, %x1;",
        &["b32", "b64", "b64"],
        &all([&v, &v]),
        |r| Bits(((r[1] >> 32) as u32).wrapping_sub((r[0] >> 32) as u32).into()),
    );
    check(".reg .b16 %x<3>; ld.global.v4.u8 {%x0, %x1, $d, %x2}, [%in];", &["b16", "b64"], &all([&v]), |r| {
        Bits(r[0] >> 16 & 255)
    });
    check(".reg .b32 %x; ld.global.v2.s16 {%x, $d}, [%in+4];", &["b32", "b64"], &all([&v]), |r| {
        Bits(field(r[0], 6, 16, true, 32))
    });
    check(
        "st.global.v2.b32 [%in], {$b, $c}; ld.global.b64 $d, [%in];",
        &["b64", "b64", "b32", "b32"],
        &all([&v, &[1, 2], &[3, 4]]),
        |r| Bits(r[2] << 32 | r[1]),
    );
    check(
        ".shared .align 16 .v4 .u32 one[64]; .reg .u32 %q; mov.u32 %q, one; mad.lo.u32 %q, %t, 16, %q; st.shared.v4.u32 [%q], {$a, $b, $c, $e}; ld.shared.u32 $d, [%q+8];",
        &["b32"; 5],
        &all([&[1], &[2], &[3, 9], &[4]]),
        |r| Bits(r[2]),
    );
    // `_` takes nothing.
    check("ld.global.v2.u32 {_, $d}, [%in];", &["b32", "b64"], &all([&v]), |r| Bits(r[0] >> 32));
}

#[test]
fn constants_and_initialised_variables() {
    use ptxsim::{LaunchConfig, LoadedModule, Memory, Options, launch};
    let ptx = ".version 9.0\n.target sm_80\n.address_size 64\n\
        .const .align 4 .u32 table[4] = {10, 20, 30, 40};\n\
        .global .align 2 .u16 half[3] = {1, 65535, 3};\n\
        .global .align 4 .f32 table2[2] = {0f3F800000, 0f40000000};\n\
        .global .align 8 .u64 where = table2;\n\
        .global .align 1 .b8 text[4] = {104, 105, 0, 255};\n\
        .const .align 8 .b8 big[16] = {1, 2, 3, 4, 5, 6, 7, 8};\n\
        .visible .entry k(.param .u64 out, .param .align 8 .b8 pair[16]) {\n\
        .reg .u32 %r<9>; .reg .u64 %o, %p; .reg .u16 %h;\n\
        ld.param.u64 %o, [out];\n\
        ld.const.u32 %r1, [table+8]; st.global.u32 [%o], %r1;\n\
        ld.global.u16 %r2, [half+2]; st.global.u32 [%o+4], %r2;\n\
        ld.global.u64 %p, [where]; ld.global.u32 %r3, [%p+4]; st.global.u32 [%o+8], %r3;\n\
        ld.global.u8 %r4, [text+3]; st.global.u32 [%o+12], %r4;\n\
        mov.u64 %p, big; ld.const.u32 %r5, [%p+4]; st.global.u32 [%o+16], %r5;\n\
        cvta.const.u64 %p, %p; ld.u32 %r6, [%p+8]; st.global.u32 [%o+20], %r6;\n\
        ld.param.u32 %r7, [pair+12]; st.global.u32 [%o+24], %r7;\n\
        ret;\n}\n";
    let memory = Memory::new(1 << 20);
    let module = LoadedModule::load(crate::harness::module(ptx).into(), &memory).unwrap();
    let out = memory.alloc(28, 256).unwrap();
    let config = LaunchConfig::new(1, 1).arg(out).arg(0u64).arg(0x1234_5678_0000_0000u64);
    let report = launch(&memory, &module, "k", &config, &Options::default()).unwrap();
    assert!(report.is_clean(), "{:?} {:?}", report.fault, report.reports);
    let mut got = [0u32; 7];
    memory.read(out, bytemuck::cast_slice_mut(&mut got)).unwrap();
    assert_eq!(got, [30, 65535, 0x4000_0000, 255, 0x0807_0605, 0, 0x1234_5678]);
}

#[test]
fn addresses_change_space_and_back() {
    check(
        ".shared .align 4 .b8 s[64]; .reg .u64 %p, %q; .reg .u32 %l; mov.u64 %p, s; cvta.shared.u64 %q, %p; cvta.to.shared.u64 %q, %q; setp.eq.u64 $d, %p, %q;",
        &["pred"],
        &[vec![]],
        |_| Bits(1),
    );
    for (space, is) in [("shared", 0), ("local", 0), ("global", 1), ("const", 0)] {
        check(&format!("isspacep.{space} $d, %in;"), &["pred"], &[vec![]], |_| Bits(is));
    }
    check(
        ".shared .align 4 .b8 s[64]; .reg .u64 %p; mov.u64 %p, s; cvta.shared.u64 %p, %p; isspacep.shared $d, %p;",
        &["pred"],
        &[vec![]],
        |_| Bits(1),
    );
    check(
        ".local .align 4 .b8 s[64]; .reg .u64 %p; mov.u64 %p, s; cvta.local.u64 %p, %p; isspacep.local $d, %p;",
        &["pred"],
        &[vec![]],
        |_| Bits(1),
    );
}

#[test]
fn atomics_give_the_old_value_and_leave_the_new() {
    let run = |op: &str, ty: &str, bits: u64, v: &[u64], f: &dyn Fn(u64, u64) -> u64| {
        let b = format!("b{bits}");
        let m = u64::MAX >> (64 - bits);
        let rows = all([v, v]);
        // $a is at [%in]; in shared memory each thread has its own 8 bytes.
        let shared =
            ".shared .align 8 .b8 own[512]; .reg .u32 %q; mov.u32 %q, own; mad.lo.u32 %q, %t, 8, %q;";
        for (setup, space, p) in [
            ("", ".global", "%in"),
            ("", "", "%in"),
            (&*format!("{shared} st.shared.{b} [%q], $a;"), ".shared", "%q"),
        ] {
            let space_gpu = format!(".relaxed.gpu{space}");
            for s in [space, &space_gpu] {
                check(&format!("{setup} atom{s}.{op}.{ty} $d, [{p}], $b;"), &[&*b; 3], &rows, |r| Bits(r[0]));
                check(
                    &format!(
                        "{setup} .reg .{b} %old; atom{s}.{op}.{ty} %old, [{p}], $b; ld{space}.{b} $d, [{p}];"
                    ),
                    &[&*b; 3],
                    &rows,
                    |r| Bits(f(r[0], r[1]) & m),
                );
                if op != "exch" && op != "cas" {
                    check(
                        &format!("{setup} red{s}.{op}.{ty} [{p}], $b; ld{space}.{b} $d, [{p}];"),
                        &[&*b; 3],
                        &rows,
                        |r| Bits(f(r[0], r[1]) & m),
                    );
                }
            }
        }
    };
    let signed = |f: fn(i64, i64) -> i64, bits: u32| {
        move |a: u64, b: u64| {
            f((a << (64 - bits)) as i64 >> (64 - bits), (b << (64 - bits)) as i64 >> (64 - bits)) as u64
        }
    };
    for bits in [32u32, 64] {
        let v = integers(bits);
        let bits64 = u64::from(bits);
        for op in ["and", "or", "xor"] {
            run(op, &format!("b{bits}"), bits64, &v, &|a, b| match op {
                "and" => a & b,
                "or" => a | b,
                _ => a ^ b,
            });
        }
        run("exch", &format!("b{bits}"), bits64, &v, &|_, b| b);
        run("add", &format!("u{bits}"), bits64, &v, &u64::wrapping_add);
        run("min", &format!("u{bits}"), bits64, &v, &u64::min);
        run("max", &format!("u{bits}"), bits64, &v, &u64::max);
        run("min", &format!("s{bits}"), bits64, &v, &signed(i64::min, bits));
        run("max", &format!("s{bits}"), bits64, &v, &signed(i64::max, bits));
        let b = format!("b{bits}");
        check(
            &format!(".reg .{b} %old; atom.global.cas.{b} %old, [%in], $b, $c; ld.global.{b} $d, [%in];"),
            &[&*b; 4],
            &all([&v, &v, &v[..3]]),
            |r| Bits(if r[0] == r[1] { r[2] } else { r[0] }),
        );
        check(&format!("atom.global.cas.{b} $d, [%in], $b, $c;"), &[&*b; 4], &all([&v, &v, &v[..3]]), |r| {
            Bits(r[0])
        });
    }
    let v = integers(32);
    run("add", "s32", 32, &v, &u64::wrapping_add);
    run("inc", "u32", 32, &v, &|a, b| if a >= b { 0 } else { a + 1 });
    run("dec", "u32", 32, &v, &|a, b| if a == 0 || a > b { b } else { a - 1 });
    let f = [0.0f32, 1.5, -2.25, 1e30, f32::INFINITY, 1e-10].map(|v| u64::from(v.to_bits()));
    run("add", "f32", 32, &f, &|a, b| (f32::from_bits(a as u32) + f32::from_bits(b as u32)).to_bits().into());
    let d = [0.0f64, 1.5, -2.25, 1e300, 1e-10].map(f64::to_bits);
    run("add", "f64", 64, &d, &|a, b| (f64::from_bits(a) + f64::from_bits(b)).to_bits());
    let h = [0x3c00_4248, 0x0001_3555, 0xbc00_c248];
    let each = |a: u64, b: u64, add: &dyn Fn(u16, u16) -> u16| {
        u64::from(add((a >> 16) as u16, (b >> 16) as u16)) << 16 | u64::from(add(a as u16, b as u16))
    };
    run("add.noftz", "f16x2", 32, &h, &|a, b| {
        each(a, b, &|x, y| (half::f16::from_bits(x) + half::f16::from_bits(y)).to_bits())
    });
    run("add.noftz", "bf16x2", 32, &h, &|a, b| {
        each(a, b, &|x, y| (half::bf16::from_bits(x) + half::bf16::from_bits(y)).to_bits())
    });
}

/// Sums of f32 flush subnormals in global memory, not in shared memory.
#[test]
fn atomic_sums_near_zero() {
    let v = [0u64, 1, 0x8000_0001, 0x007f_ffff, 0x0080_0000, 0x8080_0001, 0x3f80_0000];
    let own = ".shared .align 8 .b8 own[512]; .reg .u32 %q; mov.u32 %q, own; mad.lo.u32 %q, %t, 8, %q; st.shared.u32 [%q], $a;";
    let generic = format!("{own} .reg .u64 %g; cvt.u64.u32 %g, %q; cvta.shared.u64 %g, %g;");
    let flush = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
    for (setup, space, p, flushes) in [
        ("", ".global", "%in", true),
        ("", "", "%in", true),
        (own, ".shared", "%q", false),
        (&*generic, "", "%g", false),
    ] {
        for code in [
            format!("red{space}.add.f32 [{p}], $b;"),
            format!(".reg .f32 %o; atom{space}.add.f32 %o, [{p}], $b;"),
        ] {
            check(&format!("{setup} {code} ld{space}.b32 $d, [{p}];"), &["b32"; 3], &all([&v, &v]), |r| {
                let f = |x: f32| if flushes { flush(x) } else { x };
                let x = |b: u64| f(f32::from_bits(b as u32));
                Bits(f(x(r[0]) + x(r[1])).to_bits().into())
            });
        }
    }
}

/// Elements of vectors are updated each for itself.
#[test]
fn atomics_on_vectors() {
    let f = |x: f32| u64::from(x.to_bits());
    let two = |x: f32, y: f32| f(x) | f(y) << 32;
    let rows = vec![vec![two(1.0, 2.0), two(3.0, 4.0), f(0.5), f(-8.0)]];
    let types = &["b64", "b64", "b64", "b32", "b32"];
    let test = |code: &str, want: u64| check(code, types, &rows, |_| Bits(want));
    let old = ".reg .f32 %x, %y, %z, %w;";
    for (code, lo, hi) in [
        ("red.global.add.v2.f32 [%in], {$c, $e};", two(1.5, -6.0), two(3.0, 4.0)),
        ("red.global.add.v4.f32 [%in], {$c, $e, $e, $c};", two(1.5, -6.0), two(-5.0, 4.5)),
        ("atom.global.add.v2.f32 {%x, %y}, [%in], {$c, $e};", two(1.5, -6.0), two(3.0, 4.0)),
        ("atom.add.v4.f32 {%x, _, %z, %w}, [%in], {$c, $e, $e, $c};", two(1.5, -6.0), two(-5.0, 4.5)),
    ] {
        test(&format!("{old} {code} ld.global.b64 $d, [%in];"), lo);
        test(&format!("{old} {code} ld.global.b64 $d, [%in+8];"), hi);
    }
    test(
        &format!("{old} atom.global.add.v2.f32 {{%x, %y}}, [%in], {{$c, $e}}; mov.b64 $d, {{%x, %y}};"),
        two(1.0, 2.0),
    );
    let h = |x: f32| u64::from(half::f16::from_f32(x).to_bits());
    let rows = vec![vec![h(1.0) | h(2.0) << 16 | h(3.0) << 32 | h(4.0) << 48, h(0.5), h(-8.0)]];
    for (code, want) in [
        ("red.global.add.noftz.v2.f16 [%in], {$b, $c};", [1.5, -6.0, 3.0, 4.0]),
        ("red.global.add.noftz.v4.f16 [%in], {$b, $c, $b, $b};", [1.5, -6.0, 3.5, 4.5]),
        (
            ".reg .b32 %x; mov.b32 %x, {$b, $c}; red.global.add.noftz.v2.f16x2 [%in], {%x, %x};",
            [1.5, -6.0, 3.5, -4.0],
        ),
    ] {
        let want = want.iter().rev().fold(0, |all, &x| all << 16 | h(x));
        check(&format!("{code} ld.global.b64 $d, [%in];"), &["b64", "b64", "b16", "b16"], &rows, |_| {
            Bits(want)
        });
    }
}

#[test]
fn atomics_of_all_lanes_on_one_word_add_up() {
    let rows: Vec<Vec<u64>> = (0..64).map(|i| vec![i]).collect();
    let code = ".shared .align 4 .u32 s; .reg .pred %z; .reg .u32 %x; setp.eq.u32 %z, %t, 0; @%z st.shared.u32 [s], 0; bar.sync 0;\n\
                atom.shared.add.u32 %x, [s], $a; bar.sync 0; ld.shared.u32 $d, [s];";
    check(code, &["b32", "b32"], &rows, |_| Bits(64 * 63 / 2));
}

#[test]
fn parameters_end_where_they_end() {
    for (at, fits) in
        [("n", true), ("n+4", false), ("n-8", true), ("out-4", false), ("n-9223372036854775808", false)]
    {
        let ptx = format!(
            ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 out, .param .u32 n) {{ .reg .u32 %x; ld.param.u32 %x, [{at}]; ret; }}\n"
        );
        let forms = ptxsim::Module::parse(&ptx).unwrap().forms();
        let why = forms.iter().find(|f| f.text == "ld.param.u32").unwrap().unsupported.clone();
        assert_eq!(why.is_none(), fits, "{at}: {why:?}");
    }
}

#[test]
fn bulk_prefetches_are_known_and_others_refused() {
    for (form, operands, known) in [
        ("L2.global", "[%a], 64", true),
        ("L2.global.L2::cache_hint", "[%a], 64, %a", true),
        ("tensor.2d.L2.global.tile", "[%a, {%x, %x}]", true),
        ("tensor.6d.L2.global", "[%a, {%x, %x}]", false),
        ("global", "[%a], 64", false),
        ("L2.global.sideways", "[%a], 64", false),
    ] {
        let ptx = format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 p) {{ .reg .u32 %x; .reg .u64 %a; ld.param.u64 %a, [p]; mov.u32 %x, 0; cp.async.bulk.prefetch.{form} {operands}; ret; }}\n"
        );
        let forms = ptxsim::Module::parse(&ptx).unwrap().forms();
        let found = forms.iter().find(|f| f.text.starts_with("cp.async.bulk.prefetch")).unwrap();
        assert_eq!(found.unsupported.is_none(), known, "{form}: {:?}", found.unsupported);
    }
}
