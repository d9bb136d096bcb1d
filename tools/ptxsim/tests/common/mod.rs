//! What the kernel tests share: nvcc, a device to run on, numbers to run with, and the cases themselves.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod cases;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use bytemuck::{Pod, Zeroable};
use ptxsim::{Error, LaunchConfig, LaunchReport, LoadedModule, Memory, Module, Options};

/// Where the kernels are.
pub fn kernel_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels")
}

/// nvcc of CUDA 13, looked for where `tools/cuda/fetch` looks.
fn nvcc() -> &'static Path {
    static NVCC: LazyLock<PathBuf> = LazyLock::new(|| {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(program) = var("NVCC") {
            return program;
        }
        let fetched =
            var("MLLMSEG_CUDA").unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cuda"));
        let mut places: Vec<PathBuf> =
            ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|v| Some(var(v)?.join("bin"))).collect();
        places.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        places.push(fetched.join("toolkit/nvidia/cu13/bin"));
        let is_13 = |nvcc: &PathBuf| {
            let version = Command::new(nvcc).arg("--version").output();
            version.is_ok_and(|v| String::from_utf8_lossy(&v.stdout).contains("release 13."))
        };
        places
            .into_iter()
            .map(|p| p.join("nvcc"))
            .find(|p| p.is_file() && is_13(p))
            .expect("these tests need nvcc of CUDA 13: run tools/cuda/fetch, which installs it")
    });
    &NVCC
}

/// PTX of the CUDA C++ text `source`, which stands for `file` of the kernel folder, for `arch` ("80", "90a").
///
/// Kept in `target/ptx-cache` under a hash of everything that decides it, so that nvcc runs once for each text.
pub fn compile(file: &str, source: &str, arch: &str) -> Result<String, String> {
    const FLAGS: [&str; 5] = ["-std=c++17", "-O3", "-lineinfo", "-ptx", "-diag-suppress=177"];
    let headers =
        std::fs::read_to_string(kernel_dir().join("ptx.cuh")).map_err(|e| format!("ptx.cuh: {e}"))?;
    let mut h = DefaultHasher::new();
    (file, source, &headers, arch, FLAGS, nvcc()).hash(&mut h);
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../ptx-cache");
    let kept = cache.join(format!("{file}.{arch}.{:016x}.ptx", h.finish()));
    if let Ok(ptx) = std::fs::read_to_string(&kept) {
        return Ok(ptx);
    }
    let io = |e: std::io::Error| format!("{}: {e}", kept.display());
    std::fs::create_dir_all(&cache).map_err(io)?;
    let dir = tempfile::tempdir_in(&cache).map_err(io)?;
    let (cu, out) = (dir.path().join(file), dir.path().join("out.ptx"));
    std::fs::write(&cu, source).map_err(io)?;
    let run = Command::new(nvcc())
        .args(FLAGS)
        .arg(format!("-arch=compute_{arch}"))
        .arg("-I")
        .arg(kernel_dir())
        .arg("-o")
        .args([&out, &cu])
        .output()
        .map_err(|e| format!("{}: {e}", nvcc().display()))?;
    if !run.status.success() {
        return Err(format!("nvcc {file} (compute_{arch}): {}", String::from_utf8_lossy(&run.stderr)));
    }
    let ptx = std::fs::read_to_string(&out).map_err(io)?;
    std::fs::rename(&out, &kept).map_err(io)?;
    Ok(ptx)
}

/// The module of a kernel file as it stands; each is compiled and parsed once a process.
pub fn module(file: &'static str, arch: &'static str) -> Arc<Module> {
    type Slot = Arc<OnceLock<Arc<Module>>>;
    static MODULES: LazyLock<Mutex<HashMap<(&str, &str), Slot>>> = LazyLock::new(Mutex::default);
    let slot = MODULES.lock().unwrap().entry((file, arch)).or_default().clone();
    slot.get_or_init(|| {
        let source = std::fs::read_to_string(kernel_dir().join(file)).unwrap();
        Arc::new(
            Module::parse(&compile(file, &source, arch).unwrap()).unwrap_or_else(|e| panic!("{file}: {e}")),
        )
    })
    .clone()
}

/// A device with one module loaded, and what has happened on it.
///
/// After a fault further launches do nothing, as on a GPU; a case runs to its end and what it compared says nothing.
pub struct Gpu {
    pub memory: Memory,
    pub module: LoadedModule,
    pub options: Options,
    /// Of each launch.
    pub reports: Vec<LaunchReport>,
    /// The first value that was not as it should be.
    pub wrong: Option<String>,
    /// Hash of every byte that was downloaded.
    pub bits: u64,
}

impl Gpu {
    pub fn new(module: Arc<Module>, options: Options) -> Gpu {
        let memory = Memory::new(1 << 30);
        let module = LoadedModule::load(module, &memory).expect("the module's variables fit");
        Gpu { memory, module, options, reports: Vec::new(), wrong: None, bits: 0 }
    }

    /// Memory for `n` values that nobody has written.
    pub fn alloc<T>(&self, n: usize) -> u64 {
        self.memory.alloc((n * size_of::<T>()) as u64, 256).expect("a test fits in memory")
    }
    /// The same, zeroed.
    pub fn zeros<T>(&self, n: usize) -> u64 {
        let p = self.alloc::<T>(n);
        self.memory.fill(p, &[0], (n * size_of::<T>()) as u64).expect("just allocated");
        p
    }
    pub fn upload<T: Pod>(&self, values: &[T]) -> u64 {
        let p = self.alloc::<T>(values.len());
        self.memory.write(p, bytemuck::cast_slice(values)).expect("just allocated");
        p
    }
    pub fn download<T: Pod>(&mut self, p: u64, n: usize) -> Vec<T> {
        let mut out = vec![T::zeroed(); n];
        self.memory.read(p, bytemuck::cast_slice_mut(&mut out)).expect("a buffer of the test");
        let mut h = DefaultHasher::new();
        (self.bits, bytemuck::cast_slice::<T, u8>(&out)).hash(&mut h);
        self.bits = h.finish();
        out
    }

    pub fn faulted(&self) -> bool {
        self.reports.iter().any(|r| r.fault.is_some())
    }

    /// Runs a kernel; an error of the launch itself is the test's fault and ends it.
    pub fn launch(&mut self, kernel: &str, config: &LaunchConfig) {
        if !self.faulted() {
            let report = self.try_launch(kernel, config).unwrap_or_else(|e| panic!("{kernel}: {e}"));
            self.reports.push(report);
        }
    }
    pub fn try_launch(&self, kernel: &str, config: &LaunchConfig) -> Result<LaunchReport, Error> {
        ptxsim::launch(&self.memory, &self.module, kernel, config, &self.options)
    }

    /// Records the first place where `ok(got, want)` is false.
    pub fn compare<T: std::fmt::Debug + Copy>(
        &mut self,
        what: &str,
        got: &[T],
        want: &[T],
        ok: impl Fn(T, T) -> bool,
    ) {
        assert_eq!(got.len(), want.len(), "{what}");
        if self.wrong.is_none()
            && let Some(i) = (0..got.len()).find(|&i| !ok(got[i], want[i]))
        {
            self.wrong = Some(format!("{what}[{i}] is {:?}, should be {:?}", got[i], want[i]));
        }
    }
    pub fn equal<T: std::fmt::Debug + Copy + PartialEq>(&mut self, what: &str, got: &[T], want: &[T]) {
        self.compare(what, got, want, |a, b| a == b);
    }

    /// Everything the checks said, for a failed test.
    pub fn findings(&self) -> String {
        let mut out = String::new();
        for r in &self.reports {
            for line in &r.reports {
                out += &format!("{line}\n");
            }
            if let Some(f) = &r.fault {
                out += &format!("fault {:?}: {f}\n", f.kind);
            }
            out += &format!("{}: {:?}\n", r.kernel, r.found);
        }
        out
    }
}

/// A bf16 value by its bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Bf16 {
    /// Rounds to nearest, ties to even; no NaNs here.
    pub fn of(v: f32) -> Bf16 {
        let b = v.to_bits();
        Bf16(((b + 0x7fff + (b >> 16 & 1)) >> 16) as u16)
    }
    pub fn f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

/// xorshift64*; the same numbers for the same seed everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn u32(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
    /// An integer of `lo..=hi`.
    pub fn int(&mut self, lo: i32, hi: i32) -> i32 {
        lo + (self.u32() % (hi - lo + 1) as u32) as i32
    }
    pub fn ints(&mut self, n: usize, lo: i32, hi: i32) -> Vec<i32> {
        (0..n).map(|_| self.int(lo, hi)).collect()
    }
    /// Uniform in -1..1, a multiple of 2^-20.
    pub fn f32(&mut self) -> f32 {
        (self.u32() >> 11) as f32 / (1 << 20) as f32 - 1.0
    }
    pub fn f32s(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.f32()).collect()
    }
    pub fn bf16s(&mut self, n: usize) -> Vec<Bf16> {
        (0..n).map(|_| Bf16::of(self.f32())).collect()
    }
}
