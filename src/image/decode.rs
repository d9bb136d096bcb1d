//! Picture files to RGB, as Pillow 11.3's `Image.open(f).convert("RGB")` gives them.

use super::{Rgb, gif, jpeg, tiff};
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
    decode(&read_bytes(path, limits)?, &path.display().to_string(), limits, exif)
}

/// A picture file's bytes, for [`decode`]: no more than one over the limit.
///
/// # Errors
/// [`Error::Io`] naming `path`.
pub fn read_bytes(path: &Path, limits: &Limits) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
    let mut bytes = Vec::new();
    // One byte past the limit is enough for `decode` to see that the file is too big.
    file.take(limits.max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    Ok(bytes)
}

/// A picture file's bytes to RGB. The format is found from the content, never from a name; `exif` turns and mirrors
/// the picture as its EXIF orientation says (the published preprocessing does not; TIFF is always turned, as Pillow
/// does when it opens one).
///
/// The result is Pillow's, byte for byte: what has an alpha channel loses it, whatever colour lies below; 16-bit
/// colour keeps the high byte; 16-bit gray is clipped to 255, not scaled; CMYK is converted without
/// its profile; of a GIF, WebP or APNG animation the first frame is taken. Known to differ: BMP of 16 bits a pixel (by
/// 1), JPEG inside TIFF (by 1 or 2), CMYK TIFF of 16 bits; not read: TIFF in L*a*b*, with LZMA, or YCbCr without JPEG.
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
        Ok(ImageFormat::Gif) => (gif::decode(&file)?, Orientation::NoTransforms),
        Ok(ImageFormat::Tiff) => {
            let (rgb, orientation) = tiff::decode(&file)?;
            return Ok(oriented(rgb, orientation));
        }
        Ok(format @ (ImageFormat::Png | ImageFormat::WebP | ImageFormat::Bmp)) => other(&file, format)?,
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

/// PNG, WebP, BMP.
fn other(file: &File, format: ImageFormat) -> Result<(Rgb, Orientation)> {
    let bad = |e: ImageError| match e {
        ImageError::Limits(_) => {
            file.error(format!("1 to {} pixels", file.limits.max_pixels), "a larger picture")
        }
        // The codec's message may span lines; an error is one.
        e => file.error(format!("a whole {format:?} file"), one_line(&e.to_string())),
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
    // `into_rgb8` would scale 16 bits to 8 with rounding, where Pillow takes the high byte, and clips gray.
    let high = |v: &u16| (v >> 8) as u8;
    let data = match DynamicImage::from_decoder(decoder).map_err(bad)? {
        DynamicImage::ImageLuma16(gray) => gray.iter().flat_map(|&v| [v.min(255) as u8; 3]).collect(),
        DynamicImage::ImageLumaA16(x) => x.pixels().flat_map(|p| [high(&p.0[0]); 3]).collect(),
        DynamicImage::ImageRgb16(x) => x.iter().map(high).collect(),
        DynamicImage::ImageRgba16(x) => x.pixels().flat_map(|p| [0, 1, 2].map(|c| high(&p.0[c]))).collect(),
        image => image.into_rgb8().into_raw(),
    };
    Ok((Rgb { width, height, data }, orientation))
}

/// `R = max(0, (255 - K) - C * (255 - K) / 255)`, the division rounded: Pillow's conversion, without profiles.
pub(super) fn cmyk_to_rgb([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let white = u32::from(255 - k);
    [c, m, y].map(|v| {
        let product = u32::from(v) * white + 128;
        white.saturating_sub(((product >> 8) + product) >> 8) as u8
    })
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

/// `s` with every run of spaces and line breaks as one space.
pub(super) fn one_line(s: &str) -> String {
    s.split_whitespace().collect::<Vec<_>>().join(" ")
}
