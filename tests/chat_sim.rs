//! Chat through the kernels, on the simulated driver with every check on.

mod common;

use common::chat::{finish, finish_all, past_the_maximum};
use common::demo::{model, picture, scenes};
use common::golden::{Golden, tiny};
use common::gpu::{device, driver, expect_clean, report};
use mllmseg::chat::{
    Chat, Event, Finish, Generation, Generator, Id, Item, Options, Picture, Reply, Sampling,
};
use mllmseg::device::{Choice, cuda};
use mllmseg::dump::Tokens;
use mllmseg::image::Rgb;
use mllmseg::reference;
use mllmseg::text::Tokenizer;

fn options() -> Options {
    Options { device: device(), cache_tokens: 1024, ..Options::default() }
}

fn generation(n: usize) -> Generation {
    Generation { max_new_tokens: n, keep_logits: true, ..Generation::default() }
}

/// Tokens are equal as long as the reference's choice is by more than bf16 can blur: a margin of 0.7 between the best two logits. A prompt
/// whose K and V are there, in the company of others, and with guesses, gives the same bits.
#[test]
fn the_published_greedy_tokens() {
    let _driver = driver();
    let golden = Golden::open("tiny-greedy");
    let image = Rgb::new(448, 448, Golden::open("tiny-1seg").u8("image")).unwrap();
    let ids: Vec<u32> = golden.i32("prompt_ids").iter().map(|&id| id as u32).collect();
    let context = Tokens::read(&tiny().dir).unwrap().img_context;
    cuda::reset_simulator();
    // What follows the last token of the text is guessed right sometimes: the golden tokens are the template.
    let template = golden.i32("tokens").windows(3).map(|w| w.iter().map(|&t| t as u32).collect()).collect();
    let mut g = Generator::new(tiny(), &options(), template, &mut |_, _| ()).unwrap();
    let mut ask = |copies: usize, generation: Generation| -> Vec<Reply> {
        let mut submit = || {
            let prompt = g.prompt(&ids, context, &[Picture::new(vec![image.clone()])]).unwrap();
            g.submit(prompt, generation.clone()).unwrap()
        };
        let submitted: Vec<Id> = (0..copies).map(|_| submit()).collect();
        finish_all(&mut g, &submitted)
    };
    let alone = ask(1, Generation { speculate: false, ..generation(16) }).remove(0);
    let top = golden.f32("top5_logits").data;
    let sure = top.chunks(5).take_while(|t| t[0] - t[1] > 0.7).count();
    let tokens: Vec<i32> = alone.tokens.iter().map(|&t| t as i32).collect();
    println!("{sure} of 16 tokens are sure; equal: {}", tokens == golden.i32("tokens"));
    assert_eq!(tokens[..sure], golden.i32("tokens")[..sure]);
    let guessed = ask(1, generation(16)).remove(0);
    assert!(guessed.accepted > 0 && guessed.cached_tokens > 0, "{} accepted", guessed.accepted);
    let company = ask(3, generation(8));
    for reply in [guessed].iter().chain(&company) {
        assert_eq!(reply.tokens, alone.tokens[..reply.tokens.len()]);
        for (i, (a, b)) in alone.logits.iter().zip(&reply.logits).enumerate() {
            let differ = a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert_eq!(differ, 0, "logits of token {i}");
        }
    }
    expect_clean(&report());
}

/// Short answers of the demo, and one drawn with a seed: what the CPU answers.
#[test]
fn the_demo_answers() {
    let _driver = driver();
    cuda::reset_simulator();
    let mut chats =
        [device(), Choice::Cpu].map(|device| Chat::open(&model(), Options { device, ..options() }).unwrap());
    let scene = &scenes()[0];
    let replies = chats.each_mut().map(|chat| {
        let seen = chat.picture(&picture(&scene.image), 1).unwrap();
        let drawn = Sampling { temperature: 0.7, top_k: 5, seed: 3, ..Sampling::GREEDY };
        let items = [(0, Sampling::GREEDY), (1, Sampling::GREEDY), (0, drawn)].map(|(i, sampling)| Item {
            question: scene.chat[i]["question"].as_str().unwrap().into(),
            pictures: vec![seen.clone()],
            system: None,
            generation: Generation { sampling, ..generation(6) },
        });
        chat.answer(items.into()).into_iter().map(|r| r.unwrap().tokens).collect::<Vec<_>>()
    });
    assert_eq!(replies[0], replies[1]);
    expect_clean(&report());
}

/// All 48 answers of the demo. Where bf16 decides otherwise than the published code did in f32, the choice was close.
#[test]
#[ignore = "minutes: tools/check.sh --slow"]
fn the_demo_answers_all() {
    let _driver = driver();
    let mut chat = Chat::open(&model(), Options { cache_tokens: 4096, ..options() }).unwrap();
    let mut all = Vec::new();
    for scene in scenes() {
        let seen = chat.picture(&picture(&scene.image), 1).unwrap();
        all.extend(scene.chat.iter().map(|c| (c.clone(), seen.clone())));
    }
    let item = |(c, seen): &(serde_json::Value, Picture)| Item {
        question: c["question"].as_str().unwrap().into(),
        pictures: vec![seen.clone()],
        system: None,
        generation: generation(64),
    };
    let replies = chat.answer(all.iter().map(item).collect());
    let mut different = 0;
    for ((c, _), reply) in all.iter().zip(replies) {
        let (reply, expected) = (reply.unwrap(), c["got_ids"].as_array().unwrap());
        let same =
            reply.tokens.iter().zip(expected).take_while(|(a, b)| Some(u64::from(**a)) == b.as_u64()).count();
        if same == expected.len() {
            continue;
        }
        different += 1;
        let logits = &reply.logits[same];
        let margin = logits[reply.tokens[same] as usize] - logits[expected[same].as_u64().unwrap() as usize];
        println!("{}: {:?} for {}, by {margin}", c["question"], reply.text, c["got"]);
        assert!((0.0..0.7).contains(&margin), "{}: {:?} for {}", c["question"], reply.text, c["got"]);
    }
    println!("{} answers, {different} not the published ones", all.len());
    assert!(different * 20 <= all.len(), "{different} of {}", all.len());
    assert_eq!(chat.pages().1, 0);
}

#[test]
fn past_the_maximum_the_tokens_are_the_published_ones() {
    let _driver = driver();
    cuda::reset_simulator();
    let apart = past_the_maximum(options());
    println!("logits: {apart:.1e}");
    assert!(apart < 3.4e-2, "{apart:e}"); // twice what plain bf16 is off in logits (tests/data/golden/README.md)
    expect_clean(&report());
}

/// Steps are queued before the tokens of the one before are read. So they are drawn from the same logits, in any company that comes and goes:
/// by the rules of each sequence, with the tokens before them noted and counted, up to where it ends.
#[test]
fn steps_that_are_queued_ahead_change_nothing() {
    let _driver = driver();
    cuda::reset_simulator();
    let mut g = Generator::new(tiny(), &options(), Vec::new(), &mut |_, _| ()).unwrap();
    let text = |i: u32| (0..20 + i).map(|k| (k * k * (i + 3) + 7) % 1900 + 20).collect::<Vec<u32>>();
    let drawn = |seed, repetition_penalty| Sampling {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
        repetition_penalty,
        seed,
    };
    let rules = [
        (9, Sampling { repetition_penalty: 1.5, ..Sampling::GREEDY }),
        (6, drawn(5, 1.0)),
        (7, drawn(6, 1.3)),
        (5, Sampling::GREEDY),
    ];
    let generation = |i: usize, stop| Generation {
        sampling: rules[i].1,
        speculate: false,
        stop,
        ..generation(rules[i].0)
    };
    let mut alone = Vec::new();
    for (i, &(n, by)) in rules.iter().enumerate() {
        let prompt = g.prompt(&text(i as u32), 2039, &[]).unwrap();
        let reply = finish(&mut g, prompt, generation(i, None));
        assert_eq!((reply.tokens.len(), reply.finish), (n, Finish::Length));
        let mut seen = vec![0i32; 2048 / 32];
        for (n, (token, logits)) in reply.tokens.iter().zip(&reply.logits).enumerate() {
            let how = reference::Sampling {
                temperature: by.temperature,
                top_p: by.top_p,
                repetition_penalty: by.repetition_penalty,
                top_k: by.top_k as i32,
                seed: by.seed,
                counter: n as u32,
            };
            assert_eq!(reference::choose(logits, how, &seen), *token as usize, "token {n} of sequence {i}");
            seen[*token as usize / 32] |= 1 << (token % 32);
        }
        alone.push(reply);
    }
    // The last token's logits again, as those of a prompt.
    let before = [text(3), alone[3].tokens[..4].to_vec()].concat();
    let prompt = g.prompt(&before, 2039, &[]).unwrap();
    let recomputed = finish(&mut g, prompt, Generation { max_new_tokens: 1, ..generation(3, None) });
    assert!(recomputed.cached_tokens == 0 && recomputed.logits[0] == alone[3].logits[4]);
    // All together, the last one joining late, and the third ended by a stop token that nobody foresees.
    let stop = alone[2].tokens[4];
    let submit = |g: &mut Generator, i: usize| {
        let prompt = g.prompt(&text(i as u32), 2039, &[]).unwrap();
        g.submit(prompt, generation(i, (i == 2).then(|| vec![stop]))).unwrap()
    };
    let mut ids: Vec<Id> = (0..3).map(|i| submit(&mut g, i)).collect();
    for _ in 0..4 {
        assert!(g.step().unwrap().iter().all(|e| matches!(e, Event::Tokens(..))));
    }
    ids.push(submit(&mut g, 3));
    let cancelled = submit(&mut g, 0);
    ids.push(cancelled);
    g.step().unwrap().iter().for_each(|e| assert!(matches!(e, Event::Tokens(..))));
    g.cancel(cancelled);
    let mut together = finish_all(&mut g, &ids);
    assert_eq!(together.pop().unwrap().finish, Finish::Cancelled);
    for (i, (a, b)) in alone.iter().zip(&together).enumerate() {
        let n = if i == 2 { a.tokens.iter().position(|&t| t == stop).unwrap() + 1 } else { a.tokens.len() };
        assert_eq!(a.tokens[..n], b.tokens, "sequence {i}");
        assert_eq!((b.steps, b.finish), (n - 1, if i == 2 { Finish::Stop } else { Finish::Length }));
        assert!(a.logits[..n] == b.logits, "logits of sequence {i}");
    }
    drop((alone, together, recomputed));
    assert_eq!(g.pages().1, 0, "every page is free again");
    expect_clean(&report());
}

/// What was written when the launch of a step fails: all but the token of the step before, which nobody has waited for yet.
#[test]
fn a_step_is_launched_before_the_token_of_the_last_is_read() {
    if !common::gpu::counted() {
        return;
    }
    let chat = |more: &[&str], fail: &str| {
        let mut c = std::process::Command::new(env!("CARGO_BIN_EXE_mllmseg"));
        c.args(["chat", "--model", &model(), "--device", "sim", "--max-new-tokens", "9"]);
        // What was said once is said again: an answer that does not end.
        c.args(["--repetition-penalty", "0.01"])
            .args(more)
            .arg("Talk.")
            .env("PTXSIM_CHECKS", "none")
            .env("PTXSIM_FAIL", fail);
        c.output().unwrap()
    };
    let whole = chat(&["--json"], "");
    let line: serde_json::Value =
        serde_json::from_slice(&whole.stdout).unwrap_or_else(|e| panic!("{e}: {whole:?}"));
    let tokens: Vec<u32> = serde_json::from_value(line["tokens"].clone()).unwrap();
    let tokenizer = Tokenizer::open(model().as_ref()).unwrap();
    let text = |n: usize| {
        let mut decoder = tokenizer.decoder(true);
        tokens[..n].iter().map(|&t| decoder.push(t)).collect::<String>()
    };
    // The first step is launched kernel by kernel, the others as graphs: launch k is of step k + 1.
    let k = tokens.len() - 3;
    let o = chat(&[], &format!("cuGraphLaunch:{k}=CUDA_ERROR_UNKNOWN"));
    assert_eq!(o.status.code(), Some(1), "{o:?}");
    assert!(String::from_utf8_lossy(&o.stderr).contains("CUDA_ERROR_UNKNOWN"), "{o:?}");
    // That of the prompt, and those of the steps up to k - 1; step k runs.
    assert_eq!(String::from_utf8_lossy(&o.stdout), text(k));
    assert_ne!(text(k), text(k + 1));
}

/// Once its plan is captured, a step allocates nothing, and waits for no more than the tokens of the one before.
#[test]
fn a_step_waits_for_nothing_but_the_tokens_of_the_last() {
    if !common::gpu::counted() {
        return;
    }
    let _driver = driver();
    let mut g = Generator::new(tiny(), &options(), Vec::new(), &mut |_, _| ()).unwrap();
    let prompt = g.prompt(&(100..120).collect::<Vec<u32>>(), 2039, &[]).unwrap();
    let sampling = Sampling { temperature: 1.0, repetition_penalty: 1.2, ..Sampling::GREEDY };
    g.submit(prompt, Generation { max_new_tokens: 20, sampling, ..Generation::default() }).unwrap();
    let mut tokens = |steps: usize| {
        let events: Vec<Event> = (0..steps).flat_map(|_| g.step().unwrap()).collect();
        assert!(events.iter().all(|e| matches!(e, Event::Tokens(..))));
        events.len()
    };
    tokens(5);
    cuda::reset_simulator();
    assert_eq!(tokens(4), 4);
    let made = report()["calls"].as_object().unwrap().clone();
    assert_eq!(made["cuGraphLaunch"], 4, "{made:?}");
    let allowed = [
        "cuCtxSetCurrent",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuGraphLaunch",
        "cuMemcpyDtoHAsync_v2",
        "cuMemcpyHtoDAsync_v2",
        "cuStreamWaitEvent",
    ];
    let others: Vec<_> = made.keys().filter(|c| !allowed.contains(&c.as_str())).collect();
    assert!(others.is_empty(), "a step also calls {others:?}");
}

/// A cache that holds more tokens than one sequence may have.
#[test]
fn a_cache_of_many_sequences() {
    let _driver = driver();
    cuda::reset_simulator();
    let options = Options { cache_tokens: 1 << 17, ..options() };
    let mut g = Generator::new(tiny(), &options, Vec::new(), &mut |_, _| ()).unwrap();
    let prompt = g.prompt(&[1, 2, 3], 2039, &[]).unwrap();
    assert_eq!(finish(&mut g, prompt, generation(2)).tokens.len(), 2);
    let long = g.prompt(&vec![1; 100_000], 2039, &[]).unwrap();
    let e = g.submit(long, generation(2)).err().unwrap().to_string();
    assert!(e.contains("fewer than 99968 tokens"), "{e}");
    expect_clean(&report());
}
