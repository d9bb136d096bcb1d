//! COCO run-length encoding against pycocotools (`tests/data/rle.json`, made by tools/data/rle_vectors.py), round trips,
//! hostile counts.

use mllmseg::image::{Mask, Rle};
use proptest::prelude::*;
use serde_json::Value;

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
