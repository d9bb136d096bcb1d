//! `mllmseg doctor`: what this machine can run, and what is missing.

use mllmseg::Result;
use mllmseg::device::cuda;
use std::process::ExitCode;

/// Say what this machine can run, and what is missing
///
/// Example: mllmseg doctor
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_: Args) -> Result<ExitCode> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("mllmseg {}", env!("CARGO_PKG_VERSION"));
    println!("cpu       {threads} threads, {}", cpu_features());
    println!("          --cpu-precision bf16 {}", bf16());
    if let Some((total, free)) = memory() {
        println!(
            "memory    {:.1} GB, {:.1} GB available (the 8B model's weights are 16.2 GB, mapped from disk)",
            total, free
        );
    }
    println!("cuda      {}", driver());
    match cuda::why_no_kernels() {
        Some(why) => {
            println!("          no kernels in this build ({why}): tools/cuda/fetch, then build again")
        }
        None => println!(
            "          {} kernels in this build (nvcc {}; {})",
            cuda::kernels().map(|k| k.1.len()).sum::<usize>(),
            cuda::compiler(),
            architectures()
        ),
    }
    match cuda::find_simulator() {
        Ok(path) => println!("sim       {}: --device sim runs the kernels without a GPU", path.display()),
        Err(e) => println!("sim       {e}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// What the kernels were compiled for.
fn architectures() -> String {
    let mut archs: Vec<&str> = cuda::usage().map(|u| u.arch).collect();
    archs.sort_by_key(|a| (a.len(), *a));
    archs.dedup();
    match archs.is_empty() {
        true => "PTX alone".into(),
        false => archs.iter().map(|a| format!("sm_{a}")).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> &'static str {
    if is_x86_feature_detected!("avx512f") {
        "AVX-512"
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        "AVX2"
    } else {
        "neither AVX-512 nor AVX2: expect it to be slow"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> &'static str {
    std::env::consts::ARCH
}

fn bf16() -> &'static str {
    if mllmseg::reference::has_bf16() {
        "is native (AVX-512 BF16)"
    } else {
        "falls back to f32: no AVX-512 BF16"
    }
}

/// Total and available memory in GB.
fn memory() -> Option<(f64, f64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kb = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<f64>().ok()
    };
    Some((kb("MemTotal:")? * 1024.0 / 1e9, kb("MemAvailable:")? * 1024.0 / 1e9))
}

/// What the CUDA driver says of itself, and its devices.
fn driver() -> String {
    // SAFETY: only looks whether the library can be opened.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return "no driver library (libcuda.so)".into();
    }
    let mut version = 0;
    // SAFETY: the library is present; `version` outlives the call.
    let found = unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut version) }.result();
    let mut text = match found {
        Ok(()) if version < 13000 => {
            format!(
                "driver for CUDA {}.{}; --device cuda needs 13.0 (release 580)",
                version / 1000,
                version % 1000 / 10
            )
        }
        Ok(()) => format!("driver for CUDA {}.{}", version / 1000, version % 1000 / 10),
        Err(e) => format!("a driver library that fails: {e:?}"),
    };
    match cuda::devices() {
        Ok(devices) => {
            for (n, d) in devices.iter().enumerate() {
                let (gb, g) = (d.memory as f64 / 1e9, d.gpu);
                text +=
                    &format!("\n          cuda:{n}: {}, sm_{}, {} SMs, {gb:.1} GB", d.name, g.arch, g.sms);
            }
        }
        Err(e) => text += &format!("\n          {e}"),
    }
    text
}
