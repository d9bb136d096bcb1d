//! Picture files to RGB, as Pillow 11.3's `Image.open(f).convert("RGB")` gives them.

use super::{Rgb, jpeg};
use crate::{Error, Result};
use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader};
use std::io::{Cursor, Read};
use std::path::Path;

/// What a picture may cost, checked before its pixels are allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest file.
    pub max_bytes: u64,
    /// Largest `width * height`.
    pub max_pixels: u64,
}

impl Default for Limits {
    /// 256 MiB, and the 178,956,970 pixels above which Pillow raises `DecompressionBombError`.
    fn default() -> Self {
        Limits { max_bytes: 256 << 20, max_pixels: 178_956_970 }
    }
}

/// Reads a picture file; see [`decode`].
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Image`] naming `path` for everything else.
pub fn read(path: &Path, limits: &Limits, exif: bool) -> Result<Rgb> {
    let file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
    let mut bytes = Vec::new();
    // One byte past the limit is enough for `decode` to see that the file is too big.
    file.take(limits.max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    decode(&bytes, &path.display().to_string(), limits, exif)
}

/// A picture file's bytes to RGB. The format is found from the content, never from a name; `exif` turns and mirrors
/// the picture as its EXIF orientation says (the published preprocessing does not).
///
/// JPEG, PNG, WebP, BMP, TIFF, GIF (the first frame); what has an alpha channel loses it, whatever colour lies below.
/// 16-bit colour keeps the high byte.
///
/// # Errors
/// [`Error::Image`] with `name` if the bytes are no such file, are damaged or cut short, or are over a limit.
pub fn decode(bytes: &[u8], name: &str, limits: &Limits, exif: bool) -> Result<Rgb> {
    let file = File { bytes, name, limits };
    if bytes.is_empty() {
        return Err(file.error(FORMATS, "an empty file"));
    }
    if bytes.len() as u64 > limits.max_bytes {
        return Err(file.error(format!("at most {} bytes", limits.max_bytes), "a larger file"));
    }
    let (rgb, orientation) = match ::image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => jpeg::decode(&file)?,
        Ok(
            format @ (ImageFormat::Png
            | ImageFormat::WebP
            | ImageFormat::Bmp
            | ImageFormat::Tiff
            | ImageFormat::Gif),
        ) => other(&file, format)?,
        Ok(format) => return Err(file.error(FORMATS, format!("{format:?}"))),
        Err(_) => return Err(file.error(FORMATS, "none of these")),
    };
    Ok(if exif { oriented(rgb, orientation) } else { rgb })
}

const FORMATS: &str = "a JPEG, PNG, WebP, BMP, TIFF or GIF file";

/// A file being decoded: its bytes, what to call it, what it may cost.
pub(super) struct File<'a> {
    pub bytes: &'a [u8],
    pub name: &'a str,
    pub limits: &'a Limits,
}

impl File<'_> {
    pub fn error(&self, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::Image { image: self.name.into(), expected: expected.into(), found: found.into() }
    }

    /// Refuses sizes that are 0 or over the limit.
    pub fn check_size(&self, width: usize, height: usize) -> Result<()> {
        if width == 0 || height == 0 || width as u64 * height as u64 > self.limits.max_pixels {
            let expected = format!("1 to {} pixels", self.limits.max_pixels);
            return Err(self.error(expected, format!("a picture of {width}x{height}")));
        }
        Ok(())
    }
}

/// Everything but JPEG.
fn other(file: &File, format: ImageFormat) -> Result<(Rgb, Orientation)> {
    let bad = |e: ImageError| {
        // The codec's message may span lines; an error is one.
        let why = e.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        file.error(format!("a whole {format:?} file"), why)
    };
    let mut reader = ImageReader::with_format(Cursor::new(file.bytes), format);
    let mut limits = ::image::Limits::no_limits();
    // The largest that a codec may ask for: 16-bit RGBA, and as much again for its own buffers.
    limits.max_alloc = Some(file.limits.max_pixels.saturating_mul(16));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(bad)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    file.check_size(width, height)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let data = DynamicImage::from_decoder(decoder).map_err(bad)?.into_rgb8().into_raw();
    Ok((Rgb { width, height, data }, orientation))
}

fn oriented(rgb: Rgb, orientation: Orientation) -> Rgb {
    if orientation == Orientation::NoTransforms {
        return rgb;
    }
    let (w, h) = (rgb.width as u32, rgb.height as u32); // decoded sizes are below 2^32
    let buffer = ::image::RgbImage::from_raw(w, h, rgb.data).expect("Rgb holds H*W*3 bytes");
    let mut image = DynamicImage::ImageRgb8(buffer);
    image.apply_orientation(orientation);
    let (width, height) = (image.width() as usize, image.height() as usize);
    Rgb { width, height, data: image.into_rgb8().into_raw() }
}
