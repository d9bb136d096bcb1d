//! Picture files of many kinds against Pillow: `tests/data/images` (made by tools/data/image_vectors.py).

use mllmseg::image::{Limits, read};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;

#[test]
fn every_kind_of_file_gives_pillows_bytes() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/images"));
    let index = std::fs::read(folder.join("index.json")).expect("tests/data/images");
    let index: Value = serde_json::from_slice(&index).expect("index.json is JSON");
    let files = index["files"].as_object().expect("files");
    assert!(files.len() > 250);
    let mut wrong = Vec::new();
    for (name, want) in files {
        match read(&folder.join(name), &Limits::default(), false) {
            Err(e) => wrong.push(e.to_string()),
            Ok(rgb) => {
                let sha: String = Sha256::digest(&rgb.data).iter().map(|b| format!("{b:02x}")).collect();
                if serde_json::json!([rgb.width, rgb.height]) != want["size"] || sha != want["rgb_sha256"] {
                    wrong.push(format!("{name} ({}): {}x{} {sha}", want["mode"], rgb.width, rgb.height));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), files.len(), wrong.join("\n"));
}

#[test]
fn exif_orientation_is_applied_when_asked_for() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/images"));
    for ext in ["png", "jpg", "webp"] {
        let path = folder.join(format!("exif6.{ext}"));
        let plain = read(&path, &Limits::default(), false).expect("a picture");
        let turned = read(&path, &Limits::default(), true).expect("a picture");
        assert_eq!((turned.width, turned.height), (plain.height, plain.width), "{ext}");
        // Orientation 6: the first row of the file is the right column of the picture.
        for x in 0..plain.width {
            assert_eq!(turned.pixel(turned.width - 1, x), plain.pixel(x, 0), "{ext}: column {x}");
        }
    }
}
