//! Damaged, absurd and odd pictures: a clear error that names the picture, or the right pixels; never a panic.

use mllmseg::image::{Limits, Rgb, decode, normalize, read, resize_bicubic, tiles};
use mllmseg::{Error, Result};
use std::path::{Path, PathBuf};

fn file(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).expect(name)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images")
}

fn open(name: &str, bytes: &[u8]) -> Result<Rgb> {
    let result = decode(bytes, name, &Limits::default(), false);
    match &result {
        Ok(rgb) => assert_eq!(rgb.data.len(), 3 * rgb.width * rgb.height, "{name}"),
        Err(e) => check(name, e),
    }
    result
}

/// Every error about a picture is one line that begins with its name.
fn check(name: &str, e: &Error) {
    assert!(matches!(e, Error::Image { .. }), "{name}: {e:?}");
    let line = e.to_string();
    assert!(line.starts_with(&format!("{name}: expected ")), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
}

#[track_caller]
fn refused(name: &str, bytes: &[u8], part: &str) {
    let line = open(name, bytes).expect_err(name).to_string();
    assert!(line.contains(part), "{line:?} does not say {part:?}");
}

/// One file of each codec, some of several kinds.
const KINDS: [&str; 15] = [
    "exif6.jpg",  // baseline
    "05-444.jpg", // progressive, restart markers
    "16-cmyk.jpg",
    "rgb.png",
    "type6-16bit-interlaced.png",
    "animated.png",
    "photo-q80.webp",
    "lossless.webp",
    "animated.webp",
    "rgb.bmp",
    "rgb.gif",
    "part-local.gif",
    "rgb-tiff_lzw.tif",
    "rgb-tiff_adobe_deflate.tif",
    "palette-8bit-big-endian.tif",
];

#[test]
fn truncated_files_are_refused() {
    for name in KINDS {
        let bytes = file(name);
        // A frame that is not the first is not read; everything before its beginning is.
        let needed = if name.starts_with("animated") { bytes.len() / 4 } else { bytes.len() };
        for n in [1, 2, 3, 4, 7, 8, 12, 20, 40, needed / 4, needed / 2, needed * 3 / 4, needed * 9 / 10] {
            let cut = &bytes[..n.min(needed)];
            assert!(open(name, cut).is_err(), "{name}: {n} of {} bytes", bytes.len());
        }
    }
    // libjpeg would fill what is missing with gray, and do without the end marker.
    let jpeg = file("exif6.jpg");
    for cut in [1, 2, 3, 10, 100] {
        refused("cut.jpg", &jpeg[..jpeg.len() - cut], "its end after");
    }
}

#[test]
fn what_is_no_picture_is_refused() {
    refused("empty.jpg", b"", "an empty file");
    refused("zeros.png", &[0; 4096], "none of these");
    refused("text.jpg", b"This is not a picture, whatever its name says.\n", "none of these");
    refused("page.html", b"<!doctype html><title>404</title>", "none of these");
    refused("data.json", b"{\"width\": 3}", "none of these");
    refused("movie.mp4", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "none of these");
    refused("photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "none of these");
    refused("new.avif", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "Avif");
    refused("old.pnm", b"P6 1 1 255 abc", "Pnm");
    refused("icon.ico", &[0, 0, 1, 0, 1, 0, 16, 16], "Ico");
    refused("riff.webp", b"RIFF\x04\0\0\0WAVE", "none of these");
    for magic in [
        &b"\x89PNG\r\n\x1a\n"[..],
        b"\xFF\xD8\xFF",
        b"GIF89a",
        b"BM",
        b"II*\0",
        b"MM\0*",
        b"RIFF\0\0\0\0WEBP",
    ] {
        for rest in [&b""[..], &[0; 64], &[0xFF; 64]] {
            open("magic", &[magic, rest].concat()).expect_err("a signature alone");
        }
    }
    let missing = read(Path::new("no/such/picture.png"), &Limits::default(), false).expect_err("no file");
    assert!(missing.to_string().starts_with("no/such/picture.png: cannot open"), "{missing}");
    assert!(read(&folder(), &Limits::default(), false).is_err(), "a folder");
}

/// The IHDR of a PNG, with its CRC.
fn png_of_size(width: u32, height: u32) -> Vec<u8> {
    let mut head = b"IHDR".to_vec();
    head.extend(width.to_be_bytes());
    head.extend(height.to_be_bytes());
    head.extend([8, 2, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(&head);
    png.extend(crc32(&head).to_be_bytes());
    png.extend(b"\0\0\0\x04IDAT\0\0\0\0");
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 })
    })
}

/// `bytes` with `new` at `at`.
fn patched(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

fn find(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|w| w == part).expect("in the file")
}

/// Headers that promise far more pixels than the limit: refused before anything of that size is allocated.
#[test]
fn bombs_are_refused_by_their_headers() {
    refused("bomb.png", &png_of_size(100_000, 100_000), "100000x100000");
    refused("max.png", &png_of_size(0x7FFF_FFFF, 0x7FFF_FFFF), "178956970 pixels");
    refused("zero.png", &png_of_size(0, 5), "");
    let jpeg = file("exif6.jpg");
    let frame = find(&jpeg, b"\xFF\xC0\0\x11\x08");
    refused("bomb.jpg", &patched(&jpeg, frame + 5, &[0xFF; 4]), "libjpeg");
    refused("big.jpg", &patched(&jpeg, frame + 5, &[0xFD, 0xE8, 0xFD, 0xE8]), "65000x65000");
    refused("flat.jpg", &patched(&jpeg, frame + 5, &[0, 0]), "");
    let gif = file("rgb.gif");
    refused("bomb.gif", &patched(&gif, 6, &[0xFF; 4]), "65535x65535");
    let bmp = file("rgb.bmp");
    refused("bomb.bmp", &patched(&bmp, 18, &[0x60, 0xEA, 0, 0, 0x60, 0xEA, 0, 0]), "60000x60000");
    refused("wide.bmp", &patched(&bmp, 18, &[0xFF, 0xFF, 0xFF, 0x7F]), "");
    refused("negative.bmp", &patched(&bmp, 18, &[0xFF; 4]), "");
    let lossless = file("lossless.webp");
    let size = find(&lossless, b"VP8L") + 9;
    refused("bomb.webp", &patched(&lossless, size, &[0xFF, 0xFF, 0xFF, 0x0F]), "178956970 pixels");
    let tiff = file("rgb-plain.tif");
    let entry = |tag: u16| find(&tiff, &[tag.to_le_bytes(), 4u16.to_le_bytes()].concat()) + 8;
    let wide = |at: usize| patched(&tiff, at, &[0xFF, 0xFF, 0, 0]);
    let bomb = patched(&wide(entry(256)), entry(257), &[0xFF, 0xFF, 0, 0]);
    refused("bomb.tif", &bomb, "");
    refused("wide.tif", &wide(entry(256)), "");
    refused("zero.tif", &patched(&tiff, entry(256), &[0; 4]), "");

    let small = Limits { max_bytes: 1000, ..Limits::default() };
    let e = decode(&file("rgb.png"), "big.png", &small, false).expect_err("9 KB");
    assert!(e.to_string().contains("at most 1000 bytes"), "{e}");
    let e = read(&folder().join("rgb.png"), &small, false).expect_err("9 KB");
    assert!(e.to_string().contains("at most 1000 bytes"), "{e}");
    let few = Limits { max_pixels: 90 * 61 - 1, ..Limits::default() };
    for name in ["exif6.jpg", "rgb.png", "rgb.gif", "rgb.bmp", "photo-q80.webp", "rgb-plain.tif"] {
        let e = decode(&file(name), name, &few, false).expect_err(name);
        assert!(e.to_string().contains("90x61"), "{e}");
        let enough = Limits { max_pixels: 90 * 61, ..Limits::default() };
        decode(&file(name), name, &enough, false).expect(name);
    }
}

#[test]
fn damaged_chunks_and_markers_are_refused() {
    let png = file("rgb.png");
    let idat = find(&png, b"IDAT");
    refused("data.png", &patched(&png, idat + 40, &[!png[idat + 40]]), "a whole Png file");
    refused("crc.png", &patched(&png, 29, &[!png[29]]), "CRC");
    refused("depth.png", &patched(&png, 24, &[3]), "");
    let jpeg = file("exif6.jpg");
    let tables = find(&jpeg, b"\xFF\xC4");
    refused("huffman.jpg", &patched(&jpeg, tables + 5, &[0xFF; 16]), "libjpeg");
    let frame = find(&jpeg, b"\xFF\xC0");
    refused("12bit.jpg", &patched(&jpeg, frame + 4, &[12]), "libjpeg");
    refused("two.jpg", &patched(&jpeg, frame + 9, &[2]), "");
    refused("sampling.jpg", &patched(&jpeg, frame + 11, &[0xFF]), "libjpeg");
    refused("start.jpg", b"\xFF\xD8\xFF\xD9", "");
    // Five thousand empty scans, each a pass over the picture.
    let scans = [&jpeg[..2], &b"\xFF\xDA\0\x08\x01\x01\0\0\x3F\0".repeat(5000)[..], &jpeg[2..]].concat();
    refused("scans.jpg", &scans, "scans");
    let gif = file("palette.gif");
    let mut no_colors = gif.clone();
    no_colors[10] &= 0x7F; // the table is there, but not announced
    let _ = open("colors.gif", &no_colors);
    let tiff = file("rgb-tiff_lzw.tif");
    refused("directory.tif", &patched(&tiff, 4, &[0xFF; 4]), "");
    refused("loop.tif", &patched(&tiff, 4, &[0; 4]), "");
}

#[test]
fn extreme_shapes_decode_and_preprocess() {
    for (width, height) in [(1, 1), (1, 20_000), (20_000, 1), (2, 3), (448, 1), (1, 448)] {
        let data: Vec<u8> = (0..3 * width * height).map(|i| (i * 7 % 251) as u8).collect();
        let picture = Rgb::new(width, height, data).expect("a picture");
        let name = format!("{width}x{height}");
        let again = open(&name, &picture.to_png()).expect("its own PNG");
        assert_eq!(again, picture);
        let small = resize_bicubic(&again, 448, 448).expect("448x448");
        assert_eq!(small.data.len(), 448 * 448 * 3);
        assert!(normalize(&small).iter().all(|v| (-2.2..2.7).contains(v)));
        assert!((1..=13).contains(&tiles(&again, 1, 12, 28, true).expect("tiles").len()));
    }
    let one = Rgb::new(1, 1, vec![9, 8, 7]).expect("a pixel");
    let spread = resize_bicubic(&one, 5, 6).expect("5x6");
    assert!(spread.data.chunks(3).all(|p| p == [9, 8, 7]));
    assert!(resize_bicubic(&one, 0, 6).is_err() && resize_bicubic(&one, usize::MAX, 6).is_err());
    assert!(Rgb::new(2, 2, vec![0; 11]).is_err() && Rgb::new(usize::MAX, 2, vec![]).is_err());
    assert!(tiles(&one, 1, 0, 448, true).is_err() && tiles(&one, 1, 1 << 40, 448, true).is_err());
    assert!(tiles(&one, 1, 12, 0, true).is_err() && tiles(&one, 1, 12, usize::MAX, true).is_err());
}

#[test]
fn names_do_not_matter() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in [("photo.png", "exif6.jpg"), ("photo.jpg", "rgb.png"), ("photo", "rgb.gif")] {
        let path = folder.path().join(name);
        std::fs::write(&path, file(content)).expect("a copy");
        let got = read(&path, &Limits::default(), false).expect(name);
        assert_eq!(got, open(content, &file(content)).expect(content));
    }
}

/// Random damage: an error or a picture. Seeded, so that a failure can be repeated.
#[test]
fn random_damage_never_panics() {
    let mut seed = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % n as u64) as usize
    };
    // Small enough that a header's lie costs little time.
    let limits = Limits { max_pixels: 1 << 20, ..Limits::default() };
    for name in KINDS {
        let whole = file(name);
        for round in 0..150 {
            let mut bytes = whole.clone();
            for _ in 0..1 + round % 6 {
                // Headers more often than the rest.
                let within = if round % 2 == 0 { bytes.len().min(120) } else { bytes.len() };
                let at = random(within);
                match random(4) {
                    0 => bytes[at] = 0xFF,
                    1 => bytes[at] ^= 1 << random(8),
                    2 => bytes[at] = random(256) as u8,
                    _ => drop(bytes.drain(at..(at + 1 + random(8)).min(bytes.len()))),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            match decode(&bytes, name, &limits, true) {
                Ok(rgb) => assert_eq!(rgb.data.len(), 3 * rgb.width * rgb.height),
                Err(e) => check(name, &e),
            }
        }
    }
}
