//! Loads the driver that this package built, under the name by which cudarc finds it.

#![allow(dead_code)] // each test file uses its part

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock};

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Three kernels: `y[i] += x[i]` with a bound, a store through any pointer, and `trap`.
pub const PTX: &str = r#"
.version 9.0
.target sm_80
.address_size 64

.visible .global .align 4 .u32 counter = 5;

.visible .entry add(.param .u64 y, .param .u64 x, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .f32 %f<4>;
    .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [y];
    ld.param.u64 %rd2, [x];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.s32 %p1, %r5, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd1, %rd1;
    cvta.to.global.u64 %rd2, %rd2;
    mul.wide.s32 %rd3, %r5, 4;
    add.s64 %rd4, %rd1, %rd3;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f1, [%rd4];
    ld.global.f32 %f2, [%rd5];
    add.f32 %f3, %f1, %f2;
    st.global.f32 [%rd4], %f3;
DONE:
    ret;
}

.visible .entry poke(.param .u64 p)
{
    .reg .b64 %rd<2>;
    .reg .b32 %r<2>;
    ld.param.u64 %rd1, [p];
    mov.u32 %r1, 7;
    st.global.u32 [%rd1], %r1;
    ret;
}

.visible .entry stop()
{
    trap;
    ret;
}
"#;

/// Sets the variables and loads the driver, once; answers a lock that keeps the tests of a file from mixing their work.
pub fn driver(variables: &[(&str, &str)]) -> MutexGuard<'static, ()> {
    static LOADED: OnceLock<()> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
    LOADED.get_or_init(|| {
        for (name, value) in variables {
            // SAFETY: the first test runs alone up to here, and nothing else of this process reads these.
            unsafe { std::env::set_var(name, value) };
        }
        // SAFETY: the library's start-up code is Rust's own.
        let library = unsafe { Library::open(Some(path()), RTLD_NOW | RTLD_GLOBAL) };
        std::mem::forget(library.expect("the driver loads"));
    });
    turn
}

/// A function of the library beside the driver API.
pub fn json() -> serde_json::Value {
    type Report = unsafe extern "C" fn(*mut u8, usize) -> usize;
    // SAFETY: as the header declares it.
    let report: Report = unsafe { *loaded().get(b"ptxsim_report_json").expect("exported") };
    // SAFETY: asks for the size, then passes that many bytes.
    let bytes = unsafe {
        let mut bytes = vec![0u8; report(std::ptr::null_mut(), 0)];
        assert_eq!(report(bytes.as_mut_ptr(), bytes.len()), bytes.len());
        bytes
    };
    assert_eq!(bytes.last(), Some(&0));
    serde_json::from_slice(&bytes[..bytes.len() - 1]).expect("the report is JSON")
}

/// Forgets what was recorded.
pub fn reset() {
    // SAFETY: as the header declares it.
    unsafe { loaded().get::<unsafe extern "C" fn()>(b"ptxsim_reset").expect("exported")() };
}

/// The library that [`driver`] loaded.
pub fn loaded() -> Library {
    // SAFETY: it is loaded already.
    unsafe { Library::open(Some(path()), RTLD_NOW) }.expect("loaded")
}

/// The code of a result that is an error.
pub fn code<T>(result: Result<T, DriverError>) -> CUresult {
    result.err().expect("an error").0
}

/// The built library. `cargo test` leaves it beside the test; the loader, whose path cargo sets, looks one folder up first,
/// where `cargo build` may have left an older one: that is replaced.
fn path() -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its path");
    let deps = exe.parent().expect("an executable is in a folder");
    let built = deps.join("libcuda.so").canonicalize().expect("cargo builds the library with its tests");
    let found = deps.parent().expect("cargo's folders are nested").join("libcuda.so");
    let time = |p: &PathBuf| p.metadata().and_then(|m| m.modified()).ok();
    if time(&found) != time(&built) {
        let scratch = found.with_extension(format!("{}", std::process::id()));
        std::fs::hard_link(&built, &scratch)
            .and_then(|()| std::fs::rename(&scratch, &found))
            .expect("same folder");
    }
    found
}
