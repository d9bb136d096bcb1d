//! `mllmseg chat` and `mllmseg locate` as programs.

mod common;

use common::demo::{assets, model, run, scenes};
use serde_json::Value;
use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

fn image(n: usize) -> String {
    assets().join(&scenes()[n].image).display().to_string()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn lines(o: &Output) -> Vec<Value> {
    text(&o.stdout).lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

/// The program with lines on stdin.
fn piped(args: &[&str], stdin: impl AsRef<[u8]>) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mllmseg"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_ref()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn one_question() {
    let (model, image) = (model(), image(0));
    let chat = &scenes()[0].chat;
    let question = chat[1]["question"].as_str().unwrap();
    let o = run(&["chat", "--model", &model, "--image", &image, question]);
    assert!(o.status.success(), "{o:?}");
    assert_eq!(text(&o.stdout), format!("{}\n", chat[1]["got"].as_str().unwrap()));
    let o = run(&["chat", "--model", &model, "--image", &image, "--json", "--no-guess", question]);
    let line = &lines(&o)[0];
    assert_eq!((&line["answer"], &line["tokens"]), (&chat[1]["got"], &chat[1]["got_ids"]));
    assert_eq!((&line["finish"], &line["guessed_tokens"]), (&"stop".into(), &0.into()));
    assert!(
        line["timings"]["first_token_ms"].as_f64().unwrap() > 0.0
            && line["tokens_per_second"].as_f64().unwrap() > 0.0
    );
    let o = run(&["chat", "--model", &model, "--image", &image, "--json", "--max-new-tokens", "3", question]);
    assert_eq!(
        (&lines(&o)[0]["finish"], lines(&o)[0]["tokens"].as_array().unwrap().len()),
        (&"length".into(), 3)
    );
}

#[test]
fn a_conversation_by_lines() {
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("a b.json");
    let questions: Vec<&str> =
        scenes()[0].chat.iter().map(|c| c["question"].as_str().unwrap().to_string().leak() as &str).collect();
    let script = format!(
        "{}\n\n{}\n/nothing\n/image {}\nWhere?\n/save {}\n/reset\n/image {}\n{}\n/quit\nnever asked\n",
        questions[0],
        questions[1],
        image(1),
        saved.display(),
        image(0),
        questions[1],
    );
    let o = piped(
        &["chat", "--model", &model(), "--image", &image(0), "--json", "--cache-tokens", "2048"],
        &script,
    );
    assert_eq!(o.status.code(), Some(1), "the unknown command fails: {o:?}");
    assert!(text(&o.stderr).contains("/nothing: expected /image"), "{o:?}");
    let answers: Vec<Value> = lines(&o).into_iter().filter(|l| l["error"].is_null()).collect();
    assert_eq!(answers.len(), 4, "{o:?}");
    assert_eq!(answers[0]["answer"], scenes()[0].chat[0]["got"]);
    assert!(
        answers[1]["cached_tokens"].as_u64() >= answers[0]["prompt_tokens"].as_u64(),
        "the first turn is kept"
    );
    assert_eq!(answers[2]["images"].as_array().unwrap().len(), 1);
    assert!(answers[2]["prompt_tokens"].as_u64() > answers[1]["prompt_tokens"].as_u64().map(|n| n + 64));
    assert_eq!(answers[3]["answer"], scenes()[0].chat[1]["got"], "nothing before /reset is remembered");
    let transcript: Value = serde_json::from_slice(&std::fs::read(saved).unwrap()).unwrap();
    let turns = transcript["turns"].as_array().unwrap();
    assert_eq!((turns.len(), turns[2]["images"].as_array().unwrap().len()), (3, 1));
    assert_eq!(turns[1]["answer"], answers[1]["answer"]);
}

/// A line that cannot be asked fails alone, in its own words.
#[test]
fn lines_that_are_no_questions() {
    let bad = b"\xff\xfe\n/image\n/save  \n<image>?\n/image /nowhere.png\nWhat?".to_vec();
    let o = piped(&["chat", "--model", &model(), "--json", "--cache-tokens", "1024"], bad);
    assert_eq!(o.status.code(), Some(1), "{o:?}");
    let found = lines(&o);
    let says = [
        "text in UTF-8",
        "/image: expected a file",
        "/save: expected a file",
        "no `<image>`",
        "/nowhere.png",
    ];
    for (line, says) in found.iter().zip(says) {
        assert!(line["error"].as_str().unwrap().contains(says), "{says}: {line}");
    }
    assert!(found.len() == 6 && found[5]["answer"].is_string(), "{o:?}");
    assert_eq!(text(&o.stderr).lines().count(), 5, "{o:?}");
}

#[test]
fn what_cannot_be_asked_is_said_in_a_line() {
    let (model, image) = (model(), image(0));
    let fails = |code, says: &str, args: &[&str]| {
        let o = run(&[&["chat", "--model", &model], args].concat());
        assert_eq!(o.status.code(), Some(code), "{args:?}: {o:?}");
        let stderr = text(&o.stderr);
        assert!(stderr.contains(says), "{args:?}: {stderr}");
        // clap adds where help is found.
        assert!(
            stderr.lines().count() == if stderr.contains("--help") { 3 } else { 1 },
            "{args:?}: {stderr}"
        );
    };
    fails(1, "/nowhere.png", &["--image", "/nowhere.png", "What?"]);
    fails(1, "2 times `<image>`", &["--image", &image, "--image", &image, "<image>?"]);
    fails(2, "top-p", &["--top-p", "1.5", "What?"]);
    fails(2, "temperature", &["--temperature", "NaN", "What?"]);
    fails(2, "temperature", &["--temperature", "-1", "What?"]);
    fails(2, "repetition penalty", &["--repetition-penalty", "0", "What?"]);
    fails(1, "nothing but spaces", &["--image", &image, " "]);
    fails(1, "--cache-tokens", &["--cache-tokens", "64", "--image", &image, "What?"]);
    fails(2, "cache", &["--cache-tokens", "0", "What?"]);
}

#[test]
fn places_by_text_and_by_mask() {
    let folder = tempfile::tempdir().unwrap();
    let (out, model, image) = (folder.path().display().to_string(), model(), image(0));
    let locate = |more: &[&str]| {
        let base = ["locate", "--model", &model, "--image", &image, "--out", &out, "--json"];
        run(&[&base, more].concat())
    };
    let o = locate(&[
        "--by",
        "text",
        "--question",
        "Where is the {}? Answer with a box.",
        "--expr",
        "white square",
    ]);
    assert!(o.status.success(), "{o:?}");
    let line = &lines(&o)[0];
    // [[43, 38, 281, 218]] of a picture of 173 x 160
    assert_eq!(line["answer"], scenes()[0].chat[1]["got"]);
    assert_eq!(line["boxes"], serde_json::json!([[7.44, 6.08, 41.17, 28.8]]));
    let drawn =
        mllmseg::image::read(line["overlay"].as_str().unwrap().as_ref(), &Default::default(), false).unwrap();
    assert_eq!((drawn.width, drawn.height), (173, 160));

    // The model has a mask decoder: by the mask. What is not there has no place.
    let o = locate(&["--expr", "white square", "--expr", "the small orange ring"]);
    assert!(o.status.success(), "{o:?}");
    let truth = scenes()[0].truth(0).bbox().unwrap();
    let found = lines(&o);
    let found_box: Vec<f64> =
        found[0]["boxes"][0].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    for (found, truth) in found_box.iter().zip(truth) {
        assert!((found - truth as f64).abs() < 5.0 && found.fract() == 0.0, "{found_box:?} {truth:?}");
    }
    assert_eq!((&found[1]["boxes"], &found[1]["by"]), (&serde_json::json!([]), &"mask".into()));

    // An answer that is no place is shown.
    let o = locate(&["--by", "text", "--question", "How many {}?", "--expr", "rings"]);
    assert_eq!(o.status.code(), Some(1), "{o:?}");
    let line = &lines(&o)[0];
    assert!(
        line["error"].as_str().unwrap().contains(&format!("{:?}", line["answer"].as_str().unwrap())),
        "{line}"
    );
}

/// Ctrl-C ends an answer that would never end; what was said until then stays, and a script sees it.
#[test]
fn an_interrupt_ends_the_answer() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mllmseg"))
        // what was said once is said again, for ever
        .args(["chat", "--model", &model(), "--repetition-penalty", "0.01", "--no-guess"])
        .args(["--cache-tokens", "1000000", "--max-new-tokens", "999000", "Talk."])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 8];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    // SAFETY: a signal to the child that was just started and not waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let o = child.wait_with_output().unwrap();
    assert_eq!(o.status.code(), Some(130), "{o:?}");
    assert!(o.stdout.ends_with(b"\n") && o.stderr.is_empty(), "{o:?}");
}
