//! ReasonSeg: a JSON file beside each picture, with outlines drawn by hand in labelme and one query or several.
//!
//! ```text
//! {"text": ["..."], "is_sentence": true, "shapes": [{"label": "target", "points": [[x, y], ...]}, {"label": "ignore", ...}]}
//! ```
//! The published evaluation (LISA's, which others use as it is) asks the first text, and paints the outlines with OpenCV,
//! the largest first; what is labelled `ignore` is not judged, and `flag` is no outline at all.

use super::dataset::{self, Form, Picture, Pixels, Query, Truth};
use crate::image::{Limits, Mask, Rle};
use crate::{Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Farthest coordinate, in pixels, and longest outline of a picture.
const MAX_COORDINATE: f64 = (1 << 20) as f64;
const MAX_OUTLINE: u64 = 1 << 24;
/// Fractions of a pixel, as OpenCV's fixed point has them.
const ONE: i64 = 1 << 16;

/// An outline.
#[derive(Deserialize)]
pub(super) struct Shape {
    label: String,
    points: Vec<[f64; 2]>,
}

#[derive(Deserialize)]
struct Annotation {
    text: Vec<String>,
    is_sentence: bool,
    shapes: Vec<Shape>,
}

/// The pictures of a split in the order of their names.
pub(super) fn read(folder: &Path, split: &str) -> Result<Vec<Picture>> {
    let folder = folder.join(split);
    let mut paths: Vec<PathBuf> = Vec::new();
    let entries = match std::fs::read_dir(&folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io(&folder, "list"))?,
    };
    for entry in entries {
        let path = entry.map_err(Error::io(&folder, "list"))?.path();
        if path.extension().is_some_and(|e| e == "jpg") {
            paths.push(path);
        }
    }
    paths.sort();
    paths.into_iter().zip(0..).map(|(path, number)| picture(path, number)).collect()
}

fn picture(path: PathBuf, number: i64) -> Result<Picture> {
    let file = path.with_extension("json");
    let bytes = dataset::read_file(&file)?;
    // As the published code: UTF-8, else what Windows wrote.
    let text =
        String::from_utf8(bytes).unwrap_or_else(|e| e.as_bytes().iter().map(|&b| windows(b)).collect());
    let Annotation { text, is_sentence, shapes } = dataset::json(&file, text.as_bytes())?;
    let text = text.into_iter().next();
    let text = text.ok_or_else(|| Error::file(&file, "a query in `text`", "none"))?;
    let form = if is_sentence { Form::Sentence } else { Form::Phrase };
    let truth = Arc::new(Truth::of_shapes(shapes));
    let query = Query { ref_id: 0, sent_id: number, text: text.trim().into(), form, truth };
    Ok(Picture { path, size: None, queries: vec![query] })
}

/// A character of Windows code page 1252. The five bytes that it leaves out stay control characters.
fn windows(byte: u8) -> char {
    const FROM_80: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8D}', 'Ž', '\u{8F}',
        '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9D}', 'ž', 'Ÿ',
    ];
    match byte {
        0x80..=0x9F => FROM_80[usize::from(byte - 0x80)],
        _ => char::from(byte),
    }
}

/// Paints the outlines.
///
/// # Errors
/// [`Error::Shape`] if a corner is not finite or is too far away, or the outlines are too long.
pub(super) fn pixels(shapes: &[Shape], size: [usize; 2]) -> Result<Pixels> {
    let [height, width] = size;
    let (mut target, mut ignored) = (Rle::empty(size)?, Rle::empty(size)?);
    let most = Limits::default().max_pixels;
    if height as u64 * width as u64 > most {
        return Err(Error::shape(
            "picture",
            format!("at most {most} pixels"),
            format!("{height} rows of {width}"),
        ));
    }
    let shapes = shapes.iter().filter(|s| !s.label.eq_ignore_ascii_case("flag"));
    let mut outline = 0;
    let mut painted = Vec::new();
    for shape in shapes {
        let points: Vec<[i64; 2]> = shape.points.iter().map(corner).collect::<Result<_>>()?;
        let edges = points.iter().zip(points.iter().cycle().skip(1));
        outline += edges.map(|(a, b)| 1 + a[0].abs_diff(b[0]).max(a[1].abs_diff(b[1]))).sum::<u64>();
        if outline > MAX_OUTLINE {
            let expected = format!("outlines of at most {MAX_OUTLINE} pixels");
            return Err(Error::shape("outlines", expected, outline.to_string()));
        }
        let mut mask = Mask::new(width, height, vec![0; width * height])?;
        paint(&mut mask, &points);
        let runs = Rle::encode(&mask)?;
        painted.push((runs.area(), shape.label.to_lowercase().contains("ignore"), runs));
    }
    painted.sort_by_key(|p| std::cmp::Reverse(p.0));
    for (_, ignore, shape) in painted {
        let (on, off) = if ignore { (&mut ignored, &mut target) } else { (&mut target, &mut ignored) };
        *off = off.without(&shape)?;
        *on = Rle::union(size, &[on.clone(), shape])?;
    }
    let ignored = (ignored.area() > 0).then_some(ignored);
    Ok(Pixels { target, ignored })
}

/// A corner in whole pixels, cut towards zero.
fn corner(point: &[f64; 2]) -> Result<[i64; 2]> {
    if let Some(bad) = point.iter().find(|v| !v.is_finite() || v.abs() > MAX_COORDINATE) {
        let expected = format!("coordinates of at most {MAX_COORDINATE} pixels");
        return Err(Error::shape("outline", expected, bad.to_string()));
    }
    Ok(point.map(|v| v as i64))
}

/// Sets what OpenCV's `polylines` and `fillPoly` set: the inside by rows, crossings in fixed point, and the outline's own
/// pixels. The same pixels for corners inside the picture; OpenCV cuts other edges first, which can move them by a pixel.
fn paint(mask: &mut Mask, points: &[[i64; 2]]) {
    let (width, height) = (mask.width as i64, mask.height as i64);
    let mut crossings: Vec<Vec<i64>> = vec![Vec::new(); mask.height];
    let mut set = |y: i64, from: i64, to: i64| {
        let (from, to) = (from.max(0), to.min(width - 1));
        if (0..height).contains(&y) && from <= to {
            let row = (y * width) as usize;
            mask.data[row + from as usize..=row + to as usize].fill(1);
        }
    };
    for (&from, &to) in points.iter().zip(points.iter().cycle().skip(1)) {
        line(from, to, |x, y| set(y, x, x));
        let (top, bottom) = if from[1] < to[1] { (from, to) } else { (to, from) };
        if top[1] < bottom[1] {
            let slope = (bottom[0] - top[0]) * ONE / (bottom[1] - top[1]);
            for y in top[1].max(0)..bottom[1].min(height) {
                crossings[y as usize].push(top[0] * ONE + (y - top[1]) * slope);
            }
        }
    }
    for (y, row) in (0..).zip(&mut crossings) {
        row.sort_unstable();
        for pair in row.chunks_exact(2) {
            set(y, (pair[0] + ONE / 2).div_euclid(ONE), pair[1].div_euclid(ONE));
        }
    }
}

/// The pixels of a line by Bresenham's algorithm, from left to right.
fn line(from: [i64; 2], to: [i64; 2], mut set: impl FnMut(i64, i64)) {
    let ([mut x, mut y], [x1, y1]) = if from[0] <= to[0] { (from, to) } else { (to, from) };
    let (dx, dy, down) = (x1 - x, (y1 - y).abs(), (y1 - y).signum());
    let (long, short) = (dx.max(dy), dx.min(dy));
    let mut error = long - 2 * short;
    for _ in 0..=long {
        set(x, y);
        let both = error < 0;
        error += 2 * (if both { long } else { 0 } - short);
        x += i64::from(dx >= dy || both);
        y += if dy > dx || both { down } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Corners, and what OpenCV 5.0.0 sets.
    const CASES: &[(&[[i64; 2]], &[&str])] = &[
        (
            &[[3, 2]],
            &[
                "............",
                "............",
                "...#........",
                "............",
                "............",
                "............",
                "............",
                "............",
            ],
        ),
        (
            &[[1, 1], [9, 4]],
            &[
                "............",
                ".##.........",
                "...###......",
                "......##....",
                "........##..",
                "............",
                "............",
                "............",
            ],
        ),
        (
            &[[1, 1], [10, 2], [6, 7]],
            &[
                "............",
                ".#####......",
                "..#########.",
                "...#######..",
                "...######...",
                "....#####...",
                ".....###....",
                "......#.....",
            ],
        ),
        (
            &[[0, 0], [11, 0], [11, 7], [0, 7]],
            &[
                "############",
                "############",
                "############",
                "############",
                "############",
                "############",
                "############",
                "############",
            ],
        ),
        (
            &[[1, 6], [5, 0], [9, 6], [0, 2], [11, 2]],
            &[
                ".....#......",
                "....###.....",
                "############",
                "..##...###..",
                "..#######...",
                "..###.###...",
                ".##.....##..",
                "............",
            ],
        ),
        (
            &[[16, 0], [3, 2], [3, 7], [17, 5], [0, 0], [6, 3], [12, 4]],
            &[
                "##...........####...",
                "..####.#########....",
                "...############.....",
                "...###########......",
                "...#############....",
                "...###############..",
                "...###########......",
                "...####.............",
                "....................",
            ],
        ),
        (
            &[
                [5, 1],
                [13, 6],
                [0, 1],
                [9, 3],
                [17, 4],
                [8, 3],
                [13, 5],
                [3, 6],
                [15, 8],
                [15, 2],
                [6, 5],
                [13, 6],
            ],
            &[
                "....................",
                "###..#..............",
                "..######......##....",
                "....############....",
                ".......###########..",
                "......##########....",
                "...#############....",
                ".......#########....",
                ".............###....",
            ],
        ),
    ];

    #[test]
    fn outlines_are_painted_as_opencv_does() {
        for (points, rows) in CASES {
            let mut mask = Mask::new(rows[0].len(), rows.len(), vec![0; rows[0].len() * rows.len()]).unwrap();
            paint(&mut mask, points);
            let found: Vec<String> = mask
                .data
                .chunks(mask.width)
                .map(|row| row.iter().map(|&v| if v == 1 { '#' } else { '.' }).collect())
                .collect();
            assert_eq!(found, *rows, "{points:?}");
        }
    }
}
