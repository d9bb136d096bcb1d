//! JPEG through libjpeg (mozjpeg's, C code alone, built by `cc`): the same integer IDCT, "fancy" upsampling and
//! colour tables as Pillow's libjpeg-turbo, and so the same bytes, which the pure-Rust decoders do not give.

use super::Rgb;
use super::decode::{File, cmyk_to_rgb};
use crate::Result;
use ::image::metadata::Orientation;
use mozjpeg::{ColorSpace, Decompress, Marker};
use std::cell::Cell;
use std::io::{self, BufRead};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Scans of a progressive file that are decoded; each is a pass over the whole picture, and costs a file 12 bytes.
const MAX_SCANS: usize = 1000;

/// Decodes a JPEG file; a file that is cut short is an error, as in Pillow.
pub(super) fn decode(file: &File) -> Result<(Rgb, Orientation)> {
    const EXPECTED: &str = "a whole JPEG file";
    // Two such bytes side by side never come from the coded data, where 0xFF is followed by a stuffed 0.
    let scans = file.bytes.windows(2).filter(|w| w == b"\xFF\xDA").count();
    if scans > MAX_SCANS {
        return Err(file.error(format!("at most {MAX_SCANS} scans in a JPEG file"), scans.to_string()));
    }
    let ended = Cell::new(false);
    let source = Source { rest: file.bytes, ended: &ended };
    // libjpeg's fatal errors unwind with `resume_unwind` (no panic hook, nothing printed) through C code that is
    // compiled for it (`-fexceptions`), to here.
    match catch_unwind(AssertUnwindSafe(|| decompress(file, source))) {
        Ok(Ok(done)) => done,
        _ if ended.get() => Err(file.error(EXPECTED, format!("its end after {} bytes", file.bytes.len()))),
        Ok(Err(e)) => Err(file.error(EXPECTED, e.to_string())),
        Err(payload) => {
            let message = payload.downcast_ref::<String>().map_or("a fatal error", String::as_str);
            Err(file.error(EXPECTED, message))
        }
    }
}

/// The outer result is libjpeg's, the inner one ours.
fn decompress(file: &File, source: Source) -> io::Result<Result<(Rgb, Orientation)>> {
    let jpeg = Decompress::builder().with_markers(&[Marker::APP(1)]).from_reader(source)?;
    let (width, height) = jpeg.size();
    if let Err(e) = file.check_size(width, height) {
        return Ok(Err(e));
    }
    let orientation = jpeg
        .markers()
        .find_map(|m| m.data.strip_prefix(b"Exif\0\0"))
        .and_then(Orientation::from_exif_chunk)
        .unwrap_or(Orientation::NoTransforms);
    let channels = jpeg.components().len();
    let mut jpeg = match channels {
        1 => jpeg.to_colorspace(ColorSpace::JCS_GRAYSCALE)?,
        3 => jpeg.to_colorspace(ColorSpace::JCS_RGB)?,
        4 => jpeg.to_colorspace(ColorSpace::JCS_CMYK)?,
        n => return Ok(Err(file.error("1, 3 or 4 colour components in a JPEG file", n.to_string()))),
    };
    let samples = jpeg.read_scanlines::<u8>()?;
    jpeg.finish()?; // which wants the end marker, as Pillow does
    let data = match channels {
        1 => samples.into_iter().flat_map(|v| [v; 3]).collect(),
        // Stored inverted, as Adobe does and Pillow always assumes.
        4 => samples.as_chunks().0.iter().flat_map(|p: &[u8; 4]| cmyk_to_rgb(p.map(|v| 255 - v))).collect(),
        _ => samples,
    };
    Ok(Ok((Rgb { width, height, data }, orientation)))
}

/// The file's bytes for libjpeg. Its end is an error (libjpeg would go on with gray), and is remembered.
struct Source<'a> {
    rest: &'a [u8],
    ended: &'a Cell<bool>,
}

impl io::Read for Source<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.len().min(into.len());
        into[..n].copy_from_slice(&self.rest[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() {
            self.ended.set(true);
            return Err(io::Error::other("the end of the file"));
        }
        Ok(self.rest)
    }

    fn consume(&mut self, n: usize) {
        self.rest = &self.rest[n..];
    }
}
