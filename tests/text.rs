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

/// What opens every sequence of a way of asking, with both tokenizers: all of it that stands before the expression.
#[test]
fn sequences_have_openings() {
    for tokenizer in [&*T, &*DEMO] {
        let p = Prompts::new(tokenizer, None, 4, UserText::Plain).unwrap();
        for e in ["the left cat", "?!", "é", "猫", "a", "1st", "inthis"] {
            let ways = [
                ("</img>\n What are", p.single(e)),
                ("</img>\n What are", p.joint(&[e, "a dog"])),
                ("</img>\n What is", p.phrase(e)),
                ("</img>\n", p.reasoning(e)),
            ];
            for (opening, sequence) in ways {
                let sequence = sequence.unwrap();
                let text = tokenizer.decode(&sequence.ids[..sequence.opening], false);
                assert_eq!(text, opening, "{e}");
            }
        }
    }
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
                p.chat(&[], &"Please describe the image shortly.".into(), &[tiles]).unwrap()
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
            assert_eq!(p.chat(&[], &question.into(), &[1]).unwrap(), ids(&c["prompt_ids"]), "{question}");
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

/// `(written, what Python's strip().lower().strip(".") makes of it)`; Python 3.11.
#[test]
fn expressions_are_normalised_as_python_does() {
    let cases = [
        (" Left CAT. ", "left cat"),
        ("..A..", "a"),
        ("...", ""),
        ("a. .", "a. "),
        (" . A . ", " a "),
        ("\u{1C}A\u{1F}", "a"),
        ("A\u{85}", "a"),
        ("\u{200B}A\u{200B}", "\u{200B}a\u{200B}"),
        ("\u{FEFF}A", "\u{FEFF}a"),
        ("ΑΣ", "ας"),
        ("ΑΣ.", "ας"),
        ("ΟΔΟΣ ΣΑΣ", "οδος σας"),
        ("Σ", "σ"),
        ("ΣΣ", "σς"),
        ("aΣ\u{301}", "aς\u{301}"),
        ("aΣ\u{301}b", "aσ\u{301}b"),
        ("Α\u{AD}Σ", "α\u{AD}ς"),
        ("AΣ'b", "aσ'b"),
        ("1Σ", "1σ"),
        ("İstanbul", "i\u{307}stanbul"),
        ("ẞ", "ß"),
        ("ǅ", "ǆ"),
        ("\u{212A}", "k"),
    ];
    for (text, want) in cases {
        assert_eq!(normalize_expression(text), want, "{text:?}");
    }
}

/// What sentencepiece gives for pieces of bytes: U+FFFD for each that belongs to no character.
#[test]
fn bytes_decode_as_in_sentencepiece() {
    let byte = |b: TokenId| 3 + b;
    let cases: [(Vec<TokenId>, &str); 8] = [
        (vec![byte(0xE4), byte(0xB8), byte(0xAD)], "中"),
        (vec![byte(0xE4), byte(0xB8)], "\u{FFFD}\u{FFFD}"),
        (vec![byte(0xF0), byte(0x9F), 354], "\u{FFFD}\u{FFFD}\0"),
        (vec![byte(0xC0), byte(0x80)], "\u{FFFD}\u{FFFD}"),
        (vec![byte(0xED), byte(0xA0), byte(0x80)], "\u{FFFD}\u{FFFD}\u{FFFD}"),
        (vec![byte(0xE4), byte(0xB8), 262, byte(0xAD)], "\u{FFFD}\u{FFFD} \u{FFFD}"),
        (vec![byte(0xE4), 92553, byte(0xB8)], "\u{FFFD}[SEG]\u{FFFD}"),
        (vec![], ""),
    ];
    for (ids, want) in cases {
        assert_eq!(T.decode(&ids, false), want, "{ids:?}");
    }
    assert_eq!(T.decode(&[1, 92553, 2512, 92542], true), T.decode(&[2512], false));
    assert_eq!(T.decode(&[92555, u32::MAX], true), "\u{FFFD}\u{FFFD}", "ids past the vocabulary");
    let mut decoder = T.decoder(true);
    let got: Vec<String> = [0xE4, 0xB8, 0xAD, 0xE4].iter().map(|b| decoder.push(byte(*b))).collect();
    assert_eq!(got, ["", "", "中", ""]);
    assert_eq!(decoder.finish(), "\u{FFFD}");
    assert_eq!(decoder.finish(), "");
}

/// Plain and parsed agree wherever no special token is written, and both are read back.
#[test]
fn plain_text_has_the_published_ids() {
    for v in lines("vectors.jsonl") {
        let text = v["text"].as_str().or(v["prompt"].as_str()).unwrap();
        let want = ids(&v["ids"]);
        let plain = T.encode_plain(text).unwrap();
        let special = |id: &TokenId| *id < 3 || *id >= 92538;
        assert!(!plain.iter().any(special), "{text:?}");
        assert!(want.iter().any(special) || plain == want, "{text:?}");
        assert_eq!(T.decode(&plain, false), text.replace('\u{2581}', " "));
    }
}

#[test]
fn chat_turns_are_the_templates() {
    let p = prompts(UserText::Plain);
    let text = |history: &[(&str, &str)], question: &str, tiles: &[usize]| {
        let history: Vec<_> = history.iter().map(|(q, a)| (Question::new(q), a.to_string())).collect();
        let small = Prompts::new(&T, Some("Be brief."), 2, UserText::Plain).unwrap();
        T.decode(&small.chat(&history, &question.into(), tiles).unwrap(), false)
    };
    let head = "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n";
    let tail = "<|im_end|>\n<|im_start|>assistant\n";
    let (one, two) = (
        "<img><IMG_CONTEXT><IMG_CONTEXT></img>",
        "<img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>",
    );
    assert_eq!(text(&[], "Hi", &[]), format!("{head}Hi{tail}"));
    assert_eq!(text(&[], "What?", &[1]), format!("{head}{one}\nWhat?{tail}"));
    assert_eq!(text(&[], "See <image>?", &[2]), format!("{head}See {two}?{tail}"));
    assert_eq!(text(&[], "A <image> B <image>", &[1, 2]), format!("{head}A {one} B {two}{tail}"));
    assert_eq!(
        text(&[("What?", "A cat.")], "Sure?", &[1]),
        format!("{head}{one}\nWhat?{tail}A cat.<|im_end|>\n<|im_start|>user\nSure?{tail}")
    );
    // Special text in what the user or the model wrote stays text: the whole differs from the same string parsed.
    let ids = p.chat(&[("<|im_end|>".into(), "[SEG]".into())], &"<IMG_CONTEXT>".into(), &[]).unwrap();
    assert_eq!(ids.iter().filter(|id| **id == T.special().im_end).count(), 4);
    assert!(!ids.contains(&T.special().seg.unwrap()) && !ids.contains(&T.special().img_context));
    // No special text: the same ids as the whole string, tokenized as published.
    let ids = p.chat(&[("How many?".into(), "Two.".into())], &"Where?".into(), &[1]).unwrap();
    assert_eq!(T.encode_parsed(&T.decode(&ids, false)).unwrap(), ids);
    // A template's `<ref>` is the model's, one in the text that it is about is text.
    let about = |text: &str| p.chat(&[], &Question::about("Where is <ref>{}</ref>?", text), &[1]).unwrap();
    let of = |name| T.token(name).unwrap();
    let count = |ids: &[TokenId], name| ids.iter().filter(|id| **id == of(name)).count();
    let ids = about("the <ref> of <image>");
    assert_eq!([count(&ids, "<ref>"), count(&ids, "</ref>"), count(&ids, "<img>")], [1; 3]);
    let ids = about("the cat");
    assert_eq!(T.encode_parsed(&T.decode(&ids, false)).unwrap(), ids);
}

fn tokenize(flags: &[&str], stdin: &str) -> (Vec<Value>, String, Option<i32>) {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_mllmseg"))
        .args(["tokenize", "--model"])
        .arg(data("8b"))
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let text = stdin.to_string();
    let writer = std::thread::spawn(move || pipe.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    (lines, String::from_utf8(output.stderr).unwrap(), output.status.code())
}

#[test]
fn the_command_answers_every_vector() {
    let vectors = lines("vectors.jsonl");
    let questions: String = vectors
        .iter()
        .map(|v| {
            let mut v = v.clone();
            v.as_object_mut().unwrap().remove("ids");
            format!("{v}\n")
        })
        .collect();
    let (answers, stderr, code) = tokenize(&[], &questions);
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    assert!(answers == vectors, "the vectors, ids included");
}

#[test]
fn the_command_reports_bad_lines_and_goes_on() {
    let lines = [
        "{\"text\": \"left cat\", \"id\": 7}",
        "{",
        "",
        "[]",
        "{}",
        "{\"text\": 5}",
        "{\"text\": \"a\", \"prompt\": \"b\"}",
        "{\"text\": \"\"}",
    ];
    let (answers, stderr, code) = tokenize(&[], &lines.join("\n"));
    assert_eq!(
        answers,
        [
            serde_json::json!({"text": "left cat", "id": 7, "ids": [2512, 8383]}),
            serde_json::json!({"text": "", "ids": []})
        ]
    );
    assert_eq!(code, Some(1));
    let numbers: Vec<&str> = stderr.lines().map(|l| l.split(':').nth(1).unwrap().trim()).collect();
    assert_eq!(numbers, [2, 4, 5, 6, 7].map(|n| format!("<stdin> line {n}")), "{stderr}");

    let (answers, stderr, code) =
        tokenize(&["--decode"], "{\"ids\": [2512, 8383, 92553]}\n{\"ids\": [92555]}\n{\"ids\": [-1]}\n{}\n");
    assert_eq!(answers, [serde_json::json!({"ids": [2512, 8383, 92553], "text": "left cat[SEG]"})]);
    assert_eq!((stderr.lines().count(), code), (3, Some(1)));
    let (answers, ..) = tokenize(&["--decode", "--skip-special"], "{\"ids\": [2512, 8383, 92553]}");
    assert_eq!(answers[0]["text"], "left cat");
    let (answers, ..) = tokenize(&["--plain"], "{\"text\": \"[SEG]\"}");
    assert_eq!(answers[0]["ids"].as_array().unwrap().len(), 4);
}
