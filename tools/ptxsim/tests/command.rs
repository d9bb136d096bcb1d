//! The `ptxsim` command: arguments become parameters, results become files, and the exit code tells what happened.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// `y[i] = a * x[i] + b` for `i < n`, and a kernel that stores behind its buffer.
const PTX: &str = r#"
.version 9.0
.target sm_80
.address_size 64
.visible .entry axpb(.param .u64 y, .param .u64 x, .param .f32 a, .param .f64 b, .param .s32 n)
{
    .reg .pred %p1;
    .reg .b32 %r<6>;
    .reg .f32 %f<4>;
    .reg .f64 %fd1;
    .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [y];
    ld.param.u64 %rd2, [x];
    ld.param.f32 %f1, [a];
    ld.param.f64 %fd1, [b];
    ld.param.s32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.s32 %p1, %r5, %r1;
    @%p1 bra DONE;
    mul.wide.s32 %rd3, %r5, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f2, [%rd5];
    cvt.rn.f32.f64 %f3, %fd1;
    fma.rn.f32 %f2, %f1, %f2, %f3;
    st.global.f32 [%rd4], %f2;
DONE:
    ret;
}
.visible .entry past_the_end(.param .u64 p)
{
    .reg .b64 %rd1;
    .reg .b32 %r1;
    ld.param.u64 %rd1, [p];
    mov.u32 %r1, 1;
    st.global.u32 [%rd1+64], %r1;
    ret;
}
"#;

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("command-{name}"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("k.ptx"), PTX).unwrap();
    folder
}

fn ptxsim(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_ptxsim")).current_dir(folder).args(args).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_kernel_runs_on_files_and_numbers() {
    let folder = folder("run");
    let x: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(folder.join("x.bin"), &bytes).unwrap();
    let args = "run k.ptx axpb --grid 4 --block 32,1 --arg out:400:y.bin --arg in:x.bin --arg f32:2 --arg f64:-0.5 \
                --arg s32:100 --json r.json --gpu h100 --threads 1 --seed 3";
    let (code, out, err) = ptxsim(&folder, &args.split_whitespace().collect::<Vec<_>>());
    assert_eq!(code, Some(0), "{out}{err}");
    let y = std::fs::read(folder.join("y.bin")).unwrap();
    let y: Vec<f32> = y.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert!(y.iter().zip(&x).all(|(y, x)| *y == 2.0 * x - 0.5) && y.len() == 100);
    for part in ["kernel axpb", "nothing found", "model of h100", "roofline", "fma.rn.f32"] {
        assert!(out.contains(part), "{part}:\n{out}");
    }
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("r.json")).unwrap()).unwrap();
    assert_eq!(json["counters"]["global_load"]["bytes"], 400);
    assert_eq!(json["gpu"], "h100");
    // In place, and the report on standard output.
    let args = "run k.ptx axpb --grid 4 --block 32 --arg inout:x.bin:z.bin --arg in:x.bin --arg f32:1 --arg f64:1 \
                --arg s32:1 --json -";
    let (code, out, err) = ptxsim(&folder, &args.split_whitespace().collect::<Vec<_>>());
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok());
    let z = std::fs::read(folder.join("z.bin")).unwrap();
    assert_eq!((&z[..4], &z[4..]), (&1f32.to_le_bytes()[..], &bytes[4..]));
}

#[test]
fn faults_findings_and_mistakes_have_their_own_exit_codes() {
    let folder = folder("codes");
    let run = |args: &str| ptxsim(&folder, &args.split_whitespace().collect::<Vec<_>>());
    let (code, out, _) = run("run k.ptx past_the_end --grid 1 --block 1 --arg out:64:p.bin");
    assert_eq!(code, Some(1));
    assert!(out.contains("FAULT") && out.contains("PTX line"), "{out}");
    // Reads what nobody wrote: a finding, unless that check is off.
    let args = "run k.ptx axpb --grid 1 --block 32 --arg out:128:y --arg out:128:x --arg f32:1 --arg f64:1 --arg s32:32";
    let (code, out, _) = run(args);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("uninit-global"), "{out}");
    assert_eq!(run(&format!("{args} --checks all,-uninit")).0, Some(0));
    for (args, message) in [
        ("run k.ptx nothing --grid 1 --block 1", "axpb, past_the_end"),
        ("run none.ptx k --grid 1 --block 1", "none.ptx: cannot read"),
        ("run k.ptx past_the_end --grid 1 --block 1", "1 parameters, found 0"),
        ("run k.ptx past_the_end --grid 1 --block 1 --arg u32:1", "`p` has 8 bytes"),
        ("run k.ptx past_the_end --grid 1 --block 1 --arg u64:x", "--arg u64:x"),
        ("run k.ptx past_the_end --grid 1 --block 0 --arg u64:0", "above 0"),
        ("run k.ptx past_the_end --grid 1 --block 1 --arg u64:0 --gpu voodoo", "a100"),
    ] {
        let (code, _, err) = run(args);
        assert_eq!(code, Some(2), "{args}: {err}");
        assert!(err.contains(message), "{args}: {err}");
    }
}

#[test]
fn opcodes_are_listed_with_what_can_be_run() {
    let folder = folder("opcodes");
    let (code, out, err) = ptxsim(&folder, &["opcodes", "k.ptx"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.lines().any(|l| l.starts_with("fma.rn.f32 ") && l.contains("yes")), "{out}");
    std::fs::write(
        folder.join("odd.ptx"),
        PTX.replace("fma.rn.f32 %f2, %f1, %f2, %f3;", "vadd4.u32.u32.u32 %r1, %r2, %r3, %r4;"),
    )
    .unwrap();
    let (code, out, err) = ptxsim(&folder, &["opcodes", "odd.ptx", "--json"]);
    assert_eq!(code, Some(1), "{out}{err}");
    let rows: serde_json::Value = serde_json::from_str(&out).unwrap();
    let odd =
        rows.as_array().unwrap().iter().find(|r| r["form"].as_str().unwrap().starts_with("vadd4")).unwrap();
    assert!(odd["unsupported"].is_string(), "{odd}");
}

/// The halves of a double go through registers that the text calls `%temp` and never reads.
#[test]
fn a_result_that_nobody_reads_spoils_no_other() {
    let folder = folder("halves");
    let ptx = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 y, .param .f64 v)\n{\n\
        .reg .b32 %r<5>; .reg .f64 %fd<3>; .reg .b64 %rd1;\n\
        ld.param.u64 %rd1, [y]; ld.param.f64 %fd1, [v];\n\
        { .reg .b32 %temp; mov.b64 {%r1, %temp}, %fd1; }\n\
        { .reg .b32 %temp; mov.b64 {%temp, %r2}, %fd1; }\n\
        mov.b64 %fd2, {%r1, %r2}; st.global.f64 [%rd1], %fd2; ret;\n}\n";
    std::fs::write(folder.join("k.ptx"), ptx).unwrap();
    let args = "run k.ptx k --grid 1 --block 1 --arg out:8:y --arg f64:1.2345678901234567";
    let (code, out, err) = ptxsim(&folder, &args.split_whitespace().collect::<Vec<_>>());
    assert_eq!(code, Some(0), "{out}{err}");
    assert_eq!(std::fs::read(folder.join("y")).unwrap(), 1.2345678901234567f64.to_le_bytes());
}
