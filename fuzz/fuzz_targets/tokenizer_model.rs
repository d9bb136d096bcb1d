//! `tokenizer.model`: any bytes give a tokenizer or an error.
#![no_main]

libfuzzer_sys::fuzz_target!(|model: &[u8]| {
    let _ = mllmseg::text::fuzz_tokenizer_model(model);
});
