//! Boxes and points in answers: `[[x1, y1, x2, y2]]` and `[[x, y]]`, 0 to 1000 from the left and the top of the picture.

use crate::{Error, Result};

/// Of the grid that answers are written in.
pub const GRID: u32 = 1000;
/// Places that are read from one answer.
const MAX_PLACES: usize = 1000;

/// A place in a picture, in thousandths of its width and height.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `[x1, y1, x2, y2]`: left, top, right, bottom.
    Box([u32; 4]),
    /// `[x, y]`
    Point([u32; 2]),
}

/// The same in pixels of the source: the middle of a grid line lies at `n / 1000` of the side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pixels {
    /// `[x, y, width, height]`
    Box([f64; 4]),
    /// `[x, y]`
    Point([f64; 2]),
}

impl Place {
    /// In a picture of `width` by `height` pixels.
    pub fn pixels(self, width: usize, height: usize) -> Pixels {
        let x = |v: u32| f64::from(v) * width as f64 / f64::from(GRID);
        let y = |v: u32| f64::from(v) * height as f64 / f64::from(GRID);
        match self {
            Place::Box([x1, y1, x2, y2]) => Pixels::Box([x(x1), y(y1), x(x2) - x(x1), y(y2) - y(y1)]),
            Place::Point([px, py]) => Pixels::Point([x(px), y(py)]),
        }
    }

    /// The place of a box of `[x, y, width, height]` pixels, rounded to the grid.
    pub fn of_box([x, y, w, h]: [usize; 4], width: usize, height: usize) -> Self {
        let grid = |v: usize, side: usize| (v as f64 * f64::from(GRID) / side as f64).round() as u32;
        Place::Box([grid(x, width), grid(y, height), grid(x + w, width), grid(y + h, height)])
    }
}

impl Pixels {
    /// What is drawn: the box, or a small one around the point; whole pixels inside the picture.
    pub fn frame(self, width: usize, height: usize) -> [usize; 4] {
        let radius = width.min(height) as f64 / 100.0;
        let [x, y, w, h] = match self {
            Pixels::Box(b) => b,
            Pixels::Point([x, y]) => [x - radius, y - radius, 2.0 * radius, 2.0 * radius],
        };
        let side = |from: f64, len: f64, side: usize| {
            let first = from.floor().clamp(0.0, side as f64 - 1.0);
            let last = (from + len).ceil().clamp(first + 1.0, side as f64);
            (first as usize, (last - first) as usize)
        };
        let ((x, w), (y, h)) = (side(x, w, width), side(y, h, height));
        [x, y, w, h]
    }
}

impl std::fmt::Display for Place {
    /// As the model writes it, without the outer brackets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Box([a, b, c, d]) => write!(f, "[{a}, {b}, {c}, {d}]"),
            Place::Point([a, b]) => write!(f, "[{a}, {b}]"),
        }
    }
}

/// Every list of places in an answer, in order: `[[87, 294, 410, 638]]`, or several in one: `[[1, 2, 3, 4], [5, 6]]`. The text around is
/// free, but for `[[`, which always opens a list.
///
/// # Errors
/// [`Error::Text`], which shows the answer, if there is no list, or one that is not closed, or a place in it that is not two or four whole
/// numbers of 0 to 1000, left before right and top before bottom.
pub fn places(answer: &str) -> Result<Vec<Place>> {
    let fail = |expected: String| Error::Text {
        what: "answer".into(),
        expected,
        found: format!("{:?}", answer.chars().take(400).collect::<String>()),
    };
    let mut found = Vec::new();
    let mut rest = answer;
    while let Some(at) = rest.find("[[") {
        let mut p = Parser(&rest[at + 1..]);
        loop {
            found.push(p.place().ok_or_else(|| {
                fail(format!("[[x1, y1, x2, y2]] or [[x, y]] of whole numbers from 0 to {GRID}"))
            })?);
            if found.len() > MAX_PLACES {
                return Err(fail(format!("at most {MAX_PLACES} places")));
            }
            match p.next() {
                Some(',') => {}
                Some(']') => break,
                _ => return Err(fail("`,` or `]` behind a place".into())),
            }
        }
        rest = p.0;
    }
    if found.is_empty() {
        return Err(fail("a place, [[x1, y1, x2, y2]] or [[x, y]]".into()));
    }
    Ok(found)
}

/// What is left to read.
struct Parser<'a>(&'a str);

impl Parser<'_> {
    /// The next character that is no space.
    fn next(&mut self) -> Option<char> {
        self.0 = self.0.trim_start_matches(' ');
        let c = self.0.chars().next()?;
        self.0 = &self.0[c.len_utf8()..];
        Some(c)
    }

    /// A whole number on the grid.
    fn number(&mut self) -> Option<u32> {
        self.0 = self.0.trim_start_matches(' ');
        let digits = self.0.len() - self.0.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, rest) = self.0.split_at(digits);
        self.0 = rest;
        // `parse` takes a `+` but there is none left, and no empty text.
        number.parse().ok().filter(|&n| n <= GRID)
    }

    /// `[a, b]` or `[a, b, c, d]`.
    fn place(&mut self) -> Option<Place> {
        if self.next()? != '[' {
            return None;
        }
        let mut numbers = vec![self.number()?];
        loop {
            match self.next()? {
                ',' if numbers.len() < 4 => numbers.push(self.number()?),
                ']' => break,
                _ => return None,
            }
        }
        match numbers[..] {
            [x1, y1, x2, y2] if x1 <= x2 && y1 <= y2 => Some(Place::Box([x1, y1, x2, y2])),
            [x, y] => Some(Place::Point([x, y])),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_as_the_model_writes_them() {
        assert_eq!(places("[[87, 294, 410, 638]]").unwrap(), [Place::Box([87, 294, 410, 638])]);
        assert_eq!(places("It is at [[0,1000]].").unwrap(), [Place::Point([0, 1000])]);
        let several = places("<ref>cats</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box> and [[9, 9]]").unwrap();
        assert_eq!(several, [Place::Box([1, 2, 3, 4]), Place::Box([5, 6, 7, 8]), Place::Point([9, 9])]);
    }

    #[test]
    fn malformed_answers_are_shown() {
        for answer in [
            "",
            "no place",
            "[1, 2, 3, 4]",
            "[[1, 2, 3]]",
            "[[1, 2, 3, 4, 5]]",
            "[[1, 2, 3, 4]",
            "[[1, 2, 3, 1001]]",
            "[[5, 2, 3, 4]]",
            "[[1, -2]]",
            "[[1.5, 2]]",
            "[[+1, 2]]",
            "[[, 2]]",
            "[[]]",
            "[[1, 2], ]",
            "[[1, 2]] then [[",
            "[[99999999999999999999, 1]]",
            "[[[1, 2]]]",
            "[[１, 2]]",
        ] {
            let e = places(answer).expect_err(answer).to_string();
            assert!(e.contains(&format!("{answer:?}")), "{e}");
        }
    }

    proptest! {
        /// What is written is read back, with any text without brackets around it.
        #[test]
        fn places_survive_text(
            boxes in prop::collection::vec((prop::array::uniform4(0..=GRID), any::<bool>()), 1..6),
            around in prop::array::uniform2("[^\\[\\]]*"),
        ) {
            let expected: Vec<Place> = boxes.iter().map(|&([a, b, c, d], point)| {
                if point { Place::Point([a, b]) } else { Place::Box([a.min(c), b.min(d), a.max(c), b.max(d)]) }
            }).collect();
            let list: Vec<String> = expected.iter().map(Place::to_string).collect();
            let [before, after] = around;
            prop_assert_eq!(places(&format!("{before}[{}]{after}", list.join(", "))).unwrap(), expected);
        }

        /// Never a panic, and what is read lies on the grid.
        #[test]
        fn any_text(text in "(\\[|\\]|[0-9]|,| |.){0,60}") {
            if let Ok(found) = places(&text) {
                prop_assert!(!found.is_empty());
                for place in found {
                    let Pixels::Box([x, y, w, h]) = (match place {
                        Place::Box(_) => place,
                        Place::Point([x, y]) => Place::Box([x, y, x, y]),
                    }).pixels(640, 427) else { panic!() };
                    prop_assert!(x >= 0.0 && y >= 0.0 && w >= 0.0 && h >= 0.0 && x + w <= 640.0 + 1e-9 && y + h <= 427.0 + 1e-9);
                    let [x, y, w, h] = place.pixels(640, 427).frame(640, 427);
                    prop_assert!(w > 0 && h > 0 && x + w <= 640 && y + h <= 427);
                }
            }
        }

        /// A mask's box on the grid and back: within half a step of the grid.
        #[test]
        fn boxes_of_masks_come_back(x in 0usize..600, y in 0usize..400, w in 1usize..40, h in 1usize..27) {
            let Pixels::Box(back) = Place::of_box([x, y, w, h], 640, 427).pixels(640, 427) else { panic!() };
            for ((got, want), step) in back.into_iter().zip([x, y, w, h]).zip([0.32, 0.2135, 0.64, 0.427]) {
                prop_assert!((got - want as f64).abs() <= step + 1e-9);
            }
        }
    }
}
