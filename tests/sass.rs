//! The main loops of the tensor-core kernels in the machine code for sm_80, against the marks of the best public kernels; how often attention runs
//! the part of its loop that is jumped over, on real pictures; no local memory anywhere.
//!
//! The main loop is the innermost one with the most HMMA, of several the shortest. `other` counts its instructions but HMMA and NOP, `rare` those that are
//! jumped over unless a vote of the warp says so: attention's rescaling. `shared` is the time of its shared-memory traffic on an A100 (512 bytes
//! by each LDSM.x4 and each LDGSTS.128 of a warp, 128 bytes a clock) over that of its tensor cores (8 clocks an HMMA, four at once).
//!
//! `cargo test --release --workspace --test sass -- --nocapture` prints the table.

mod common;

use common::demo::{engine_with, picture};
use common::gpu::{Case, normal};
use mllmseg::device::{Choice, cuda};
use mllmseg::graph::DType;
use mllmseg::{Options, Prompting, ops};
use std::path::Path;
use std::process::Command;

/// ptxas of another release gives other code.
const NVCC: &str = "13.0.88";

/// The most of a main loop on sm_80, by how names begin and end: others executed and LDSM an HMMA, share of shared memory. Of the best public kernels: 1.13, 0.25 and 69 %
/// (CUTLASS, 128x256x64), 3.48 and 2.52 with spills (FlashAttention-2, head sizes 64 and 128).
const MARKS: [(&str, &str, f64, f64, f64); 5] = [
    ("matmul", "_128x256", 1.1, 0.25, 0.70),
    ("matmul", "_128x128", 1.1, 0.25, 0.75),
    ("attention", "_bf16_hd64", 3.4, 0.25, 1.0),
    ("attention", "attention_bf16_hd128", 2.4, 0.375, 1.0),
    ("attention", "attention_ranges_bf16_hd128", 2.4, 0.375, 1.0),
];

struct Instruction {
    at: u64,
    op: String,
    /// Where it jumps, if it is a branch.
    to: Option<u64>,
}

#[derive(Clone, Copy, Default)]
struct Loop {
    hmma: usize,
    ldsm: usize,
    copies: usize,
    other: usize,
    rare: usize,
}

impl Loop {
    fn per_hmma(&self, n: usize) -> f64 {
        n as f64 / self.hmma as f64
    }

    fn shared(&self) -> f64 {
        2.0 * self.per_hmma(self.ldsm + self.copies)
    }
}

/// The line `/*0a10*/ @!P0 BRA 0x1230 ;`, or none for others.
fn instruction(line: &str) -> Option<Instruction> {
    let (at, rest) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
    let at = u64::from_str_radix(at, 16).ok()?;
    let mut words = rest.split(';').next()?.split_whitespace().skip_while(|w| w.starts_with('@'));
    let op = words.next()?.to_string();
    let hex = |w: &str| u64::from_str_radix(w.strip_prefix("0x")?, 16).ok();
    let to = if op.starts_with("BRA") { words.filter_map(hex).last() } else { None };
    Some(Instruction { at, op, to })
}

fn main_loop(code: &[Instruction]) -> Option<Loop> {
    let jumps: Vec<(u64, u64)> = code.iter().filter_map(|i| Some((i.at, i.to?))).collect();
    let loops: Vec<(u64, u64)> = jumps.iter().filter(|(at, to)| to < at).map(|&(at, to)| (to, at)).collect();
    // Code that stands behind a loop and jumps back into it makes no loop of its own.
    let inside = |l: &&(u64, u64)| !loops.iter().any(|m| m.0 < l.0 && l.0 <= m.1 && m.1 < l.1);
    let loops: Vec<(u64, u64)> = loops.iter().filter(inside).copied().collect();
    // A vote decides a jump that follows it closely.
    let voted = |at: u64| code.iter().any(|i| i.op.starts_with("VOTE") && i.at < at && at <= i.at + 16 * 4);
    let rare: Vec<_> = jumps.iter().filter(|(at, to)| to > at && voted(*at)).collect();
    let count = |&(first, last): &(u64, u64)| {
        let mut l = Loop::default();
        for i in code.iter().filter(|i| first <= i.at && i.at <= last && !i.op.starts_with("NOP")) {
            match &i.op {
                op if op.starts_with("HMMA") => l.hmma += 1,
                _ if rare.iter().any(|(at, to)| *at < i.at && i.at < *to && *to <= last) => l.rare += 1,
                _ => l.other += 1,
            }
            l.ldsm += usize::from(i.op.starts_with("LDSM"));
            l.copies += usize::from(i.op.starts_with("LDGSTS"));
        }
        l
    };
    let innermost =
        |l: &&(u64, u64)| !loops.iter().any(|m| m != *l && l.0 <= m.0 && m.1 <= l.1 && count(m).hmma > 0);
    let found = loops.iter().filter(innermost).map(count).filter(|l| l.hmma > 0);
    found.max_by_key(|l| (l.hmma, std::cmp::Reverse(l.other)))
}

/// Every kernel's name and code for sm_80.
fn disassemble(cuobjdump: &str, file: &str, fatbin: &[u8], dir: &Path) -> Vec<(String, Vec<Instruction>)> {
    let path = dir.join(file);
    std::fs::write(&path, fatbin).unwrap();
    let out = Command::new(cuobjdump).args(["-sass", "-arch", "sm_80"]).arg(&path).output();
    let out = out.unwrap_or_else(|e| panic!("{cuobjdump}: {e}"));
    assert!(out.status.success(), "{cuobjdump}: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let bodies = text.split("Function : ").skip(1);
    let kernel = |body: &str| {
        let (name, code) = body.split_once('\n')?;
        Some((name.trim().to_string(), code.lines().filter_map(instruction).collect()))
    };
    bodies.filter_map(kernel).collect()
}

/// Of attention's steps the share that rescale, by kernel: on a picture of the demo; heads of 128 without a mask, which the demo's model lacks, on
/// random numbers of the real model's shape, some of them outliers.
fn rescales() -> Vec<(String, f64)> {
    let demo = || {
        let _driver = common::gpu::driver();
        let mut engine = engine_with(Options { device: Choice::Sim, ..Options::default() });
        cuda::reset_simulator();
        let asked = ["the white circle", "a red cat", "the largest square"];
        engine.segment(&picture("images/010.png"), &asked, Prompting::Single, false).unwrap();
        cuda::simulator_report().unwrap()
    };
    let random = || {
        let mut case = Case::new();
        let x = case.input("x", DType::Act, &[1024, 384], &normal(1, 1024 * 384));
        let y = case.output("y", DType::Act, &[1024, 128]);
        let [q, k, v] = [0, 128, 256].map(|col| x.cols(col, 128));
        case.run(ops::attention(&y, &q, &k, &v, 1, 1).unwrap()).report
    };
    [demo(), random()].iter().flat_map(shares).collect()
}

fn shares(report: &serde_json::Value) -> Vec<(String, f64)> {
    let share = |(name, kernel): (&String, &serde_json::Value)| {
        let executed = |part: &str| -> f64 {
            let opcodes = kernel["counters"]["opcodes"].as_object().unwrap().iter();
            opcodes.filter(|o| o.0.starts_with(part)).map(|o| o.1["warps"].as_f64().unwrap()).sum()
        };
        // Every step votes once. A rescale alone takes maxima: of a row's scores of a block, and twice of its lanes', for four rows a lane.
        let keys = if name.ends_with("hd64") { 64.0 } else { 32.0 };
        (name.clone(), executed("max.f32") / (4.0 * (keys / 4.0 + 2.0)) / executed("vote.sync.any"))
    };
    let attention =
        |k: &(&String, &serde_json::Value)| MARKS.iter().any(|m| m.0 == "attention" && k.0.ends_with(m.1));
    report["kernels"].as_object().unwrap().iter().filter(attention).map(share).collect()
}

#[test]
fn main_loops_keep_to_their_marks() {
    let files: Vec<_> = cuda::machine_code().collect();
    let built = cuda::usage().any(|u| u.arch == "80") && cuda::compiler() == NVCC;
    let Some(cuobjdump) = option_env!("MLLMSEG_CUOBJDUMP").filter(|_| built) else {
        eprintln!(
            "skipped: machine code for sm_80 by nvcc {NVCC} is needed, this build is by {:?}",
            cuda::compiler()
        );
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let code = |part: &[(&str, &[u8])]| -> Vec<_> {
        part.iter().flat_map(|(name, fatbin)| disassemble(cuobjdump, name, fatbin, dir.path())).collect()
    };
    let kernels: Vec<_> = std::thread::scope(|s| {
        let parts: Vec<_> = files.chunks(files.len().div_ceil(2)).map(|p| s.spawn(|| code(p))).collect();
        parts.into_iter().flat_map(|p| p.join().unwrap()).collect()
    });
    let entries: usize = cuda::kernels().map(|k| k.1.len()).sum();
    assert_eq!(kernels.len(), entries, "kernels disassembled");

    let rescales = rescales();
    assert_eq!(rescales.len(), 3, "{rescales:?}");
    let (mut missed, mut marked) = (Vec::new(), 0);
    println!("kernel                             HMMA  LDSM/HMMA  other/HMMA   rare  shared  executed/HMMA");
    for (name, code) in &kernels {
        let local = code.iter().filter(|i| i.op.starts_with("LDL") || i.op.starts_with("STL")).count();
        assert_eq!(local, 0, "{name} uses local memory");
        let Some(l) = main_loop(code) else { continue };
        let (ldsm, other) = (l.per_hmma(l.ldsm), l.per_hmma(l.other));
        // What is jumped over counts as often as it is run, all of it each time.
        let rescaled = rescales.iter().find(|r| r.0 == *name).map_or(0.0, |r| r.1);
        let executed = other + rescaled * l.per_hmma(l.rare);
        let row = format!(
            "{name:<34} {:>4} {ldsm:>10.3} {other:>11.3} {:>6} {:>6.0}% {executed:>14.3}",
            l.hmma,
            l.rare,
            100.0 * l.shared()
        );
        println!("{row}");
        for (_, _, most, most_ldsm, most_shared) in
            MARKS.iter().filter(|m| name.starts_with(m.0) && name.ends_with(m.1))
        {
            marked += 1;
            if executed > *most || ldsm > *most_ldsm || l.shared() > *most_shared {
                missed
                    .push(format!("{row}: at most {most} executed, {most_ldsm} LDSM, shared {most_shared}"));
            }
        }
    }
    assert_eq!(marked, 10, "kernels with a mark");
    assert!(missed.is_empty(), "{missed:#?}");
    println!("of attention's steps rescale: {rescales:?}");
}
