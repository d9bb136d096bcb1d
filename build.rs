//! Compiles each `kernels/*.cu` with nvcc 13 and writes `$OUT_DIR/kernels.rs`: a table of PTX and machine code to embed.
//!
//! A kernel file becomes PTX for `compute_80` (what the simulated driver runs, and what a GPU newer than the list compiles for itself) and
//! one fat binary with machine code for the architectures of `MLLMSEG_CUDA_ARCHS` (default below; `none` for PTX alone). nvcc is the first
//! of `$NVCC`, `$CUDA_HOME/bin`, `$CUDA_PATH/bin`, `$PATH` and the folder that `tools/cuda/fetch` fills. Without one the table is empty, and
//! the program runs on the CPU alone. Beside each kernel stands what ptxas gave it (registers, stack, shared memory), which cuobjdump reads
//! out of the fat binaries. Results are kept by content in `target/kernels/`, which debug and release share.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

const ARCHS: &str = "80,86,89,90a,100a,120";
const FLAGS: &[&str] = &["-std=c++17", "-O3", "-lineinfo", "-Werror", "all-warnings"];
const FETCH: &str = "run tools/cuda/fetch, or set CUDA_HOME to CUDA 13";

fn main() {
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "MLLMSEG_CUDA", "MLLMSEG_CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    // tools/cuda/fetch leaves a note in its folder when it has filled the toolkit's.
    for path in ["build.rs", "kernels", "tools/cuda"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let table = match find_nvcc() {
        Ok(nvcc) => build(&nvcc, &out).unwrap_or_else(|e| fail(&e)),
        Err(why) => {
            println!("cargo:warning=no CUDA kernels in this build, it runs on the CPU alone: {why}; {FETCH}");
            format!(
                "const WHY_NONE: Option<&str> = Some({why:?});\nconst NVCC: &str = \"\";\nconst KERNELS: &[Kernel] = &[];\n"
            )
        }
    };
    fs::write(out.join("kernels.rs"), table).unwrap_or_else(|e| fail(&format!("{}: {e}", out.display())));
}

fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo:error={line}");
    }
    std::process::exit(1)
}

/// The first nvcc of release 13, or why there is none.
fn find_nvcc() -> Result<PathBuf, String> {
    if let Some(program) = env::var_os("NVCC") {
        return check(Path::new(&program)).map_err(|e| format!("NVCC: {e}"));
    }
    let toolkit = env::var_os("MLLMSEG_CUDA").unwrap_or_else(|| OsString::from(".cuda"));
    let homes =
        ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os).map(|d| PathBuf::from(d).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let fetched = Path::new(&toolkit).join("toolkit/nvidia/cu13/bin");
    let mut why = "no nvcc found".to_string();
    for dir in homes.chain(env::split_paths(&path)).chain([fetched]) {
        let nvcc = dir.join("nvcc");
        if nvcc.is_file() {
            match check(&nvcc) {
                Ok(nvcc) => return Ok(nvcc),
                Err(e) => why = e,
            }
        }
    }
    Err(why)
}

fn check(nvcc: &Path) -> Result<PathBuf, String> {
    let version = version(nvcc)?;
    if version.contains("release 13.") {
        return nvcc.canonicalize().map_err(|e| format!("{}: {e}", nvcc.display()));
    }
    let found = version.lines().find(|l| l.contains("release")).unwrap_or("no release");
    Err(format!("{}: expected CUDA 13, found {found}", nvcc.display()))
}

fn version(nvcc: &Path) -> Result<String, String> {
    let out = Command::new(nvcc).arg("--version").output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// One file to make: nvcc's arguments, and where the result goes.
struct Job {
    source: PathBuf,
    args: Vec<String>,
    output: PathBuf,
}

/// Compiles what is not there yet; the table's source.
fn build(nvcc: &Path, out: &Path) -> Result<String, String> {
    let io = |e: std::io::Error| e.to_string();
    // OUT_DIR is target/PROFILE/build/mllmseg-HASH/out.
    let cache = out.ancestors().nth(4).unwrap_or(out).join("kernels");
    fs::create_dir_all(&cache).map_err(io)?;
    let archs = env::var("MLLMSEG_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.into());
    let archs: Vec<&str> =
        archs.split(',').map(str::trim).filter(|a| !a.is_empty() && *a != "none").collect();
    let mut sources: Vec<PathBuf> =
        fs::read_dir("kernels").map_err(io)?.flatten().map(|e| e.path()).collect();
    sources.sort();
    let kernels: Vec<_> = sources.into_iter().filter(|p| p.extension().is_some_and(|e| e == "cu")).collect();
    let mut common = DefaultHasher::new();
    (version(nvcc)?, FLAGS).hash(&mut common);

    let ptx = vec!["-ptx".to_string(), "-arch=compute_80".into()];
    let mut fatbin = vec!["-fatbin".to_string()];
    fatbin.extend(archs.iter().map(|a| format!("-gencode=arch=compute_{a},code=sm_{a}")));
    fatbin.push("-gencode=arch=compute_80,code=compute_80".into());
    let mut jobs = Vec::new();
    let mut place = |source: &Path, args: &[String], kind: &str| -> Result<PathBuf, String> {
        let mut hash = common.clone();
        args.hash(&mut hash);
        for path in with_headers(source)? {
            fs::read(path).map_err(io)?.hash(&mut hash);
        }
        let stem = source.file_stem().unwrap_or_default().to_string_lossy();
        let output = cache.join(format!("{stem}-{:016x}.{kind}", hash.finish()));
        if !output.is_file() {
            jobs.push(Job { source: source.into(), args: args.into(), output: output.clone() });
        }
        Ok(output)
    };
    let mut files = Vec::new();
    for source in &kernels {
        let fat = if archs.is_empty() { None } else { Some(place(source, &fatbin, "fatbin")?) };
        files.push((source, place(source, &ptx, "ptx")?, fat));
    }
    compile(nvcc, jobs)?;
    // For tests/sass.rs.
    println!("cargo:rustc-env=MLLMSEG_CUOBJDUMP={}", nvcc.with_file_name("cuobjdump").display());

    let ptxas =
        version(nvcc)?.lines().find_map(|l| Some(l.split_once(", V")?.1.to_string())).unwrap_or_default();
    let mut table = format!(
        "const WHY_NONE: Option<&str> = None;\nconst NVCC: &str = {ptxas:?};\nconst KERNELS: &[Kernel] = &[\n"
    );
    for (source, ptx, fat) in &files {
        let text = fs::read_to_string(ptx).map_err(io)?;
        let entries: Vec<&str> =
            text.lines().filter_map(|l| l.strip_prefix(".visible .entry ")?.split('(').next()).collect();
        let stem = source.file_stem().unwrap_or_default().to_string_lossy();
        let (fat, usage) = match fat {
            Some(f) => (format!("Some(aligned!({f:?}))"), usage(nvcc, f)?),
            None => ("None".into(), Vec::new()),
        };
        let _ = writeln!(
            table,
            "    Kernel {{ name: {stem:?}, entries: &{entries:?}, ptx: concat!(include_str!({ptx:?}), \"\\0\"), fatbin: {fat}, usage: &{usage:?} }},"
        );
    }
    Ok(table + "];\n")
}

/// A file and the headers of its folder that it includes, each once, and theirs in turn.
fn with_headers(source: &Path) -> Result<Vec<PathBuf>, String> {
    let mut files = vec![source.to_path_buf()];
    for i in 0.. {
        let Some(file) = files.get(i) else { break };
        let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        for line in text.lines() {
            let name = line.trim_start().strip_prefix('#').map(str::trim_start);
            let name = name.and_then(|l| l.strip_prefix("include")?.trim_start().strip_prefix('"'));
            let Some((name, _)) = name.and_then(|n| n.split_once('"')) else { continue };
            let path = source.with_file_name(name);
            if !files.contains(&path) {
                files.push(path);
            }
        }
    }
    Ok(files)
}

/// What a kernel takes: entry, architecture, registers a thread, bytes of stack (where spills go), static shared memory.
type Usage = (String, String, u32, u32, u32);

/// What each kernel of a fat binary takes.
fn usage(nvcc: &Path, fatbin: &Path) -> Result<Vec<Usage>, String> {
    let cuobjdump = nvcc.with_file_name("cuobjdump");
    let out = Command::new(&cuobjdump).arg("--dump-resource-usage").arg(fatbin).output();
    let out = out.map_err(|e| format!("{}: {e}", cuobjdump.display()))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let (mut rows, mut arch, mut entry) = (Vec::new(), "", "");
    for line in text.lines().map(str::trim) {
        if let Some(a) = line.strip_prefix("arch = sm_") {
            arch = a;
        } else if let Some(e) = line.strip_prefix("Function ") {
            entry = e.trim_end_matches(':');
        } else if line.starts_with("REG:") {
            let number = |name: &str| {
                let field = line.split_whitespace().find_map(|f| f.strip_prefix(name)?.strip_prefix(':'));
                field.and_then(|n| n.parse::<u32>().ok())
            };
            let found = number("REG").zip(number("STACK").zip(number("LOCAL"))).zip(number("SHARED"));
            let ((registers, (stack, local)), shared) =
                found.ok_or_else(|| format!("{}: cuobjdump says `{line}`", fatbin.display()))?;
            // From sm_90 on the 1 KB that the system takes of each block is in the figure.
            let system = if matches!(arch, "80" | "86" | "87" | "89") { 0 } else { 1024 };
            rows.push((
                entry.to_string(),
                arch.to_string(),
                registers,
                stack + local,
                shared.saturating_sub(system),
            ));
        }
    }
    if rows.is_empty() {
        let text = String::from_utf8_lossy(&out.stderr);
        return Err(format!("{}: {} found no kernels: {text}", fatbin.display(), cuobjdump.display()));
    }
    Ok(rows)
}

/// Runs the jobs side by side; all their errors.
fn compile(nvcc: &Path, jobs: Vec<Job>) -> Result<(), String> {
    let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    let (jobs, errors) = (Mutex::new(jobs), Mutex::new(String::new()));
    std::thread::scope(|s| {
        for _ in 0..threads {
            s.spawn(|| {
                loop {
                    let Some(job) = jobs.lock().expect("no thread panics").pop() else { return };
                    if let Err(e) = run(nvcc, &job) {
                        errors.lock().expect("no thread panics").push_str(&e);
                    }
                }
            });
        }
    });
    let errors = errors.into_inner().expect("no thread panics");
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Compiles into a temporary name, which is renamed when it is whole: builds side by side share the folder.
fn run(nvcc: &Path, job: &Job) -> Result<(), String> {
    let tmp = job.output.with_extension(format!("{}.tmp", std::process::id()));
    let out = Command::new(nvcc)
        .args(FLAGS)
        .args(&job.args)
        .arg("-o")
        .arg(&tmp)
        .arg(&job.source)
        .output()
        .map_err(|e| format!("{}: {e}\n", nvcc.display()))?;
    if !out.status.success() {
        let text = [out.stdout, out.stderr].map(|t| String::from_utf8_lossy(&t).into_owned()).concat();
        return Err(format!("{}: nvcc failed\n{text}\n", job.source.display()));
    }
    fs::rename(&tmp, &job.output).map_err(|e| format!("{}: {e}\n", job.output.display()))
}
