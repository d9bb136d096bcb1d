//! The simulated driver: found, loaded, asked for what it recorded.

use crate::{Error, Result};
use cudarc::driver::sys;
use std::ffi::{CString, c_char};
use std::path::PathBuf;

/// The simulated driver: `$MLLMSEG_SIM`, or `libcuda.so` beside the program, in `deps/` there, or in the folder above.
///
/// # Errors
/// [`Error::Device`] if there is none.
pub fn find() -> Result<PathBuf> {
    let candidates = match std::env::var_os("MLLMSEG_SIM") {
        Some(path) => vec![PathBuf::from(path)],
        None => {
            let program = std::env::current_exe().unwrap_or_default();
            let dir = program.parent().map(PathBuf::from).unwrap_or_default();
            ["libcuda.so", "deps/libcuda.so", "../libcuda.so"].map(|f| dir.join(f)).into()
        }
    };
    candidates.iter().find(|p| p.is_file()).cloned().ok_or_else(|| {
        let places: Vec<_> = candidates.iter().map(|p| p.display().to_string()).collect();
        let expected =
            "the simulated driver (cargo build --release -p ptxsim-driver; MLLMSEG_SIM names it elsewhere)";
        let found = format!("none of {}", places.join(", "));
        Error::Device { device: "sim".into(), expected: expected.into(), found }
    })
}

/// Loads the simulated driver, so that it answers when the driver is looked for.
pub(super) fn open() -> Result<()> {
    let path = find()?;
    let file = CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
    // SAFETY: the simulated driver runs no code of its own when it is opened. A file that $MLLMSEG_SIM names may: whoever names it vouches for
    // it, as for one in $LD_PRELOAD.
    if unsafe { libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) }.is_null() {
        return Err(Error::Device {
            device: "sim".into(),
            expected: format!("{} to load", path.display()),
            found: "a file that is not a library for this machine".into(),
        });
    }
    Ok(())
}

/// `ptxsim_report_json`
pub(super) type Report = unsafe extern "C" fn(*mut c_char, usize) -> usize;

/// The report function of the driver, if it is the simulated one. The driver library must be present.
pub(super) fn report() -> Option<Report> {
    // SAFETY: the symbol has this type in tools/ptxsim/driver/include/ptxsim.h, and only that library has it.
    unsafe { sys::culib().get::<Report>(b"ptxsim_report_json\0") }.ok().map(|f| *f)
}

/// What the simulated driver recorded since the program began or since [`reset_simulator`]: findings, counters by kernel.
pub fn simulator_report() -> Option<serde_json::Value> {
    // SAFETY: looks whether the library can be opened.
    let report = unsafe { sys::is_culib_present() }.then(self::report)??;
    // SAFETY: as ptxsim.h says: asked for the size first, then for as many bytes.
    let bytes = unsafe {
        let mut bytes = vec![0u8; report(std::ptr::null_mut(), 0)];
        report(bytes.as_mut_ptr().cast(), bytes.len());
        bytes
    };
    serde_json::from_slice(bytes.strip_suffix(&[0])?).ok()
}

/// Makes the simulated driver forget what it recorded.
pub fn reset_simulator() {
    // SAFETY: looks whether the library can be opened; the symbol has this type in ptxsim.h.
    unsafe {
        if sys::is_culib_present()
            && let Ok(reset) = sys::culib().get::<unsafe extern "C" fn()>(b"ptxsim_reset\0")
        {
            reset();
        }
    }
}
