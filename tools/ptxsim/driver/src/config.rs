//! The `PTXSIM_*` environment variables, read once.

use std::sync::OnceLock;

use ptxsim::{Checks, GpuSpec};

use crate::errors::{self, CUresult};

/// What the environment asks for.
#[derive(Debug)]
pub struct Config {
    /// `PTXSIM_DEVICES`: how many devices there are (default 1, at most 64, 0 for none).
    pub devices: usize,
    /// `PTXSIM_GPU`: which GPU they pretend to be (default `a100`).
    pub gpu: &'static GpuSpec,
    /// `PTXSIM_MEMORY`: bytes a device, with an optional suffix K, M or G (default: the GPU's).
    pub memory: u64,
    /// `PTXSIM_CHECKS`: which checks run (default `all`).
    pub checks: Checks,
    /// `PTXSIM_THREADS`: host threads a launch uses (default 0: as many as there are cores).
    pub threads: usize,
    /// `PTXSIM_SEED`: the order in which warps run (default 0).
    pub seed: u64,
    /// `PTXSIM_FAIL`: the n-th call of a function returns an error instead.
    pub failures: Vec<Failure>,
    /// `PTXSIM_DRIVER`: the version of CUDA that the driver says it is for (default 13000).
    pub driver: i32,
    /// `PTXSIM_QUIET=1`: findings and complaints are recorded, not printed.
    pub quiet: bool,
}

/// One entry of `PTXSIM_FAIL`: `cuMemAlloc_v2:3=CUDA_ERROR_OUT_OF_MEMORY`.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The exported function.
    pub function: String,
    /// Which call fails, counted from 1.
    pub call: u64,
    /// What it returns.
    pub code: CUresult,
}

/// The configuration, or the message about the first variable that cannot be understood.
pub fn get() -> Result<&'static Config, &'static str> {
    static CONFIG: OnceLock<Result<Config, String>> = OnceLock::new();
    CONFIG
        .get_or_init(|| {
            let config = parse(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
            if let Err(message) = &config {
                eprintln!("ptxsim: {message}");
            }
            config
        })
        .as_ref()
        .map_err(String::as_str)
}

/// Prints a line for the user, unless `PTXSIM_QUIET` is set.
pub fn complain(message: &str) {
    if !get().is_ok_and(|c| c.quiet) {
        eprintln!("ptxsim: {message}");
    }
}

fn parse(var: impl Fn(&str) -> Option<String>) -> Result<Config, String> {
    let number = |name: &str, default: u64| match var(name) {
        None => Ok(default),
        Some(v) => v.parse::<u64>().map_err(|_| format!("{name}: expected a whole number, found `{v}`")),
    };
    let gpu = var("PTXSIM_GPU").unwrap_or_else(|| "a100".to_owned());
    let gpu = GpuSpec::named(&gpu).ok_or_else(|| {
        let known: Vec<_> = GpuSpec::all().iter().map(|g| g.name).collect();
        format!("PTXSIM_GPU: expected one of {}, found `{gpu}`", known.join(", "))
    })?;
    let devices = number("PTXSIM_DEVICES", 1)?;
    if devices > 64 {
        return Err(format!("PTXSIM_DEVICES: expected at most 64, found {devices}"));
    }
    Ok(Config {
        devices: devices as usize,
        gpu,
        memory: var("PTXSIM_MEMORY").map_or(Ok(gpu.memory_bytes), |v| parse_bytes(&v))?,
        checks: var("PTXSIM_CHECKS")
            .map_or(Ok(Checks::ALL), |v| Checks::parse(&v).map_err(|e| format!("PTXSIM_CHECKS: {e}")))?,
        threads: number("PTXSIM_THREADS", 0)?.min(1024) as usize,
        seed: number("PTXSIM_SEED", 0)?,
        failures: var("PTXSIM_FAIL").map_or(Ok(Vec::new()), |v| {
            v.split(',').map(str::trim).filter(|f| !f.is_empty()).map(parse_failure).collect()
        })?,
        driver: number("PTXSIM_DRIVER", crate::device::VERSION as u64)?.min(i32::MAX as u64) as i32,
        quiet: number("PTXSIM_QUIET", 0)? != 0,
    })
}

fn parse_bytes(v: &str) -> Result<u64, String> {
    let (digits, shift) = match v.as_bytes().last() {
        Some(b'K' | b'k') => (&v[..v.len() - 1], 10),
        Some(b'M' | b'm') => (&v[..v.len() - 1], 20),
        Some(b'G' | b'g') => (&v[..v.len() - 1], 30),
        _ => (v, 0),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| format!("PTXSIM_MEMORY: expected bytes such as 2000000 or 16G, found `{v}`"))
}

fn parse_failure(entry: &str) -> Result<Failure, String> {
    let bad = || format!("PTXSIM_FAIL: expected FUNCTION:CALL=CUDA_ERROR_NAME, found `{entry}`");
    let (call, code) = entry.split_once('=').ok_or_else(bad)?;
    let (function, n) = call.split_once(':').unwrap_or((call, "1"));
    let n = n.parse().ok().filter(|n| *n > 0).ok_or_else(bad)?;
    let code = errors::by_name(code).ok_or_else(bad)?;
    Ok(Failure { function: function.to_owned(), call: n, code })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(vars: &[(&str, &str)]) -> Result<Config, String> {
        parse(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn defaults_and_every_variable() {
        let c = with(&[]).unwrap();
        assert_eq!((c.devices, c.gpu.name, c.memory), (1, "a100", 80 << 30));
        let c = with(&[
            ("PTXSIM_DEVICES", "4"),
            ("PTXSIM_GPU", "h100"),
            ("PTXSIM_MEMORY", "2G"),
            ("PTXSIM_CHECKS", "all,-uninit"),
            ("PTXSIM_THREADS", "2"),
            ("PTXSIM_SEED", "9"),
            ("PTXSIM_DRIVER", "12080"),
            (
                "PTXSIM_FAIL",
                "cuMemAlloc_v2:3=CUDA_ERROR_OUT_OF_MEMORY, cuLaunchKernel=CUDA_ERROR_LAUNCH_FAILED",
            ),
        ])
        .unwrap();
        assert_eq!((c.devices, c.gpu.name, c.memory, c.threads, c.seed), (4, "h100", 2 << 30, 2, 9));
        assert_eq!(c.driver, 12080);
        assert!(!c.checks.has(Checks::UNINIT) && c.checks.has(Checks::SHARED_RACE));
        assert_eq!(c.failures[0], Failure { function: "cuMemAlloc_v2".into(), call: 3, code: 2 });
        assert_eq!(c.failures[1], Failure { function: "cuLaunchKernel".into(), call: 1, code: 719 });
    }

    #[test]
    fn mistakes_are_named() {
        for (name, value) in [
            ("PTXSIM_DEVICES", "x"),
            ("PTXSIM_DEVICES", "65"),
            ("PTXSIM_GPU", "voodoo"),
            ("PTXSIM_MEMORY", "99999999999G"),
            ("PTXSIM_CHECKS", "nonsense"),
            ("PTXSIM_FAIL", "cuInit:0=CUDA_ERROR_UNKNOWN"),
            ("PTXSIM_FAIL", "cuInit=NOPE"),
        ] {
            let error = with(&[(name, value)]).unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
