//! A picture of the results: masks, boxes and labels drawn over the source.

use super::{Mask, Rgb};
use ab_glyph::{Font, FontRef, GlyphId, PxScale, ScaleFont, point};
use rayon::prelude::*;

/// What is drawn for one expression.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// Tinted and outlined; an empty one gives a gray label in the lower left
    /// corner. One of another size than the picture is
    /// treated as empty.
    pub mask: &'a Mask,
    /// One line; what the font lacks is shown as a box, control characters as spaces.
    pub label: &'a str,
    /// Shown after the label with two decimals.
    pub score: Option<f32>,
    /// Drawn as a frame: `[x, y, width, height]` in source pixels.
    pub bbox: Option<[usize; 4]>,
}

/// Colours told apart easily, on photographs too; items take them in turn.
const PALETTE: [[u8; 3]; 10] = [
    [41, 121, 255],
    [255, 82, 82],
    [0, 200, 120],
    [255, 179, 0],
    [156, 95, 240],
    [0, 188, 212],
    [255, 102, 178],
    [139, 195, 40],
    [255, 128, 40],
    [84, 100, 230],
];
/// Of labels whose mask is empty.
const GRAY: [u8; 3] = [96, 102, 112];
/// Share of the colour inside a mask.
const TINT: f32 = 0.38;

/// Draws `items` over `image`: tinted mask, contour, box, label. Lines and letters grow with the picture; labels stay
/// inside it and, where there is room, off each other.
pub fn overlay(image: &Rgb, items: &[Item]) -> Rgb {
    let mut canvas = Canvas::new(image.clone());
    let colors: Vec<_> = (0..items.len()).map(|i| PALETTE[i % PALETTE.len()]).collect();
    for (item, &color) in items.iter().zip(&colors) {
        if (item.mask.width, item.mask.height) == (image.width, image.height) {
            canvas.mask(item.mask, color);
        }
    }
    for (item, &color) in items.iter().zip(&colors) {
        if let Some(bbox) = item.bbox {
            canvas.frame(bbox, color);
        }
    }
    // Labels last: nothing is drawn over them. Those of empty masks take what room is left.
    let same = |mask: &Mask| (mask.width, mask.height) == (image.width, image.height);
    let anchor = |item: &Item| item.bbox.or_else(|| if same(item.mask) { item.mask.bbox() } else { None });
    let (found, empty): (Vec<_>, Vec<_>) = items.iter().zip(&colors).partition(|(i, _)| anchor(i).is_some());
    for (item, &color) in found {
        canvas.label(item.label, item.score, anchor(item), color);
    }
    for (item, _) in empty {
        canvas.label(item.label, item.score, None, GRAY);
    }
    canvas.image
}

/// A rectangle in pixels.
#[derive(Clone, Copy)]
struct Rect {
    x: f32,
    y: f32,
    w: f32,
    h: f32,
}

impl Rect {
    fn overlaps(&self, o: &Rect) -> bool {
        self.x < o.x + o.w && o.x < self.x + self.w && self.y < o.y + o.h && o.y < self.y + self.h
    }

    /// Signed distance to the rectangle with corners rounded by `radius`, negative inside.
    fn distance(&self, x: f32, y: f32, radius: f32) -> f32 {
        let dx = (x - self.x - self.w / 2.0).abs() - self.w / 2.0 + radius;
        let dy = (y - self.y - self.h / 2.0).abs() - self.h / 2.0 + radius;
        dx.max(0.0).hypot(dy.max(0.0)) + dx.max(dy).min(0.0) - radius
    }
}

struct Canvas {
    image: Rgb,
    /// Width of a contour in pixels.
    line: f32,
    /// Height of the letters' em in pixels.
    em: f32,
    /// Where labels are already.
    labels: Vec<Rect>,
    font: FontRef<'static>,
}

impl Canvas {
    fn new(image: Rgb) -> Canvas {
        // The side of a square as large as the picture, so that a panorama gets no tiny letters.
        let side = ((image.width * image.height) as f32).sqrt();
        let font = FontRef::try_from_slice(include_bytes!("../../assets/fonts/Roboto-Medium.ttf"));
        Canvas {
            line: (side / 260.0).max(1.5),
            em: (side / 30.0).max(12.0),
            labels: Vec::new(),
            font: font.expect("the embedded font is whole"),
            image,
        }
    }

    /// Mixes `color` into the pixel by `share` (0 to 1).
    fn blend(&mut self, x: usize, y: usize, color: [u8; 3], share: f32) {
        let at = 3 * (y * self.image.width + x);
        mix(&mut self.image.data[at..at + 3], color, share);
    }

    /// Calls `share` at the centre of each pixel of `area` that lies in the picture, and blends.
    fn fill(&mut self, area: Rect, color: [u8; 3], share: impl Fn(f32, f32) -> f32) {
        let (x0, y0) = (area.x.floor().max(0.0) as usize, area.y.floor().max(0.0) as usize);
        let x1 = ((area.x + area.w).ceil().max(0.0) as usize).min(self.image.width);
        let y1 = ((area.y + area.h).ceil().max(0.0) as usize).min(self.image.height);
        for (y, x) in (y0..y1).flat_map(|y| (x0..x1).map(move |x| (y, x))) {
            let share = share(x as f32 + 0.5, y as f32 + 0.5);
            if share > 0.0 {
                self.blend(x, y, color, share);
            }
        }
    }

    /// Tint inside, a line along the edge with a thin white rim outside.
    fn mask(&mut self, mask: &Mask, color: [u8; 3]) {
        let Some([x, y, w, h]) = mask.bbox() else { return };
        let half = self.line / 2.0;
        let rim = (self.line / 4.0).max(0.6);
        // Room for the line around the mask.
        let margin = (self.line * 2.0).ceil() as usize + 1;
        let (x0, y0) = (x.saturating_sub(margin), y.saturating_sub(margin));
        let x1 = (x + w + margin).min(mask.width);
        let y1 = (y + h + margin).min(mask.height);
        let (w, h) = (x1 - x0, y1 - y0);
        let inside: Vec<u8> =
            (y0..y1).flat_map(|y| &mask.data[y * mask.width + x0..][..w]).copied().collect();
        let distance = smooth(&signed_distance(&inside, w), w, (self.line / 3.0).round().max(1.0) as usize);
        let stride = 3 * self.image.width;
        let rows = self.image.data.par_chunks_exact_mut(stride).skip(y0).take(h);
        rows.zip(distance.par_chunks_exact(w)).for_each(|(row, distance)| {
            for (pixel, &d) in row[3 * x0..].chunks_exact_mut(3).zip(distance) {
                mix(pixel, color, TINT * (0.5 - d).clamp(0.0, 1.0));
                mix(pixel, [255; 3], 0.85 * (half + rim + 0.5 - d.abs()).clamp(0.0, 1.0));
                mix(pixel, color, (half + 0.5 - d.abs()).clamp(0.0, 1.0));
            }
        });
    }

    /// A thin frame with rounded corners.
    fn frame(&mut self, [x, y, w, h]: [usize; 4], color: [u8; 3]) {
        let rect = Rect { x: x as f32, y: y as f32, w: w as f32, h: h as f32 };
        let half = (self.line * 0.3).max(0.5);
        let radius = (self.line * 1.5).min(rect.w / 2.0).min(rect.h / 2.0);
        let m = self.line * 2.0;
        let area = Rect { x: rect.x - m, y: rect.y - m, w: rect.w + 2.0 * m, h: rect.h + 2.0 * m };
        self.fill(area, color, |x, y| 0.9 * (half + 0.5 - rect.distance(x, y, radius).abs()).clamp(0.0, 1.0));
    }

    /// Text on a pill, at `anchor` (`[x, y, width, height]`) or in the lower left corner.
    fn label(&mut self, text: &str, score: Option<f32>, anchor: Option<[usize; 4]>, color: [u8; 3]) {
        let (width, height) = (self.image.width as f32, self.image.height as f32);
        let score = score.map(|s| format!("  {s:.2}")).unwrap_or_default();
        let scale = PxScale::from(self.em);
        let (pad_x, pad_y, gap) = (self.em * 0.45, self.em * 0.2, self.em * 0.15);
        let room = width - 2.0 * (pad_x + gap);
        let line = self.set(text, &score, room);
        let font = self.font.as_scaled(scale);
        let ascent = font.ascent();
        let pill = Rect {
            x: 0.0,
            y: 0.0,
            w: line.last().map_or(0.0, |g| g.x + g.advance) + 2.0 * pad_x,
            h: font.height() + 2.0 * pad_y,
        };
        let pill = self.place(pill, anchor, gap, width, height);
        self.labels.push(Rect { w: pill.w + gap, h: pill.h + gap, ..pill });
        let radius = pill.h * 0.32;
        self.fill(pill, color, |x, y| 0.94 * (0.5 - pill.distance(x, y, radius)).clamp(0.0, 1.0));
        let ink = if luminance(color) > 0.42 { [20, 22, 28] } else { [255; 3] };
        for g in line {
            let at = point(pill.x + pad_x + g.x, pill.y + pad_y + ascent);
            let Some(outline) = self.font.outline_glyph(g.id.with_scale_and_position(scale, at)) else {
                continue;
            };
            let bounds = outline.px_bounds();
            let (left, top) = (bounds.min.x as i64, bounds.min.y as i64);
            outline.draw(|x, y, coverage| {
                let (x, y) = (left + i64::from(x), top + i64::from(y));
                let inside =
                    (0..self.image.width as i64).contains(&x) && (0..self.image.height as i64).contains(&y);
                if inside {
                    self.blend(x as usize, y as usize, ink, coverage.min(1.0) * g.share);
                }
            });
        }
    }

    /// Sets `text` and `score` in one line of at most `room` pixels; a text that is too long ends in an ellipsis.
    fn set(&self, text: &str, score: &str, room: f32) -> Vec<Glyph> {
        let shown: Vec<char> = text.chars().filter_map(visible).take(500).collect();
        let whole = self.glyphs(&shown, score);
        if end(&whole) <= room && text.chars().nth(500).is_none() {
            return whole;
        }
        // Widths grow with the number of letters: the most that fit.
        let cut = |n: usize| {
            let mut kept: Vec<char> = shown[..n].to_vec();
            while kept.last() == Some(&' ') {
                kept.pop();
            }
            kept.push('…');
            self.glyphs(&kept, score)
        };
        let (mut fits, mut over) = (0, shown.len() + 1);
        while over - fits > 1 {
            let n = fits.midpoint(over);
            if end(&cut(n)) <= room { fits = n } else { over = n }
        }
        let line = cut(fits);
        if end(&line) <= room { line } else { Vec::new() }
    }

    fn glyphs(&self, text: &[char], score: &str) -> Vec<Glyph> {
        let font = self.font.as_scaled(PxScale::from(self.em));
        let (mut line, mut x, mut last): (Vec<Glyph>, f32, Option<GlyphId>) = (Vec::new(), 0.0, None);
        // The score stands back a little.
        let all = text.iter().map(|&c| (c, 1.0)).chain(score.chars().map(|c| (c, 0.8)));
        for (c, share) in all {
            let id = font.glyph_id(c);
            x += last.map_or(0.0, |last| font.kern(last, id));
            line.push(Glyph { id, x, advance: font.h_advance(id), share });
            x += font.h_advance(id);
            last = Some(id);
        }
        line
    }

    /// Where a pill goes: above its anchor, below it, inside it, else in the first free line of the picture
    /// (without an anchor the last one); always inside the picture if it fits there at all.
    fn place(&self, pill: Rect, anchor: Option<[usize; 4]>, gap: f32, width: f32, height: f32) -> Rect {
        let inside = |x: f32, y: f32| Rect {
            x: x.min(width - gap - pill.w).max(gap.min((width - pill.w).max(0.0))),
            y: y.min(height - gap - pill.h).max(gap.min((height - pill.h).max(0.0))),
            ..pill
        };
        let free = |r: &Rect| !self.labels.iter().any(|l| l.overlaps(r));
        let step = pill.h + gap;
        let lines = (height / step).clamp(1.0, 200.0) as usize;
        let mut wanted = Vec::new();
        if let Some([x, y, w, h]) = anchor {
            let (x, y, w, h) = (x as f32, y as f32, w as f32, h as f32);
            if y >= step {
                wanted.push(inside(x, y - step));
                wanted.push(inside(x + w - pill.w, y - step));
            }
            if y + h + step <= height {
                wanted.push(inside(x, y + h + gap));
            }
            wanted.push(inside(x + gap, y + gap));
            wanted.extend((0..lines).map(|i| inside(x, gap + i as f32 * step)));
        } else {
            wanted.extend((1..=lines).map(|i| inside(gap, height - i as f32 * step)));
        }
        wanted.iter().find(|r| free(r)).or(wanted.first()).copied().unwrap_or(pill)
    }
}

/// A letter of a line: its place and width in pixels, and how strongly it is drawn.
struct Glyph {
    id: GlyphId,
    x: f32,
    advance: f32,
    share: f32,
}

/// The width of a line.
fn end(line: &[Glyph]) -> f32 {
    line.last().map_or(0.0, |g| g.x + g.advance)
}

/// What is set for a character: control characters are spaces, invisible format characters (joiners, marks of
/// direction) nothing.
fn visible(c: char) -> Option<char> {
    match c {
        '\u{AD}' | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}' => None,
        '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}' => None,
        c if c.is_control() || c.is_whitespace() => Some(' '),
        c => Some(c),
    }
}

/// `pixel += share * (color - pixel)`.
fn mix(pixel: &mut [u8], color: [u8; 3], share: f32) {
    for (p, c) in pixel.iter_mut().zip(color) {
        *p = (f32::from(*p) + share * (f32::from(c) - f32::from(*p)) + 0.5) as u8;
    }
}

/// Relative luminance from 0 to 1, the display's curve taken as a square.
fn luminance([r, g, b]: [u8; 3]) -> f32 {
    let linear = |v: u8| (f32::from(v) / 255.0).powi(2);
    0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
}

/// Distance in pixels of each pixel's centre to the edge of the mask, negative inside; rows of `w`.
fn signed_distance(mask: &[u8], w: usize) -> Vec<f32> {
    let (outside, inside) = rayon::join(|| distance_to(mask, w, 1), || distance_to(mask, w, 0));
    // The edge lies half a pixel off the centres on both sides.
    outside.iter().zip(&inside).map(|(o, i)| if *o > 0.0 { o - 0.5 } else { 0.5 - i }).collect()
}

/// Euclidean distance of each pixel to the nearest pixel of `value`: per column by two sweeps, then per row the
/// lower envelope of the parabolas `(x - i)^2 + column[i]^2` (Felzenszwalb and Huttenlocher, 2012).
fn distance_to(mask: &[u8], w: usize, value: u8) -> Vec<f32> {
    /// Farther than anything drawn; its square is exact enough in f32.
    const FAR: f32 = 1e4;
    let mut d: Vec<f32> = mask.iter().map(|&v| if v == value { 0.0 } else { FAR }).collect();
    let h = d.len() / w;
    for y in 1..h {
        let (above, row) = d.split_at_mut(y * w);
        for (v, a) in row.iter_mut().zip(&above[(y - 1) * w..]) {
            *v = v.min(a + 1.0);
        }
    }
    for y in (1..h).rev() {
        let (above, row) = d.split_at_mut(y * w);
        for (a, v) in above[(y - 1) * w..].iter_mut().zip(&*row) {
            *a = a.min(v + 1.0);
        }
    }
    d.par_chunks_exact_mut(w).for_each_init(
        || (vec![0.0f32; w], Vec::with_capacity(w), Vec::with_capacity(w)),
        |(squares, at, from), row| envelope(row, squares, at, from),
    );
    d
}

/// One row of [`distance_to`]; `at` are the parabolas of the envelope, `from` where each begins.
fn envelope(row: &mut [f32], squares: &mut [f32], at: &mut Vec<usize>, from: &mut Vec<f32>) {
    for (s, v) in squares.iter_mut().zip(&*row) {
        *s = v * v;
    }
    at.clear();
    from.clear();
    for i in 0..row.len() {
        let mut begin = f32::NEG_INFINITY;
        while let (Some(&j), Some(&start)) = (at.last(), from.last()) {
            let (fi, fj) = (i as f32, j as f32);
            begin = ((squares[i] - squares[j]) / (fi - fj) + fi + fj) / 2.0;
            if begin > start {
                break;
            }
            at.pop();
            from.pop();
            begin = f32::NEG_INFINITY;
        }
        at.push(i);
        from.push(begin);
    }
    let mut k = 0;
    for (x, v) in row.iter_mut().enumerate() {
        while k + 1 < at.len() && from[k + 1] <= x as f32 {
            k += 1;
        }
        let dx = x as f32 - at[k] as f32;
        *v = (dx * dx + squares[at[k]]).sqrt();
    }
}

/// Two box blurs of radius `r` each way, edges repeated: rounds the stairs of a mask's edge.
fn smooth(x: &[f32], w: usize, r: usize) -> Vec<f32> {
    let across = |x: &[f32], w: usize| {
        let mut y = vec![0.0; x.len()];
        y.par_chunks_exact_mut(w).zip(x.par_chunks_exact(w)).for_each(|(y, x)| {
            for (i, y) in y.iter_mut().enumerate() {
                let window = &x[i.saturating_sub(r)..(i + r + 1).min(w)];
                *y = window.iter().sum::<f32>() / window.len() as f32;
            }
        });
        y
    };
    let h = x.len() / w;
    let twice = |x: &[f32], w: usize| across(&across(x, w), w);
    transpose(&twice(&transpose(&twice(x, w), w), h), h)
}

/// Rows of `w` become columns.
fn transpose(x: &[f32], w: usize) -> Vec<f32> {
    let h = x.len() / w;
    let mut y = vec![0.0; x.len()];
    y.par_chunks_exact_mut(h).enumerate().for_each(|(i, column)| {
        for (v, row) in column.iter_mut().zip(x.chunks_exact(w)) {
            *v = row[i];
        }
    });
    y
}
