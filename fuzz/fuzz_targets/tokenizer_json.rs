//! `tokenizer.json`: any bytes give a tokenizer or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| {
    let _ = mllmseg::text::fuzz_tokenizer_json(file);
});
