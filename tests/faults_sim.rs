//! Every driver call that the CUDA device makes is made to fail, early and late, under the simulated driver: one line that names the device and
//! CUDA's error, exit code 1, no hang, no signal; memory that is short is made do with where a batch can be halved.

mod common;

use common::demo::{assets, model};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Two pictures, so that plans are captured and replayed.
fn segment(env: &[(&str, &str)]) -> Output {
    let out = tempfile::tempdir().unwrap();
    let image = |name: &str| assets().join("images").join(name).display().to_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_mllmseg"))
        .args(["segment", "--device", "sim", "--model", &model(), "--image", &image("000.png")])
        .args([
            "--image",
            &image("001.png"),
            "--expr",
            "white square",
            "--expr",
            "red ring",
            "--json",
            "--out",
        ])
        .arg(out.path())
        .env("PTXSIM_CHECKS", "none")
        .envs(env.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(120), "{env:?}: hangs");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn every_call_that_fails_is_an_error_of_one_line() {
    let good = segment(&[]);
    assert_eq!(good.status.code(), Some(0), "{}", String::from_utf8_lossy(&good.stderr));
    for (call, times) in [
        ("cuInit", &[1][..]),
        ("cuDeviceGetCount", &[1]),
        ("cuDeviceGet", &[1]),
        ("cuDeviceGetAttribute", &[1, 3]),
        ("cuDevicePrimaryCtxRetain", &[1]),
        ("cuCtxSetCurrent", &[1, 5]),
        ("cuModuleLoadData", &[1, 7]),
        ("cuModuleGetFunction", &[1, 9]),
        ("cuStreamCreate", &[1, 2]),
        ("cuMemAllocHost_v2", &[1, 2]),
        ("cuMemHostAlloc", &[1]),
        ("cuMemAlloc_v2", &[1, 2]),
        ("cuMemcpyHtoDAsync_v2", &[1, 40]),
        ("cuEventCreate", &[1, 4]),
        ("cuEventRecord", &[1, 60, 200]),
        ("cuEventSynchronize", &[1]),
        ("cuStreamSynchronize", &[1, 2, 9, 20]),
        ("cuMemcpyHtoD_v2", &[1, 12]),
        ("cuMemcpyDtoH_v2", &[1, 4]),
        ("cuLaunchKernel", &[1, 30, 150, 400]),
        ("cuStreamBeginCapture_v2", &[1, 2]),
        ("cuStreamEndCapture", &[1]),
        ("cuGraphInstantiateWithFlags", &[1, 3]),
        ("cuGraphLaunch", &[1, 3]),
        ("cuEventElapsedTime", &[1, 3]),
    ] {
        for n in times {
            let fail = format!("{call}:{n}=CUDA_ERROR_UNKNOWN");
            let o = segment(&[("PTXSIM_FAIL", &fail)]);
            let stderr = String::from_utf8_lossy(&o.stderr);
            if o.status.code() == Some(0) {
                // a call that is made fewer times, or whose failure matters to nobody: then everything is as it should be
                assert!(!o.stdout.is_empty(), "{fail}");
                continue;
            }
            // Pictures fail one by one, each with its line.
            assert_eq!(o.status.code(), Some(1), "{fail}: {stderr}");
            assert!(stderr.contains("sim") && stderr.contains("expected"), "{fail}: {stderr}");
            assert!(stderr.contains("CUDA_ERROR") || stderr.contains("found"), "{fail}: {stderr}");
            assert!(!stderr.contains("panicked"), "{fail}: {stderr}");
        }
    }
}

#[test]
fn too_little_memory_is_named() {
    let o = segment(&[("PTXSIM_MEMORY", "1M")]);
    let stderr = String::from_utf8_lossy(&o.stderr);
    assert_eq!(o.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("free memory for weights") && stderr.contains("found"), "{stderr}");
}

/// The allocations of a batch fail one after another: some are made do with, none crashes.
#[test]
fn short_memory_halves_the_batch() {
    let good = segment(&[]);
    let mut answered = 0;
    for n in (3..60).step_by(4) {
        let fail = format!("cuMemAlloc_v2:{n}=CUDA_ERROR_OUT_OF_MEMORY");
        let o = segment(&[("PTXSIM_FAIL", &fail)]);
        let stderr = String::from_utf8_lossy(&o.stderr);
        match o.status.code() {
            Some(0) => answered += 1,
            Some(1) => assert!(stderr.contains("free memory"), "{fail}: {stderr}"),
            other => panic!("{fail}: {other:?}: {stderr}"),
        }
    }
    assert_eq!(good.status.code(), Some(0));
    assert!(answered > 0, "no failure was made do with");
}
