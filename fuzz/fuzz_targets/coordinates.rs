//! Answers of a model: places on the grid, which mean the same when written again, or an error that shows the answer.
#![no_main]

use mllmseg::chat::coordinates::{Place, places};

libfuzzer_sys::fuzz_target!(|answer: &str| {
    if let Ok(found) = places(answer) {
        assert!(!found.is_empty());
        let list: Vec<String> = found.iter().map(Place::to_string).collect();
        assert_eq!(places(&format!("[{}]", list.join(", "))).unwrap(), found);
        for place in found {
            let [x, y, w, h] = place.pixels(640, 427).frame(640, 427);
            assert!(w > 0 && h > 0 && x + w <= 640 && y + h <= 427);
        }
    }
});
