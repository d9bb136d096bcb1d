//! Prompt lookup: what followed the last tokens where they stood before is a guess at what follows now.
//!
//! A guess costs little: the rows of a decode step read the same weights whether there are one or some, and a wrong guess is dropped.

/// Longest and shortest run of last tokens that is looked up.
const NGRAM: std::ops::RangeInclusive<usize> = 2..=4;
/// Tokens that are worth searching, counted from the end.
pub const WINDOW: usize = 4096;

/// Up to `n` tokens that may follow `tokens`: those behind the latest earlier place of the longest run of last tokens; where there is none,
/// what is left of the run of `template` that the last token begins. Tokens that are `None` (places of pictures) match nothing.
pub fn guess(template: &[Vec<u32>], tokens: &[Option<u32>], n: usize) -> Vec<u32> {
    for len in NGRAM.rev().filter(|&len| len < tokens.len()) {
        let (before, last) = (&tokens[..tokens.len() - 1], &tokens[tokens.len() - len..]);
        if last.contains(&None) {
            continue;
        }
        let Some(at) = before.windows(len).rposition(|w| w == last) else { continue };
        let guessed: Vec<u32> = tokens[at + len..].iter().take(n).map_while(|t| *t).collect();
        if !guessed.is_empty() {
            return guessed;
        }
    }
    let Some(&Some(last)) = tokens.last() else { return Vec::new() };
    let run = template.iter().find(|run| run.first() == Some(&last));
    run.map_or(Vec::new(), |run| run[1..].iter().take(n).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(ids: &[u32]) -> Vec<Option<u32>> {
        ids.iter().map(|&id| Some(id)).collect()
    }

    #[test]
    fn the_latest_place_of_the_longest_run() {
        assert_eq!(
            guess(&[], &some(&[0, 1, 2, 3, 9, 1, 2, 4, 0, 1, 2]), 3),
            [3, 9, 1],
            "0 1 2 is longer than 1 2"
        );
        assert_eq!(guess(&[], &some(&[5, 7, 1, 5, 7, 2, 5, 7]), 2), [2, 5], "the latest 5 7");
        assert_eq!(guess(&[], &some(&[1, 1, 1]), 4), [1], "an overlapping run, up to the end");
        assert!(guess(&[], &some(&[1, 2, 3]), 4).is_empty());
        assert!(guess(&[], &some(&[1, 2, 1]), 4).is_empty(), "one token says too little");
        assert!(guess(&[], &[], 4).is_empty() && guess(&[], &some(&[1, 1, 1]), 0).is_empty());
    }

    #[test]
    fn a_template_comes_after_the_text() {
        let template = [vec![5, 6, 7], vec![8, 9]];
        assert_eq!(guess(&template, &some(&[5]), 9), [6, 7]);
        assert_eq!(guess(&template, &some(&[1, 8]), 9), [9]);
        assert_eq!(guess(&template, &some(&[4, 5, 3, 4, 5]), 1), [3]);
        assert!(guess(&template, &some(&[6]), 9).is_empty());
    }

    #[test]
    fn pictures_match_nothing_and_end_a_guess() {
        let tokens = [Some(1), None, None, Some(2), Some(1), None, Some(1), None];
        assert!(guess(&[], &tokens, 3).is_empty());
        assert_eq!(guess(&[], &[Some(1), Some(2), Some(4), None, Some(1), Some(2)], 3), [4]);
    }
}
