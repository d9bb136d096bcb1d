//! COCO run-length encoding and polygons against pycocotools (`tests/data/rle.json`, made by tools/data/rle_vectors.py;
//! `rle_digests.json`, made by rle_digests.py), round trips, hostile counts.

use mllmseg::image::{Mask, Rle};
use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};

fn cases() -> Vec<Value> {
    let text = include_bytes!("data/rle.json");
    let Value::Object(mut all) = serde_json::from_slice(text).expect("rle.json is JSON") else { panic!() };
    let Some(Value::Array(cases)) = all.remove("cases") else { panic!("no cases") };
    assert!(cases.len() >= 300);
    cases
}

fn number(v: &Value) -> usize {
    v.as_u64().expect("a number") as usize
}

/// A case's `bits`: rows packed into bytes, the first pixel in the highest bit, in hexadecimal.
fn mask(case: &Value) -> Option<Mask> {
    let hex = case["bits"].as_str()?;
    let (height, width) = (number(&case["size"][0]), number(&case["size"][1]));
    let bit = |i: usize| {
        let byte = u8::from_str_radix(&hex[2 * (i / 8)..][..2], 16).expect("hexadecimal");
        byte >> (7 - i % 8) & 1
    };
    Some(Mask::new(width, height, (0..width * height).map(bit).collect()).expect("a mask"))
}

#[test]
fn masks_encode_and_decode_as_pycocotools_does() {
    for case in cases() {
        let size = [number(&case["size"][0]), number(&case["size"][1])];
        let counts = case["counts"].as_str().expect("counts");
        let rle = Rle::from_compressed(size, counts).unwrap_or_else(|e| panic!("{counts}: {e}"));
        let decoded = rle.decode().expect("counts that sum to the size");
        if let Some(mask) = mask(&case) {
            assert_eq!(decoded, mask, "{counts}");
        }
        let encoded = Rle::encode(&decoded).expect("a small mask");
        assert_eq!(encoded, rle, "{counts}");
        assert_eq!(encoded.to_compressed(), counts);
        assert_eq!(rle.area() as usize, number(&case["area"]), "{counts}");
        assert_eq!(decoded.area(), number(&case["area"]), "{counts}");
        let bbox: [usize; 4] = std::array::from_fn(|i| number(&case["bbox"][i]));
        assert_eq!(rle.bbox(), bbox, "{counts}");
        assert_eq!(decoded.bbox().unwrap_or([0; 4]), bbox, "{counts}");
    }
}

#[test]
fn malformed_runs_are_refused() {
    // size, counts, what the message must speak of
    let strings: [([usize; 2], &str, &str); 12] = [
        ([2, 2], "", "2*2 = 4"),
        ([2, 2], "3", "2*2 = 4"),
        ([2, 2], "5", "2*2 = 4"),
        ([2, 2], "4\n", "byte 1"),
        ([2, 2], "4 ", "byte 1"),
        ([2, 2], "é", "byte 0"),
        ([2, 2], "T", "byte 1 of 1"), // the first group of a number that goes on
        ([2, 2], "O", "runs from 0"), // -1
        ([2, 2], "oooooooo0", "at most seven"),
        ([2, 2], "oooooo?", "runs from 0"), // more than 2^32 - 1
        ([0, 2], "0", "RLE size"),
        ([usize::MAX, 2], "0", "RLE size"),
    ];
    for (size, counts, part) in strings {
        let error = Rle::from_compressed(size, counts).expect_err(counts).to_string();
        assert!(error.contains(part), "{counts:?}: {error}");
    }
    let lists: [([usize; 2], Vec<u32>); 5] = [
        ([2, 2], vec![]),
        ([2, 2], vec![3]),
        ([2, 2], vec![u32::MAX, u32::MAX, 5]), // 4 after overflow in 32 bits
        ([1 << 16, 1 << 16], vec![0]),
        ([1 << 40, 1 << 40], vec![1]),
    ];
    for (size, counts) in lists {
        Rle { size, counts: counts.clone() }.decode().expect_err(&format!("{counts:?}"));
    }
}

/// SplitMix64, as in tools/data/rle_digests.py.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// `mask(i)` of rle_digests.py.
fn random_mask(i: usize) -> Mask {
    let mut r = Random(i as u64);
    let kind = i % 10;
    let (mut h, mut w) = (1 + r.below(60), 1 + r.below(60));
    if kind == 0 {
        (h, w) = if r.below(2) == 0 { (1, 1 + h * w) } else { (1 + h * w, 1) };
    }
    let (a, b, c, density) = (r.below(h), r.below(w), r.below(h + w), r.below(101));
    let mut data = Vec::new();
    for y in 0..h {
        for x in 0..w {
            let (dy, dx) = (y.abs_diff(a), x.abs_diff(b));
            let set = match kind {
                1 => false,
                2 => true,
                3 => (x + y) % 2 == 1,
                4 => y % (1 + a) == 0,
                5 => x % (1 + b) == 0,
                6 => dy * dy + dx * dx <= c * c / 4,
                7 => (y, x) == (a, b),
                8 => (y, x) != (a, b),
                _ => r.below(100) < density,
            };
            data.push(u8::from(set));
        }
    }
    Mask::new(w, h, data).expect("a mask")
}

/// `polygon(i)` of rle_digests.py: `[height, width]` and coordinates.
fn random_polygon(i: usize) -> ([usize; 2], Vec<f64>) {
    let mut r = Random(1_000_000 + i as u64);
    let (h, w) = (1 + r.below(90), 1 + r.below(90));
    let unit = [1, 2, 10, 100][i % 4];
    let corners = {
        let most = [1, 4, 9, 30][r.below(4)];
        3 + r.below(most)
    };
    let spread = [1, 2, 3][r.below(3)];
    let mut xy = Vec::new();
    for _ in 0..corners {
        for side in [w, h] {
            let at = r.below(spread * side * unit + 1) as f64 - ((spread - 1) * side * unit / 2) as f64;
            xy.push(at / unit as f64);
        }
    }
    ([h, w], xy)
}

/// Compares a line for each mask with pycocotools' digests of every hundred.
fn assert_pycocotools_says(what: &str, first: (&str, String), rles: impl Iterator<Item = Rle>) {
    let all: Value = serde_json::from_slice(include_bytes!("data/rle_digests.json")).expect("JSON");
    assert_eq!(first.1, all["first"][first.0].as_str().expect("a line"));
    let lines: Vec<String> = rles.map(|rle| line(&rle)).collect();
    let expected = all[what].as_array().expect("digests");
    assert_eq!(expected.len(), lines.len().div_ceil(100));
    for (i, (lines, expected)) in lines.chunks(100).zip(expected).enumerate() {
        let digest = Sha256::digest(lines.concat());
        let digest: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(digest, expected.as_str().expect("a digest"), "hundred {i} of {what}");
    }
}

fn line(rle: &Rle) -> String {
    format!("{} {} {} {}\n", rle.size[0], rle.size[1], rle.to_compressed(), rle.area())
}

#[test]
fn three_thousand_masks_have_pycocotools_strings_both_ways() {
    let encode = |i| Rle::encode(&random_mask(i)).expect("a small mask");
    assert_pycocotools_says("masks", ("mask", line(&encode(9))), (0..3000).map(encode));
    for i in 0..3000 {
        let rle = encode(i);
        let read = Rle::from_compressed(rle.size, &rle.to_compressed()).expect("its own string");
        assert_eq!(read.decode().expect("a mask"), random_mask(i), "mask {i}");
    }
}

#[test]
fn three_thousand_polygons_have_pycocotools_pixels() {
    let rasterise = |i| {
        let (size, xy) = random_polygon(i);
        Rle::from_polygon(size, &xy).expect("a polygon")
    };
    assert_pycocotools_says("polygons", ("polygon", line(&rasterise(0))), (0..3000).map(rasterise));
    let united = |i| {
        let (size, _) = random_polygon(i);
        let parts =
            [i, i + 1, i + 2].map(|k| Rle::from_polygon(size, &random_polygon(k).1).expect("a polygon"));
        let all = Rle::union(size, &parts).expect("one size");
        let pixels = parts.map(|p| p.decode().expect("a mask").data);
        let data = (0..size[0] * size[1]).map(|at| u8::from(pixels.iter().any(|p| p[at] == 1))).collect();
        assert_eq!(
            all.decode().expect("a mask").data,
            Mask::new(size[1], size[0], data).expect("a mask").data
        );
        all
    };
    assert_pycocotools_says("unions", ("union", line(&united(0))), (0..3000).step_by(3).map(united));
}

#[test]
fn polygons_that_cannot_be_are_refused() {
    let far = 1e9;
    for xy in
        [&[][..], &[1.0; 4], &[1.0; 7], &[0.0, 0.0, f64::NAN, 1.0, 2.0, 2.0], &[0.0, 0.0, far, 1.0, 2.0, 2.0]]
    {
        let error = Rle::from_polygon([10, 10], xy).expect_err("no polygon").to_string();
        assert!(error.starts_with("polygon: expected"), "{error}");
    }
    let zigzag: Vec<f64> = (0..1000).flat_map(|i| [f64::from(i % 2) * 1.6e7, f64::from(i)]).collect();
    assert!(Rle::from_polygon([10, 10], &zigzag).expect_err("too long").to_string().contains("outline"));
    assert!(Rle::from_polygon([0, 10], &[0.0; 6]).is_err());
    assert_eq!(Rle::from_polygon([4, 4], &[1.0; 6]).expect("a point").area(), 0);
}

#[test]
fn iou_of_masks() {
    let mask = |data: &[u8]| Mask::new(2, 2, data.to_vec()).expect("2x2");
    assert_eq!(mask(&[0; 4]).iou(&mask(&[0; 4])).expect("one size"), 1.0);
    assert_eq!(mask(&[1, 1, 0, 0]).iou(&mask(&[0, 1, 1, 0])).expect("one size"), 1.0 / 3.0);
    assert_eq!(mask(&[1, 0, 0, 0]).iou(&mask(&[0; 4])).expect("one size"), 0.0);
    let wide = Mask::new(4, 1, vec![0; 4]).expect("4x1");
    assert!(mask(&[0; 4]).iou(&wide).is_err());
}

#[test]
fn a_mask_survives_its_png() {
    let mask = Mask::new(3, 2, vec![0, 1, 7, 0, 0, 1]).expect("3x2");
    assert_eq!(mask.data, [0, 1, 1, 0, 0, 1]);
    let png = mask.to_png();
    assert_eq!(Mask::from_png(&png, "mask").expect("its own PNG"), mask);
    assert!(Mask::new(3, 2, vec![0; 5]).is_err() && Mask::new(0, 2, vec![]).is_err());
}

proptest! {
    #[test]
    fn any_mask_survives(width in 1usize..50, seed in prop::collection::vec(any::<bool>(), 1..900)) {
        let height = seed.len().div_ceil(width);
        let mut data: Vec<u8> = seed.into_iter().map(u8::from).collect();
        data.resize(width * height, 1);
        let mask = Mask::new(width, height, data).unwrap();
        let rle = Rle::encode(&mask).unwrap();
        prop_assert_eq!(rle.decode().unwrap(), mask.clone());
        prop_assert_eq!(Rle::from_compressed(rle.size, &rle.to_compressed()).unwrap(), rle.clone());
        prop_assert_eq!(rle.area() as usize, mask.area());
        prop_assert_eq!(rle.bbox(), mask.bbox().unwrap_or([0; 4]));
        // With its own mirror image: what both set, and what either does.
        let flipped: Vec<u8> = mask.data.iter().rev().copied().collect();
        let both = mask.data.iter().zip(&flipped).filter(|(a, b)| **a & **b == 1).count();
        let other = Rle::encode(&Mask::new(width, height, flipped).unwrap()).unwrap();
        prop_assert_eq!(rle.intersection(&other).unwrap() as usize, both);
        let union = Rle::union(rle.size, &[rle.clone(), other.clone()]).unwrap();
        prop_assert_eq!(union.area() as usize, 2 * mask.area() - both);
        prop_assert_eq!(Rle::encode(&union.decode().unwrap()).unwrap(), union);
        let transposed = Rle { size: [width, height + 1], ..rle.clone() };
        prop_assert!(rle.intersection(&transposed).is_err() && Rle::union(rle.size, &[transposed]).is_err());
    }

    /// Whatever is accepted decodes to a mask of its size, and means the same after a round trip.
    #[test]
    fn any_string_is_refused_or_understood(h in 0usize..20, w in 0usize..20, counts in "[0-o]{0,12}") {
        if let Ok(rle) = Rle::from_compressed([h, w], &counts) {
            let mask = rle.decode().unwrap();
            prop_assert_eq!((mask.height, mask.width), (h, w));
            prop_assert_eq!(rle.area() as usize, mask.area());
            prop_assert_eq!(rle.bbox(), mask.bbox().unwrap_or([0; 4]));
        }
    }
}
