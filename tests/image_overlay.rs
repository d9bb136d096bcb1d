//! Overlays: what is drawn where, and that nothing a caller passes can break them.

use mllmseg::image::{Item, Mask, Rgb, overlay};

fn gray(width: usize, height: usize) -> Rgb {
    Rgb::new(width, height, vec![128; 3 * width * height]).expect("a picture")
}

fn mask(width: usize, height: usize, set: impl Fn(usize, usize) -> bool) -> Mask {
    let data = (0..width * height).map(|i| u8::from(set(i % width, i / width))).collect();
    Mask::new(width, height, data).expect("a mask")
}

fn item<'a>(mask: &'a Mask, label: &'a str) -> Item<'a> {
    Item { mask, label, score: Some(0.5), bbox: mask.bbox() }
}

#[test]
fn the_mask_is_tinted_and_the_rest_is_left_alone() {
    let square = mask(400, 300, |x, y| (150..250).contains(&x) && (100..200).contains(&y));
    let drawn = overlay(&gray(400, 300), &[item(&square, "square")]);
    assert_eq!((drawn.width, drawn.height), (400, 300));
    let inside = drawn.pixel(200, 150);
    assert!(inside[2] > 150 && inside[0] < 120, "the first colour is blue: {inside:?}");
    assert_eq!(inside, drawn.pixel(180, 170), "one tint");
    let edge = drawn.pixel(200, 100);
    assert!(edge[2] > inside[2] + 30, "the contour is stronger than the tint: {edge:?}");
    for (x, y) in [(10, 150), (390, 290), (200, 220), (130, 150), (399, 0)] {
        assert_eq!(drawn.pixel(x, y), [128; 3], "({x}, {y})");
    }
    // The label stands above the box, its left edge at the box's.
    assert_ne!(drawn.pixel(170, 90), [128; 3]);
}

#[test]
fn an_empty_mask_gives_a_gray_label_in_the_corner() {
    let nothing = mask(400, 300, |_, _| false);
    let drawn = overlay(&gray(400, 300), &[item(&nothing, "a unicorn")]);
    let changed: Vec<_> = (0..400 * 300).filter(|i| drawn.pixel(i % 400, i / 400) != [128; 3]).collect();
    assert!(changed.len() > 500);
    assert!(changed.iter().all(|i| i % 400 < 200 && i / 400 > 260), "lower left");
}

#[test]
fn labels_keep_off_each_other() {
    let names = ["one", "two", "three", "four"];
    let square = mask(600, 600, |x, y| (200..400).contains(&x) && (200..400).contains(&y));
    let alone: Vec<Rgb> = (1..=4)
        .map(|n| overlay(&gray(600, 600), &names[..n].iter().map(|l| item(&square, l)).collect::<Vec<_>>()))
        .collect();
    // Each further label changes pixels of its own outside the square, and leaves the earlier labels as they were.
    for pair in alone.windows(2) {
        let outside = |i: &usize| !(195..405).contains(&(i % 600)) || !(195..405).contains(&(i / 600));
        let is = |rgb: &Rgb, i: usize| rgb.pixel(i % 600, i / 600);
        let fewer: Vec<_> = (0..600 * 600).filter(outside).filter(|&i| is(&pair[0], i) != [128; 3]).collect();
        assert!(fewer.iter().all(|&i| is(&pair[0], i) == is(&pair[1], i)), "an earlier label is covered");
    }
}

#[test]
fn nothing_passed_in_breaks_it() {
    let long = "very ".repeat(100_000);
    let labels = [
        "",
        " ",
        "a\0b\nc\td",
        "\u{202E}abc\u{200B}",
        "左边的猫 🐈",
        "e\u{301}\u{301}\u{301}",
        &long,
        "\u{FFFD}…",
    ];
    for (w, h) in [(1, 1), (1, 900), (900, 1), (3, 2), (17, 40), (160, 160), (640, 427)] {
        for set in [0, 1, 2, 3] {
            let mask = mask(w, h, |x, y| match set {
                0 => false,
                1 => true,
                2 => (x + y) % 2 == 0,
                _ => x == w - 1 && y == h - 1,
            });
            let mut items: Vec<_> = labels.iter().map(|l| item(&mask, l)).collect();
            items[0].bbox = Some([usize::MAX, usize::MAX, usize::MAX, usize::MAX]);
            items[1].bbox = Some([w, h, 0, 0]);
            items[2].bbox = Some([0; 4]);
            items[3].score = Some(f32::NAN);
            items[4].score = Some(f32::INFINITY);
            items[5].score = None;
            let drawn = overlay(&gray(w, h), &items);
            assert_eq!(drawn.data.len(), 3 * w * h);
        }
    }
    let other = mask(7, 7, |_, _| true);
    let drawn = overlay(&gray(100, 100), &[item(&other, "another size")]);
    assert_eq!((drawn.width, drawn.height), (100, 100));
}
