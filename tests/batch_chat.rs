//! Questions in a batch's manifest: answered as `chat` answers them, recorded as masks are.

mod common;

use common::demo::{Scene, assets, model, run, scenes};
use mllmseg::batch::{Kind, Outcome, Record, Said};
use mllmseg::chat::Finish;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn image(scene: &Scene) -> String {
    assets().join(&scene.image).display().to_string()
}

fn questions(scene: &Scene) -> Vec<&str> {
    scene.chat.iter().map(|c| c["question"].as_str().unwrap()).collect()
}

/// What the reference answers.
fn expected(scene: &Scene) -> Vec<Said> {
    let said = |c: &Value| Said {
        answer: c["got"].as_str().unwrap().into(),
        finish: Finish::Stop,
        tokens: serde_json::from_value(c["got_ids"].clone()).unwrap(),
    };
    scene.chat.iter().map(said).collect()
}

fn write(path: &Path, lines: &[Value]) {
    std::fs::write(path, lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
}

fn batch(model: &str, manifest: &Path, out: &Path, more: &[&str]) -> Output {
    let (manifest, out) = (manifest.display().to_string(), out.display().to_string());
    run(&[&["batch", &manifest, "--model", model, "--out", &out], more].concat())
}

#[track_caller]
fn exits(o: &Output, code: i32) {
    let stderr = String::from_utf8_lossy(&o.stderr);
    assert!(o.status.code() == Some(code) && !stderr.contains("panicked"), "{:?}: {stderr}", o.status);
}

fn results(out: &Path) -> String {
    std::fs::read_to_string(out.join("results.jsonl")).unwrap()
}

fn records(out: &Path) -> Vec<Record> {
    results(out).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn message(r: &Record) -> &str {
    let Outcome::Failed { error } = &r.outcome else { panic!("{r:?}") };
    assert_eq!(error.kind, Kind::Permanent);
    &error.message
}

/// Questions among expressions, in this process and in workers, killed and continued: the reference's answers, each in its place; the masks
/// are those of a run without questions.
#[test]
fn questions_are_answered_in_their_places() {
    let (dir, scenes) = (tempfile::tempdir().unwrap(), scenes());
    let path = |name: &str| dir.path().join(name);
    let (mut lines, mut masks) = (Vec::new(), Vec::new());
    for (i, scene) in scenes.iter().enumerate() {
        let asked = questions(scene);
        lines.push(match i % 3 {
            0 => json!({"id": i, "image": image(scene), "question": asked[0]}),
            1 => json!({"id": i, "image": image(scene), "questions": asked}),
            _ => json!({"id": i, "image": image(scene), "exprs": scene.texts()}),
        });
        masks.extend((i % 3 == 2).then(|| lines[i].clone()));
    }
    let picture = image(&scenes[0]);
    let bad = [
        (json!({"image": picture, "questions": []}), "at least one expression or question"),
        (json!({"image": picture, "question": "a", "expr": "b"}), "found 2"),
        (json!({"image": dir.path(), "question": "a"}), "irectory"),
        (json!({"image": picture, "question": "<image> or <image>?"}), "`<image>`"),
        (json!({"image": picture, "question": "many ".repeat(20_000)}), "expected"),
        (json!({"image": picture, "question": " \t"}), "nothing but spaces"),
    ];
    lines.extend(bad.iter().map(|(line, _)| line.clone()));
    write(&path("manifest.jsonl"), &lines);
    write(&path("masks.jsonl"), &masks);
    let manifest = path("manifest.jsonl");

    let o = batch(&model(), &manifest, &path("one"), &["--report", "--json"]);
    exits(&o, 3);
    let mut found = records(&path("one")).into_iter();
    let mut found_masks = Vec::new();
    for (i, scene) in scenes.iter().enumerate() {
        if i % 3 == 2 {
            found_masks.extend(found.by_ref().take(scene.texts().len()));
            continue;
        }
        let n = if i % 3 == 0 { 1 } else { scene.chat.len() };
        for (question, expected) in questions(scene).into_iter().zip(expected(scene)).take(n) {
            let r = found.next().unwrap();
            assert_eq!((r.index, r.id, r.expr), (i as u64, json!(i), None));
            assert_eq!(r.question.as_deref(), Some(question));
            let Outcome::Text(said) = r.outcome else { panic!("{:?}", r.outcome) };
            assert_eq!(said, expected, "{i}: {question}");
        }
    }
    for (_, said) in &bad {
        let r = found.next().unwrap();
        assert!(message(&r).contains(said), "{r:?}");
    }
    assert!(found.next().is_none());
    let page = std::fs::read_to_string(path("one").join("report.html")).unwrap();
    let answer = &scenes[0].chat[0];
    let [question, got] = ["question", "got"].map(|name| answer[name].as_str().unwrap());
    let row = format!("<tr><td colspan=2>{question}</td></tr><tr><td colspan=2 class=says>{got}</td></tr>");
    assert!(page.contains(&row) && page.contains("questions answered"), "{row}");
    exits(&batch(&model(), &path("masks.jsonl"), &path("masks"), &["--overlays"]), 0);
    let unplaced = |r: Record| serde_json::to_string(&Record { index: 0, ..r }).unwrap();
    let alone: Vec<String> = records(&path("masks")).into_iter().map(unplaced).collect();
    assert_eq!(found_masks.into_iter().map(unplaced).collect::<Vec<_>>(), alone);

    exits(&batch(&model(), &manifest, &path("workers"), &["--overlays", "--device", "cpu,cpu"]), 3);
    assert!(results(&path("workers")) == results(&path("one")));
    // Failures can be all right.
    let o = batch(&model(), &manifest, &path("workers"), &["--overlays", "--failures-ok"]);
    exits(&o, 0);
    assert_eq!(String::from_utf8_lossy(&o.stderr).lines().count(), 4, "nothing is asked again: {o:?}");

    let out = path("killed");
    let mut child = Command::new(env!("CARGO_BIN_EXE_mllmseg"))
        .args(["batch", &manifest.display().to_string(), "--overlays", "--model", &model(), "--out"])
        .arg(&out)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while std::fs::read_to_string(out.join("journal")).unwrap_or_default().lines().count() < 6 {
        assert!(start.elapsed() < Duration::from_secs(300), "nothing is done");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    exits(&batch(&model(), &manifest, &out, &["--overlays"]), 3);
    assert!(results(&out) == results(&path("one")));

    let o = batch(&model(), &manifest, &path("dry"), &["--dry-run", "--json"]);
    exits(&o, 3);
    let dry: Value = serde_json::from_slice(&o.stdout).unwrap();
    let asked: usize = scenes.iter().enumerate().map(|(i, s)| [1, s.chat.len(), 0][i % 3]).sum();
    // The bad lines that are items with a question: a picture that is a folder, two places for one picture, too long, blank.
    assert_eq!(
        (dry["questions"].as_u64(), dry["failing"].as_u64()),
        (Some(asked as u64 + 4), Some(6)),
        "{dry}"
    );
    assert!(dry["most_tokens"].as_u64().unwrap() > 64 && !path("dry").exists(), "{dry}");
}

/// How answers are generated is for workers, too, and part of what a run is.
#[test]
fn answers_are_generated_as_the_flags_say() {
    let (dir, scenes) = (tempfile::tempdir().unwrap(), scenes());
    let path = |name: &str| dir.path().join(name);
    let line = |s: &Scene| json!({"image": image(s), "questions": questions(s)});
    write(&path("manifest.jsonl"), &scenes.iter().take(6).map(line).collect::<Vec<_>>());
    let ask = |out: &str, more: &[&str]| {
        exits(&batch(&model(), &path("manifest.jsonl"), &path(out), more), 0);
        results(&path(out))
    };
    let drawn = ["--temperature", "3", "--top-k", "40", "--seed", "5", "--max-new-tokens", "6"];
    let here = ask("drawn", &drawn);
    assert!(here == ask("workers", &[&drawn[..], &["--device", "cpu,cpu"]].concat()));
    assert!(here != ask("other", &[&drawn[..4], &["--seed", "6"], &drawn[6..]].concat()));
    let most = ["--max-new-tokens", "1", "--cache-tokens", "512", "--max-tiles", "1"];
    ask("short", &most);
    for r in records(&path("short")) {
        let Outcome::Text(said) = r.outcome else { panic!("{:?}", r.outcome) };
        assert!(said.tokens.len() == 1 && said.finish == Finish::Length, "{said:?}");
    }
    let o = batch(&model(), &path("manifest.jsonl"), &path("short"), &["--max-new-tokens", "2"]);
    exits(&o, 2);
    assert!(String::from_utf8_lossy(&o.stderr).contains("differs in its options"), "{o:?}");
}

/// A checkpoint without a mask decoder answers questions; what needs one fails.
#[test]
fn a_checkpoint_for_chat_answers_questions() {
    let (dir, scenes) = (tempfile::tempdir().unwrap(), scenes());
    let path = |name: &str| dir.path().join(name);
    let chat_only = path("model");
    std::fs::create_dir(&chat_only).unwrap();
    for entry in std::fs::read_dir(model()).unwrap() {
        let from = entry.unwrap().path();
        let to = chat_only.join(from.file_name().unwrap());
        if from.extension().is_none_or(|e| e != "safetensors") {
            std::fs::copy(&from, &to).unwrap();
            continue;
        }
        let bytes = std::fs::read(&from).unwrap();
        let all = SafeTensors::deserialize(&bytes).unwrap();
        let rest = all.tensors().into_iter().filter(|(name, _)| !name.starts_with("res_decoder."));
        safetensors::serialize_to_file(rest, None, &to).unwrap();
    }
    let chat_only = chat_only.display().to_string();
    let question = |s: &Scene| json!({"image": image(s), "question": questions(s)[0]});
    let mut lines: Vec<Value> = scenes.iter().take(4).map(question).collect();
    lines.insert(2, json!({"image": image(&scenes[0]), "exprs": ["a", "b"]}));
    write(&path("mixed.jsonl"), &lines);
    for (out, device) in [("here", "cpu"), ("workers", "cpu,cpu")] {
        exits(&batch(&chat_only, &path("mixed.jsonl"), &path(out), &["--device", device]), 3);
        let found = records(&path(out));
        assert_eq!(found.len(), 6);
        for (r, scene) in found.iter().filter(|r| r.index != 2).zip(&scenes) {
            let Outcome::Text(said) = &r.outcome else { panic!("{r:?}") };
            assert_eq!(*said, expected(scene)[0]);
        }
        assert!(found[2..4].iter().all(|r| message(r).contains("a checkpoint with a mask decoder")));
    }
    // With nothing but expressions there is nothing to begin with.
    write(&path("masks.jsonl"), &lines[2..3]);
    let o = batch(&chat_only, &path("masks.jsonl"), &path("none"), &[]);
    exits(&o, 2);
    assert!(String::from_utf8_lossy(&o.stderr).contains("a checkpoint with a mask decoder"), "{o:?}");
}

/// Drawn answers: each question has random numbers of its own, which only its place in the manifest and the seed decide.
#[test]
fn drawn_answers_are_each_their_own() {
    let (dir, scene) = (tempfile::tempdir().unwrap(), &scenes()[0]);
    let path = |name: &str| dir.path().join(name);
    let line = json!({"image": image(scene), "questions": ["Say something.", "Say something."]});
    write(&path("manifest.jsonl"), &vec![line; 3]);
    let drawn = |out: &str, more: &[&str]| {
        let sampling = ["--temperature", "4", "--top-k", "0", "--max-new-tokens", "6"];
        exits(&batch(&model(), &path("manifest.jsonl"), &path(out), &[&sampling, more].concat()), 0);
        results(&path(out))
    };
    let one = drawn("one", &[]);
    let tokens = |r: Record| if let Outcome::Text(said) = r.outcome { said.tokens } else { panic!("{r:?}") };
    let different: std::collections::HashSet<Vec<u32>> =
        records(&path("one")).into_iter().map(tokens).collect();
    assert_eq!(different.len(), 6, "{different:?}");
    assert_eq!(drawn("two", &["--device", "cpu,cpu"]), one);
    assert_ne!(drawn("seed", &["--seed", "1"]), one);
}
