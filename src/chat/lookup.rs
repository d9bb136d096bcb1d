//! Prompt lookup: what followed the last tokens where they stood before is a guess at what follows now.
//!
//! A guess costs nothing: the rows of a decode step read the same weights whether there are one or eight, and a wrong guess is dropped.

/// Longest and shortest run of last tokens that is looked up.
const NGRAM: std::ops::RangeInclusive<usize> = 1..=4;
/// Tokens that are searched, counted from the end.
const WINDOW: usize = 4096;

/// Up to `n` tokens that may follow `tokens`: those behind the latest earlier place of the longest run of last tokens, in
/// `template` followed by `tokens`. Tokens that are `None` (places of pictures) match nothing.
pub fn guess(template: &[u32], tokens: &[Option<u32>], n: usize) -> Vec<u32> {
    let tokens = &tokens[tokens.len().saturating_sub(WINDOW)..];
    let all: Vec<Option<u32>> = template.iter().map(|&t| Some(t)).chain(tokens.iter().copied()).collect();
    for len in NGRAM.rev().filter(|&len| len <= tokens.len()) {
        let last = &tokens[tokens.len() - len..];
        if last.contains(&None) {
            continue;
        }
        // The last run itself is at the end and has nothing behind it.
        let Some(at) = all[..all.len() - 1].windows(len).rposition(|w| w == last) else { continue };
        let guessed: Vec<u32> = all[at + len..].iter().take(n).map_while(|t| *t).collect();
        if !guessed.is_empty() {
            return guessed;
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(ids: &[u32]) -> Vec<Option<u32>> {
        ids.iter().map(|&id| Some(id)).collect()
    }

    #[test]
    fn the_latest_place_of_the_longest_run() {
        assert_eq!(guess(&[], &some(&[1, 2, 3, 9, 2, 4, 1, 2]), 3), [3, 9, 2], "1 2 is longer than 2");
        assert_eq!(guess(&[], &some(&[7, 1, 7, 2, 7]), 2), [2, 7], "the latest 7");
        assert_eq!(guess(&[], &some(&[1, 1, 1]), 4), [1], "an overlapping run, up to the end");
        assert!(guess(&[], &some(&[1, 2, 3]), 4).is_empty());
        assert!(guess(&[], &[], 4).is_empty() && guess(&[5, 6], &some(&[5]), 0).is_empty());
    }

    #[test]
    fn a_template_comes_after_the_text() {
        assert_eq!(guess(&[5, 6, 7], &some(&[5]), 2), [6, 7]);
        assert_eq!(guess(&[5, 6, 7], &some(&[5, 8, 5]), 1), [8]);
    }

    #[test]
    fn pictures_match_nothing_and_end_a_guess() {
        let tokens = [Some(1), None, None, Some(2), Some(1)];
        assert!(guess(&[], &tokens, 3).is_empty());
        assert_eq!(guess(&[], &[Some(1), Some(4), None, Some(1)], 3), [4]);
    }
}
