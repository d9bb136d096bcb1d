//! From a picture to the model's input: tiles of the dynamic preprocessing, normalised values.

use super::{Rgb, resize_bicubic};
use crate::{Error, Result};

/// ImageNet's mean of red, green and blue, of pixels in `[0, 1]`.
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// ImageNet's standard deviation.
pub const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// `y[c,h,w] = (rgb[h,w,c] / 255 - MEAN[c]) / STD[c]`, every step rounded to f32, as torchvision's `ToTensor` and
/// `Normalize`.
///
/// Shapes: `rgb` `(H, W, 3)`, result `(3, H, W)`.
pub fn normalize(rgb: &Rgb) -> Vec<f32> {
    let mut y = Vec::with_capacity(rgb.data.len());
    for c in 0..3 {
        let table: [f32; 256] = std::array::from_fn(|p| (p as f32 / 255.0 - MEAN[c]) / STD[c]);
        y.extend(rgb.data.iter().skip(c).step_by(3).map(|&p| table[usize::from(p)]));
    }
    y
}

/// The grid of tiles `(columns, rows)` for a picture of `width` by `height` source pixels: of all grids with
/// `min..=max` tiles the one whose ratio `columns / rows` is nearest to `width / height`; of equally near ones a
/// larger grid wins while the picture has more than half of its pixels, a tile being `size` by `size`.
///
/// `(1, 1)` if there is no such grid. Equally large grids keep the order of increasing columns: with `min` 1 no
/// two of them are ever nearest at once (the published order is an accident of Python's sets).
///
/// Source: `find_closest_aspect_ratio` in the model card of InternVL2.5.
pub fn grid(width: usize, height: usize, min: usize, max: usize, size: usize) -> (usize, usize) {
    let aspect = width as f64 / height as f64;
    let area = width as f64 * height as f64;
    let mut grids: Vec<_> = (1..=max)
        .flat_map(|cols| (1..=max / cols).map(move |rows| (cols, rows)))
        .filter(|(cols, rows)| cols * rows >= min)
        .collect();
    grids.sort_by_key(|(cols, rows)| cols * rows);
    let (mut best, mut nearest) = ((1, 1), f64::INFINITY);
    for (cols, rows) in grids {
        let distance = (aspect - cols as f64 / rows as f64).abs();
        let worth = area > 0.5 * size as f64 * size as f64 * cols as f64 * rows as f64;
        if distance < nearest || (distance == nearest && worth) {
            (best, nearest) = ((cols, rows), distance);
        }
    }
    best
}

/// Cuts a picture into the tiles of its [`grid`], row by row: it is resized to the grid's size and cut. With
/// `thumbnail`, the whole picture as one more tile at the end, if there is more than one.
///
/// # Errors
/// [`Error::Shape`] if `size` is 0 or `max` is above 1000 tiles.
///
/// Source: `dynamic_preprocess` in the model card of InternVL2.5.
pub fn tiles(src: &Rgb, min: usize, max: usize, size: usize, thumbnail: bool) -> Result<Vec<Rgb>> {
    if !(1..=1000).contains(&max) {
        return Err(Error::shape("tiles of a picture", "1 to 1000", max.to_string()));
    }
    let (cols, rows) = grid(src.width, src.height, min, max, size);
    let whole = resize_bicubic(src, cols.saturating_mul(size), rows.saturating_mul(size))?;
    let mut tiles = Vec::with_capacity(cols * rows + 1);
    for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
        let lines = whole.data.chunks_exact(3 * whole.width).skip(row * size).take(size);
        let data = lines.flat_map(|line| &line[3 * col * size..3 * (col + 1) * size]).copied().collect();
        tiles.push(Rgb { width: size, height: size, data });
    }
    if thumbnail && tiles.len() > 1 {
        tiles.push(resize_bicubic(src, size, size)?);
    }
    Ok(tiles)
}
