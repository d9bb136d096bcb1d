//! A picture file: any bytes give a picture of the size it says, or an error; never a panic, never more than the limits.
#![no_main]

use mllmseg::image::{Limits, decode};

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let limits = Limits { max_bytes: 1 << 20, max_pixels: 1 << 20 };
    if let Ok(rgb) = decode(file, "fuzz", &limits, true) {
        assert_eq!(rgb.data.len(), 3 * rgb.width * rgb.height);
        assert!((1..=1 << 20).contains(&(rgb.width * rgb.height)));
    }
});
