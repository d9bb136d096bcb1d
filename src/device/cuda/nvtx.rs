//! NVTX ranges: named spans of time that Nsight Systems and Nsight Compute show and filter by.
//!
//! A profiler names its library in `NVTX_INJECTION64_PATH`. As NVTX's headers do, the program opens it and calls its
//! `InitializeInjectionNvtx2`, which asks for tables of function pointers and fills those that it wants to be called by. Without the variable
//! nothing is loaded and a range costs one load of a pointer.

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Functions of each module (`NVTX_CBID_..._SIZE`, the invalid number 0 among them): core, CUDA, OpenCL, CUDA runtime, core 2, sync.
const SIZES: [usize; 6] = [16, 9, 15, 7, 16, 7];
/// `NVTX_CBID_CORE_RangePushA`, `NVTX_CBID_CORE_RangePop`
const PUSH: usize = 9;
const POP: usize = 11;

type Slot = AtomicPtr<c_void>;
/// What the profiler wants to be called, by module and number.
static SLOTS: [[Slot; 16]; 6] = [const { [const { AtomicPtr::new(std::ptr::null_mut()) }; 16] }; 6];

/// Addresses of the slots, as the profiler reads them; one more null at the end.
struct Tables([[*const Slot; 17]; 6]);
// SAFETY: addresses of statics.
unsafe impl Send for Tables {}
// SAFETY: as above; never written once made.
unsafe impl Sync for Tables {}
static TABLES: OnceLock<Tables> = OnceLock::new();

/// `NvtxExportTableCallbacks`
#[repr(C)]
struct Callbacks {
    size: usize,
    tables: extern "C" fn(c_uint, *mut *const *const Slot, *mut c_uint) -> c_int,
}
/// `NvtxExportTableVersionInfo`
#[repr(C)]
struct Version {
    size: usize,
    version: u32,
    reserved: u32,
    set: extern "C" fn(u32),
}
static CALLBACKS: Callbacks = Callbacks { size: size_of::<Callbacks>(), tables };
static VERSION: Version = Version { size: size_of::<Version>(), version: 3, reserved: 0, set };

extern "C" fn set(_version: u32) {}

/// `GetModuleFunctionTable`
extern "C" fn tables(module: c_uint, table: *mut *const *const Slot, size: *mut c_uint) -> c_int {
    let (Some(i), Some(all)) = ((module as usize).checked_sub(1).filter(|i| *i < 6), TABLES.get()) else {
        return 0;
    };
    // SAFETY: null, or the profiler's variables.
    unsafe {
        if let Some(table) = table.as_mut() {
            *table = all.0[i].as_ptr();
        }
        if let Some(size) = size.as_mut() {
            *size = SIZES[i] as c_uint;
        }
    }
    1
}

/// `NvtxGetExportTableFunc_t`
extern "C" fn export(id: u32) -> *const c_void {
    match id {
        1 => (&raw const CALLBACKS).cast(),
        3 => (&raw const VERSION).cast(),
        _ => std::ptr::null(),
    }
}

/// Loads the profiler's library, if one is named; whether ranges are wanted.
fn load() -> bool {
    let Some(path) = std::env::var_os("NVTX_INJECTION64_PATH").filter(|p| !p.is_empty()) else {
        return false;
    };
    TABLES.get_or_init(|| {
        let row = |m: usize| {
            std::array::from_fn(|i| {
                if (1..SIZES[m]).contains(&i) { &raw const SLOTS[m][i] } else { std::ptr::null() }
            })
        };
        Tables(std::array::from_fn(row))
    });
    type Initialize = unsafe extern "C" fn(extern "C" fn(u32) -> *const c_void) -> c_int;
    let file = CString::new(OsStr::as_bytes(&path)).unwrap_or_default();
    // SAFETY: whoever set the variable vouches for the library and for its function's type, as for every program with NVTX.
    unsafe {
        let library = libc::dlopen(file.as_ptr(), libc::RTLD_NOW);
        if library.is_null() {
            return false;
        }
        let symbol = libc::dlsym(library, c"InitializeInjectionNvtx2".as_ptr());
        if symbol.is_null() {
            return false;
        }
        if std::mem::transmute::<*mut c_void, Initialize>(symbol)(export) == 0 {
            return false;
        }
    }
    let slot = |i: usize| !SLOTS[0][i].load(Ordering::Acquire).is_null();
    slot(PUSH) && slot(POP)
}

/// Whether a profiler listens to ranges.
pub fn attached() -> bool {
    static ATTACHED: OnceLock<bool> = OnceLock::new();
    *ATTACHED.get_or_init(load)
}

/// A span of time on this thread, which ends when it is dropped.
pub struct Range(());

/// Begins a range, if a profiler is attached.
pub fn range(name: &CStr) -> Option<Range> {
    attached().then(|| {
        type Push = unsafe extern "C" fn(*const c_char) -> c_int;
        // SAFETY: the profiler put its `nvtxRangePushA` there; the name is copied by it.
        unsafe {
            std::mem::transmute::<*mut c_void, Push>(SLOTS[0][PUSH].load(Ordering::Acquire))(name.as_ptr());
        }
        Range(())
    })
}

impl Drop for Range {
    fn drop(&mut self) {
        type Pop = unsafe extern "C" fn() -> c_int;
        // SAFETY: the profiler put its `nvtxRangePop` there; ranges end in the order in which values are dropped.
        unsafe { std::mem::transmute::<*mut c_void, Pop>(SLOTS[0][POP].load(Ordering::Acquire))() };
    }
}
