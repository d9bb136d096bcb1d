//! Token ids, prompts and decoding against what the published tokenizer gives, and hostile text.

use mllmseg::text::*;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Instant;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer").join(name)
}

fn lines(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(data(name)).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn ids(v: &Value) -> Vec<TokenId> {
    v.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as TokenId).collect()
}

/// The 8B checkpoint's tokenizer, and the demo's.
static T: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::open(&data("8b")).unwrap());
static DEMO: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::open(&data("demo")).unwrap());

fn prompts(user_text: UserText) -> Prompts<'static> {
    Prompts::new(&T, None, 256, user_text).unwrap()
}

#[test]
fn ids_are_the_published_tokenizers() {
    let vectors = lines("vectors.jsonl");
    assert_eq!(vectors.len(), 2608);
    let mut wrong = Vec::new();
    for v in &vectors {
        let text = v["text"].as_str().or(v["prompt"].as_str()).unwrap();
        let mut got = T.encode_parsed(text).unwrap();
        if v["note"].is_string() {
            got.insert(0, T.special().bos); // the two whose note says that the tokenizer added BOS
        }
        if got != ids(&v["ids"]) {
            wrong.push(text);
        }
    }
    assert!(wrong.is_empty(), "{} differ, first {:?}", wrong.len(), wrong[0]);
}

#[test]
fn special_ids_come_from_the_files() {
    let s = T.special();
    let got = (s.bos, s.eos, s.im_end, s.im_start, s.img, s.img_end, s.img_context, s.seg, s.rej);
    assert_eq!(got, (1, 2, 92542, 92543, 92544, 92545, 92546, Some(92553), Some(92554)));
    assert_eq!(T.vocab_size(), 92555);
    let s = DEMO.special();
    let got = (s.bos, s.eos, s.im_end, s.im_start, s.img, s.img_end, s.img_context, s.seg, s.rej);
    assert_eq!(got, (1, 2, 756, 755, 757, 758, 759, Some(766), Some(767)));
    assert_eq!(DEMO.vocab_size(), 768);
}

/// The vectors hold the prompts of published evaluation: ours are the same, token by token.
#[test]
fn prompts_are_the_published_ones() {
    let p = prompts(UserText::Plain);
    let mut seen = 0;
    for v in lines("vectors.jsonl") {
        let Some(prompt) = v["prompt"].as_str() else { continue };
        let rest = prompt.split("</img>").nth(1).unwrap();
        let got = match v["task"].as_str().unwrap() {
            "res" | "gres" => {
                let refs: Vec<&str> =
                    v["refs"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
                [p.prefix(), p.image(), p.joint(&refs).unwrap().ids].concat()
            }
            "reason_sentence" => {
                let sentence = rest.strip_prefix("\n ").unwrap().split(" Please").next().unwrap();
                [p.prefix(), p.image(), p.reasoning(sentence).unwrap().ids].concat()
            }
            "reason_short" => {
                [p.prefix(), p.image(), p.phrase("the animal with stripes").unwrap().ids].concat()
            }
            _ => {
                let tiles =
                    v["ids"].as_array().unwrap().iter().filter(|id| **id == T.special().img_context).count()
                        / 256;
                p.chat(&[], "Please describe the image shortly.", &[tiles]).unwrap()
            }
        };
        let want: Vec<TokenId> = ids(&v["ids"]);
        // In training text a rejected slot holds [REJ]; when masks are read, every slot holds [SEG].
        let want: Vec<TokenId> = want
            .into_iter()
            .map(|id| if Some(id) == T.special().rej { T.special().seg.unwrap() } else { id })
            .collect();
        assert_eq!(got, want, "{rest}");
        seen += 1;
    }
    assert_eq!(seen, 19);
}

#[test]
fn demo_prompts_are_the_references() {
    let p =
        Prompts::new(&DEMO, Some("You are a tiny model that finds shapes."), 64, UserText::Plain).unwrap();
    let scenes = lines("demo_prompts.jsonl");
    assert!(!scenes.is_empty());
    for s in scenes {
        let exprs: Vec<&str> =
            s["expressions"].as_array().unwrap().iter().map(|e| e.as_str().unwrap()).collect();
        let joint = p.joint(&exprs).unwrap();
        assert_eq!(joint.slots.len(), exprs.len());
        assert_eq!([p.prefix(), p.image(), joint.ids].concat(), ids(&s["prompt_ids"]), "{exprs:?}");
        for c in s["chat"].as_array().unwrap() {
            let question = c["question"].as_str().unwrap();
            assert_eq!(p.chat(&[], question, &[1]).unwrap(), ids(&c["prompt_ids"]), "{question}");
            assert_eq!(DEMO.decode(&ids(&c["got_ids"]), true), c["got"].as_str().unwrap());
        }
    }
}

#[test]
fn opening_and_a_megabyte_are_fast() {
    let start = Instant::now();
    Tokenizer::open(&data("8b")).unwrap();
    let open = start.elapsed();
    for unit in ["a", " ", "the left cat ", "书", "\u{1F600}", "\u{0}", "[SEG]", "[UNUSED_TOKEN_141]", "Ａ"]
    {
        let text = unit.repeat((1 << 20) / unit.len());
        let start = Instant::now();
        assert!(!T.encode_parsed(&text).unwrap().is_empty());
        assert!(!T.encode_plain(&text).unwrap().is_empty());
        eprintln!("1 MB of {unit:?}, twice: {:.2?}", start.elapsed());
        assert!(start.elapsed().as_secs() < 8, "1 MB of {unit:?} took {:?}", start.elapsed());
    }
    eprintln!("opening: {open:.2?}");
    assert!(open.as_secs() < 4, "{open:?}");
}
