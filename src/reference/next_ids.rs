//! `ids[t] = tokens[-1 - ids[t]]` where `ids[t] < 0`.

/// `ids` `(T)`, `tokens` `(R)`.
pub fn next_ids(ids: &mut [i32], tokens: &[i32]) {
    ids.iter_mut().filter(|id| **id < 0).for_each(|id| *id = tokens[(-1 - *id) as usize]);
}
