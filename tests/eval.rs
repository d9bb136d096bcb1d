//! The published data sets: files that are hostile, files as published, and metrics beside those of a plain Python computation
//! (`tests/data/eval/expected.json`, made by tools/data/eval_vectors.py; `tests/data/pickle`, by pickle_vectors.py).

use mllmseg::batch::Ask;
use mllmseg::eval::dataset::Form;
use mllmseg::eval::pickle::Pickle;
use mllmseg::eval::{Name, Place, Protocol, Split, score};
use mllmseg::image::{Limits, read};
use mllmseg::text::Sequence;
use mllmseg::{Engine, Error, Options, Prompting, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn parse(bytes: &[u8]) -> Result<Pickle> {
    Pickle::parse("test.p".as_ref(), bytes)
}

/// The whole pickle as JSON.
fn value(bytes: &[u8]) -> Result<Value> {
    parse(bytes)?.read("test.p".as_ref())
}

fn refused(bytes: &[u8], parts: &[&str]) {
    let error =
        parse(bytes).map(|_| ()).expect_err(&format!("{:?}", bytes.escape_ascii().to_string())).to_string();
    assert!(error.starts_with("test.p: expected a pickle of plain data: "), "{error}");
    for part in parts {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn pickles_of_all_protocols_say_the_same() {
    let expected: Value = serde_json::from_slice(&std::fs::read(data("pickle/value.json")).unwrap()).unwrap();
    for (python, protocols) in [(3, 0..6), (2, 0..3)] {
        for protocol in protocols {
            let bytes = std::fs::read(data(&format!("pickle/python{python}_{protocol}.p"))).unwrap();
            assert_eq!(value(&bytes).unwrap(), expected, "python {python}, protocol {protocol}");
            // Cut anywhere, it is refused; and nothing breaks.
            for end in (0..bytes.len()).step_by(13).chain([bytes.len() - 1]) {
                refused(&bytes[..end], &["at byte"]);
            }
        }
    }
}

#[test]
fn a_pickle_that_would_run_something_is_refused() {
    refused(b"cos\nsystem\n(S'true'\ntR.", &["GLOBAL at byte 0", "nothing is imported or called"]);
    refused(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", &["STACK_GLOBAL at byte 14"]);
    refused(b"(S'a'\ntR.", &["REDUCE at byte 7"]);
    refused(b"]}b.", &["BUILD at byte 2"]);
    refused(b"(S'true'\nios\nsystem\n.", &["INST at byte 9"]);
    refused(b"(]o.", &["OBJ at byte 2"]);
    for (op, name) in
        [(0x81, "NEWOBJ"), (0x92, "NEWOBJ_EX"), (0x82, "EXT1"), (b'P', "PERSID"), (b'Q', "BINPERSID")]
    {
        refused(&[b')', b')', op, 1, b'.'], &[&format!("{name} at byte 2")]);
    }
    refused(&[0x97, b'.'], &["NEXT_BUFFER at byte 0"]);
    refused(&[0xFF], &["0xff, which no protocol has, at byte 0"]);
}

#[test]
fn a_pickle_that_nests_repeats_or_lies_is_refused() {
    let deep = 100_000;
    let nested = [vec![b']'; deep], vec![b'a'; deep - 1], vec![b'.']].concat();
    refused(&nested, &["at most 64 deep", &format!("APPEND at byte {}", deep + 63)]);
    refused(
        &[vec![b'('; deep], vec![b't'; deep], vec![b'.']].concat(),
        &["at most 64 marks", "MARK at byte 64"],
    );
    refused(&[vec![b')'], vec![0x85; deep], vec![b'.']].concat(), &["at most 64 deep", "TUPLE1 at byte 64"]);
    // Each list holds the one before twice: a million million strings in 200 bytes.
    let mut bomb = b"(S'x'\nlq\x00".to_vec();
    for level in 0..40u8 {
        bomb.extend([b']', b'h', level, b'a', b'h', level, b'a', b'q', level + 1]);
    }
    bomb.push(b'.');
    let error = value(&bomb).expect_err("a bomb").to_string();
    assert!(error.contains("hold themselves, or that repeat"), "{error}");
    // A list that holds itself.
    let error = value(b"]q\x00h\x00a.").expect_err("a cycle").to_string();
    assert!(error.contains("hold themselves, or that repeat"), "{error}");
    // Lengths that are not there.
    refused(b"X\xff\xff\xff\x7fabc.", &["BINUNICODE at byte 0", "does not end inside it"]);
    refused(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.", &["BINUNICODE8 at byte 0"]);
    refused(b"\x80\x04\x95\xff\xff\xff\x7f\x00\x00\x00\x00N.", &["a frame that fits"]);
    refused(b"T\xff\xff\xff\xffa.", &["BINSTRING at byte 0"]);
    refused(b"\x80\x06N.", &["protocol 0 to 5, not 6"]);
    // Nothing where something must be.
    for (bytes, op) in [
        (&b"."[..], "STOP"),
        (b"a.", "APPEND"),
        (b"]a.", "APPEND"),
        (b"s.", "SETITEM"),
        (b"}NNNu.", "SETITEMS"),
        (b"e.", "APPENDS"),
        (b"t.", "TUPLE"),
        (b"0.", "POP"),
        (b"1.", "POP_MARK"),
        (b"2.", "DUP"),
        (b"N\x86.", "TUPLE2"),
        (b"h\x07.", "BINGET"),
        (b"g1\n.", "GET"),
        (b"q\x00.", "BINPUT"),
        (b"\x94.", "MEMOIZE"),
        (b"NNa.", "APPEND"),
        (b"}(Nu.", "SETITEMS"),
        (b"(Nd.", "DICT"),
        (b"N(.", "STOP"),
        (b"p-1\n.", "PUT"),
    ] {
        refused(bytes, &[&format!("opcode {op} at byte")]);
    }
    for bytes in [
        &b"Ix\n."[..],
        b"L99999999999999999999L\n.",
        b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00.",
        b"F1.2.3\n.",
    ] {
        refused(bytes, &["at byte 0"]);
    }
    for text in [
        &b"S'a\n."[..],
        b"Sa'\n.",
        b"S'\\q'\n.",
        b"S'\\x4'\n.",
        b"S'\\777'\n.",
        b"V\\ud800\n.",
        b"V\\u12\n.",
        b"\x8c\x01\xff.",
    ] {
        refused(text, &["at byte 0"]);
    }
}

#[test]
fn odd_but_sound_pickles_are_read() {
    for (bytes, expected) in [
        (&b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\x7f\x00."[..], json!(i64::MAX)),
        (b"\x8a\x00.", json!(0)),
        (b"I01\n.", json!(true)),
        (b"S'\\101\\x41\\7'\n.", json!("AA\u{7}")),
        (b"S\"it's\"\r\n.", json!("it's")),
        (b"U\x03\xc3\xa4!.", json!("ä!")), // UTF-8
        (b"U\x02\xe4!.", json!("ä!")),     // Latin-1
        (b"V\\ud83d\\ude00\\\\u0041\xe4\n.", json!("😀\\\\u0041ä")),
        (b"NN0.junk after it", json!(null)),
        (b"(1N.", json!(null)),
        (b"N2\x86.", json!([null, null])),
        (b"(S'a'\nI1\nS'b'\nI2\nd.", json!({"a": 1, "b": 2})),
    ] {
        assert_eq!(value(bytes).unwrap_or_else(|e| panic!("{e}")), expected);
    }
}

fn place(root: PathBuf, name: Name, split_by: &str) -> Place {
    Place { root, images: Some("images".into()), name, split_by: split_by.into() }
}

fn split(name: Name, split_by: &str, split: &str) -> Split {
    place(data("eval"), name, split_by).read(&[split.into()]).unwrap_or_else(|e| panic!("{e}")).remove(0)
}

fn same(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Number(a), Value::Number(b)) => (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-13,
        _ => found == expected,
    }
}

#[test]
fn metrics_are_those_of_a_plain_computation_with_pycocotools() {
    let expected: Vec<Value> =
        serde_json::from_slice(&std::fs::read(data("eval/expected.json")).unwrap()).unwrap();
    assert_eq!(expected.len(), 27);
    for row in &expected {
        let text = |key: &str| row[key].as_str().expect("a string");
        let (by, part) = (text("split_by"), text("split"));
        let split = split(text("dataset").parse().unwrap(), by, part);
        let protocol: Protocol = serde_json::from_value(row["protocol"].clone()).unwrap();
        let results = data(&format!("eval/results/{}_{by}_{part}.jsonl", text("dataset")));
        let mut samples = 0;
        let scored = score(&split, &results, |_| {
            samples += 1;
            Ok(())
        });
        let scored = scored.unwrap_or_else(|e| panic!("{e}"));
        assert!(scored.failed.is_empty(), "{:?}", scored.failed);
        let found = serde_json::to_value(scored.metrics(&split, protocol)).unwrap();
        assert_eq!(found["expressions"], samples);
        for (key, expected) in row["metrics"].as_object().unwrap() {
            assert!(same(&found[key], expected), "{row:#}\n{key}: found {}", found[key]);
        }
    }
}

#[test]
fn published_files_are_read_as_their_interfaces_read_them() {
    // `testA` takes what is in `testAB`; of the five splits that are there, `val` has two scenes in six.
    let names = |s: &Split| s.pictures.iter().map(|p| p.name()).collect::<Vec<_>>();
    assert_eq!(names(&split(Name::RefCoco, "unc", "testA")), ["001.png", "005.jpg", "007.png"]);
    assert_eq!(
        names(&split(Name::RefCoco, "unc", "test")),
        ["001.png", "002.jpg", "005.jpg", "007.png", "008.jpg"]
    );
    let val = split(Name::RefCocoPlus, "unc", "val");
    assert_eq!(val.pictures[0].queries[0].text, "café olé"); // a Python 2 string in Latin-1
    assert_eq!(val.pictures[0].path, Path::new("images/009.png"));
    assert_eq!(val.pictures[0].size, Some([425, 432]));
    assert!(val.pictures[0].queries.iter().all(|q| q.truth.bbox.is_some()));
    let grefs = split(Name::GRefCoco, "unc", "val");
    let Ask::Published(rejected) = &grefs.asks(Protocol::Upstream).unwrap()[0] else { panic!("joint") };
    let texts: Vec<_> =
        grefs.pictures[0].queries.iter().map(|q| (q.text.as_str(), q.truth.bbox.is_some())).collect();
    assert_eq!(texts, [("all blue shapes", false), ("black star", true), ("the blue star", true)]);
    assert_eq!(rejected, &[false; 3]);
    assert_eq!(grefs.asks(Protocol::Deploy).unwrap()[0], Ask::As(Prompting::Single));
    let forced = split(Name::GRefCoco, "unc", "testA").asks(Protocol::Upstream).unwrap();
    assert_eq!(forced[0], Ask::Published(vec![true])); // a purple square that is not there
    // Nothing is forced where everything has a target.
    assert!(
        val.asks(Protocol::Upstream)
            .unwrap()
            .iter()
            .all(|a| matches!(a, Ask::Published(r) if !r.contains(&true)))
    );
}

#[test]
fn data_sets_that_are_not_as_published_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let fails = |name: Name, by: &str, split: &str| -> Error {
        let found = place(root.into(), name, by).read(&[split.into()]);
        found.map(|_| ()).expect_err("nothing to read")
    };
    let write = |name: &str, text: &[u8]| {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    assert!(fails(Name::GRefCoco, "unc", "val").to_string().contains("the folder grefcoco"));
    std::fs::create_dir_all(root.join("refer_seg/grefcoco")).unwrap();
    assert!(matches!(fails(Name::GRefCoco, "unc", "val"), Error::Io { .. }));
    let refs = |ann: &str| {
        format!(
            r#"[{{"ref_id":1,"ann_id":{ann},"image_id":7,"split":"val","sentences":[{{"sent_id":1,"sent":"x"}}]}}]"#
        )
    };
    write("refer_seg/grefcoco/grefs(unc).json", refs("[5]").as_bytes());
    let one = r#"{"images":[{"id":7,"file_name":"a.png","height":4,"width":5}],"annotations":[{"id":5,"image_id":7,"bbox":[0,0,1,1],"segmentation":SEG}]}"#;
    let instances =
        |from: &str, to: &str| write("refer_seg/grefcoco/instances.json", one.replace(from, to).as_bytes());
    let polygon = "[[0,0,4,0,4,3]]";
    for (from, to, said) in [
        ("SEG", "[[0,0,4,0,\"x\"]]", "`annotations[0].segmentation`"),
        ("\"height\":4", "\"height\":-4", "`images[0].height`"),
        ("\"annotations\"", "\"other\"", "missing field `annotations`"),
        ("{\"id\":5", "{\"id\":6", "annotation 5 of ref 1, found none"),
        ("{\"id\":7", "{\"id\":8", "image 7 of ref 1, found none"),
        ("\"image_id\":7", "\"image_id\":9", "as ref 1 has it, found image 9"),
    ] {
        instances(from, to);
        let text = std::fs::read_to_string(root.join("refer_seg/grefcoco/instances.json")).unwrap();
        write("refer_seg/grefcoco/instances.json", text.replace("SEG", polygon).as_bytes());
        let error = fails(Name::GRefCoco, "unc", "val").to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
    instances("SEG", polygon);
    assert!(fails(Name::GRefCoco, "unc", "testC").to_string().contains("`testC`, of which there is nothing"));
    // Masks that cannot be are found when they are looked at, and concern their expression.
    for segmentation in [
        "[[0,0,1,1]]",
        r#"{"size":[4,5],"counts":[3]}"#,
        r#"{"size":[4,5],"counts":""}"#,
        r#"{"size":[5,4],"counts":[20]}"#,
        r#"[{"size":[4,5],"counts":"T"}]"#,
        "[[0,0,1e300,0,1,1]]",
    ] {
        instances("SEG", segmentation);
        let split = place(root.into(), Name::GRefCoco, "unc").read(&["val".into()]).unwrap().remove(0);
        let error = split.asks(Protocol::Upstream).expect_err(segmentation).to_string();
        assert!(error.contains("expected"), "{error}");
        let record = json!({"index": 0, "id": 0, "image": "a.png", "expr": "x", "score": 1.0, "no_target": false, "area": 0,
            "bbox": [0, 0, 0, 0], "segmentation": {"size": [4, 5], "counts": "d0"}});
        write("results.jsonl", format!("{record}\n").as_bytes());
        let scored = score(&split, &root.join("results.jsonl"), |_| Ok(())).unwrap();
        assert_eq!((scored.failed.len(), scored.answers[0].len()), (1, 0), "{segmentation}");
    }
    // Results of something else.
    instances("SEG", polygon);
    let split = place(root.into(), Name::GRefCoco, "unc").read(&["val".into()]).unwrap().remove(0);
    for (line, said) in [
        ("", "expected 1 records of a.png, found 0"),
        ("nonsense\n", "line 1"),
        (
            r#"{"index":3,"id":0,"image":"a","expr":"x","error":{"kind":"permanent","message":"m"}}"#,
            "picture 3",
        ),
        (
            r#"{"index":0,"id":0,"image":"a","expr":"y","error":{"kind":"permanent","message":"m"}}"#,
            "\"y\" as number 0",
        ),
    ] {
        write("results.jsonl", line.as_bytes());
        let error = score(&split, &root.join("results.jsonl"), |_| Ok(())).expect_err(said).to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
    write("refer_seg/refcoco/refs(unc).p", b"cos\nsystem\n(S'true'\ntR.");
    assert!(fails(Name::RefCoco, "unc", "val").to_string().contains("opcode GLOBAL at byte 0"));
    write("refer_seg/refcoco/refs(unc).p", b"(lp0\n(dp1\nS'ref_id'\np2\nS'one'\nsa.");
    assert!(fails(Name::RefCoco, "unc", "val").to_string().contains("`[0].ref_id`"));
}

#[test]
fn reason_seg_is_read_and_what_is_ignored_is_not_judged() {
    let folder = tempfile::tempdir().unwrap();
    let val = folder.path().join("reason_seg/ReasonSeg/val");
    std::fs::create_dir_all(&val).unwrap();
    let square = |label: &str, from: f64, to: f64| json!({"label": label, "points": [[from, from], [to, from], [to, to], [from, to]], "shape_type": "polygon"});
    let shapes = json!([square("ignore", 2.0, 5.0), square("target", 0.0, 9.9), square("flag", 0.0, 1.0)]);
    let mut file = serde_json::to_vec(
        &json!({"text": ["what ’barks’? ", "other"], "is_sentence": true, "shapes": shapes}),
    )
    .unwrap();
    std::fs::write(val.join("b.json"), &file).unwrap();
    // As Windows writes it.
    let quote = "’".as_bytes();
    while let Some(at) = file.windows(3).position(|w| w == quote) {
        file.splice(at..at + 3, [0x92]);
    }
    std::fs::write(val.join("a.json"), &file).unwrap();
    for name in ["a.jpg", "b.jpg", "b.png"] {
        std::fs::write(val.join(name), b"a picture").unwrap();
    }
    let place =
        Place { root: folder.path().into(), images: None, name: Name::ReasonSeg, split_by: String::new() };
    let split = place.read(&["val".into()]).unwrap().remove(0);
    assert_eq!(split.pictures.iter().map(|p| p.name()).collect::<Vec<_>>(), ["a.jpg", "b.jpg"]);
    for p in &split.pictures {
        assert_eq!((p.queries[0].text.as_str(), p.queries[0].form), ("what ’barks’?", Form::Sentence));
        let pixels = p.queries[0].truth.pixels([20, 30]).unwrap();
        // The ten columns and rows up to 9 without the four from 2 to 5.
        assert_eq!(pixels.target.area(), 100 - 16);
        assert_eq!(pixels.ignored.unwrap().area(), 16);
    }
    assert_eq!(
        split.asks(Protocol::Upstream).unwrap(),
        [Ask::As(Prompting::Reasoning), Ask::As(Prompting::Reasoning)]
    );
    // Twenty rows of the first ten columns: half right, and what is ignored is not wrong.
    let mask = mllmseg::image::Rle { size: [20, 30], counts: vec![0, 200, 400] };
    let lines: String = ["a.jpg", "b.jpg"].iter().zip(0..).map(|(name, index)| {
        let counts = mask.to_compressed();
        json!({"index": index, "id": index, "image": name, "expr": "what ’barks’?", "score": 1.0, "no_target": false, "area": 200,
            "bbox": mask.bbox(), "segmentation": {"size": mask.size, "counts": counts}}).to_string() + "\n"
    }).collect();
    let results = folder.path().join("results.jsonl");
    std::fs::write(&results, lines).unwrap();
    let metrics = score(&split, &results, |_| Ok(())).unwrap().metrics(&split, Protocol::Deploy);
    assert_eq!(
        (metrics.ciou, metrics.giou, metrics.rec, metrics.n_acc),
        (Some(84.0 / 184.0), Some(84.0 / 184.0), None, None)
    );
    std::fs::remove_file(val.join("b.json")).unwrap();
    assert!(matches!(place.read(&["val".into()]), Err(Error::Io { .. })));
}

fn demo() -> Engine {
    Engine::open("assets/demo/model", Options::default()).expect("the demo's checkpoint")
}

#[test]
fn the_published_prompt_holds_the_ground_truth_where_it_is_decided() {
    let mut engine = demo();
    let texts = ["the white circle", "a red cat", "all white shapes"];
    let (rej, seg) = (engine.tokenizer().special().rej.unwrap(), engine.tokenizer().special().seg.unwrap());
    let prompts = engine.prompts().unwrap();
    let joint = prompts.joint(&texts).unwrap();
    assert_eq!(prompts.published(&texts, &[]).unwrap(), joint);
    let forced = prompts.published(&texts, &[false, true, false]).unwrap();
    assert_eq!(forced.slots, joint.slots);
    let tokens = |s: &Sequence| s.slots.iter().map(|&p| s.ids[p]).collect::<Vec<_>>();
    assert_eq!((tokens(&joint), tokens(&forced)), (vec![seg; 3], vec![seg, rej, seg]));
    assert_eq!(forced.ids.iter().zip(&joint.ids).filter(|(a, b)| a != b).count(), 1);
    // Nothing is left of the second: the published code leaves a slot for it.
    assert_eq!(prompts.published(&["x", " . ", "y"], &[]).unwrap().slots.len(), 3);
    assert!(prompts.published(&[], &[]).is_err());

    let picture = read("assets/demo/images/010.png".as_ref(), &Limits::default(), false).unwrap();
    let usual = engine.segment(&picture, &texts, Prompting::Joint, false).unwrap().answers;
    let prepare = |engine: &Engine, rejected: &[bool]| {
        engine.preprocessor().prepare_published(&picture, &texts, rejected).unwrap()
    };
    for rejected in [[false, true, false], [true, true, true], [false; 3]] {
        // Two at once, of which one is forced and one is not.
        let mut prepared = [prepare(&engine, &rejected), prepare(&engine, &[])];
        let found = engine.segment_batch(&mut prepared, false).unwrap();
        for (answers, forced) in found.into_iter().map(|f| f.answers).zip([&rejected[..], &[]]) {
            assert_eq!(answers.len(), 3);
            for (i, (answer, usual)) in answers.into_iter().zip(&usual).enumerate() {
                let (answer, usual) = (answer.unwrap(), usual.as_ref().unwrap());
                // Masks are read behind [SEG] in every slot, whatever was forced.
                assert_eq!(answer.mask, usual.mask, "{i}");
                // A slot sees those before it, not itself.
                if !forced[..i.min(forced.len())].contains(&true) {
                    assert_eq!(answer.no_target, usual.no_target, "{i}");
                }
            }
        }
    }
}

#[test]
fn eval_answers_counts_and_continues() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("eval");
    let eval_in = |out: &Path, extra: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mllmseg"));
        command
            .args(["eval", "--model", "assets/demo/model", "--data"])
            .arg(data("eval"))
            .arg("--out")
            .arg(out);
        if !extra.contains(&"--images") {
            command.args(["--images", "assets/demo/images"]);
        }
        command.args(extra);
        let output = command.output().expect("the command starts");
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let eval = |extra: &[&str]| eval_in(&out, extra);
    let asked = ["--dataset", "grefcoco", "--split", "testA,testB", "--protocol", "upstream,deploy,rela"];
    let (code, table, errors) = eval(&asked);
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(table.lines().count(), 7, "{table}");
    let file: Value = serde_json::from_slice(&std::fs::read(out.join("eval.json")).unwrap()).unwrap();
    let figures = file["figures"].as_array().unwrap();
    for (row, text) in figures.iter().zip(table.lines().skip(1)) {
        let part = row["split"].as_str().unwrap();
        let protocol: Protocol = serde_json::from_value(row["protocol"].clone()).unwrap();
        let split = split(Name::GRefCoco, "unc", part);
        let how = if protocol == Protocol::Upstream { "joint" } else { "single" };
        let results = out.join(format!("grefcoco_unc_{part}_{how}/results.jsonl"));
        let scored = score(&split, &results, |_| Ok(())).unwrap();
        let expected = serde_json::to_value(scored.metrics(&split, protocol)).unwrap();
        assert!(
            same(&row["metrics"]["giou"], &expected["giou"])
                && same(&row["metrics"]["ciou"], &expected["ciou"])
        );
        // The demo model knows what is there; outlines are rough.
        assert!(row["metrics"]["giou"].as_f64().unwrap() > 0.5, "{row:#}");
        let cell = format!("{:.2}", 100.0 * row["metrics"]["giou"].as_f64().unwrap());
        assert!(text.starts_with(&format!("grefcoco {part}")) && text.contains(&cell), "{text}");
        let samples = std::fs::read_to_string(results.with_file_name("samples.jsonl")).unwrap();
        assert_eq!(samples.lines().count() as u64, row["metrics"]["expressions"].as_u64().unwrap());
    }
    assert_eq!(figures.len(), 6);
    // Again: nothing is asked, the figures are the same. Half an answer at the end is forgotten and asked again.
    let results = out.join("grefcoco_unc_testA_single/results.jsonl");
    let whole = std::fs::read(&results).unwrap();
    let modified = results.metadata().unwrap().modified().unwrap();
    assert_eq!(eval(&asked).1, table);
    assert_eq!(results.metadata().unwrap().modified().unwrap(), modified);
    std::fs::write(&results, &whole[..whole.len() - 20]).unwrap();
    assert_eq!(eval(&asked).1, table);
    assert_eq!(std::fs::read(&results).unwrap(), whole);
    // The same from a process for each of several devices.
    let elsewhere = folder.path().join("workers");
    let (code, workers, errors) = eval_in(&elsewhere, &[&asked[..], &["--device", "cpu,cpu"]].concat());
    assert_eq!((code, workers), (Some(0), table), "{errors}");
    for how in ["single", "joint"] {
        let file = format!("grefcoco_unc_testA_{how}/results.jsonl");
        assert!(std::fs::read(elsewhere.join(&file)).unwrap() == std::fs::read(out.join(&file)).unwrap());
    }
    // A picture that is not there: its expressions are in no figure.
    let (code, table, errors) = eval(&["--dataset", "refcoco+", "--split", "val", "--images", "nowhere"]);
    assert_eq!(code, Some(3), "{errors}");
    assert!(
        table.contains("(7 failed)") && errors.contains("7 expressions have no answer"),
        "{table}{errors}"
    );
    let (code, _, errors) = eval(&["--dataset", "refcoco", "--protocol", "rela"]);
    assert!(code == Some(2) && errors.contains("expected grefcoco only, found refcoco"), "{errors}");
}
