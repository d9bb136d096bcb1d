//! Pickles: data or an error, and reading the data ends, whatever it says.
#![no_main]

use mllmseg::eval::pickle::Pickle;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(pickle) = Pickle::parse("fuzz.p".as_ref(), bytes) {
        let _ = pickle.read::<serde_json::Value>("fuzz.p".as_ref());
    }
});
