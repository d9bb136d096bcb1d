//! The parser and decoder on damaged PTX: an error or a module, never a panic, a hang or memory without bound.
//!
//! Inputs are the test kernels' PTX, cut, spliced, with tokens exchanged and bytes changed, and plain noise. The run is
//! short by default; `FUZZ_SECONDS=3600 FUZZ_SEED=7 cargo test --release -p ptxsim --test fuzz -- --nocapture` goes on, and says how many
//! inputs it tried. An input that fails is written to `target/fuzz-failure.ptx`.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::{Rng, compile, kernel_dir};
use ptxsim::Module;

/// Longest that one input may take; the largest is below 200 KB and takes milliseconds.
const LIMIT: Duration = Duration::from_secs(20);

fn seeds() -> Vec<Vec<u8>> {
    let kernels = [
        ("misc.cu", "80"),
        ("gemm.cu", "80"),
        ("wmma.cu", "80"),
        ("scan.cu", "80"),
        ("cluster.cu", "90a"),
        ("wgmma.cu", "90a"),
    ];
    let compiled = kernels.map(|(file, arch)| {
        let source = std::fs::read_to_string(kernel_dir().join(file)).unwrap();
        compile(file, &source, arch).unwrap()
    });
    // What nvcc seldom writes.
    let odd = ".version 9.0\n.target sm_80\n.address_size 64\n.const .align 4 .u32 t[2] = {1, 0x7};\n.global .u64 p = t2;\n.global .f32 t2[2][2] = {{1.0, 0f3F800000}, {2, 3}};\n\
        .extern .shared .align 16 .b8 dyn[];\n.weak .func (.param .b32 y) f(.param .align 8 .b8 a[16]) { .reg .pred %p<3>; ret; }\n\
        .visible .entry k(.param .align 64 .b8 m[128]) .maxntid 128, 1, 1 .reqntid 128 .minnctapersm 2 { .reg .b32 %r<5>; .reg .b64 %q; { .reg .b32 %r; mov.b32 %r, 1; }\n\
        ts: .branchtargets a, b; brx.idx %r1, ts; a: @!%r2 bra b; b: setp.lt.and.s32 %r1|%r2, %r3, -1, !%r4; mov.b64 {%r1, _}, %q; .pragma \"nounroll\";\n\
        call.uni (%r1), f, (%q); call (%r1), %q, (%r2), pr; pr: .callprototype (.param .b32 _) _ (.param .b32 _); ld.global.v4.f32 {%r1, %r2, %r3, %r4}, [%q+-16]; exit; }\n";
    compiled.into_iter().chain([odd.to_owned()]).map(String::into_bytes).collect()
}

fn below(rng: &mut Rng, n: usize) -> usize {
    rng.u32() as usize % n.max(1)
}

/// Bounds of the token around a place: a word, or one other byte.
fn token(text: &[u8], at: usize) -> std::ops::Range<usize> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b"_$%.:".contains(&b);
    if !word(text[at]) {
        return at..at + 1;
    }
    let from = text[..at].iter().rposition(|&b| !word(b)).map_or(0, |i| i + 1);
    let to = text[at..].iter().position(|&b| !word(b)).map_or(text.len(), |i| at + i);
    from..to
}

fn mutate(text: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut Rng) {
    const WORDS: [&str; 24] = [
        "0",
        "-1",
        "4294967296",
        "18446744073709551615",
        "99999999999999999999999",
        "0x",
        "0f7FC00000",
        "0d1",
        "1e999",
        ".reg",
        ".b8",
        ".v8",
        "[",
        "{",
        "}",
        "(",
        ";",
        "%r999999999",
        "<1000000000>",
        ".align 1073741824",
        "[4294967295]",
        "/*",
        "\"",
        ".pred",
    ];
    if text.is_empty() {
        text.push(b' ');
    }
    let at = below(rng, text.len());
    match rng.u32() % 10 {
        0 => text[at] = rng.u32() as u8,
        1 => text[at] ^= 1 << (rng.u32() % 8),
        2 => text.truncate(at),
        3 => {
            let end = at + below(rng, (text.len() - at).min(200));
            text.drain(at..end);
        }
        4 => {
            // A piece of the same or another text.
            let other = &seeds[below(rng, seeds.len())];
            let from = below(rng, other.len());
            let piece = other[from..from + below(rng, (other.len() - from).min(400))].to_vec();
            text.splice(at..at, piece);
        }
        5 | 6 => {
            let word = WORDS[below(rng, WORDS.len())];
            let t = token(text, at);
            text.splice(t, word.bytes());
        }
        7 | 8 => {
            // The token of another place.
            let other = token(text, below(rng, text.len()));
            let word = text[other].to_vec();
            let t = token(text, at);
            text.splice(t, word);
        }
        _ => {
            let t = token(text, at);
            text.drain(t);
        }
    }
    text.truncate(200_000);
}

/// Found by the test below: numbers that wrap around when the registers before them are added.
#[test]
fn registers_beyond_any_number_are_refused() {
    for n in ["18446744073709551615", "18446744073709551614", "4294967296"] {
        let text = format!(
            ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k() {{\n.reg .b32 %r<2>;\n.reg .f32 %f<{n}>;\nret;\n}}\n"
        );
        let e = Module::parse(&text).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(e.contains("registers"), "{n}: {e:?}");
    }
}

#[test]
fn damaged_ptx_is_an_error_at_worst() {
    let number =
        |name: &str, default| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let (budget, seed): (u64, u64) = (number("FUZZ_SECONDS", 5), number("FUZZ_SEED", 1));
    let failure = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../fuzz-failure.ptx");
    let seeds = seeds();
    for s in &seeds[..seeds.len() - 1] {
        Module::parse(std::str::from_utf8(s).unwrap()).unwrap();
    }
    let (start, began) = (Instant::now(), AtomicU64::new(0));
    let (mut tried, mut accepted) = (0u64, 0u64);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(200));
                let took = start.elapsed().saturating_sub(Duration::from_millis(began.load(Relaxed)));
                if took > LIMIT {
                    eprintln!("an input takes more than {LIMIT:?}: {}", failure.display());
                    std::process::abort();
                }
            }
        });
        let mut rng = Rng::new(seed);
        while start.elapsed() < Duration::from_secs(budget) {
            let mut text = if rng.int(0, 19) == 0 {
                (0..below(&mut rng, 300)).map(|_| rng.u32() as u8).collect()
            } else {
                seeds[below(&mut rng, seeds.len())].clone()
            };
            // A small text is where most of a grammar's corners are.
            if rng.int(0, 2) > 0 && text.len() > 3000 {
                let from = below(&mut rng, text.len() - 2000);
                text.drain(from + 2000..);
                text.splice(
                    ..from,
                    *b".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k() {\n",
                );
            }
            for _ in 0..rng.int(1, 6) {
                mutate(&mut text, &seeds, &mut rng);
            }
            let text = String::from_utf8_lossy(&text);
            if budget > 60 || cfg!(debug_assertions) {
                std::fs::write(&failure, text.as_bytes()).unwrap();
            }
            began.store(start.elapsed().as_millis() as u64, Relaxed);
            let result = std::panic::catch_unwind(|| {
                let module = Module::parse(&text)?;
                module.forms();
                module.kernels();
                Ok::<_, ptxsim::Error>(())
            });
            tried += 1;
            accepted += u64::from(matches!(result, Ok(Ok(()))));
            if result.is_err() {
                done.store(true, Relaxed);
                std::fs::write(&failure, text.as_bytes()).unwrap();
                panic!("input {tried} of seed {seed} panics: {}", failure.display());
            }
        }
        done.store(true, Relaxed);
    });
    println!("{tried} inputs in {budget} s, {accepted} of them modules");
}
