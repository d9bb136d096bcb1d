//! A binary mask of a picture.

use super::decode::Limits;
use crate::{Error, Result};
use ::image::ExtendedColorType;

/// One byte a pixel, 0 or 1, `data` being `(height, width)` in row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width` bytes, 0 or 1.
    pub data: Vec<u8>,
}

impl Mask {
    /// A mask from its bytes; every one that is not 0 becomes 1.
    ///
    /// # Errors
    /// [`Error::Shape`] if a side is 0 or `data` is not `height * width` long.
    pub fn new(width: usize, height: usize, mut data: Vec<u8>) -> Result<Mask> {
        if width == 0 || height == 0 || width.checked_mul(height) != Some(data.len()) {
            let expected = format!("(H, W) bytes of a mask of {width}x{height} with sides of 1 and more");
            return Err(Error::shape("mask", expected, format!("{} bytes", data.len())));
        }
        data.iter_mut().for_each(|v| *v = u8::from(*v != 0));
        Ok(Mask { width, height, data })
    }

    /// A mask from `height` lines of whole words, 32 pixels a word, the first the lowest bit.
    ///
    /// # Errors
    /// [`Error::Shape`] if a side is 0 or there are other than `height * ceil(width / 32)` words.
    pub fn from_bits(width: usize, height: usize, words: &[i32]) -> Result<Mask> {
        let line = width.div_ceil(32);
        if width == 0 || height == 0 || words.len() != height * line {
            let expected = format!("lines of words of a mask of {width}x{height} with sides of 1 and more");
            return Err(Error::shape("mask", expected, format!("{} words", words.len())));
        }
        let mut data = vec![0; width * height];
        for (pixels, words) in data.chunks_exact_mut(width).zip(words.chunks_exact(line)) {
            for (pixels, &word) in pixels.chunks_mut(32).zip(words).filter(|(_, word)| **word != 0) {
                pixels.iter_mut().enumerate().for_each(|(i, p)| *p = (word >> i & 1) as u8);
            }
        }
        Ok(Mask { width, height, data })
    }

    /// Pixels that are set.
    pub fn area(&self) -> usize {
        // Sums of 255 bytes fit in u8, which the compiler adds many at a time.
        self.data.chunks(255).map(|c| usize::from(c.iter().sum::<u8>())).sum()
    }

    /// The smallest box around the set pixels, `[x, y, width, height]`; none if no pixel is set.
    pub fn bbox(&self) -> Option<[usize; 4]> {
        let rows = || self.data.chunks_exact(self.width);
        // Loops without an early end, which the compiler makes of vectors.
        let any = |row: &[u8]| row.iter().fold(0, |any, v| any | v) != 0;
        let y0 = rows().position(any)?;
        let y1 = rows().rposition(any)?;
        let mut columns = vec![0; self.width];
        for row in rows().skip(y0).take(y1 - y0 + 1) {
            columns.iter_mut().zip(row).for_each(|(any, v)| *any |= v);
        }
        let x0 = columns.iter().position(|&v| v != 0)?;
        let x1 = columns.iter().rposition(|&v| v != 0)?;
        Some([x0, y0, x1 - x0 + 1, y1 - y0 + 1])
    }

    /// `|a and b| / |a or b|`; 1 if both masks are empty.
    ///
    /// # Errors
    /// [`Error::Shape`] if the sizes differ.
    pub fn iou(&self, other: &Mask) -> Result<f64> {
        if (self.width, self.height) != (other.width, other.height) {
            let (expected, found) = (format!("{self}"), format!("{other}"));
            return Err(Error::shape("masks to compare", expected, found));
        }
        let (mut both, mut any) = (0usize, 0usize);
        for (a, b) in self.data.iter().zip(&other.data) {
            both += usize::from(a & b);
            any += usize::from(a | b);
        }
        Ok(if any == 0 { 1.0 } else { both as f64 / any as f64 })
    }

    /// A grayscale PNG file: 255 where the mask is set, else 0.
    pub fn to_png(&self) -> Vec<u8> {
        let gray: Vec<u8> = self.data.iter().map(|v| v * 255).collect();
        super::png(&gray, self.width, self.height, ExtendedColorType::L8)
    }

    /// A mask from a picture file (any that [`decode`](super::decode()) reads): set where a channel is above 127.
    ///
    /// # Errors
    /// Those of [`decode`](super::decode()), which name `name`.
    pub fn from_png(bytes: &[u8], name: &str) -> Result<Mask> {
        let rgb = super::decode(bytes, name, &Limits::default(), false)?;
        let data = rgb.data.chunks_exact(3).map(|p| u8::from(p.iter().any(|&v| v > 127))).collect();
        Ok(Mask { width: rgb.width, height: rgb.height, data })
    }
}

impl std::fmt::Display for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a mask of {}x{}", self.width, self.height)
    }
}
