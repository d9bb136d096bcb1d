//! Instructions between lanes, special registers, branches, calls and barriers.

use crate::harness::{Want::Bits, check, run};

/// One row a lane: lane `i` gets `f(i)`.
fn lanes(f: impl Fn(u64) -> Vec<u64>) -> Vec<Vec<u64>> {
    (0..32).map(f).collect()
}

#[test]
fn shuffles() {
    let value = |i: u64| i * 0x0101 + 7;
    let rows = lanes(|i| vec![value(i), 0, i]);
    for (mode, amounts) in
        [("up", [0, 1, 5, 31]), ("down", [0, 1, 5, 31]), ("bfly", [0, 1, 6, 31]), ("idx", [0, 3, 17, 31])]
    {
        for amount in amounts {
            // The third operand: the segment's mask in bits 8-12, the clamp in bits 0-4.
            for segment in [0u64, 0x10, 0x18, 0x1c] {
                let clamp = if mode == "up" { 0 } else { 0x1f };
                let c = segment << 8 | clamp;
                // The PTX ISA's pseudo-code for shfl.
                let source = |lane: u64| {
                    let max = (lane & segment) | (clamp & !segment);
                    let min = lane & segment;
                    let (j, ok) = match mode {
                        "up" => (lane.wrapping_sub(amount), lane as i64 - amount as i64 >= max as i64),
                        "down" => (lane + amount, lane + amount <= max),
                        "bfly" => (lane ^ amount, lane ^ amount <= max),
                        _ => (min | (amount & !segment), min | (amount & !segment) <= max),
                    };
                    if ok { (j, 1) } else { (lane, 0) }
                };
                check(
                    &format!("shfl.sync.{mode}.b32 $d, $a, {amount}, {c}, 0xffffffff;"),
                    &["b32"; 4],
                    &rows,
                    |r| Bits(value(source(r[2]).0)),
                );
                check(
                    &format!(".reg .b32 %x; shfl.sync.{mode}.b32 %x|$d, $a, {amount}, {c}, -1;"),
                    &["pred", "b32", "b32", "b32"],
                    &rows,
                    |r| Bits(source(r[2]).1),
                );
            }
        }
    }
    // Each lane names its own source.
    let rows = lanes(|i| vec![value(i), (i * 7 + 3) % 32]);
    check("shfl.sync.idx.b32 $d, $a, $b, 31, -1;", &["b32"; 3], &rows, |r| Bits(value(r[1])));
}

#[test]
fn votes_and_matches() {
    let rows = lanes(|i| vec![u64::from(i % 3 == 0), i / 5, i]);
    let ballot: u64 = (0..32).filter(|i| i % 3 == 0).map(|i| 1 << i).sum();
    check("vote.sync.ballot.b32 $d, $a, -1;", &["b32", "pred"], &rows, |_| Bits(ballot));
    check("vote.sync.ballot.b32 $d, !$a, -1;", &["b32", "pred"], &rows, |_| Bits(!ballot & 0xffff_ffff));
    check("vote.sync.any.pred $d, $a, -1;", &["pred", "pred"], &rows, |_| Bits(1));
    check("vote.sync.all.pred $d, $a, -1;", &["pred", "pred"], &rows, |_| Bits(0));
    check("vote.sync.uni.pred $d, $a, -1;", &["pred", "pred"], &rows, |_| Bits(0));
    check("vote.sync.all.pred $d, $a, -1;", &["pred", "pred"], &lanes(|_| vec![1]), |_| Bits(1));
    check("vote.sync.uni.pred $d, $a, -1;", &["pred", "pred"], &lanes(|_| vec![0]), |_| Bits(1));
    let same = |v: u64| (0..32).filter(|i| i / 5 == v).map(|i| 1u64 << i).sum();
    check("match.any.sync.b32 $d, $b, -1;", &["b32", "b32", "b32"], &rows, |r| Bits(same(r[1])));
    check("match.any.sync.b64 $d, $b, -1;", &["b32", "b32", "b64"], &rows, |r| Bits(same(r[1])));
    check("match.all.sync.b32 $d, $b, -1;", &["b32", "b32", "b32"], &rows, |_| Bits(0));
    check(".reg .pred %p; match.all.sync.b32 $d|%p, $a, -1;", &["b32", "b32"], &lanes(|_| vec![9]), |_| {
        Bits(0xffff_ffff)
    });
    check(".reg .b32 %x; match.all.sync.b32 %x|$d, $a, -1;", &["pred", "b32"], &lanes(|_| vec![9]), |_| {
        Bits(1)
    });
    check("activemask.b32 $d;", &["b32"], &lanes(|_| vec![]), |_| Bits(0xffff_ffff));
    let elected = run(".reg .b32 %x; elect.sync %x|$d, -1;", &["pred"], &lanes(|_| vec![]));
    assert_eq!(elected.iter().sum::<u64>(), 1);
}

#[test]
fn a_part_of_the_lanes_takes_part() {
    // Ten rows: lanes 10 to 31 have left.
    let rows: Vec<Vec<u64>> = (0..10).map(|i| vec![i]).collect();
    check("activemask.b32 $d;", &["b32", "b32"], &rows, |_| Bits(0x3ff));
    check("redux.sync.add.u32 $d, $a, 0x3ff;", &["b32", "b32"], &rows, |_| Bits(45));
    // Even and odd lanes each among themselves.
    let code = ".reg .pred %p; .reg .b32 %m; and.b32 %m, $a, 1; setp.eq.u32 %p, %m, 0; @%p bra even;\n\
                redux.sync.add.u32 $d, $a, 0xaaaaaaaa; bra.uni done;\neven: redux.sync.max.u32 $d, $a, 0x55555555;\ndone:";
    check(code, &["b32", "b32"], &lanes(|i| vec![i]), |r| Bits(if r[0] % 2 == 0 { 30 } else { 256 }));
}

/// Lanes that name masks of their own execute one instruction together, as tiles of a warp do.
#[test]
fn groups_that_name_their_own_masks_are_served_apart() {
    for size in [4u64, 8, 16] {
        let first = |i: u64| i / size * size;
        let tile = |i: u64| ((1 << size) - 1) << first(i);
        let rows = lanes(|i| vec![u64::from(i % 3 == 0), i, tile(i)]);
        let those = |r: &[u64], f: &dyn Fn(u64) -> bool| -> u64 {
            (0..32).filter(|&i| r[2] >> i & 1 != 0 && f(i)).map(|i| 1 << i).sum()
        };
        let types = &["b32", "pred", "b32", "b32"];
        let test = |code: &str, want: &dyn Fn(&[u64]) -> u64| check(code, types, &rows, |r| Bits(want(r)));
        test("vote.sync.ballot.b32 $d, $a, $c;", &|r| those(r, &|i| i % 3 == 0));
        test("redux.sync.add.u32 $d, $b, $c;", &|r| (first(r[1])..first(r[1]) + size).sum());
        test("redux.sync.max.u32 $d, $b, $c;", &|r| first(r[1]) + size - 1);
        test("shfl.sync.bfly.b32 $d, $b, 3, 31, $c;", &|r| r[1] ^ 3);
        test(".reg .b32 %x; shr.u32 %x, $b, 1; match.any.sync.b32 $d, %x, $c;", &|r| 3 << (r[1] & !1));
        let whole = format!(".reg .b32 %x; div.u32 %x, $b, {size}; match.all.sync.b32 $d, %x, $c;");
        test(&whole, &|r| r[2]);
        test(".reg .pred %p; elect.sync $d|%p, $c;", &|r| first(r[1]));
        let types = &["pred", "pred", "b32", "b32"];
        let test = |code: &str, want: &dyn Fn(&[u64]) -> bool| {
            check(code, types, &rows, |r| Bits(want(r).into()));
        };
        test(".reg .pred %p; setp.lt.u32 %p, $b, 5; vote.sync.any.pred $d, %p, $c;", &|r| first(r[1]) < 5);
        test(".reg .pred %p; setp.gt.u32 %p, $b, 5; vote.sync.all.pred $d, %p, $c;", &|r| first(r[1]) > 5);
        test(".reg .b32 %x; elect.sync %x|$d, $c;", &|r| r[1] == first(r[1]));
        // Lanes 10 and up come to it on their own: a tile that is cut in two waits for its other part.
        let code = ".reg .pred %p, %q; mov.u32 $d, 0; setp.ge.u32 %p, $b, 10; @%p bra sum;\n\
                    setp.gt.u32 %q, $b, 99; @%q bra end;\nsum: redux.sync.add.u32 $d, $b, $c;\nend:";
        check(code, &["b32", "pred", "b32", "b32"], &rows, |r| Bits((first(r[1])..first(r[1]) + size).sum()));
    }
}

#[test]
fn shuffles_between_groups_are_reported() {
    use ptxsim::{LaunchConfig, LoadedModule, Memory, Options, ReportKind, launch};
    let ptx = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k() {\n\
        .reg .u32 %t, %m; .reg .pred %p; mov.u32 %t, %laneid; setp.lt.u32 %p, %t, 16; selp.b32 %m, 0xffff, 0xffff0000, %p;\n\
        shfl.sync.bfly.b32 %t, %t, 16, 31, %m; ret;\n}\n";
    let memory = Memory::new(1 << 20);
    let module = LoadedModule::load(crate::harness::module(ptx).into(), &memory).unwrap();
    let report = launch(&memory, &module, "k", &LaunchConfig::new(1, 32), &Options::default()).unwrap();
    assert!(report.reports.iter().any(|r| r.kind == ReportKind::WrongMask), "{:?}", report.reports);
}

#[test]
fn reductions() {
    let v = |i: u64| (i * 0x1234_5677 + 0x8000_0000) & 0xffff_ffff;
    let rows = lanes(|i| vec![v(i)]);
    let all: Vec<u32> = (0..32).map(|i| v(i) as u32).collect();
    let signed = |v: u32| v as i32;
    let fold = |f: fn(u32, u32) -> u32| u64::from(all.iter().copied().reduce(f).unwrap());
    for (op, want) in [
        ("add.u32", fold(u32::wrapping_add)),
        ("add.s32", fold(u32::wrapping_add)),
        ("min.u32", fold(u32::min)),
        ("max.u32", fold(u32::max)),
        ("min.s32", u64::from(all.iter().copied().min_by_key(|&v| signed(v)).unwrap())),
        ("max.s32", u64::from(all.iter().copied().max_by_key(|&v| signed(v)).unwrap())),
        ("and.b32", fold(|a, b| a & b)),
        ("or.b32", fold(|a, b| a | b)),
        ("xor.b32", fold(|a, b| a ^ b)),
    ] {
        check(&format!("redux.sync.{op} $d, $a, -1;"), &["b32", "b32"], &rows, |_| Bits(want));
    }
}

#[test]
fn block_votes() {
    let rows: Vec<Vec<u64>> = (0..64).map(|i| vec![u64::from(i < 40)]).collect();
    check("barrier.red.popc.u32 $d, 0, $a;", &["b32", "pred"], &rows, |_| Bits(40));
    check("bar.red.popc.u32 $d, 1, 64, $a;", &["b32", "pred"], &rows, |_| Bits(40));
    check("bar.red.and.pred $d, 0, $a;", &["pred", "pred"], &rows, |_| Bits(0));
    check("bar.red.or.pred $d, 0, $a;", &["pred", "pred"], &rows, |_| Bits(1));
    check("bar.red.or.pred $d, 0, !$a;", &["pred", "pred"], &rows, |_| Bits(1));
}

#[test]
fn special_registers() {
    let rows: Vec<Vec<u64>> = (0..130).map(|i| vec![i]).collect();
    for (register, f) in [
        ("%tid.x", (|i| i % 64) as fn(u64) -> u64),
        ("%ntid.x", |_| 64),
        ("%ctaid.x", |i| i / 64),
        ("%nctaid.x", |_| 3),
        ("%tid.y", |_| 0),
        ("%ntid.z", |_| 1),
        ("%laneid", |i| i % 32),
        ("%warpid", |i| i % 64 / 32),
        ("%nwarpid", |_| 2),
        ("%lanemask_eq", |i| 1 << (i % 32)),
        ("%lanemask_lt", |i| (1 << (i % 32)) - 1),
        ("%lanemask_le", |i| (2 << (i % 32)) - 1),
        ("%lanemask_gt", |i| 0xffff_ffff & !((2 << (i % 32)) - 1)),
        ("%lanemask_ge", |i| 0xffff_ffff & !((1 << (i % 32)) - 1)),
        ("WARP_SZ", |_| 32),
        ("%dynamic_smem_size", |_| 0),
        ("%cluster_nctaid.x", |_| 1),
        ("%cluster_ctarank", |_| 0),
    ] {
        if register != "%nwarpid" {
            check(&format!("mov.u32 $d, {register};"), &["b32", "b32"], &rows, |r| Bits(f(r[0])));
        }
    }
    // Clocks go on.
    check(
        ".reg .u64 %x, %y; mov.u64 %x, %clock64; add.u64 %y, %x, 1; mov.u64 %y, %clock64; setp.ge.u64 $d, %y, %x;",
        &["pred"],
        &[vec![]],
        |_| Bits(1),
    );
    check(
        ".reg .u64 %x, %y; mov.u64 %x, %globaltimer; nanosleep.u32 100; mov.u64 %y, %globaltimer; setp.ge.u64 $d, %y, %x;",
        &["pred"],
        &[vec![]],
        |_| Bits(1),
    );
}

#[test]
fn indexed_branches() {
    let code = "@!$b bra last; ts: .branchtargets zero, one, last; brx.idx $a, ts; zero: mov.u32 $d, 100; bra.uni end; one: mov.u32 $d, 200; bra.uni end; last: mov.u32 $d, 300; end:";
    check(code, &["b32", "b32", "pred"], &lanes(|i| vec![i % 3, u64::from(i != 5)]), |r| {
        Bits(if r[1] == 1 { 100 * (r[0] + 1) } else { 300 })
    });
}

#[test]
fn loops_of_different_lengths_meet_again() {
    // Lane i adds 1 to i, 3i times; then all lanes vote.
    let code = ".reg .u32 %k, %m; .reg .pred %p, %q; setp.eq.u32 %q, 0, 0; mul.lo.u32 %k, $a, 3; mov.u32 $d, 0;\n\
                again: setp.eq.u32 %p, %k, 0; @%p bra met; add.u32 $d, $d, $a; sub.u32 %k, %k, 1; bra again;\n\
                met: vote.sync.ballot.b32 %m, %q, -1; add.u32 $d, $d, %m;";
    check(code, &["b32", "b32"], &lanes(|i| vec![i]), |r| {
        Bits((3 * r[0] * r[0] + 0xffff_ffff) & 0xffff_ffff)
    });
}

/// Lanes that a branch left aside are waited for by the others: they go on to where they end or meet them.
#[test]
fn lanes_past_a_branch_are_not_held_up_by_those_that_wait_for_them() {
    let branch = "setp.lt.u32 %p, $a, 2; @!%p bra past;\n";
    // As Numba's reduction does: two lanes wait for all, the others end.
    let ends = format!(
        ".reg .pred %p; mov.u32 $d, 1; {branch} bar.warp.sync -1; mov.u32 $d, 2;\npast: @!%p bra end;\nend:"
    );
    check(&ends, &["b32", "b32"], &lanes(|i| vec![i]), |r| Bits(1 + u64::from(r[0] < 2)));
    // The others come to a barrier of their own.
    for barrier in ["bar.warp.sync -1;", "barrier.sync 0;"] {
        let code = format!(
            ".reg .pred %p; mov.u32 $d, 1; {branch} {barrier} mov.u32 $d, 2;\npast: @%p bra end;\n{barrier}\nend:"
        );
        let rows: Vec<Vec<u64>> = (0..64).map(|i| vec![i]).collect();
        check(&code, &["b32", "b32"], &rows, |r| Bits(1 + u64::from(r[0] < 2)));
    }
}

/// Three warps and one word: its halves are written by two of them, the third reads one. In whatever order they run, the
/// race is between that one's writer and its reader.
#[test]
fn bytes_of_one_word_are_told_apart() {
    use ptxsim::{LaunchConfig, LoadedModule, Memory, Options, ReportKind, launch};
    let ptx = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k() {\n\
        .shared .align 4 .b8 w[4]; .reg .u32 %t, %l; .reg .u16 %x; .reg .pred %p;\n\
        mov.u32 %t, %tid.x; and.b32 %l, %t, 31; setp.ne.u32 %p, %l, 0; @%p ret;\n\
        mov.u16 %x, 1; setp.eq.u32 %p, %t, 0; @!%p bra a; st.shared.u16 [w], %x;\n\
        a: setp.eq.u32 %p, %t, 32; @!%p bra b; st.shared.u16 [w+2], %x;\n\
        b: setp.eq.u32 %p, %t, 64; @!%p bra c; ld.shared.u16 %x, [w];\n\
        c: ret;\n}\n";
    let memory = Memory::new(1 << 20);
    let module = LoadedModule::load(crate::harness::module(ptx).into(), &memory).unwrap();
    for seed in 0..12 {
        let options = Options { seed, checks: ptxsim::Checks::SHARED_RACE, ..Options::default() };
        let report = launch(&memory, &module, "k", &LaunchConfig::new(1, 96), &options).unwrap();
        let races: Vec<_> = report.reports.iter().filter(|r| r.kind == ReportKind::SharedRace).collect();
        assert_eq!(races.len(), 1, "seed {seed}: {:?}", report.reports);
        let warps = [races[0].thread[0] / 32, races[0].other.as_ref().unwrap().warp.unwrap()];
        assert!(warps == [2, 0] || warps == [0, 2], "seed {seed}: {warps:?}");
    }
}

/// The same between three blocks and the halves of 8 bytes, which count as touched once.
#[test]
fn bytes_of_one_granule_are_told_apart_between_blocks() {
    use ptxsim::{LaunchConfig, LoadedModule, Memory, Options, ReportKind, launch};
    let ptx = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p) {\n\
        .reg .u32 %b, %x; .reg .u64 %p; .reg .pred %q; ld.param.u64 %p, [p]; mov.u32 %b, %ctaid.x; mov.u32 %x, 1;\n\
        setp.eq.u32 %q, %b, 0; @%q st.global.u32 [%p], %x; setp.eq.u32 %q, %b, 1; @%q st.global.u32 [%p+4], %x;\n\
        setp.eq.u32 %q, %b, 2; @%q ld.global.u32 %x, [%p]; ret;\n}\n";
    let memory = Memory::new(1 << 20);
    let module = LoadedModule::load(crate::harness::module(ptx).into(), &memory).unwrap();
    let p = memory.alloc(8, 8).unwrap();
    memory.fill(p, &[0], 8).unwrap();
    let options = Options { threads: 1, ..Options::default() };
    let report = launch(&memory, &module, "k", &LaunchConfig::new(3, 1).arg(p), &options).unwrap();
    let races: Vec<_> = report.reports.iter().filter(|r| r.kind == ReportKind::GlobalRace).collect();
    assert_eq!(races.len(), 1, "{:?}", report.reports);
    assert_eq!((races[0].block, races[0].other.as_ref().unwrap().block), ([2, 0, 0], [0, 0, 0]));
    assert_eq!(report.counters.distinct_bytes, 8);
}

/// Runs `body` in one block of so many threads: `%t` is the thread, `%out` 64 words in global memory, `s` 16 words in shared memory.
fn block(body: &str, threads: u32, seed: u64, checks: ptxsim::Checks) -> (ptxsim::LaunchReport, Vec<u32>) {
    use ptxsim::{LaunchConfig, LoadedModule, Memory, Options, launch};
    let ptx = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out) {{\n\
         .shared .align 16 .b8 s[64]; .reg .u32 %t, %x, %y, %n; .reg .u64 %out, %w; .reg .pred %p, %q;\n\
         ld.param.u64 %out, [out]; mov.u32 %t, %tid.x; mov.u32 %x, %t;\n{body}\nret;\n}}\n"
    );
    let memory = Memory::new(1 << 20);
    let module = LoadedModule::load(crate::harness::module(&ptx).into(), &memory).unwrap();
    let out = memory.alloc(256, 256).unwrap();
    memory.fill(out, &[0], 256).unwrap();
    let gpu = ptxsim::GpuSpec::named("h100").unwrap();
    let options = Options { threads: 1, seed, checks, gpu, ..Options::default() };
    let report = launch(&memory, &module, "k", &LaunchConfig::new(1, threads).arg(out), &options).unwrap();
    let mut got = vec![0u32; 64];
    memory.read(out, bytemuck::cast_slice_mut(&mut got)).unwrap();
    (report, got)
}

/// Lanes may store different values to one address if the stores are strong.
#[test]
fn strong_stores_of_a_warp_may_meet() {
    for (store, conflict) in [
        ("st.global", true),
        ("st.relaxed.gpu.global", false),
        ("st.volatile.global", false),
        ("st.release.cta.global", false),
    ] {
        let (report, _) = block(&format!("{store}.u32 [%out], %t;"), 32, 0, ptxsim::Checks::ALL);
        let found = report.reports.iter().any(|r| r.kind == ptxsim::ReportKind::WriteConflict);
        assert_eq!((found, report.is_clean()), (conflict, !conflict), "{store}: {:?}", report.reports);
    }
}

/// Two warps touch one word of shared memory, and nothing orders them.
#[test]
fn strong_accesses_to_shared_memory_do_not_race_with_each_other() {
    let (volatile, relaxed) = ("st.volatile.shared.u32 [s], %x;", "st.relaxed.cta.shared.u32 [s], %x;");
    let (see, read) = ("ld.volatile.shared.u32 %x, [s];", "ld.relaxed.cta.shared.u32 %x, [s];");
    let (st, ld, red) = ("st.shared.u32 [s], %x;", "ld.shared.u32 %x, [s];", "red.shared.add.u32 [s], 1;");
    let acquire = "ld.acquire.cta.shared.u32 %x, [s];";
    for (one, other, race) in [
        (volatile, see, false),
        (relaxed, read, false),
        (relaxed, acquire, false),
        (volatile, volatile, false),
        (red, see, false),
        (red, relaxed, false),
        (see, ld, false),
        (volatile, ld, true),
        (st, see, true),
        (st, red, true),
        (st, ld, true),
    ] {
        for seed in 0..8 {
            let body = format!("setp.lt.u32 %p, %t, 32; @%p {one}\n@!%p {other}");
            let (report, _) = block(&body, 64, seed, ptxsim::Checks::SHARED_RACE);
            let found = report.reports.iter().any(|r| r.kind == ptxsim::ReportKind::SharedRace);
            assert_eq!(found, race, "{one} {other}, seed {seed}: {:?}", report.reports);
        }
    }
    // Bytes that strong stores write have been written.
    let body = format!("setp.eq.u32 %p, %t, 0; @%p {volatile}\nbar.sync 0; {ld}");
    let (report, _) = block(&body, 64, 0, ptxsim::Checks::ALL);
    assert!(report.is_clean(), "{:?}", report.reports);
    // A reader of each kind, then a strong store: it races with the weak one alone.
    for weak in [false, true] {
        for seed in 0..8 {
            let body = format!(
                "setp.lt.u32 %p, %t, 32; @%p {see}\nsetp.ge.u32 %p, %t, 64; @%p {volatile}\nsetp.eq.u32 %p, %t, 32; @%p {}",
                if weak { ld } else { read }
            );
            let (report, _) = block(&body, 96, seed, ptxsim::Checks::SHARED_RACE);
            assert_eq!(report.reports.is_empty(), !weak, "seed {seed}: {:?}", report.reports);
        }
    }
}

/// A flag in shared memory that is stored after a fence and polled before one orders what was written before.
#[test]
fn a_flag_in_shared_memory_hands_over_what_was_written() {
    for (wait, clean) in [("setp.eq.u32 %q, %y, 0; @%q bra again;", true), ("", false)] {
        let mut reports = 0;
        for seed in 0..8 {
            let body = format!(
                "setp.ne.u32 %p, %t, 0; @%p bra no; st.shared.u32 [s+4], 0; no: bar.sync 0;\n\
                 and.b32 %y, %t, 31; setp.ne.u32 %p, %y, 0; @%p ret; setp.ne.u32 %p, %t, 0; @%p bra again;\n\
                 st.shared.u32 [s], 7; membar.cta; st.volatile.shared.u32 [s+4], 1; ret;\n\
                 again: ld.volatile.shared.u32 %y, [s+4]; {wait}\nmembar.cta; ld.shared.u32 %x, [s]; st.global.u32 [%out], %x;"
            );
            let (report, got) = block(&body, 64, seed, ptxsim::Checks::SHARED_RACE);
            assert!(!clean || got[0] == 7);
            reports += report.reports.len();
        }
        assert_eq!(reports == 0, clean);
    }
}

/// Waiting for an mbarrier may end without it, so nobody waits for ever for who waits for him.
#[test]
fn waits_for_an_mbarrier_come_to_an_end() {
    let init = "mov.u32 %n, 0; setp.ne.u32 %p, %t, 0; @%p bra start; mbarrier.init.shared.b64 [s], 1; st.shared.u32 [s+8], 0;\n\
                start: bar.sync 0;";
    let arrive = "mbarrier.arrive.shared.b64 %w, [s];";
    let poll = |test: &str| format!("mbarrier.{test}.parity.shared.b64 %p, [s], 0;");
    for test in ["try_wait", "test_wait"] {
        let poll = poll(test);
        // A look before the arrival that it would wait for, once and often.
        for times in [1, 3000] {
            let body = format!(
                "{init}\nagain: {poll} add.u32 %n, %n, 1; setp.lt.u32 %q, %n, {times}; @%q bra again;\n\
                 selp.u32 %x, 1, 0, %p; {arrive} {poll} selp.u32 %y, 2, 0, %p; or.b32 %x, %x, %y; st.global.u32 [%out], %x;"
            );
            let (report, got) = block(&body, 1, 0, ptxsim::Checks::ALL);
            assert!(report.is_clean(), "{test}: {:?} {:?}", report.fault, report.reports);
            assert_eq!(got[0], 2, "{test}");
        }
        let times = if test == "try_wait" { 5 } else { 1005 };
        // One warp gives up and raises a flag, for which the other looks all the time.
        let body = format!(
            "{init}\nand.b32 %y, %t, 31; setp.ne.u32 %p, %y, 0; @%p ret; setp.ne.u32 %p, %t, 0; @%p bra look;\n\
             again: {poll} add.u32 %n, %n, 1; setp.lt.u32 %q, %n, {times}; @%q bra again; st.volatile.shared.u32 [s+8], 1; ret;\n\
             look: ld.volatile.shared.u32 %y, [s+8]; setp.eq.u32 %q, %y, 0; @%q bra look;"
        );
        let (report, _) = block(&body, 64, 0, ptxsim::Checks::SHARED_RACE);
        assert!(report.is_clean(), "{test}: {:?} {:?}", report.fault, report.reports);
        // Who never gives up waits for ever.
        let (report, _) =
            block(&format!("{init}\nagain: {poll} @!%p bra again;"), 64, 0, ptxsim::Checks::ALL);
        assert_eq!(report.fault.unwrap().kind, ptxsim::FaultKind::Deadlock, "{test}");
    }
}

#[test]
fn calls_without_end_are_given_up() {
    use ptxsim::{FaultKind, LaunchConfig, LoadedModule, Memory, Options, launch};
    // Each calls the next twice: 2^40 calls, none of them deep.
    let mut ptx = String::from(".version 9.0\n.target sm_80\n.address_size 64\n.func f0() { ret; }\n");
    for i in 1..=40 {
        ptx += &format!(".func f{i}() {{ call.uni f{0}; call.uni f{0}; ret; }}\n", i - 1);
    }
    ptx += ".visible .entry k() { call.uni f40; ret; }\n";
    let memory = Memory::new(1 << 20);
    let module = LoadedModule::load(crate::harness::module(&ptx).into(), &memory).unwrap();
    let options = Options { max_instructions: 100_000, ..Options::default() };
    let report = launch(&memory, &module, "k", &LaunchConfig::new(1, 32), &options).unwrap();
    assert_eq!(report.fault.unwrap().kind, FaultKind::Timeout);
}

#[test]
fn calls() {
    use ptxsim::{LaunchConfig, LoadedModule, Memory, Options, launch};
    // A function with two arguments and a result; one that calls itself; a call through a table of pointers.
    let ptx = ".version 9.0\n.target sm_80\n.address_size 64\n\
        .func (.param .b32 y) twice_less(.param .b32 a, .param .b32 b) {\n\
        .reg .b32 %x, %z; ld.param.b32 %x, [a]; ld.param.b32 %z, [b]; shl.b32 %x, %x, 1; sub.s32 %x, %x, %z; st.param.b32 [y], %x; ret;\n}\n\
        .func (.param .b32 y) triangle(.param .b32 n) {\n\
        .reg .b32 %n, %m, %r; .reg .pred %p; ld.param.b32 %n, [n]; setp.eq.s32 %p, %n, 0; @%p bra none; sub.s32 %m, %n, 1;\n\
        { .param .b32 arg; .param .b32 res; st.param.b32 [arg], %m; call.uni (res), triangle, (arg); ld.param.b32 %r, [res]; }\n\
        add.s32 %n, %n, %r;\nnone: st.param.b32 [y], %n; ret;\n}\n\
        .func (.param .b32 y) one(.param .b32 n) { .reg .b32 %x; mov.b32 %x, 1; st.param.b32 [y], %x; ret; }\n\
        .global .align 8 .u64 both[2] = {triangle, one};\n\
        .visible .entry k(.param .u64 out) {\n\
        .reg .b32 %t, %x, %y, %z, %i; .reg .u64 %o, %f, %w;\n\
        proto: .callprototype (.param .b32 _) _ (.param .b32 _);\n\
        ld.param.u64 %o, [out]; mov.u32 %t, %tid.x; mad.wide.u32 %o, %t, 16, %o;\n\
        { .param .b32 a; .param .b32 b; .param .b32 y; st.param.b32 [a], %t; st.param.b32 [b], 3; call.uni (y), twice_less, (a, b); ld.param.b32 %x, [y]; }\n\
        st.global.u32 [%o], %x;\n\
        mov.b32 %y, 0; st.global.u32 [%o+4], %y;\n\
        { .param .b32 a; .param .b32 y; st.param.b32 [a], %t; call.uni (y), triangle, (a); ld.param.b32 %z, [y]; }\n\
        st.global.u32 [%o+8], %z;\n\
        and.b32 %i, %t, 1; mul.wide.u32 %w, %i, 8; mov.u64 %f, both; add.u64 %f, %f, %w; ld.global.u64 %f, [%f];\n\
        { .param .b32 a; .param .b32 y; st.param.b32 [a], %t; call (y), %f, (a), proto; ld.param.b32 %z, [y]; }\n\
        st.global.u32 [%o+12], %z;\n\
        ret;\n}\n";
    let memory = Memory::new(1 << 20);
    let module = LoadedModule::load(crate::harness::module(ptx).into(), &memory).unwrap();
    let out = memory.alloc(32 * 16, 256).unwrap();
    let report =
        launch(&memory, &module, "k", &LaunchConfig::new(1, 32).arg(out), &Options::default()).unwrap();
    assert!(report.is_clean(), "{:?} {:?}", report.fault, report.reports);
    let mut got = [[0i32; 4]; 32];
    memory.read(out, bytemuck::cast_slice_mut(&mut got)).unwrap();
    for (t, got) in (0..).zip(got) {
        let triangle = t * (t + 1) / 2;
        assert_eq!(got, [2 * t - 3, 0, triangle, if t % 2 == 0 { triangle } else { 1 }], "lane {t}");
    }
}
