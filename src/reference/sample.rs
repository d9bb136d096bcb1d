//! The next token of each sequence, greedy or drawn, in an arithmetic whose results do not depend on the order of sums: a token's weight
//! is a whole number, so that this and kernels/sample.cu draw the same tokens.
//!
//! 1. logits of tokens seen are divided by the repetition penalty where positive, multiplied where negative; NaN counts as -inf;
//! 2. weight of a token: `w = ⌊2^40 exp((l - largest) / temperature)⌋`, `exp` by the polynomial below;
//! 3. top-k keeps what is no smaller than the k-th largest; of that, top-p keeps a token if those above it weigh less than `top_p` of the
//!    whole, and the largest always. Equal tokens share their fate;
//! 4. `r` is 64 bits of Philox4x32-10 (Salmon et al., 2011) for the key `seed` and the counter; the token drawn is the first at which the
//!    running sum of the weights kept passes `⌊r * sum / 2^64⌋`.
//!
//! The order of the steps is that of transformers' logits processors.

use rayon::prelude::*;

/// f32 fields of a sequence: temperature, top-p, repetition penalty.
pub const SAMPLE_KNOBS: usize = 3;
/// i32 fields of a sequence: top-k, seed (low, high word), counter.
pub const SAMPLE_DRAWS: usize = 4;

/// How one token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Greedy unless above 0.
    pub temperature: f32,
    /// Every token unless below 1.
    pub top_p: f32,
    /// 1: none.
    pub repetition_penalty: f32,
    /// Every token unless above 0.
    pub top_k: i32,
    /// Of the sequence.
    pub seed: u64,
    /// Of the token in the sequence's answer.
    pub counter: u32,
}

/// `token` `(B)`, `logits` `(B, V)`, `knobs` `(B, SAMPLE_KNOBS)`, `draws` `(B, SAMPLE_DRAWS)`, `seen` `(B, ⌈V/32⌉)`: a bit a token; that of
/// the token chosen is set.
pub fn sample(token: &mut [i32], logits: &[f32], knobs: &[f32], draws: &[i32], seen: &mut [i32]) {
    let rows = token.len().max(1);
    let (v, words) = (logits.len() / rows, seen.len() / rows);
    let rows = token.par_iter_mut().zip(logits.par_chunks(v.max(1))).zip(seen.par_chunks_mut(words.max(1)));
    rows.enumerate().for_each(|(b, ((token, logits), seen))| {
        let (knobs, draws) = (&knobs[b * SAMPLE_KNOBS..], &draws[b * SAMPLE_DRAWS..]);
        let word = |i: usize| u64::from(draws[i].cast_unsigned());
        let how = Sampling {
            temperature: knobs[0],
            top_p: knobs[1],
            repetition_penalty: knobs[2],
            top_k: draws[0],
            seed: word(2) << 32 | word(1),
            counter: draws[3].cast_unsigned(),
        };
        let chosen = choose(logits, how, seen);
        seen[chosen / 32] |= 1i32 << (chosen % 32);
        *token = chosen as i32;
    });
}

/// The token chosen from one row of logits; 0 where no logit is a number above -inf.
pub fn choose(logits: &[f32], how: Sampling, seen: &[i32]) -> usize {
    let penalty = how.repetition_penalty;
    let logit = |(i, &l): (usize, &f32)| {
        let again = penalty != 1.0 && seen[i / 32] >> (i % 32) & 1 == 1;
        let l = if !again {
            l
        } else if l > 0.0 {
            l / penalty
        } else {
            l * penalty
        };
        if l.is_nan() { f32::NEG_INFINITY } else { l + 0.0 } // one zero
    };
    let logits: Vec<f32> = logits.iter().enumerate().map(logit).collect();
    let first = |a: (usize, f32), (i, &l): (usize, &f32)| if l > a.1 { (i, l) } else { a };
    let (best, largest) = logits.iter().enumerate().fold((0, f32::NEG_INFINITY), first);
    if how.temperature.is_nan() || how.temperature <= 0.0 || largest.is_infinite() {
        return best;
    }
    let weights: Vec<u64> = logits.iter().map(|l| weight((l - largest) / how.temperature)).collect();

    let mut order: Vec<usize> = (0..logits.len()).filter(|&i| weights[i] > 0).collect();
    let mut floor = f32::NEG_INFINITY; // the smallest logit that is kept
    let k = how.top_k.max(0) as usize;
    if (1..order.len()).contains(&k) {
        let (_, kth, _) = order.select_nth_unstable_by(k - 1, |&a, &b| logits[b].total_cmp(&logits[a]));
        floor = logits[*kth];
        order.retain(|&i| logits[i] >= floor);
    }
    if how.top_p < 1.0 {
        let target = share(order.iter().map(|&i| weights[i]).sum(), how.top_p);
        order.sort_unstable_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let mut sum = 0;
        for &i in &order {
            floor = logits[i];
            sum += weights[i];
            if sum >= target {
                break;
            }
        }
    }
    let kept = |i: usize| if logits[i] >= floor { weights[i] } else { 0 };
    let sum: u64 = (0..logits.len()).map(kept).sum();
    let at = ((u128::from(random(how.seed, how.counter)) * u128::from(sum)) >> 64) as u64;
    let mut running = 0;
    let passes = |&i: &usize| {
        running += kept(i);
        running > at
    };
    (0..logits.len()).find(passes).expect("the running sum reaches the whole, which is more")
}

/// What the tokens that are kept must weigh: `top_p` (in steps of 2^-24) of `sum`, at least 1; `sum` is below 2^63.
fn share(sum: u64, top_p: f32) -> u64 {
    let p = (top_p.max(0.0) * 16_777_216.0) as u64;
    ((sum >> 24) * p + (((sum & 0xff_ffff) * p) >> 24)).max(1)
}

/// `⌊2^40 exp(x)⌋` for `x <= 0`; 0 for NaN. Products and sums are rounded one by one.
fn weight(x: f32) -> u64 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding and subtracting it rounds to an integer
    let y = x * std::f32::consts::LOG2_E;
    if y.is_nan() || y <= -41.0 {
        return 0;
    }
    let n = (y + ROUND) - ROUND;
    let f = y - n;
    let p = 1.540_353e-4;
    let p = p * f + 1.333_355_8e-3;
    let p = p * f + 9.618_129e-3;
    let p = p * f + 5.550_411e-2;
    let p = p * f + 2.402_265e-1;
    let p = p * f + 6.931_472e-1;
    let p = p * f + 1.0;
    (p * f32::from_bits(((n as i32 + 40 + 127) << 23) as u32)) as u64
}

/// The first two words of Philox4x32-10 for the counter `(counter, 0, 0, 0)`, the first below.
fn random(seed: u64, counter: u32) -> u64 {
    let mut c = [counter, 0, 0, 0];
    let mut key = [seed as u32, (seed >> 32) as u32];
    for _ in 0..10 {
        let a = u64::from(c[0]) * 0xd251_1f53;
        let b = u64::from(c[2]) * 0xcd9e_8d57;
        let high = |v: u64| (v >> 32) as u32;
        c = [high(b) ^ c[1] ^ key[0], b as u32, high(a) ^ c[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    u64::from(c[1]) << 32 | u64::from(c[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of Random123 (kat_vectors) cover all four counter words; with three of them zero only the first applies.
    #[test]
    fn philox_gives_the_published_numbers() {
        assert_eq!(random(0, 0), 0xe169_c58d_6627_e8d5);
    }

    #[test]
    fn weights_are_exponentials() {
        assert_eq!((weight(0.0), weight(-29.0), weight(f32::NAN)), (1 << 40, 0, 0));
        for i in 0..2800 {
            let x = -0.01 * i as f32 - 0.003;
            let exact = 2f64.powi(40) * f64::from(x).exp();
            // the argument, x log2(e), is rounded; then the weight is cut
            let bound = exact * (3e-7 + 1.2e-7 * f64::from(-x)) + 1.0;
            assert!((weight(x) as f64 - exact).abs() < bound, "{x}: {} for {exact}", weight(x));
        }
    }

    const ALL: Sampling =
        Sampling { temperature: 1.0, top_p: 1.0, repetition_penalty: 1.0, top_k: 0, seed: 42, counter: 0 };

    /// The distribution by its definition, in f64: sorted, cut, normalised.
    fn exact(logits: &[f32], how: Sampling) -> Vec<f64> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        if how.top_k > 0 {
            order.truncate(how.top_k as usize);
        }
        let weight = |i: usize| (f64::from(logits[i]) / f64::from(how.temperature)).exp();
        let sum: f64 = order.iter().map(|&i| weight(i)).sum();
        let mut before = 0.0;
        let mut p = vec![0.0; logits.len()];
        for &i in order.iter().take_while(|&&i| {
            let kept = before < f64::from(how.top_p);
            before += weight(i) / sum;
            kept
        }) {
            p[i] = weight(i);
        }
        let sum: f64 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= sum);
        p
    }

    /// Pearson's statistic of 100,000 draws, what it exceeds once in 10,000 times (Wilson and Hilferty's approximation), and whether a token of
    /// probability 0 was drawn. Tokens expected fewer than 10 times are taken together.
    fn chi_square(logits: &[f32], how: Sampling, p: &[f64]) -> (f64, f64, bool) {
        const DRAWS: u32 = 100_000;
        let seen = vec![0; logits.len().div_ceil(32)];
        let drawn: Vec<usize> = (0..DRAWS)
            .into_par_iter()
            .map(|counter| choose(logits, Sampling { counter, ..how }, &seen))
            .collect();
        let mut counts = vec![0.0; p.len()];
        drawn.iter().for_each(|&i| counts[i] += 1.0);
        let impossible = counts.iter().zip(p).any(|(&n, &p)| n > 0.0 && p == 0.0);
        let (mut bins, mut rest) = (Vec::new(), (0.0, 0.0));
        for (&n, &p) in counts.iter().zip(p) {
            let expected = p * f64::from(DRAWS);
            if expected < 10.0 {
                rest = (rest.0 + n, rest.1 + expected);
            } else {
                bins.push((n, expected));
            }
        }
        bins.extend((rest.1 >= 10.0).then_some(rest));
        let statistic = bins.iter().map(|(n, e)| (n - e) * (n - e) / e).sum();
        let freedom = bins.len() as f64 - 1.0;
        let h = 2.0 / (9.0 * freedom.max(1.0));
        (statistic, freedom.max(1.0) * (1.0 - h + 3.719 * h.sqrt()).powi(3), impossible)
    }

    /// Temperature, top-k, top-p and their combinations; a temperature one fifth off would be noticed.
    #[test]
    fn draws_have_the_exact_distribution() {
        let logits: Vec<f32> =
            (0..50).map(|i| ((i * 37) % 50) as f32 * 0.13 + (i % 7) as f32 * 0.011).collect();
        for (temperature, top_k, top_p) in [
            (1.0, 0, 1.0),
            (0.6, 0, 1.0),
            (1.8, 0, 1.0),
            (1.0, 7, 1.0),
            (1.0, 0, 0.8),
            (0.7, 12, 0.9),
            (1.5, 30, 0.5),
            (1.0, 0, 0.05),
        ] {
            let how = Sampling { temperature, top_k, top_p, ..ALL };
            let p = exact(&logits, how);
            let (statistic, bound, impossible) = chi_square(&logits, how, &p);
            assert!(!impossible, "{how:?}: a token was drawn that is cut off");
            assert!(statistic < bound, "{how:?}: {statistic} above {bound}");
            if top_p > 0.1 {
                let off = exact(&logits, Sampling { temperature: 1.2 * temperature, ..how });
                let (statistic, bound, _) = chi_square(&logits, how, &off);
                assert!(statistic > bound, "{how:?}: {statistic} within {bound} of another distribution");
            }
        }
    }

    #[test]
    fn tokens_seen_are_less_likely_by_the_penalty() {
        let (logits, how) = ([2.0, -1.0, 1.9], Sampling { temperature: 0.0, ..ALL });
        let penalty = |p| Sampling { repetition_penalty: p, ..how };
        assert_eq!(choose(&logits, how, &[1]), 0);
        assert_eq!(choose(&logits, penalty(1.2), &[1]), 2); // 2/1.2 < 1.9
        assert_eq!(choose(&logits, penalty(1.2), &[0]), 0);
        assert_eq!(choose(&[-2.0, -1.8], penalty(1.2), &[2]), 0); // -1.8 * 1.2 < -2
    }
}
