//! Chat on the CPU: the published answers, and the same bits however an answer is computed.

mod common;

use common::chat::{edited, finish, past_the_maximum};
use common::demo::{assets, model, picture, scenes};
use common::golden::{Golden, tiny};
use mllmseg::Result;
use mllmseg::chat::{Chat, Finish, Generation, Generator, Item, Options, Picture, Reply, Sampling};
use mllmseg::dump::{Data, Tokens, Value};
use mllmseg::image::Rgb;
use mllmseg::reference::inv_freq;
use mllmseg::text::Question;
use std::collections::BTreeMap;

fn open(cache_tokens: usize) -> Chat {
    Chat::open(&model(), Options { cache_tokens, ..Options::default() }).unwrap()
}

/// Keeps logits; takes at most `n` tokens.
fn generation(n: usize) -> Generation {
    Generation { max_new_tokens: n, keep_logits: true, ..Generation::default() }
}

/// A scene's picture and its questions, each with the reference's answer and tokens.
fn questions(scene: &common::demo::Scene) -> Vec<(String, String, Vec<u32>)> {
    let text = |v: &serde_json::Value| v.as_str().unwrap().to_string();
    let ids =
        |v: &serde_json::Value| v.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect();
    scene.chat.iter().map(|c| (text(&c["question"]), text(&c["got"]), ids(&c["got_ids"]))).collect()
}

fn one(
    chat: &mut Chat,
    question: impl Into<Question>,
    pictures: Vec<Picture>,
    g: &Generation,
) -> Result<Reply> {
    let mut conversation = chat.conversation(None);
    chat.say(&mut conversation, question, pictures, g, &mut |_| true)
}

fn items(chat: &Chat, n: usize, g: &Generation) -> Vec<Item> {
    let items = scenes().into_iter().flat_map(|scene| {
        let seen = chat.picture(&picture(&scene.image), 1).unwrap();
        let item = move |(question, ..): (String, String, Vec<u32>)| Item {
            question: question.into(),
            pictures: vec![seen.clone()],
            system: None,
            generation: g.clone(),
        };
        questions(&scene).into_iter().map(item).collect::<Vec<_>>()
    });
    items.take(n).collect()
}

/// Equal tokens, and equal bits of all logits.
fn expect_same(what: &str, a: &Reply, b: &Reply) {
    assert_eq!((&a.tokens, a.finish), (&b.tokens, b.finish), "{what}");
    assert_eq!(a.logits.len(), a.tokens.len(), "{what}");
    for (i, (a, b)) in a.logits.iter().zip(&b.logits).enumerate() {
        let differ = a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(differ, 0, "{what}: logits of token {i}");
    }
}

#[test]
fn the_published_greedy_tokens_and_their_logits() {
    let golden = Golden::open("tiny-greedy");
    let image = Rgb::new(448, 448, Golden::open("tiny-1seg").u8("image")).unwrap();
    let ids: Vec<u32> = golden.i32("prompt_ids").iter().map(|&id| id as u32).collect();
    let context = Tokens::read(&tiny().dir).unwrap().img_context;
    for speculate in [true, false] {
        let options = Options { cache_tokens: 1024, ..Options::default() };
        let mut g = Generator::new(tiny(), &options, Vec::new(), &mut |_, _| ()).unwrap();
        let prompt = g.prompt(&ids, context, &[Picture::new(vec![image.clone()])]).unwrap();
        let reply = finish(&mut g, prompt, Generation { speculate, ..generation(16) });
        assert_eq!(reply.tokens.iter().map(|&t| t as i32).collect::<Vec<_>>(), golden.i32("tokens"));
        let logits = Value { shape: vec![16, 2048], data: Data::F32(reply.logits.concat()) };
        golden.expect_close("logits", &logits, 1e-5);
    }
}

/// All 48 questions about the demo's scenes, one after another in conversations and all at once: the reference's answers, the same bits.
#[test]
fn the_demo_answers_are_the_references_alone_and_together() {
    let mut chat = open(4096);
    let all = items(&chat, usize::MAX, &generation(64));
    let together = chat.answer(all);
    let mut together = together.into_iter();
    let (mut steps, mut tokens) = (0, 0);
    for scene in scenes() {
        let seen = chat.picture(&picture(&scene.image), 1).unwrap();
        for (question, text, ids) in questions(&scene) {
            let alone = one(&mut chat, &question, vec![seen.clone()], &generation(64)).unwrap();
            assert_eq!((&alone.text, &alone.tokens), (&text, &ids), "{} {question}", scene.id);
            let reply = together.next().unwrap().unwrap();
            assert_eq!(reply.text, text);
            expect_same(&format!("{} {question}", scene.id), &alone, &reply);
            (steps, tokens) = (steps + alone.steps, tokens + alone.tokens.len() - 1);
        }
    }
    println!("{tokens} tokens in {steps} steps, {:.2} a step", tokens as f64 / steps as f64);
    assert_eq!(chat.pages().1, 0, "every page is free again");
}

/// Guessed tokens are checked: the answers are those of one token a step, and there are fewer steps.
#[test]
fn guessing_changes_nothing() {
    let mut chat = open(2048);
    let plain = Generation { speculate: false, ..generation(64) };
    let (mut steps, mut fewer) = (0, 0);
    for item in items(&chat, 12, &plain) {
        let pictures = item.pictures.clone();
        let a = one(&mut chat, &item.question, pictures.clone(), &plain).unwrap();
        let b = one(&mut chat, &item.question, pictures, &generation(64)).unwrap();
        expect_same(&item.question.to_string(), &a, &b);
        assert_eq!((a.guessed, a.steps), (0, a.tokens.len() - 1));
        assert_eq!(b.tokens.len() - 1, b.steps + b.accepted);
        (steps, fewer) = (steps + a.steps, fewer + b.steps);
    }
    assert!(fewer < steps, "{fewer} steps with guesses, {steps} without");
}

/// Whether the K and V of a prompt were there, from another question, an earlier turn or the answer itself, or are computed now, in one
/// part or in many: the same bits.
#[test]
fn what_is_reused_is_what_would_be_computed() {
    let scene = &scenes()[1];
    let questions = ["Where is the yellow ring? Answer with a box.", "How many squares are there?", "Why?"];
    let mut chat = open(4096);
    let seen = chat.picture(&picture(&scene.image), 1).unwrap();
    let mut conversation = chat.conversation(Some("Answer with a box, or a number, or a word. ".repeat(12)));
    let mut turns = Vec::new();
    for (i, question) in questions.iter().enumerate() {
        let pictures = if i == 0 { vec![seen.clone()] } else { vec![] };
        turns.push(chat.say(&mut conversation, *question, pictures, &generation(20), &mut |_| true).unwrap());
    }
    assert_eq!(turns[0].cached_tokens, 0);
    for (before, turn) in turns.iter().zip(&turns[1..]) {
        // everything but the last token of the answer, which was never run, stands in the cache
        assert_eq!(turn.cached_tokens, before.prompt_tokens + before.tokens.len() - 1);
    }
    // Each turn's prompt alone in a cache of its own, with nothing to reuse.
    for (i, turn) in turns.iter().enumerate() {
        let mut fresh = open(4096);
        let mut again = fresh.conversation(Some("Answer with a box, or a number, or a word. ".repeat(12)));
        let pictures = if i == 0 { vec![seen.clone()] } else { vec![] };
        if i > 0 {
            again.restore(conversation.turns()[..i].to_vec(), vec![seen.clone()]);
        }
        let reply = fresh.say(&mut again, questions[i], pictures, &generation(20), &mut |_| true).unwrap();
        assert_eq!(reply.cached_tokens, 0);
        expect_same(questions[i], turn, &reply);
    }
    // Another conversation about the same picture finds the pages of its beginning.
    let mut other = chat.conversation(Some("Answer with a box, or a number, or a word. ".repeat(12)));
    let reply =
        chat.say(&mut other, "What colour is the star?", vec![seen], &generation(20), &mut |_| true).unwrap();
    assert!(reply.cached_tokens >= 128 && reply.cached_tokens.is_multiple_of(64), "{}", reply.cached_tokens);
}

/// Every token's logits as the prompt's last row: the prompt and the answer up to there, computed at once.
#[test]
fn steps_are_the_prompt_recomputed() {
    let options = Options { cache_tokens: 1024, ..Options::default() };
    let golden = Golden::open("tiny-greedy");
    let image = Rgb::new(448, 448, Golden::open("tiny-1seg").u8("image")).unwrap();
    let mut ids: Vec<u32> = golden.i32("prompt_ids").iter().map(|&id| id as u32).collect();
    let context = Tokens::read(&tiny().dir).unwrap().img_context;
    let mut g = Generator::new(tiny(), &options, Vec::new(), &mut |_, _| ()).unwrap();
    let prompt =
        |g: &Generator, ids: &[u32]| g.prompt(ids, context, &[Picture::new(vec![image.clone()])]).unwrap();
    let first = prompt(&g, &ids);
    let reply = finish(&mut g, first, generation(6));
    for (i, &token) in reply.tokens.iter().enumerate() {
        let again = prompt(&g, &ids);
        let recomputed = finish(&mut g, again, generation(1));
        assert_eq!(recomputed.tokens, [token]);
        assert!(recomputed.logits[0] == reply.logits[i], "token {i}");
        ids.push(token);
    }
}

/// Sequences join and leave between steps, more of them than there are places, in a cache that has no room for all.
#[test]
fn any_number_of_sequences_in_any_order() {
    let mut chat = open(4096);
    let all = items(&chat, 24, &generation(24));
    let expected: Vec<Reply> =
        all.iter().map(|i| one(&mut chat, &i.question, i.pictures.clone(), &i.generation).unwrap()).collect();
    let mut small = open(1024); // about five sequences
    for (i, (reply, expected)) in small.answer(all).into_iter().zip(&expected).enumerate() {
        expect_same(&format!("item {i}"), expected, &reply.unwrap());
    }
}

/// A bad item has its own error and leaves the others alone.
#[test]
fn a_bad_item_fails_alone() {
    let mut chat = open(1024);
    let mut all = items(&chat, 3, &generation(24));
    all[1].question = "<image> and <image>".into();
    let bad = Item {
        question: "x ".repeat(3000).into(),
        pictures: vec![],
        system: None,
        generation: generation(1),
    };
    let sampling = Sampling { top_p: f32::NAN, ..Sampling::GREEDY };
    let nan = Item {
        question: "x".into(),
        pictures: vec![],
        system: None,
        generation: Generation { sampling, ..generation(1) },
    };
    all.extend([bad, nan]);
    let replies = chat.answer(all);
    let error = |i: usize| replies[i].as_ref().err().unwrap().to_string();
    assert!(error(1).contains("1 times `<image>`"), "{}", error(1));
    assert!(error(3).contains("--cache-tokens"), "{}", error(3));
    assert!(error(4).contains("top-p"), "{}", error(4));
    assert!(replies[0].is_ok() && replies[2].is_ok());
    assert_eq!(chat.pages().1, 0);
}

/// Questions join while others are answered: the same answers, each handed out when it ends.
#[test]
fn questions_are_answered_as_they_come() {
    let mut chat = open(4096);
    let all = items(&chat, 9, &generation(24));
    let expected = chat.answer(items(&chat, 9, &generation(24)));
    let (mut waiting, mut replies) = (all.into_iter().enumerate(), BTreeMap::new());
    let (mut most, mut order) = (0, Vec::new());
    chat.answer_as_they_come(
        &mut |answering| {
            most = most.max(answering);
            waiting.by_ref().take(3 - answering).collect()
        },
        &mut |i, reply| {
            order.push(i);
            assert!(replies.insert(i, reply.unwrap()).is_none());
        },
    );
    for (i, expected) in expected.into_iter().enumerate() {
        expect_same(&format!("item {i}"), &expected.unwrap(), &replies[&i]);
    }
    assert!(most == 3 && !order.is_sorted(), "a short answer does not wait for a long one: {most} {order:?}");
}

/// An answer grows as far as the cache has room; conversations that fill it are named, and closing one helps.
#[test]
fn a_full_cache_says_so() {
    let mut chat = open(256);
    let long = Generation { stop: Some(vec![]), max_new_tokens: 10_000, ..Generation::default() };
    let mut conversation = chat.conversation(None);
    let reply = chat.say(&mut conversation, "Hello", vec![], &long, &mut |_| true).unwrap();
    assert_eq!((reply.finish, reply.prompt_tokens + reply.tokens.len()), (Finish::CacheFull, 256));
    let e = one(&mut chat, "Hello", vec![], &generation(4)).err().unwrap().to_string();
    assert!(e.contains("conversations hold 256 of 256") && e.contains("--cache-tokens"), "{e}");
    let e = chat.say(&mut conversation, "More ".repeat(99), vec![], &long, &mut |_| true).err().unwrap();
    assert!(e.to_string().contains("fewer tokens than the K/V cache holds (256"), "{e}");
    drop(conversation);
    one(&mut chat, "Hello", vec![], &generation(4)).unwrap();
    // Beside a conversation that has some of it, an answer has the rest.
    let mut conversation = chat.conversation(None);
    chat.say(&mut conversation, "Hello", vec![], &generation(4), &mut |_| true).unwrap();
    let (_, held) = chat.pages();
    let reply = one(&mut chat, "Well, ".repeat(5), vec![], &long).unwrap();
    assert_eq!((reply.finish, held), (Finish::CacheFull, 1));
    assert_eq!((reply.prompt_tokens + reply.tokens.len()).div_ceil(64), 3);
}

/// A conversation goes on in another cache as if it had been there: nothing of the first one's is used.
#[test]
fn a_conversation_is_not_bound_to_its_cache() {
    let (mut a, mut b) = (open(1024), open(256));
    let say = |chat: &mut Chat, conversation: &mut _, text: &str| {
        chat.say(conversation, text, vec![], &generation(8), &mut |_| true).unwrap()
    };
    let (mut moved, mut stayed) = (a.conversation(None), a.conversation(None));
    let long = "How many squares are there? ".repeat(12);
    say(&mut a, &mut moved, &long);
    say(&mut a, &mut stayed, &long);
    let expected = say(&mut a, &mut stayed, "Why?");
    assert!(expected.prompt_tokens < 248, "{}", expected.prompt_tokens);
    let found = say(&mut b, &mut moved, "Why?");
    expect_same("in another cache", &expected, &found);
    assert_eq!(found.cached_tokens, 0);
    drop(moved);
    assert_eq!(b.pages().1, 0);
}

#[test]
fn an_answer_can_be_ended_and_gone_on_from() {
    let mut chat = open(1024);
    let endless = Generation { stop: Some(vec![]), speculate: false, ..generation(500) };
    let mut conversation = chat.conversation(None);
    let (mut text, mut calls) = (String::new(), 0);
    let reply = chat
        .say(&mut conversation, "How many?", vec![], &endless, &mut |t| {
            text.push_str(t);
            calls += 1;
            calls < 6
        })
        .unwrap();
    assert_eq!((reply.finish, reply.tokens.len()), (Finish::Cancelled, 6));
    assert!(text.starts_with(&reply.text) || reply.text.starts_with(&text), "{text:?} {:?}", reply.text);
    assert_eq!(conversation.turns().len(), 1);
    let next = chat.say(&mut conversation, "Go on", vec![], &generation(3), &mut |_| true).unwrap();
    assert!(next.cached_tokens > reply.prompt_tokens);
    // One that was ended before it began was never asked.
    let mut chat = open(4096);
    let seen = chat.picture(&picture(&scenes()[0].image), 1).unwrap();
    let mut conversation = chat.conversation(None);
    let long = "How many? ".repeat(400);
    let reply = chat.say(&mut conversation, &long, vec![seen], &endless, &mut |_| false).unwrap();
    assert_eq!((reply.finish, reply.tokens.len(), reply.text.as_str()), (Finish::Cancelled, 0, ""));
    assert!(reply.timings.first_token_ms.is_none() && conversation.turns().is_empty());
    let found = chat.say(&mut conversation, "Hello", vec![], &generation(3), &mut |_| true).unwrap();
    expect_same(
        "as if nothing had been",
        &one(&mut open(256), "Hello", vec![], &generation(3)).unwrap(),
        &found,
    );
}

/// A seed gives the same text whatever else is answered; another seed gives another.
#[test]
fn a_seed_gives_its_text_in_any_company() {
    let mut chat = open(4096);
    let sampled = |seed| Sampling { temperature: 1.5, top_p: 0.95, top_k: 50, repetition_penalty: 1.1, seed };
    let with = |seed| Generation { sampling: sampled(seed), ..generation(24) };
    let mut all = items(&chat, 8, &generation(24));
    all.iter_mut().zip(0..).for_each(|(item, seed)| item.generation = with(seed / 2));
    let alone: Vec<Reply> =
        all.iter().map(|i| one(&mut chat, &i.question, i.pictures.clone(), &i.generation).unwrap()).collect();
    for (i, (reply, alone)) in chat.answer(all).into_iter().zip(&alone).enumerate() {
        expect_same(&format!("item {i}"), alone, &reply.unwrap());
    }
    let text = |chat: &mut Chat, seed| {
        let g = Generation { stop: Some(vec![]), ..with(seed) };
        one(chat, "Say something.", vec![], &g).unwrap().tokens
    };
    assert_eq!(text(&mut chat, 7), text(&mut chat, 7));
    assert_ne!(text(&mut chat, 7), text(&mut chat, 8));
    // Several answers of one seed have random numbers of their own.
    let several: std::collections::HashSet<u64> =
        (0..1000).flat_map(|n| [7, 8].map(|seed| sampled(seed).nth(n).seed)).collect();
    assert!(several.len() == 2000 && sampled(7).nth(0) == sampled(7));
    let greedy = Sampling { temperature: 1.0, top_k: 1, ..Sampling::GREEDY };
    let (a, b) = (generation(24), Generation { sampling: greedy, ..generation(24) });
    let [a, b] = [a, b].map(|g| one(&mut chat, "Say something.", vec![], &g).unwrap().tokens);
    assert_eq!(a, b, "the one most likely token");
}

/// The published formula's frequencies in its own types, and a whole run past the maximum computed plainly in numpy.
#[test]
fn past_the_maximum_it_is_the_published_rotation() {
    for case in common::chat::ntk()["frequencies"].as_array().unwrap() {
        let number = |name: &str| case[name].as_f64().unwrap();
        let mut c = tiny().config.llm_config.clone();
        c.rope_theta = number("theta");
        c.max_position_embeddings = number("max") as usize;
        c.rope_scaling.as_mut().unwrap().factor = number("factor");
        c.hidden_size = number("head_dim") as usize * c.num_attention_heads;
        let found = inv_freq(c.rope_theta_at(number("length") as usize), c.head_dim());
        let every = found.iter().step_by(number("every") as usize);
        let expected: Vec<f32> = serde_json::from_value(case["inv_freq"].clone()).unwrap();
        assert_eq!(every.len(), expected.len());
        for (f, e) in every.zip(expected) {
            assert!((f - e).abs() <= 3e-7 * e, "{f} for {e}: {case}"); // two roundings of f32's power
        }
    }
    let apart = past_the_maximum(Options { cache_tokens: 256, ..Options::default() });
    println!("logits: {apart:.1e}");
    assert!(apart < 1e-5, "{apart:e}");
}

/// Past `max_position_embeddings` the base grows with the length, as in the published code: a prompt of T tokens is rotated by the base for
/// T, whatever was in the cache, and however it is cut. Up to there nothing changes.
#[test]
fn long_prompts_stretch_the_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let question = "How many squares and rings are there? ".repeat(12);
    let ask = |dir: &str, question: &str| {
        let mut chat = Chat::open(dir, Options { cache_tokens: 2048, ..Options::default() }).unwrap();
        // what is there already must not be used where it is rotated otherwise
        one(&mut chat, "How many squares and rings are there?", vec![], &generation(1)).unwrap();
        one(&mut chat, question, vec![], &generation(12)).unwrap()
    };
    let short = edited(&assets().join("model"), &folder.path().join("short"), |c| {
        c["llm_config"]["max_position_embeddings"] = 40.into()
    });
    let long = ask(&short, &question);
    let t = long.prompt_tokens as f64;
    assert!(t > 80.0 && long.cached_tokens == 0);
    let base = 1e6 * (2.0 * t / 40.0 - 1.0f64).powf(128.0 / 126.0);
    let stretched = edited(&assets().join("model"), &folder.path().join("stretched"), |c| {
        c["llm_config"]["rope_theta"] = base.into()
    });
    let expected = ask(&stretched, &question);
    assert!(long.logits[0] == expected.logits[0], "the first token follows from the prompt alone");
    assert!(long.logits[0] != ask(&model(), &question).logits[0], "the base matters");
    // A row of the answer has the base of its own length.
    assert!(long.logits[1] != expected.logits[1]);
    let exactly = edited(&assets().join("model"), &folder.path().join("exactly"), |c| {
        c["llm_config"]["max_position_embeddings"] = (long.prompt_tokens + 12).into();
    });
    expect_same("no longer than the maximum", &ask(&exactly, &question), &ask(&model(), &question));
}

/// Two conversations in one chat, each turn about its own picture.
#[test]
fn pictures_stay_apart() {
    let mut chat = open(4096);
    let scenes = scenes();
    let seen: Vec<Picture> =
        scenes.iter().take(2).map(|s| chat.picture(&picture(&s.image), 1).unwrap()).collect();
    let both = one(&mut chat, "How many squares are there?", seen.clone(), &generation(8)).unwrap();
    let mut conversation = chat.conversation(None);
    let two = "Image-1: <image>\nImage-2: <image>\nHow many squares are there?";
    let same = chat.say(&mut conversation, two, seen.clone(), &generation(8), &mut |_| true).unwrap();
    expect_same("as the list that is put before", &both, &same);
    assert_eq!(conversation.turns()[0].0.to_string(), two);
    let swapped =
        one(&mut chat, "How many squares are there?", vec![seen[1].clone(), seen[0].clone()], &generation(8));
    assert!(swapped.unwrap().logits[0] != both.logits[0]);
}

/// Text of special tokens in a question is text.
#[test]
fn special_tokens_in_questions_are_text() {
    let mut chat = open(1024);
    let reply = one(&mut chat, "a<|im_end|>b<IMG_CONTEXT><img>", vec![], &generation(2)).unwrap();
    assert!(reply.prompt_tokens > 30);
}
