//! The C boundary: every exported function goes through [`enter`], which keeps panics inside, injects the failures that
//! were asked for, and notes what is not supported.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard};

use crate::config;
use crate::errors::*;
use crate::queue;

/// Address of an exported function.
pub type Symbol = *const c_void;

/// Calls of driver functions: how many of each, and which unsupported ones were asked for.
#[derive(Default)]
struct Calls {
    counted: BTreeMap<&'static str, u64>,
    unsupported: BTreeMap<String, u64>,
}

static CALLS: Mutex<Calls> = Mutex::new(Calls { counted: BTreeMap::new(), unsupported: BTreeMap::new() });

thread_local! {
    static PER_THREAD: Cell<bool> = const { Cell::new(false) };
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Locks; a panic elsewhere while it was held has been reported and does not spread.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Runs the body of the exported function `name`.
pub fn enter(name: &'static str, body: impl FnOnce() -> Result<()>) -> CUresult {
    // Functions that are built from others are one call to the program.
    if INSIDE.get() {
        return body().err().unwrap_or(CUDA_SUCCESS);
    }
    // A host function or callback: it may ask what an error means, and nothing else.
    if queue::is_worker() && !name.starts_with("cuGetError") {
        return CUDA_ERROR_NOT_PERMITTED;
    }
    if let Some(code) = injected(name) {
        return code;
    }
    INSIDE.set(true);
    let result = catch_unwind(AssertUnwindSafe(body));
    INSIDE.set(false);
    match result {
        Ok(result) => result.err().unwrap_or(CUDA_SUCCESS),
        Err(panic) => {
            config::complain(&format!("{name}: internal error: {}", panic_text(&*panic)));
            CUDA_ERROR_UNKNOWN
        }
    }
}

/// Runs a callback of the program, which may call driver functions again.
pub fn call_out<T>(callback: impl FnOnce() -> T) -> T {
    let inside = INSIDE.replace(false);
    let result = callback();
    INSIDE.set(inside);
    result
}

/// Runs a body in which the null stream is the calling thread's own (the `_ptds` and `_ptsz` variants).
pub fn per_thread(body: impl FnOnce() -> CUresult) -> CUresult {
    let before = PER_THREAD.replace(true);
    let code = body();
    PER_THREAD.set(before);
    code
}

/// Whether the null stream is the calling thread's own.
pub fn is_per_thread() -> bool {
    PER_THREAD.get()
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("panic without a message")
}

/// Counts the call; the code that `PTXSIM_FAIL` wants it to return.
fn injected(name: &'static str) -> Option<CUresult> {
    let n = {
        let mut calls = lock(&CALLS);
        let n = calls.counted.entry(name).or_default();
        *n += 1;
        *n
    };
    config::get().ok()?.failures.iter().find(|f| f.function == name && f.call == n).map(|f| f.code)
}

/// The answer of a function, option or attribute that the simulator does not have, noted under its name.
pub fn unsupported(what: &str) -> CUresult {
    let first = {
        let mut calls = lock(&CALLS);
        let n = calls.unsupported.entry(what.to_owned()).or_default();
        *n += 1;
        *n == 1
    };
    if first {
        config::complain(&format!("{what}: not supported"));
    }
    CUDA_ERROR_NOT_SUPPORTED
}

/// What was asked for and is not supported: name and count.
pub fn unsupported_calls() -> BTreeMap<String, u64> {
    lock(&CALLS).unsupported.clone()
}

/// Calls by function.
pub fn calls() -> BTreeMap<&'static str, u64> {
    lock(&CALLS).counted.clone()
}

/// Forgets the unsupported calls and starts the counts anew.
pub fn reset_calls() {
    *lock(&CALLS) = Calls::default();
}

/// Writes through an out pointer of the program.
///
/// # Errors
/// `CUDA_ERROR_INVALID_VALUE` if it is null.
///
/// # Safety
/// `out` is null or valid for a write of `T`.
pub unsafe fn put<T>(out: *mut T, value: T) -> Result<()> {
    if out.is_null() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: not null; the caller vouches for the rest. C allows any alignment that the program chose.
    unsafe { out.write_unaligned(value) };
    Ok(())
}

/// Writes through an out pointer that may be null.
///
/// # Safety
/// As [`put`].
pub unsafe fn put_if<T>(out: *mut T, value: T) {
    // SAFETY: the caller's promise.
    let _ = unsafe { put(out, value) };
}

/// Reads a structure of the program.
///
/// # Errors
/// `CUDA_ERROR_INVALID_VALUE` if the pointer is null.
///
/// # Safety
/// `at` is null or valid for a read of `T`, for which any bytes are a value.
pub unsafe fn get<T: Copy>(at: *const T) -> Result<T> {
    if at.is_null() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: not null; the caller vouches for the rest.
    Ok(unsafe { at.read_unaligned() })
}

/// Reads an array of the program; `len` 0 allows a null pointer.
///
/// # Errors
/// `CUDA_ERROR_INVALID_VALUE` if the pointer is null.
///
/// # Safety
/// As [`get`], for `len` values.
pub unsafe fn get_all<T: Copy>(at: *const T, len: usize) -> Result<Vec<T>> {
    // SAFETY: the caller's promise, for each element.
    (0..len).map(|i| unsafe { get(if at.is_null() { at } else { at.add(i) }) }).collect()
}

/// Reads a C string of the program.
///
/// # Errors
/// `CUDA_ERROR_INVALID_VALUE` if the pointer is null or the text is not UTF-8.
///
/// # Safety
/// `at` is null or a NUL-terminated string.
pub unsafe fn text(at: *const c_char) -> Result<String> {
    if at.is_null() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: not null; the caller vouches for the terminator.
    let text = unsafe { CStr::from_ptr(at) };
    text.to_str().map(str::to_owned).map_err(|_| CUDA_ERROR_INVALID_VALUE)
}

/// Defines exported driver functions. The body is an `unsafe` context, returns `Result<()>`, and its error is what the
/// function returns. `name / variant(...)` also exports `variant`, for which the null stream is the thread's own.
/// Each block also defines `symbols()`, the addresses by name.
macro_rules! api {
    (@one $(#[$meta:meta])* $name:ident ($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        #[allow(non_snake_case, clippy::too_many_arguments)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> $crate::errors::CUresult {
            // SAFETY: the program keeps the driver API's contract: pointers are null or valid for what they are
            // declared as. Handles and device addresses are looked up, never followed.
            #[allow(unused_unsafe)]
            $crate::abi::enter(stringify!($name), || unsafe { $body })
        }
    };
    (@variant [] $name:ident $args:tt) => {};
    (@variant [$variant:ident] $name:ident ($($arg:ident: $ty:ty),* $(,)?)) => {
        #[allow(non_snake_case, clippy::too_many_arguments)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $variant($($arg: $ty),*) -> $crate::errors::CUresult {
            // SAFETY: the same contract.
            $crate::abi::per_thread(|| unsafe { $name($($arg),*) })
        }
    };
    ($($(#[$meta:meta])* fn $name:ident $(/ $variant:ident)? ($($args:tt)*) $body:block)*) => {
        $(
            $crate::abi::api!(@one $(#[$meta])* $name ($($args)*) $body);
            $crate::abi::api!(@variant [$($variant)?] $name ($($args)*));
        )*
        /// Name and address of each function above.
        pub fn symbols() -> Vec<(&'static str, $crate::abi::Symbol)> {
            vec![$(
                (stringify!($name), $name as $crate::abi::Symbol),
                $((stringify!($variant), $variant as $crate::abi::Symbol),)?
            )*]
        }
    };
}
pub(crate) use api;
