//! Fat binaries: any bytes give texts of bounded size, or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../driver/src/fatbin.rs"]
mod fatbin;

fuzz_target!(|bytes: &[u8]| {
    let _ = fatbin::total_bytes(bytes);
    let _ = fatbin::ptx(bytes);
});
