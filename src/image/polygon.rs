//! Polygons of COCO annotations as masks, the same pixels that pycocotools gives.

use super::Rle;
use super::rle::check_size;
use crate::{Error, Result};

/// The outline is followed on a grid this many times finer than the pixels.
const FINE: i32 = 5;
/// Farthest coordinate, in pixels, and longest outline, in steps of the finer grid: far beyond any picture.
const MAX_COORDINATE: f64 = (1 << 24) as f64;
const MAX_STEPS: u64 = 1 << 28;

impl Rle {
    /// The pixels of `size` `[height, width]` inside the polygon with corners `xy` (x and y in turn, in pixels), as
    /// pycocotools' `frPyObjects` has them.
    ///
    /// The corners are rounded to a grid five times finer than the pixels, and the outline is followed on it from corner
    /// to corner. Wherever it passes the middle of a column of pixels, the column changes there from outside to inside or
    /// back, at the first pixel whose middle is not above the outline. Sorted, these changes are the mask's runs.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are fewer than three corners, an odd number of coordinates, one that is not finite or
    /// 2^24 pixels away, or if the mask has no pixel or 2^32 and more.
    pub fn from_polygon(size: [usize; 2], xy: &[f64]) -> Result<Rle> {
        let pixels = check_size(size)? as u32;
        let (corners, rest) = xy.as_chunks::<2>();
        if corners.len() < 3 || !rest.is_empty() {
            let expected = "three corners or more, two coordinates each";
            return Err(Error::shape("polygon", expected, format!("{} coordinates", xy.len())));
        }
        if let Some(bad) = xy.iter().find(|v| !v.is_finite() || v.abs() > MAX_COORDINATE) {
            let expected = format!("coordinates of at most {MAX_COORDINATE} pixels");
            return Err(Error::shape("polygon", expected, bad.to_string()));
        }
        // `as` cuts towards zero, as C does: below zero this is not the nearest point, but it is pycocotools'.
        let fine: Vec<[i32; 2]> =
            corners.iter().map(|c| c.map(|v| (f64::from(FINE) * v + 0.5) as i32)).collect();
        let edges = || fine.iter().zip(fine.iter().cycle().skip(1));
        let steps = |a: &[i32; 2], b: &[i32; 2]| u64::from(a[0].abs_diff(b[0]).max(a[1].abs_diff(b[1])));
        let outline: u64 = edges().map(|(a, b)| steps(a, b)).sum();
        if outline > MAX_STEPS {
            let expected = format!("an outline of at most {} pixels", MAX_STEPS / FINE as u64);
            return Err(Error::shape("polygon", expected, (outline / FINE as u64).to_string()));
        }

        // Pixels, counted down the columns, at which the mask changes.
        let mut changes = Vec::new();
        let [height, width] = size.map(|n| n as i64);
        let mut before = fine[0];
        for (&from, &to) in edges() {
            for point in line(from, to) {
                let [u, v] = point;
                if u != before[0] {
                    // Between two columns of the finer grid; the third of five is the middle of a pixel.
                    let left = if u < before[0] { u } else { u - 1 };
                    let column = i64::from(left.div_euclid(FINE));
                    if left.rem_euclid(FINE) == FINE / 2 && (0..width).contains(&column) {
                        let row = i64::from((v.min(before[1]) + FINE / 2).div_euclid(FINE));
                        changes.push((column * height + row.clamp(0, height)) as u32);
                    }
                }
                before = point;
            }
        }
        changes.push(pixels);
        changes.sort_unstable();
        // Two changes at one pixel are none.
        let mut counts: Vec<u32> = vec![changes[0]];
        let mut joined = false;
        for pair in changes.windows(2) {
            let run = pair[1] - pair[0];
            match (joined, run) {
                (true, _) => {
                    *counts.last_mut().expect("one count at least") += run;
                    joined = false;
                }
                (false, 0) => joined = true,
                (false, _) => counts.push(run),
            }
        }
        Ok(Rle { size, counts })
    }
}

/// The points of the finer grid from one to another, both included, one a step of the longer axis; the other coordinate
/// is rounded. The same points whichever end is first.
fn line(from: [i32; 2], to: [i32; 2]) -> impl Iterator<Item = [i32; 2]> {
    let long = usize::from(from[0].abs_diff(to[0]) < from[1].abs_diff(to[1]));
    let flip = from[long] > to[long];
    let (low, high) = if flip { (to, from) } else { (from, to) };
    let steps = high[long] - low[long];
    let slope = f64::from(high[1 - long] - low[1 - long]) / f64::from(steps.max(1));
    (0..=steps).map(move |d| {
        let t = if flip { steps - d } else { d };
        let mut point = [0; 2];
        point[long] = low[long] + t;
        point[1 - long] = (f64::from(low[1 - long]) + slope * f64::from(t) + 0.5) as i32;
        point
    })
}
