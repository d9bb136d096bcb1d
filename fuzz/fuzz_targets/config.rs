//! A config.json is read or refused; all shapes that an accepted one implies can be computed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mllmseg::checkpoint::{config::Config, names};
use std::path::Path;

fuzz_target!(|text: &[u8]| {
    if let Ok(config) = Config::parse(Path::new("x"), text) {
        for (_, shape) in names::expected(&config, Some(config.vision_config.hidden_size)) {
            assert!(shape.iter().try_fold(2usize, |n, &d| n.checked_mul(d)).is_some());
        }
    }
});
