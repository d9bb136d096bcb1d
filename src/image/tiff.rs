//! TIFF: the first picture of a file, as Pillow converts it.

use super::Rgb;
use super::decode::{File, cmyk_to_rgb, one_line};
use crate::Result;
use ::image::metadata::Orientation;
use std::borrow::Cow;
use std::io::Cursor;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

const EXPECTED: &str = "a whole TIFF file";
/// Values of the tag PhotometricInterpretation.
const WHITE_IS_ZERO: u16 = 0;
const BLACK_IS_ZERO: u16 = 1;
const PALETTE: u16 = 3;
/// A value of the tag Compression.
const JPEG: u16 = 7;

/// Decodes a TIFF file: gray of 1 to 32 bits or floats, palettes, gray with alpha, RGB, RGBA and CMYK of 8 and 16 bits.
/// Gray of more than 8 bits is clipped to 0..=255, never scaled. The orientation is for the caller to apply.
pub(super) fn decode(file: &File) -> Result<(Rgb, Orientation)> {
    // The decoder refuses palettes and inverts white-is-zero at every depth (Pillow up to 8 bits); told that all is
    // black-is-zero it gives the stored samples, and both are done here.
    let mut bytes = Cow::Borrowed(file.bytes);
    let mut photometric = None;
    if let Some((at, big_endian)) = photometric_at(file.bytes) {
        let stored = [file.bytes[at], file.bytes[at + 1]];
        let value = if big_endian { u16::from_be_bytes(stored) } else { u16::from_le_bytes(stored) };
        photometric = Some(value);
        if value == WHITE_IS_ZERO || value == PALETTE {
            let black = if big_endian { BLACK_IS_ZERO.to_be_bytes() } else { BLACK_IS_ZERO.to_le_bytes() };
            bytes.to_mut()[at..at + 2].copy_from_slice(&black);
        }
    }

    let bad = |e: TiffError| file.error(EXPECTED, one_line(&e.to_string()));
    let mut limits = Limits::default();
    // 16-bit RGBA is the largest that is read.
    let largest = usize::try_from(file.limits.max_pixels.saturating_mul(8)).unwrap_or(usize::MAX);
    (limits.decoding_buffer_size, limits.intermediate_buffer_size) = (largest, largest);
    let mut decoder = Decoder::new(Cursor::new(&bytes[..])).map_err(bad)?.with_limits(limits);
    let (width, height) = decoder.dimensions().map_err(bad)?;
    let (width, height) = (width as usize, height as usize);
    file.check_size(width, height)?;
    let color = decoder.colortype().map_err(bad)?;
    let mut samples = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut samples).map_err(bad)?;
    let channels = usize::from(color.num_samples());
    let pixels = width * height;
    let unsupported = || file.error("a TIFF file of a kind that is supported", format!("{color:?}"));

    let data: Vec<u8> = match (color, &samples) {
        (ColorType::Gray(bits @ (1 | 2 | 4 | 8)), DecodingResult::U8(packed)) => {
            let values = unpack(packed, width, height, bits);
            match photometric {
                Some(PALETTE) => {
                    let map = decoder.get_tag_u16_vec(Tag::ColorMap).map_err(bad)?;
                    let n = 1 << bits;
                    if map.len() != 3 * n {
                        return Err(file.error(format!("a TIFF colour map of 3*{n}"), map.len().to_string()));
                    }
                    let pick = |v: u8| [0, 1, 2].map(|c| (map[c * n + usize::from(v)] >> 8) as u8);
                    values.flat_map(pick).collect()
                }
                Some(WHITE_IS_ZERO) => values.flat_map(|v| [255 - scale(v, bits); 3]).collect(),
                _ => values.flat_map(|v| [scale(v, bits); 3]).collect(),
            }
        }
        (ColorType::Gray(_), _) => {
            let gray: Vec<u8> = match &samples {
                DecodingResult::U16(v) => v.iter().map(|&v| v.min(255) as u8).collect(),
                // Pillow takes them for signed ones.
                DecodingResult::U32(v) => v.iter().map(|&v| v.cast_signed().clamp(0, 255) as u8).collect(),
                DecodingResult::I16(v) => v.iter().map(|&v| v.clamp(0, 255) as u8).collect(),
                DecodingResult::I32(v) => v.iter().map(|&v| v.clamp(0, 255) as u8).collect(),
                // `as` saturates, and takes NaN for 0.
                DecodingResult::F32(v) => v.iter().map(|&v| v as u8).collect(),
                _ => return Err(unsupported()),
            };
            gray.into_iter().flat_map(|v| [v; 3]).collect()
        }
        _ => {
            let (8 | 16, 2..=4) = (color.bit_depth(), channels) else { return Err(unsupported()) };
            let compression: Option<u16> = decoder.find_tag_unsigned(Tag::Compression).map_err(bad)?;
            if matches!(color, ColorType::Multiband { .. }) && compression == Some(JPEG) {
                return Err(unsupported()); // the decoder takes the alpha for more gray
            }
            let high: Cow<[u8]> = match &samples {
                DecodingResult::U8(v) => v.into(),
                DecodingResult::U16(v) => v.iter().map(|v| (v >> 8) as u8).collect(),
                _ => return Err(unsupported()),
            };
            let high = if layout.planes > 1 { interleave(&high, layout.planes) } else { high.into_owned() };
            let premultiplied = decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples).map_err(bad)?;
            let premultiplied = premultiplied.is_some_and(|extra| extra.first() == Some(&1));
            let pixel = |p: &[u8]| match (color, p) {
                (ColorType::Multiband { .. }, &[v, _]) => Some([v; 3]),
                (ColorType::RGB(_), &[r, g, b]) => Some([r, g, b]),
                (ColorType::RGBA(_), &[r, g, b, a]) if premultiplied => Some(
                    [r, g, b].map(|v| (u32::from(v) * 255).checked_div(a.into()).unwrap_or(0).min(255) as u8),
                ),
                (ColorType::RGBA(_), &[r, g, b, _]) => Some([r, g, b]),
                (ColorType::CMYK(_), &[c, m, y, k]) => Some(cmyk_to_rgb([c, m, y, k])),
                _ => None,
            };
            let Some(rgb) = high.chunks_exact(channels).map(pixel).collect::<Option<Vec<_>>>() else {
                return Err(unsupported());
            };
            rgb.into_flattened()
        }
    };
    if data.len() != 3 * pixels {
        return Err(file.error(EXPECTED, format!("{} of {pixels} pixels", data.len() / 3)));
    }
    let orientation = decoder.find_tag_unsigned::<u8>(Tag::Orientation).ok().flatten();
    let orientation = orientation.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms);
    Ok((Rgb { width, height, data }, orientation))
}

/// Where the first directory holds PhotometricInterpretation's value (2 bytes that are there), and whether the file is
/// big-endian.
fn photometric_at(bytes: &[u8]) -> Option<(usize, bool)> {
    let big = bytes.first()? == &b'M';
    let u16_at = |at: usize| {
        let b = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if big { u16::from_be_bytes(b) } else { u16::from_le_bytes(b) })
    };
    let b = bytes.get(4..8)?.try_into().ok()?;
    let directory = if big { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) } as usize;
    let entries = usize::from(u16_at(directory)?);
    let entry = (0..entries)
        .map(|i| directory + 2 + 12 * i)
        .find(|&at| u16_at(at) == Some(Tag::PhotometricInterpretation.to_u16()))?;
    u16_at(entry + 8).map(|_| (entry + 8, big))
}

/// Samples of `bits` bits, the first in the highest bits, rows beginning with a byte.
fn unpack(packed: &[u8], width: usize, height: usize, bits: u8) -> impl Iterator<Item = u8> {
    let row = (width * usize::from(bits)).div_ceil(8).max(1);
    let mask = (255u16 >> (8 - bits)) as u8;
    packed.chunks_exact(row).take(height).flat_map(move |row| {
        (0..width).map(move |x| {
            let at = x * usize::from(bits);
            row[at / 8] >> (8 - usize::from(bits) - at % 8) & mask
        })
    })
}

/// `0..2^bits` to 0..=255; 255 is a multiple of the largest value at 1, 2, 4 and 8 bits.
fn scale(v: u8, bits: u8) -> u8 {
    v * (255 / (255 >> (8 - bits)))
}

/// `(planes, pixels)` to `(pixels, planes)`.
fn interleave(x: &[u8], planes: usize) -> Vec<u8> {
    let n = x.len() / planes;
    (0..n).flat_map(|i| (0..planes).map(move |p| x[p * n + i])).collect()
}
