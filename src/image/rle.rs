//! COCO's run-length encoding, as pycocotools reads and writes it.

use super::Mask;
use crate::{Error, Result};

/// A mask as the lengths of its runs in column-major order (down the first column, then the second, ...), the first
/// run being of zeros, and 0 long if the mask begins with a one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rle {
    /// `[height, width]`.
    pub size: [usize; 2],
    /// Lengths of runs, of zeros and ones in turn; they sum to `height * width`.
    pub counts: Vec<u32>,
}

impl Rle {
    /// The runs of a mask.
    ///
    /// # Errors
    /// [`Error::Shape`] if the mask has 2^32 pixels or more, which 32-bit counts cannot hold.
    pub fn encode(mask: &Mask) -> Result<Rle> {
        let (w, h) = (mask.width, mask.height);
        check_size([h, w])?;
        // Outside the box around what is set, all are zeros.
        let [left, top, width, height] = mask.bbox().unwrap_or_default();
        let mut counts = Vec::new();
        let (mut value, mut run) = (0, 0);
        let mut add = |v: u8, n: usize| {
            if v != value && n > 0 {
                counts.push(run);
                (value, run) = (v, 0);
            }
            run += n as u32;
        };
        add(0, left * h);
        for x in left..left + width {
            add(0, top);
            mask.data.chunks_exact(w).skip(top).take(height).for_each(|row| add(row[x], 1));
            add(0, h - top - height);
        }
        add(0, (w - left - width) * h);
        counts.push(run);
        Ok(Rle { size: [h, w], counts })
    }

    /// The mask of these runs.
    ///
    /// # Errors
    /// [`Error::Shape`] if a side is 0, the mask has 2^32 pixels or more, or the runs do not sum to its size.
    pub fn decode(&self) -> Result<Mask> {
        let pixels = self.check()?;
        let [height, width] = self.size;
        let mut columns = Vec::with_capacity(pixels);
        for (i, &run) in self.counts.iter().enumerate() {
            columns.resize(columns.len() + run as usize, (i % 2) as u8);
        }
        let mut data = vec![0; pixels];
        for (y, row) in data.chunks_exact_mut(width).enumerate() {
            for (x, v) in row.iter_mut().enumerate() {
                *v = columns[x * height + y];
            }
        }
        Ok(Mask { width, height, data })
    }

    /// pycocotools' `counts` string: each run (from the fourth on less the one before the previous) in groups of five bits,
    /// lowest first, bit 6 saying that more follow, all plus 48.
    pub fn to_compressed(&self) -> String {
        let mut s = String::new();
        for (i, &count) in self.counts.iter().enumerate() {
            let mut x = i64::from(count) - if i > 2 { i64::from(self.counts[i - 2]) } else { 0 };
            loop {
                let group = (x & 31) as u8;
                x >>= 5;
                // The rest is only the sign of what is written already.
                let more = x != if group & 16 != 0 { -1 } else { 0 };
                s.push(char::from(48 + group + if more { 32 } else { 0 }));
                if !more {
                    break;
                }
            }
        }
        s
    }

    /// Reads pycocotools' `counts` string of a mask of `size` `[height, width]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the string holds other characters, ends inside a number, holds a run that is negative or
    /// too long, or its runs do not sum to the size.
    pub fn from_compressed(size: [usize; 2], counts: &str) -> Result<Rle> {
        let bad = |expected: &str, at: usize| {
            Error::shape("RLE counts", expected, format!("another thing at byte {at} of {}", counts.len()))
        };
        let mut rle = Rle { size, counts: Vec::new() };
        let (mut x, mut shift) = (0i64, 0);
        for (at, byte) in counts.bytes().enumerate() {
            if !(48..48 + 64).contains(&byte) {
                return Err(bad("characters from `0` to `o`", at));
            }
            if shift > 30 {
                return Err(bad("numbers of at most seven characters", at));
            }
            let group = i64::from(byte - 48);
            x |= (group & 31) << shift;
            shift += 5;
            if group & 32 != 0 {
                continue;
            }
            if group & 16 != 0 {
                x |= -1 << shift;
            }
            if let [.., before, _] = rle.counts[..]
                && rle.counts.len() > 2
            {
                x += i64::from(before);
            }
            rle.counts.push(u32::try_from(x).map_err(|_| bad("runs from 0 to 2^32 - 1", at))?);
            (x, shift) = (0, 0);
        }
        if shift != 0 {
            return Err(bad("a last number that is whole", counts.len()));
        }
        rle.check()?;
        Ok(rle)
    }

    /// The mask of `size` `[height, width]` with no pixel set.
    ///
    /// # Errors
    /// [`Error::Shape`] if a side is 0 or the mask has 2^32 pixels or more.
    pub fn empty(size: [usize; 2]) -> Result<Rle> {
        Ok(Rle { size, counts: vec![check_size(size)? as u32] })
    }

    /// The pixels that are set in any of `masks`, which are all of `size`; none if there are none.
    ///
    /// # Errors
    /// [`Error::Shape`] if a mask has another size or runs that do not sum to it.
    pub fn union(size: [usize; 2], masks: &[Rle]) -> Result<Rle> {
        let mut ones = Vec::new();
        for mask in masks {
            mask.check()?;
            mask.check_same(size)?;
            ones.extend(mask.ones());
        }
        ones.sort_unstable();
        let mut counts = Vec::new();
        let mut end = 0;
        for [from, to] in ones {
            if from > end || counts.is_empty() {
                counts.extend([from - end, to - from]);
            } else if to > end {
                *counts.last_mut().expect("not empty") += to - end;
            }
            end = end.max(to);
        }
        let rest = check_size(size)? as u32 - end;
        if rest > 0 || counts.is_empty() {
            counts.push(rest);
        }
        Ok(Rle { size, counts })
    }

    /// The pixels that are set here and not in `other`.
    ///
    /// # Errors
    /// As [`Rle::union`].
    pub fn without(&self, other: &Rle) -> Result<Rle> {
        Rle::union(self.size, &[self.inverse(), other.clone()]).map(|outside| outside.inverse())
    }

    /// The pixels that are not set.
    fn inverse(&self) -> Rle {
        let counts = match &self.counts[..] {
            [0, rest @ ..] => rest.to_vec(),
            all => [&[0], all].concat(),
        };
        Rle { size: self.size, counts }
    }

    /// Pixels that are set in both masks.
    ///
    /// # Errors
    /// As [`Rle::union`].
    pub fn intersection(&self, other: &Rle) -> Result<u64> {
        for mask in [self, other] {
            mask.check()?;
            mask.check_same(self.size)?;
        }
        let (mut a, mut b) = (self.ones().peekable(), other.ones().peekable());
        let mut both = 0;
        while let (Some(&[a0, a1]), Some(&[b0, b1])) = (a.peek(), b.peek()) {
            both += u64::from(a1.min(b1).saturating_sub(a0.max(b0)));
            if a1 <= b1 {
                a.next()
            } else {
                b.next()
            };
        }
        Ok(both)
    }

    /// The runs of ones as `[from, to)`, pixels counted down the columns. The runs must sum to less than 2^32.
    fn ones(&self) -> impl Iterator<Item = [u32; 2]> {
        let mut at = 0;
        self.counts.chunks(2).filter_map(move |pair| {
            let from = at + pair[0];
            at = from + pair.get(1)?;
            (at > from).then_some([from, at])
        })
    }

    fn check_same(&self, size: [usize; 2]) -> Result<()> {
        let [h, w] = self.size;
        if self.size == size {
            return Ok(());
        }
        Err(Error::shape(
            "masks to compare",
            format!("{} rows of {}", size[0], size[1]),
            format!("{h} of {w}"),
        ))
    }

    /// Pixels that are set.
    pub fn area(&self) -> u64 {
        self.counts.iter().skip(1).step_by(2).map(|&n| u64::from(n)).sum()
    }

    /// The smallest box around the set pixels, `[x, y, width, height]`; all 0 for an empty mask, as pycocotools'
    /// `toBbox`.
    pub fn bbox(&self) -> [usize; 4] {
        let height = self.size[0].max(1);
        let (mut low, mut high) = ([usize::MAX; 2], [0; 2]);
        let mut at = 0usize;
        for (i, &run) in self.counts.iter().enumerate() {
            let (start, end) = (at, at.saturating_add(run as usize));
            at = end;
            if i % 2 == 0 || run == 0 {
                continue;
            }
            let (x0, x1) = (start / height, (end - 1) / height);
            // A run that goes on in the next column touches the last row and the first.
            let (y0, y1) = if x0 == x1 { (start % height, (end - 1) % height) } else { (0, height - 1) };
            low = [low[0].min(x0), low[1].min(y0)];
            high = [high[0].max(x1 + 1), high[1].max(y1 + 1)];
        }
        if high[0] == 0 { [0; 4] } else { [low[0], low[1], high[0] - low[0], high[1] - low[1]] }
    }

    /// The number of pixels, if the runs sum to it.
    fn check(&self) -> Result<usize> {
        let pixels = check_size(self.size)?;
        let sum: u64 = self.counts.iter().map(|&n| u64::from(n)).sum();
        if sum != pixels as u64 {
            let [h, w] = self.size;
            return Err(Error::shape(
                "RLE counts",
                format!("runs of {h}*{w} = {pixels} pixels"),
                sum.to_string(),
            ));
        }
        Ok(pixels)
    }
}

/// `height * width`, if it is from 1 to 2^32 - 1.
pub(super) fn check_size([h, w]: [usize; 2]) -> Result<usize> {
    match h.checked_mul(w) {
        Some(pixels @ 1..=0xFFFF_FFFF) => Ok(pixels),
        _ => Err(Error::shape("RLE size", "1 to 2^32 - 1 pixels", format!("{h} rows of {w}"))),
    }
}
