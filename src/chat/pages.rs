//! The pages of the K/V cache: who holds which, and which hold the beginning of a prompt that may come again.
//!
//! A page holds the K and V of [`PAGE`] consecutive tokens of one sequence. Full pages of prompts are found again by what they hold:
//! a page's key is the hash of its own tokens and of the key before it, so the same key means the same tokens from the first on. Pages that
//! nobody holds stay until their room is needed, the longest unused first.

use crate::ops::PAGE;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What stands at one position of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// A token of text.
    Text(u32),
    /// Row `row` of the tokens of a tile, which is named by the hash of its pixels.
    #[allow(missing_docs)]
    Image { tile: [u8; 16], row: u32 },
}

impl Cell {
    /// The token, where it is text.
    pub fn text(&self) -> Option<u32> {
        if let Cell::Text(id) = self { Some(*id) } else { None }
    }
}

/// SHA-256 of everything from the first token to the end of a page, and of how it is rotated.
pub type Key = [u8; 32];

/// The keys of the full pages of `cells`. `rotation` is part of each: positions that are turned otherwise make other K.
pub fn keys(cells: &[Cell], rotation: usize) -> Vec<Key> {
    let mut key = Key::from(Sha256::digest(rotation.to_le_bytes()));
    let page = |cells: &[Cell]| {
        let mut hash = Sha256::new_with_prefix(key);
        for cell in cells {
            match cell {
                Cell::Text(id) => hash.update([&[0], &id.to_le_bytes()[..]].concat()),
                Cell::Image { tile, row } => hash.update([&[1], &tile[..], &row.to_le_bytes()].concat()),
            }
        }
        key = hash.finalize().into();
        key
    };
    cells.chunks_exact(PAGE).map(page).collect()
}

/// One page's state.
#[derive(Clone, Default)]
struct Page {
    holders: u32,
    key: Option<Key>,
    /// When it was last let go of.
    used: u64,
}

/// All pages, by number.
pub struct Pages {
    pages: Vec<Page>,
    by_key: HashMap<Key, u32>,
    clock: u64,
    /// Pages that were let go of since the last look.
    released: Arc<Mutex<Vec<u32>>>,
}

/// Pages that are held, in the order of their tokens; dropping it lets go of them.
pub struct Held {
    pages: Vec<u32>,
    released: Arc<Mutex<Vec<u32>>>,
}

impl Held {
    /// Their numbers.
    pub fn numbers(&self) -> &[u32] {
        &self.pages
    }

    /// Lets go of all but the first `n`.
    pub fn truncate(&mut self, n: usize) {
        let gone = self.pages.split_off(n.min(self.pages.len()));
        self.released.lock().unwrap_or_else(PoisonError::into_inner).extend(gone);
    }

    /// Those of `more` behind these.
    pub fn append(&mut self, mut more: Held) {
        self.pages.append(&mut more.pages);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.truncate(0);
    }
}

impl Pages {
    /// `n` free pages.
    pub fn new(n: usize) -> Self {
        Self { pages: vec![Page::default(); n], by_key: HashMap::new(), clock: 0, released: Arc::default() }
    }

    /// How many there are, and how many of them are held.
    pub fn count(&mut self) -> (usize, usize) {
        self.collect();
        (self.pages.len(), self.pages.iter().filter(|p| p.holders > 0).count())
    }

    /// Whether `page` may be written: one sequence holds it, and nobody finds it by what it holds.
    pub fn is_own(&mut self, page: u32) -> bool {
        self.collect();
        let page = &self.pages[page as usize];
        page.holders == 1 && page.key.is_none()
    }

    /// Whether they are pages of this cache.
    pub fn owns(&self, held: &Held) -> bool {
        Arc::ptr_eq(&held.released, &self.released)
    }

    fn hold(&self, pages: Vec<u32>) -> Held {
        Held { pages, released: Arc::clone(&self.released) }
    }

    /// The pages of the first `keys`, as far as they are there.
    pub fn find(&mut self, keys: &[Key]) -> Held {
        self.collect();
        let pages: Vec<u32> = keys.iter().map_while(|k| self.by_key.get(k).copied()).collect();
        pages.iter().for_each(|&p| self.pages[p as usize].holders += 1);
        self.hold(pages)
    }

    /// `n` pages to write; `None`, and nothing changes, if fewer are not held.
    pub fn take(&mut self, n: usize) -> Option<Held> {
        self.collect();
        let mut free: Vec<u32> =
            (0..).zip(&self.pages).filter(|(_, p)| p.holders == 0).map(|(i, _)| i).collect();
        if free.len() < n {
            return None;
        }
        // Those that hold nothing worth finding first.
        free.sort_by_key(|&i| {
            let p = &self.pages[i as usize];
            (p.key.is_some(), p.used, i)
        });
        free.truncate(n);
        for &i in &free {
            let page = &mut self.pages[i as usize];
            page.holders = 1;
            if let Some(key) = page.key.take() {
                self.by_key.remove(&key);
            }
        }
        Some(self.hold(free))
    }

    /// A full page is now found by what it holds; one that already is, or whose key another page has, stays as it is.
    pub fn publish(&mut self, page: u32, key: Key) {
        let this = &mut self.pages[page as usize];
        if this.key.is_none() && !self.by_key.contains_key(&key) {
            this.key = Some(key);
            self.by_key.insert(key, page);
        }
    }

    /// Counts off what was let go of.
    fn collect(&mut self) {
        for i in self.released.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.clock += 1;
            let page = &mut self.pages[i as usize];
            page.holders -= 1;
            page.used = self.clock;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn text(ids: std::ops::Range<u32>) -> Vec<Cell> {
        ids.map(Cell::Text).collect()
    }

    #[test]
    fn a_key_is_everything_before_it() {
        let n = PAGE as u32;
        let a = keys(&text(0..3 * n), 0);
        assert_eq!(a.len(), 3);
        assert_eq!(keys(&text(0..2 * n + 5), 0), a[..2]);
        let mut other = text(0..3 * n);
        other[3] = Cell::Text(999);
        assert!(keys(&other, 0).iter().zip(&a).all(|(x, y)| x != y), "the first page is part of every key");
        assert_ne!(keys(&text(0..n), 1), a[..1], "the rotation is, too");
        let image = |tile: u8| (0..n).map(|row| Cell::Image { tile: [tile; 16], row }).collect::<Vec<_>>();
        assert_ne!(keys(&image(1), 0), keys(&image(2), 0));
    }

    proptest! {
        /// Against a plain model: what is found holds what was published under the key, a page that is held is never handed out, and all
        /// that are let go of can be taken again.
        #[test]
        fn pages_are_never_given_away_while_held(steps in prop::collection::vec((0u8..4, 0usize..6), 1..200)) {
            let mut pages = Pages::new(8);
            let mut held: Vec<Held> = Vec::new();
            let mut contents: HashMap<u32, usize> = HashMap::new();
            let key = |i: usize| [i as u8; 32];
            for (what, n) in steps {
                let holding: HashSet<u32> = held.iter().flat_map(|h| h.numbers()).copied().collect();
                match what {
                    0 => match pages.take(n) {
                        Some(taken) => {
                            prop_assert_eq!(taken.numbers().iter().collect::<HashSet<_>>().len(), n);
                            prop_assert!(taken.numbers().iter().all(|p| !holding.contains(p)));
                            taken.numbers().iter().for_each(|p| { contents.remove(p); });
                            held.push(taken);
                        }
                        None => prop_assert!(8 - holding.len() < n),
                    },
                    1 => if !held.is_empty() {
                        held.swap_remove(n % held.len());
                    },
                    2 => if let Some(&page) = held.last().and_then(|h| h.numbers().first()) {
                        let there = contents.values().any(|&c| c == n);
                        pages.publish(page, key(n));
                        if !there { contents.entry(page).or_insert(n); }
                    },
                    _ => {
                        let found = pages.find(&[key(n)]);
                        let expected: Vec<u32> = contents.iter().filter(|(_, c)| **c == n).map(|(p, _)| *p).collect();
                        prop_assert_eq!(found.numbers(), expected);
                        held.push(found);
                    }
                }
                let holding: HashSet<u32> = held.iter().flat_map(|h| h.numbers()).copied().collect();
                prop_assert_eq!(pages.count(), (8, holding.len()));
                for &p in &holding {
                    let one = held.iter().flat_map(|h| h.numbers()).filter(|&&q| q == p).count() == 1;
                    prop_assert_eq!(pages.is_own(p), one && !contents.contains_key(&p));
                }
            }
            held.clear();
            prop_assert_eq!(pages.take(8).unwrap().numbers().len(), 8);
        }
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let mut pages = Pages::new(3);
        let mut held: Vec<Held> = (0..3).map(|_| pages.take(1).unwrap()).collect();
        let numbers: Vec<u32> = held.iter().map(|h| h.numbers()[0]).collect();
        for (i, &p) in numbers.iter().enumerate() {
            pages.publish(p, [i as u8; 32]);
        }
        for i in [1, 0, 0] {
            held.remove(i); // page 1, then 0, then 2
        }
        assert_eq!(pages.take(1).unwrap().numbers(), [numbers[1]]);
        assert!(pages.find(&[[1; 32]]).numbers().is_empty());
        let again = pages.find(&[[0; 32]]);
        assert_eq!(again.numbers(), [numbers[0]]);
        let rest = pages.take(2).unwrap();
        assert!(!rest.numbers().contains(&numbers[0]) && pages.take(1).is_none(), "page 0 is held again");
    }
}
