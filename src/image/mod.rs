//! Pictures in, masks out.
//!
//! [`read`] and [`decode`] give what Pillow 11.3 gives for `Image.open(f).convert("RGB")`; [`resize_bicubic`],
//! [`tiles`] and [`normalize`] are the model's preprocessing, bit for bit; [`Mask`], [`Rle`] and [`overlay()`] are its
//! results.

mod decode;
mod gif;
mod jpeg;
mod mask;
mod overlay;
mod polygon;
mod preprocess;
mod resize;
mod rle;
mod tiff;

pub use decode::{Limits, decode, read, read_bytes};
pub use mask::Mask;
pub use overlay::{Item, overlay};
pub use preprocess::{MEAN, STD, grid, normalize, tiles};
pub use resize::{resize_bicubic, resize_table};
pub use rle::Rle;

use crate::{Error, Result};
use ::image::ExtendedColorType;
use ::image::codecs::png::PngEncoder;
use std::io::Write;
use std::path::Path;

/// An 8-bit picture, `data` being `(height, width, 3)` in row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes: red, green, blue.
    pub data: Vec<u8>,
}

impl Rgb {
    /// A picture from its bytes.
    ///
    /// # Errors
    /// [`Error::Shape`] if a side is 0 or `data` is not `height * width * 3` long.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Rgb> {
        let bytes = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if width == 0 || height == 0 || bytes != Some(data.len()) {
            let expected =
                format!("(H, W, 3) bytes of a picture of {width}x{height} with sides of 1 and more");
            return Err(Error::shape("image", expected, format!("{} bytes", data.len())));
        }
        Ok(Rgb { width, height, data })
    }

    /// The three bytes at column `x` of row `y`.
    ///
    /// # Panics
    /// If the pixel is outside.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = 3 * (y * self.width + x);
        [self.data[at], self.data[at + 1], self.data[at + 2]]
    }

    /// The picture as a PNG file.
    pub fn to_png(&self) -> Vec<u8> {
        png(&self.data, self.width, self.height, ExtendedColorType::Rgb8)
    }
}

/// Encodes 8-bit pixels; `data` must be as long as the size says.
fn png(data: &[u8], width: usize, height: usize, color: ExtendedColorType) -> Vec<u8> {
    use ::image::ImageEncoder;
    let mut file = Vec::new();
    let (w, h) = (u32::try_from(width), u32::try_from(height));
    let (Ok(w), Ok(h)) = (w, h) else { panic!("a PNG's sides are below 2^32, not {width}x{height}") };
    PngEncoder::new(&mut file)
        .write_image(data, w, h, color)
        .expect("pixels that fit their size, into memory");
    file
}

/// Writes a file whole or not at all: a temporary name beside `path`, sync, rename.
///
/// # Errors
/// [`Error::Io`] naming `path`.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    // The process id keeps two runs that write the same result apart.
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|e| {
        let _ = std::fs::remove_file(&temporary);
        Error::io(path, "write")(e)
    })
}
