//! The preprocessing, bit for bit: `tests/data/preprocess` was made by Pillow 11.3.0 and torchvision.

use mllmseg::image::{self, Limits, Rgb, grid, normalize, resize_bicubic, tiles};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;

fn data() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data"))
}

fn golden() -> Value {
    let text = std::fs::read(data().join("preprocess/preprocess.json")).expect("tests/data/preprocess");
    serde_json::from_slice(&text).expect("preprocess.json is JSON")
}

fn read(file: &Value) -> Rgb {
    let path = data().join(file.as_str().expect("a file name"));
    image::read(&path, &Limits::default(), false).expect("a golden picture")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn size(v: &Value, key: &str) -> usize {
    v[key].as_u64().unwrap_or_else(|| panic!("{key} in {v}")) as usize
}

#[test]
fn pictures_decode_resize_and_normalise_to_the_published_bytes() {
    let golden = golden();
    let cases = golden["images"].as_object().expect("images");
    assert_eq!(cases.len(), 12);
    for (name, case) in cases {
        let source = read(&case["input"]);
        assert_eq!(serde_json::json!([source.width, source.height]), case["size"], "{name}: size");
        assert_eq!(sha256(&source.data), case["rgb_sha256"], "{name}: decoded");
        if case.get("decoded").is_some() {
            assert_eq!(source, read(&case["decoded"]), "{name}: decoded");
        }
        let small = resize_bicubic(&source, 448, 448).expect("448x448");
        assert_eq!(sha256(&small.data), case["result_sha256"], "{name}: resized");
        assert_eq!(small, read(&case["result"]), "{name}: resized");
        let values = normalize(&small);
        assert_eq!(
            sha256(bytemuck::cast_slice(&values)),
            case["pixel_values_sha256_f32le"],
            "{name}: normalised"
        );
    }
}

#[test]
fn tiles_are_the_published_bytes() {
    let golden = golden();
    for case in golden["tiles"].as_array().expect("tiles") {
        let name = case["image"].as_str().expect("image");
        let source = read(&golden["images"][name]["input"]);
        let thumbnail = case["thumbnail"].as_bool().expect("thumbnail");
        let got = tiles(&source, 1, size(case, "max"), 448, thumbnail).expect("tiles");
        let want = case["tiles"].as_array().expect("tiles");
        assert_eq!(got.len(), want.len(), "{name}");
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert_eq!(sha256(&got.data), want["sha256"], "{name}: tile {i}");
        }
    }
}

#[test]
fn grids_are_the_published_ones() {
    let golden = golden();
    let cases = golden["grids"].as_array().expect("grids");
    assert!(cases.len() > 30);
    for case in cases {
        let got = grid(size(case, "w"), size(case, "h"), size(case, "min"), size(case, "max"), 448);
        assert_eq!(got, (size(case, "cols"), size(case, "rows")), "{case}");
    }
}

/// The published order of candidates is an accident of Python's sets among grids of equally many tiles; `grid` has
/// another. That this cannot show: two such grids are never neighbours among the ratios, and only neighbours can be
/// equally near.
#[test]
fn equally_large_grids_are_never_equally_near() {
    for max in 1..=40usize {
        let mut grids: Vec<_> = (1..=max).flat_map(|i| (1..=max / i).map(move |j| (i, j))).collect();
        grids.sort_by_key(|&(i, j)| (i * 10_000 / j, i)); // ratios differ by 1/1600 or more
        let same_ratio = |a: &(usize, usize), b: &(usize, usize)| a.0 * b.1 == b.0 * a.1;
        let classes: Vec<_> = grids.chunk_by(same_ratio).collect();
        for pair in classes.windows(2) {
            for (a, b) in pair[0].iter().flat_map(|a| pair[1].iter().map(move |b| (a, b))) {
                assert_ne!(a.0 * a.1, b.0 * b.1, "max {max}: {a:?} and {b:?}");
            }
        }
    }
}

/// Whatever is cut into bands, or too wide for a table of weights, has the bits of one pass and then the other.
#[test]
fn bands_change_no_bit() {
    let picture = |w: usize, h: usize| {
        let value = |i: usize| if (i / 11).is_multiple_of(3) { 255 } else { (i * 37 % 251) as u8 };
        Rgb::new(w, h, (0..3 * w * h).map(value).collect()).unwrap()
    };
    for (w, h, width, height) in
        [(5, 40_000, 448, 448), (5, 40_000, 448, 30), (3, 20_000, 900, 30_000), (7, 9000, 448, 8999)]
    {
        let source = picture(w, h);
        let across = resize_bicubic(&source, width, h).unwrap();
        let both = resize_bicubic(&across, width, height).unwrap();
        assert!(resize_bicubic(&source, width, height).unwrap() == both, "{w}x{h} to {width}x{height}");
    }
    let long = (1 << 20) + 3;
    let (wide, tall) = (picture(long, 1), picture(1, long));
    let (wide, tall) = (resize_bicubic(&wide, 448, 1).unwrap(), resize_bicubic(&tall, 1, 448).unwrap());
    assert!(wide.data == tall.data);
}
