//! `exp` and `erf` in f32 without branches, so that loops over them become vector code; compiled for AVX-512, AVX2 and plain
//! x86-64 and chosen at run time.
//!
//! `exp`: x = n ln 2 + r, a degree-6 polynomial on r, 2^n by exponent bits; within 2 ulp. `erf`: the odd rational minimax
//! approximation on [-4, 4] that Eigen and XLA use; within 4e-7. Both are tested against f64.

use multiversion::multiversion;

/// e^x; 0 below -87.3, e^88 above 88.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
    let clamped = x.clamp(-87.3, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let e = p * r * r + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23)); // a cast to i32 would not become vector code
    if x < -87.3 { 0.0 } else { e * scale }
}

/// The error function.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let p = -2.726_142_3e-10;
    let p = p * s + 2.770_681_4e-8;
    let p = p * s - 2.101_024e-6;
    let p = p * s - 5.692_506_4e-5;
    let p = p * s - 7.349_906e-4;
    let p = p * s - 2.954_6e-3;
    let p = p * s - 1.609_603_3e-2;
    let q = -1.456_607_2e-5;
    let q = q * s - 2.133_740_5e-4;
    let q = q * s - 1.682_827e-3;
    let q = q * s - 7.373_329_3e-3;
    let q = q * s - 1.426_473_9e-2;
    x * p / q
}

/// `x/2 * (1 + erf(x/√2))`, in place.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub fn gelu(x: &mut [f32]) {
    for v in x {
        *v = 0.5 * *v * (1.0 + erf(*v * std::f32::consts::FRAC_1_SQRT_2));
    }
}

/// `gate / (1 + exp(-gate)) * up`, into `gate`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + exp(-*g)) * u;
    }
}

/// `x = 1 / (1 + exp(-x))`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub fn sigmoid(x: &mut [f32]) {
    for x in x {
        *x = 1.0 / (1.0 + exp(-*x));
    }
}

/// `x += b`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub fn add(x: &mut [f32], b: f32) {
    for x in x {
        *x += b;
    }
}

/// `x = max(x, 0)`; NaN stays one.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub fn relu(x: &mut [f32]) {
    for x in x {
        *x = if *x < 0.0 { 0.0 } else { *x };
    }
}

/// Softmax of `scale * x`, in place; an empty row stays empty.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq+avx2+fma", "x86_64+avx2+fma"))]
pub fn softmax(x: &mut [f32], scale: f32) {
    const LANES: usize = 16; // sums of 16 strands, so that the loops become vector code
    let (body, tail) = x.as_chunks_mut::<LANES>();
    let mut top = [f32::NEG_INFINITY; LANES];
    for c in &*body {
        for i in 0..LANES {
            top[i] = if c[i] > top[i] { c[i] } else { top[i] };
        }
    }
    let top = top.into_iter().chain(tail.iter().copied()).fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0f32; LANES];
    for c in &mut *body {
        for i in 0..LANES {
            c[i] = exp((c[i] - top) * scale);
            sums[i] += c[i];
        }
    }
    let mut sum: f64 = sums.iter().map(|&s| f64::from(s)).sum();
    for v in &mut *tail {
        *v = exp((*v - top) * scale);
        sum += f64::from(*v);
    }
    let inverse = (1.0 / sum) as f32;
    for v in x {
        *v *= inverse;
    }
}

/// Mean of `f(x)` in f64, in 32 strands, which are added in pairs.
#[inline(always)]
pub fn mean(x: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let mut sums = [0.0f64; 32];
    let (body, tail) = x.as_chunks::<32>();
    for c in body {
        let wide = c.map(f64::from); // first, so that the sums become whole vectors
        for i in 0..32 {
            sums[i] += f(wide[i]);
        }
    }
    for half in [16, 8, 4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    let tail: f64 = tail.iter().map(|&v| f(f64::from(v))).sum();
    (sums[0] + tail) / x.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        for i in -870..880 {
            let x = i as f32 * 0.1 + 0.0123;
            if x > 87.9 {
                continue;
            }
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.5e-7, "exp({x}): {} for {exact}", exp(x));
        }
        assert_eq!((exp(-200.0), exp(f32::NEG_INFINITY), exp(0.0)), (0.0, 0.0, 1.0));
        assert!(exp(f32::NAN).is_nan());
    }

    /// Against erf's Taylor series (|x| < 3) and 1 beyond.
    #[test]
    fn erf_is_within_4e_7() {
        for i in -400..=400 {
            let x = f64::from(i) * 0.0125;
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            let exact = (sum * 2.0 / std::f64::consts::PI.sqrt()).clamp(-1.0, 1.0);
            assert!(
                (f64::from(erf(x as f32)) - exact).abs() < 4e-7,
                "erf({x}): {} for {exact}",
                erf(x as f32)
            );
        }
    }

    #[test]
    fn softmax_sums_to_one_at_every_length() {
        for n in [1, 2, 15, 16, 17, 1025] {
            let mut x: Vec<f32> = (0..n).map(|i| ((i * 37) % 101) as f32 * 0.3 - 5.0).collect();
            let exact: Vec<f64> = x.iter().map(|&v| (f64::from(v) * 0.5).exp()).collect();
            let sum: f64 = exact.iter().sum();
            softmax(&mut x, 0.5);
            for (got, e) in x.iter().zip(&exact) {
                assert!((f64::from(*got) - e / sum).abs() < 1e-6, "{got} for {}", e / sum);
            }
        }
    }
}
