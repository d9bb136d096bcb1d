//! The CUDA device on the simulated driver: what a run allocates, weights as they were bound and how they get there, errors of opening, and what a
//! profiler is told.

mod common;

use common::demo::{assets, engine_with, model, picture};
use common::gpu::driver;
use mllmseg::checkpoint::Checkpoint;
use mllmseg::device::cuda::{self, Cuda};
use mllmseg::device::{Choice, Values};
use mllmseg::graph::{DType, Place, Tensor};
use mllmseg::models::mllmseg::Model;
use mllmseg::{Options, Prompting};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

fn calls() -> BTreeMap<String, u64> {
    serde_json::from_value(cuda::simulator_report().unwrap()["calls"].clone()).unwrap()
}

/// The third time that a request of the same sizes comes, its plans are replayed: launches of graphs, copies and waits, nothing else.
#[test]
fn a_replayed_request_allocates_nothing() {
    let _driver = driver();
    let mut engine = engine_with(Options { device: Choice::Sim, ..Options::default() });
    let image = picture("images/010.png");
    let mut ask = || {
        let found = engine.segment(&image, &["a red cat", "ring"], Prompting::Single, false).unwrap();
        found.answers.into_iter().for_each(|a| drop(a.unwrap()));
    };
    ask();
    ask();
    cuda::reset_simulator();
    ask();
    let made = calls();
    assert!(made.get("cuGraphLaunch").is_some_and(|n| *n >= 4), "{made:?}");
    let allowed = [
        "cuCtxSetCurrent",
        "cuEventElapsedTime",
        "cuEventElapsedTime_v2",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuGraphLaunch",
        "cuMemcpyDtoHAsync_v2",
        "cuMemcpyHtoDAsync_v2",
        "cuStreamSynchronize",
        "cuStreamWaitEvent",
    ];
    let others: Vec<_> = made.keys().filter(|c| !allowed.contains(&c.as_str())).collect();
    assert!(others.is_empty(), "a replayed request also calls {others:?}");
}

/// Device memory holds every weight as the checkpoint has it, and what was derived from them (tests/reference.rs holds that to the plain layout)
/// in the type that kernels read.
#[test]
fn weights_are_on_the_device_as_they_were_bound() {
    let _driver = driver();
    let (_, bound) = Model::bind(&Arc::new(Checkpoint::open(&model()).unwrap())).unwrap();
    let mut copied = (0, 0);
    let device = Cuda::open(Choice::Sim, bound.clone(), &mut |done, total| copied = (done, total)).unwrap();
    assert!(copied.0 > 1 << 20 && copied.0 <= copied.1, "{copied:?}");
    for id in bound.weight_ids() {
        let expected: Vec<f32> = bound.weight(id).iter().map(|w| w.to_f32()).collect();
        let t = Tensor::new("weight", DType::Bf16, [expected.len()], Place::Weight(id));
        assert!(device.f32(&t).unwrap() == expected, "weight {id}");
    }
    for (id, (dtype, values)) in (0..).zip(bound.all_derived()) {
        let round = |v: &f32| if *dtype == DType::Act { half::bf16::from_f32(*v).to_f32() } else { *v };
        let t = Tensor::new("derived", *dtype, [values.len()], Place::Derived(id));
        assert!(device.f32(&t).unwrap() == values.iter().map(round).collect::<Vec<_>>(), "derived {id}");
    }
}

/// Between one part of the weights and the next stands one asynchronous copy and at most one wait for an event, of the copy before the last: a part
/// is read while the last one is copied, and no tensor waits for its own copy. The stream is waited for once, at the end.
#[test]
fn weights_are_read_while_they_are_copied() {
    let _driver = driver();
    let (_, bound) = Model::bind(&Arc::new(Checkpoint::open(&model()).unwrap())).unwrap();
    let tensors = bound.weight_ids().len() + bound.all_derived().len();
    let count = |calls: &BTreeMap<String, u64>, name: &str| calls.get(name).copied().unwrap_or(0);
    let mut seen = vec![];
    let device = Cuda::open(Choice::Sim, bound, &mut |_, _| seen.push(calls())).unwrap();
    let end = calls();
    assert!(seen.len() >= tensors, "{} parts of {tensors} tensors", seen.len());
    for pair in seen.windows(2) {
        let made = |name: &str| count(&pair[1], name) - count(&pair[0], name);
        assert_eq!(made("cuMemcpyHtoDAsync_v2"), 1);
        assert!(made("cuEventSynchronize") <= 1);
        assert_eq!(made("cuStreamSynchronize") + made("cuCtxSynchronize"), 0);
    }
    assert_eq!(count(&end, "cuMemcpyHtoD_v2"), 0);
    let last = seen.last().unwrap();
    assert_eq!(count(&end, "cuStreamSynchronize") - count(last, "cuStreamSynchronize"), 1);
    drop(device);
}

fn run(command: &str, args: &[&str], env: &[(&str, &str)]) -> Output {
    let image = assets().join("images/010.png").display().to_string();
    let mut c = Command::new(env!("CARGO_BIN_EXE_mllmseg"));
    c.args([command, "--model", &model(), "--image", &image, "--expr", "ring"]).args(args);
    // Where cargo's tests look for libraries, `libcuda.so` is the simulated driver.
    c.env_remove("LD_LIBRARY_PATH");
    c.env("PTXSIM_CHECKS", "none").envs(env.iter().copied()).output().unwrap()
}

/// Weights read in the mapped file give the same masks as copied ones.
#[test]
fn weights_can_be_read_in_place() {
    let masks = |env: &[(&str, &str)]| {
        let out = tempfile::tempdir().unwrap();
        let o =
            run("segment", &["--device", "sim", "--json", "--out", &out.path().display().to_string()], env);
        let text = String::from_utf8_lossy(&o.stdout).into_owned();
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap_or("{}")).unwrap();
        (
            o.status.code(),
            line["segmentation"].to_string(),
            line["score"].to_string(),
            String::from_utf8_lossy(&o.stderr).into_owned(),
        )
    };
    let copied = masks(&[]);
    assert_eq!(copied.0, Some(0), "{}", copied.3);
    let in_place = masks(&[("MLLMSEG_SIM_IN_PLACE", "0")]);
    assert_eq!((in_place.0, &in_place.1, &in_place.2), (Some(0), &copied.1, &copied.2), "{}", in_place.3);
    // The second run did read them there.
    let refused = ("PTXSIM_FAIL", "cuMemHostRegister_v2:1=CUDA_ERROR_UNKNOWN");
    assert_eq!(masks(&[refused]).0, Some(0));
    let refused = masks(&[refused, ("MLLMSEG_SIM_IN_PLACE", "0")]).3;
    assert!(refused.contains("the weights' files readable by kernels"), "{refused}");
}

#[test]
fn a_driver_that_will_not_do_is_named() {
    let out = tempfile::tempdir().unwrap();
    let dir = out.path().display().to_string();
    let expect = |device: &str, env: &[(&str, &str)], words: &[&str]| {
        let o = run("segment", &["--device", device, "--out", &dir], env);
        let stderr = String::from_utf8_lossy(&o.stderr);
        assert_eq!(o.status.code(), Some(1), "{stderr}");
        assert!(words.iter().all(|w| stderr.contains(w)), "{words:?}: {stderr}");
    };
    expect(
        "sim",
        &[("PTXSIM_DRIVER", "12080")],
        &["device sim", "driver 580 or newer (CUDA 13.0)", "one for CUDA 12.8"],
    );
    expect("sim", &[("PTXSIM_DEVICES", "0")], &["device sim", "CUDA_ERROR_NO_DEVICE"]);
    expect("sim", &[("PTXSIM_MEMORY", "1M")], &["GB of free memory for weights", "found 0.00 GB"]);
    expect("sim", &[("MLLMSEG_SIM", "/nonexistent")], &["the simulated driver", "none of /nonexistent"]);
    let found = Command::new("ldconfig")
        .arg("-p")
        .output()
        .map(|o| String::from_utf8_lossy(&o.stdout).contains("libcuda.so"));
    if !found.unwrap_or(false) {
        expect("cuda:0", &[], &["device cuda:0", "NVIDIA's driver", "no driver library"]);
    }
}

/// A profiler's library as NVTX injects it: writes the ranges that it is told of to $RANGES.
const INJECTION: &str = r#"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
typedef void (*function)(void);
struct callbacks { size_t size; int (*tables)(int, function ***, unsigned *); };
static FILE *out;
static int push(const char *name) { fprintf(out, "+%s\n", name); return 0; }
static int pop(void) { fprintf(out, "-\n"); fflush(out); return 0; }
int InitializeInjectionNvtx2(const void *(*export)(uint32_t)) {
    const struct callbacks *c = export(1);
    const struct { size_t size; uint32_t version; } *v = export(3);
    function **core;
    unsigned size, sizes[7] = {0, 16, 9, 15, 7, 16, 7};
    if (!c || c->size < sizeof *c || !v || v->version < 2 || export(2)) return 0;
    for (int m = 1; m < 7; ++m) {
        if (!c->tables(m, &core, &size) || size != sizes[m] || core[0] || core[size]) return 0;
        for (unsigned i = 1; i < size; ++i) if (!core[i]) return 0;
    }
    if (c->tables(0, &core, &size) || c->tables(7, &core, &size) || !c->tables(1, &core, &size)) return 0;
    *core[9] = (function)push;
    *core[11] = (function)pop;
    return (out = fopen(getenv("RANGES"), "w")) != NULL;
}
"#;

/// What the injected library is told in a run.
fn ranges(dir: &Path, command: &str, args: &[&str]) -> Vec<String> {
    let (source, library, file) = (dir.join("nvtx.c"), dir.join("nvtx.so"), dir.join("ranges"));
    std::fs::write(&source, INJECTION).unwrap();
    let built = Command::new("gcc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(built.unwrap().success());
    let (library, path) = (library.display().to_string(), file.display().to_string());
    let o = run(command, args, &[("NVTX_INJECTION64_PATH", &library), ("RANGES", &path)]);
    assert_eq!(o.status.code(), Some(0), "{}", String::from_utf8_lossy(&o.stderr));
    std::fs::read_to_string(file).unwrap().lines().map(String::from).collect()
}

#[test]
fn nvtx_ranges_are_named_by_node() {
    let dir = tempfile::tempdir().unwrap();
    let found = ranges(dir.path(), "profile", &["--device", "sim"]);
    let (mut depth, mut names) = (0i32, Vec::new());
    for line in &found {
        match line.strip_prefix('+') {
            Some(name) => {
                depth += 1;
                names.push(name);
            }
            None => depth -= 1,
        }
        assert!((0..=1).contains(&depth), "ranges of nodes do not nest");
    }
    assert_eq!(depth, 0);
    for name in ["vit.0.qkv", "llm.1.wqkv", "dec.conv1", "out.mask_head"] {
        assert!(names.contains(&name), "no range {name} in {names:?}");
    }
    // Whole plans: the part, and its nodes in it while they are launched one by one.
    let out = dir.path().join("out").display().to_string();
    let found = ranges(dir.path(), "segment", &["--device", "sim", "--out", &out]);
    let part = found.iter().position(|l| l == "+vit").expect("a range of the part");
    assert!(found[part + 1].starts_with("+vit.") && found[part + 2] == "-", "{:?}", &found[part..part + 3]);
}

/// The profiler's window: around the request that `--capture` chooses, and not without it.
#[test]
fn the_profiler_is_started_and_stopped() {
    let fails = |call: &str, args: &[&str]| {
        let fail = format!("{call}:1=CUDA_ERROR_NOT_PERMITTED");
        let args: Vec<&str> = ["--device", "sim"].iter().chain(args).copied().collect();
        let o = run("profile", &args, &[("PTXSIM_FAIL", &fail)]);
        let stderr = String::from_utf8_lossy(&o.stderr).into_owned();
        assert!(o.status.success() || stderr.contains("a driver that can be profiled"), "{stderr}");
        !o.status.success()
    };
    for call in ["cuProfilerStart", "cuProfilerStop"] {
        assert!(fails(call, &["--capture", "nodes"]), "{call}: nodes");
        assert!(fails(call, &["--capture", "graphs"]), "{call}: graphs");
        assert!(!fails(call, &[]), "{call}: without --capture");
    }
    let o = run("profile", &["--device", "cpu", "--capture", "nodes"], &[]);
    assert_eq!(o.status.code(), Some(2));
}
