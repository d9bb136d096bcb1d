//! A file is read or refused; an accepted one's tensors tile its data exactly.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mllmseg::checkpoint::header;
use std::path::Path;

/// The input is a whole file, and once more a header whose length is right (which random bytes seldom get).
fn check(file: &[u8]) {
    let Ok(entries) = header::parse(Path::new("x"), file) else { return };
    let mut at = entries.first().map_or(file.len(), |e| e.bytes.start);
    for e in &entries {
        assert_eq!(e.bytes.start, at);
        assert_eq!(e.bytes.len() * 8, e.dtype.bitsize() * e.shape.iter().product::<usize>());
        at = e.bytes.end;
    }
    assert_eq!(at, file.len());
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    check(&[&(bytes.len() as u64).to_le_bytes()[..], bytes].concat());
});
