//! GIF: the first frame on its canvas, as Pillow draws it.

use super::Rgb;
use super::decode::File;
use crate::Result;
use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};
use std::num::NonZeroU64;

const EXPECTED: &str = "a whole GIF file";

/// Decodes a GIF file's first frame. What it leaves uncovered has the transparent colour, or else the palette's first
/// (not the file's background colour); a frame that reaches over the canvas makes it larger.
pub(super) fn decode(file: &File) -> Result<Rgb> {
    let bad = |e: DecodingError| file.error(EXPECTED, e.to_string());
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    if let Some(limit) = NonZeroU64::new(file.limits.max_pixels) {
        options.set_memory_limit(MemoryLimit::Bytes(limit));
    }
    let mut decoder = options.read_info(file.bytes).map_err(bad)?;
    let canvas = (usize::from(decoder.width()), usize::from(decoder.height()));
    let none = || file.error(EXPECTED, "no frame");
    let frame = decoder.next_frame_info().map_err(bad)?.ok_or_else(none)?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (w, h) = (usize::from(frame.width), usize::from(frame.height));
    let background = frame.transparent.unwrap_or(0);
    let (width, height) = (canvas.0.max(left + w), canvas.1.max(top + h));
    file.check_size(width, height)?;
    file.check_size(w, h)?;
    let mut indices = vec![0; w * h];
    decoder.read_into_buffer(&mut indices).map_err(bad)?;
    let palette = decoder.palette().map_err(bad)?;
    let color =
        |i: u8| palette.get(3 * usize::from(i)..).and_then(|p| p.first_chunk()).copied().unwrap_or([0; 3]);
    let colors: [[u8; 3]; 256] = std::array::from_fn(|i| color(i as u8));

    let mut data = colors[usize::from(background)].repeat(width * height);
    for (y, row) in indices.chunks_exact(w).enumerate() {
        let to = &mut data[3 * ((top + y) * width + left)..][..3 * w];
        for (to, &i) in to.chunks_exact_mut(3).zip(row) {
            to.copy_from_slice(&colors[usize::from(i)]);
        }
    }
    Ok(Rgb { width, height, data })
}
