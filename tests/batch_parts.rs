//! The parts of a batch that need no model: manifests, and the journal under damage.

use mllmseg::batch::journal::{JOURNAL, Output, PARTIAL, RESULTS, Run};
use mllmseg::batch::manifest::JsonLines;
use mllmseg::batch::{
    Ask, Batch, Compute, Counts, Disk, Failure, Item, Kind, Picture, Settings, Stats, Status, Worker,
    manifest, run_batch,
};
use mllmseg::{Error, Prompting, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

fn run(unordered: bool) -> Run {
    Run { source: "s".into(), model: "m".into(), options: "o".into(), unordered, shard: [0, 1] }
}

/// Results and journal cut or changed at any byte: what is whole stays, and the end is the same.
#[test]
fn any_damage_leaves_a_whole_beginning() {
    let disk = Disk::default();
    let records = |i: u64| format!("{{\"index\":{i},\"pad\":\"{}\"}}\n", "x".repeat(i as usize)).into_bytes();
    let fill = |dir: &Path| {
        let mut out = Output::open(&disk, dir, run(false), false).unwrap();
        for i in (0..6).filter(|&i| !out.has(i)).collect::<Vec<_>>() {
            out.append(i, Status::Done, &records(i)).unwrap();
        }
        out.finish(6).unwrap();
        assert!(out.complete() && out.counts().done == 6);
    };
    let whole = tempfile::tempdir().unwrap();
    fill(whole.path());
    let bytes = |dir: &Path, f: &str| std::fs::read(dir.join(f)).unwrap();
    let (data, journal) = (bytes(whole.path(), RESULTS), bytes(whole.path(), JOURNAL));
    let check = |data_now: &[u8], journal_now: &[u8], what: &str| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(PARTIAL), data_now).unwrap();
        std::fs::write(dir.path().join(JOURNAL), journal_now).unwrap();
        fill(dir.path());
        assert!(bytes(dir.path(), RESULTS) == data, "{what}");
        assert!(bytes(dir.path(), JOURNAL) == journal, "{what}");
        assert!(!dir.path().join(PARTIAL).exists(), "{what}");
    };
    let head = journal.iter().position(|&b| b == b'\n').unwrap() + 1;
    for cut in (head..=journal.len()).step_by(3) {
        check(&data, &journal[..cut], &format!("journal cut at {cut}"));
    }
    for at in (0..data.len()).step_by(3) {
        check(&data[..at], &journal, &format!("results cut at {at}"));
        let mut changed = data.clone();
        changed[at] ^= 1;
        check(&changed, &journal, &format!("results changed at {at}"));
    }
    for at in (head..journal.len()).step_by(3) {
        let mut changed = journal.clone();
        changed[at] ^= 1;
        check(&data, &changed, &format!("journal changed at {at}"));
    }
}

#[test]
fn transient_failures_are_replaced_in_their_places() {
    for order in [[0, 1, 2, 3], [2, 0, 3, 1]] {
        let (disk, dir) = (Disk::default(), tempfile::tempdir().unwrap());
        let (dir, transient) = (dir.path(), Status::Failed(Kind::Transient));
        let mut out = Output::open(&disk, dir, run(true), false).unwrap();
        for i in order {
            let status = if i % 2 == 1 { transient } else { Status::Done };
            out.append(i, status, format!("{i} first\n").as_bytes()).unwrap();
        }
        out.finish(4).unwrap();
        assert!(!out.complete());
        drop(out);
        let e = Output::open(&disk, dir, run(false), false).err().unwrap().to_string();
        assert!(e.contains("differs in its options") && e.contains("--restart"), "{e}");
        let mut out = Output::open(&disk, dir, run(true), false).unwrap();
        let lacks: Vec<u64> = (0..4).filter(|&i| out.snapshot().lacks(i)).collect();
        assert_eq!(lacks, [1, 3]);
        out.append(3, Status::Done, b"3 again\n").unwrap();
        drop(out); // ended in the middle
        let mut out = Output::open(&disk, dir, run(true), false).unwrap();
        assert!(out.has(3) && !out.has(1));
        out.append(1, Status::Failed(Kind::Permanent), b"1 again\n").unwrap();
        out.finish(4).unwrap();
        assert!(out.complete());
        assert_eq!(out.counts(), Counts { done: 3, permanent: 1, transient: 0 });
        let expected: String =
            order.map(|i| format!("{i} {}\n", if i % 2 == 1 { "again" } else { "first" })).concat();
        assert_eq!(std::fs::read_to_string(dir.join(RESULTS)).unwrap(), expected);
    }
}

#[test]
fn a_folder_is_one_process_and_one_run() {
    let (disk, dir) = (Disk::default(), tempfile::tempdir().unwrap());
    let out = Output::open(&disk, dir.path(), run(false), false).unwrap();
    let e = Output::open(&disk, dir.path(), run(false), false).err().unwrap().to_string();
    assert!(e.contains("another process"), "{e}");
    drop(out);
    let other = Run { model: "n".into(), ..run(false) };
    let e = Output::open(&disk, dir.path(), other.clone(), false).err().unwrap();
    assert!(e.exit_code() == 2 && e.to_string().contains("differs in its model"), "{e}");
    Output::open(&disk, dir.path(), other, true).unwrap();
}

fn items(text: &str) -> Vec<Item> {
    let lines = JsonLines::new(text.as_bytes(), "m.jsonl".as_ref(), "/data".into(), Arc::default());
    lines.map(Result::unwrap).collect()
}

#[test]
fn lines_become_items() {
    let found = items(
        "{\"id\":{\"a\":[1]},\"image\":\"x/y.png\",\"exprs\":[\"one\",\"two\"],\"split\":\"val\"}\n\n\
         {\"image_b64\":\"AAEC\",\"expr\":\"three\"}\r\n  \n{\"id\":7,\"image\":\"/z.png\",\"expr\":\"four\"}",
    );
    assert_eq!(found.iter().map(|i| i.index).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(found[0].id.to_string(), "{\"a\":[1]}");
    assert_eq!(found[0].texts, ["one", "two"]);
    let Picture::Path { name, path } = &found[0].picture else { panic!("{:?}", found[0]) };
    assert_eq!((name.as_str(), path.to_str().unwrap()), ("x/y.png", "/data/x/y.png"));
    let Picture::Bytes { bytes, .. } = &found[1].picture else { panic!("{:?}", found[1]) };
    assert_eq!((&bytes[..], found[1].id.is_null()), (&[0u8, 1, 2][..], true));
    let Picture::Path { path, .. } = &found[2].picture else { panic!("{:?}", found[2]) };
    assert_eq!(path.to_str().unwrap(), "/z.png");
    assert!(found.iter().all(|i| i.ask == Ask::Expressions));
    let found = items(
        "{\"image\":\"a\",\"question\":\"Who?\"}\n{\"image\":\"a\",\"questions\":[\"Who?\",\"Where?\"]}",
    );
    assert_eq!(found.iter().map(|i| i.texts.join(" ")).collect::<Vec<_>>(), ["Who?", "Who? Where?"]);
    assert!(found.iter().all(|i| i.ask == Ask::Questions));
}

/// What only a worker's lines may say.
#[test]
fn workers_lines_say_place_name_and_how() {
    let line =
        "{\"index\":9,\"name\":\"n\",\"image\":\"/a\",\"exprs\":[\"b\"],\"ask\":{\"as\":\"reasoning\"}}";
    let lines = || JsonLines::new(line.as_bytes(), "stdin".as_ref(), "".into(), Arc::default());
    let item = lines().numbered().next().unwrap().unwrap();
    assert_eq!((item.index, item.picture.name(), item.ask), (9, "n", Ask::As(Prompting::Reasoning)));
    let item = lines().next().unwrap().unwrap();
    assert_eq!((item.index, item.picture.name(), item.ask), (0, "/a", Ask::Expressions));
}

#[test]
fn a_bad_line_is_an_item_that_says_why() {
    let deep = format!("{{\"id\":{}1}}", "[".repeat(100_000));
    for (line, id, said) in [
        ("nonsense", "null", "m.jsonl:1: expected a JSON object"),
        (&deep, "null", "recursion limit"),
        ("\u{0}\u{1}", "null", "m.jsonl:1"),
        ("{\"id\":5,\"image\":\"a.png\"}", "5", "at least one expression"),
        ("{\"id\":5,\"image\":\"a.png\",\"exprs\":[]}", "5", "at least one expression"),
        ("{\"id\":5,\"image\":\"a.png\",\"exprs\":[\"a\"],\"expr\":\"b\"}", "5", "found 2"),
        ("{\"id\":5,\"image\":\"a.png\",\"questions\":[\"a\"],\"expr\":\"b\"}", "5", "found 2"),
        ("{\"id\":5,\"image\":\"a.png\",\"questions\":[]}", "5", "at least one expression or question"),
        ("{\"id\":5,\"expr\":\"b\"}", "5", "found neither"),
        ("{\"id\":5,\"image\":\"a\",\"image_b64\":\"AA==\",\"expr\":\"b\"}", "5", "found both"),
        ("{\"id\":5,\"image_b64\":\"*\",\"expr\":\"b\"}", "5", "base64"),
        ("{\"id\":5,\"image\":3,\"expr\":\"b\"}", "5", "string"),
        ("[7,null,null,null,\"a.png\",null,null,\"x\",null,null]", "null", "expected a JSON object"),
    ] {
        let found = items(&format!("{line}\n{{\"id\":6,\"image\":\"a.png\",\"expr\":\"b\"}}\n"));
        assert_eq!(found.len(), 2, "{line}");
        assert_eq!(found[0].id.to_string(), id);
        let Picture::Bad(Failure { message, .. }) = &found[0].picture else { panic!("{line}") };
        assert!(message.contains(said), "{message}");
        assert!(matches!(found[1].picture, Picture::Path { .. }) && found[1].index == 1);
    }
}

/// Six items, of which the fourth is poison, through workers that are shell scripts; the whole results, or why the run failed.
fn through(scripts: &[&str]) -> Result<String> {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("m.jsonl");
    let expr = |i| if i == 3 { "poison" } else { "fine" };
    let line = |i| format!("{{\"id\":{i},\"image\":\"a.png\",\"expr\":\"{}\"}}\n", expr(i));
    std::fs::write(&source, (0..6).map(line).collect::<String>()).unwrap();
    let timeout = Some(Duration::from_secs(2));
    let batch = Batch {
        model: "assets/demo/model",
        options: String::new(),
        shard: [0, 1],
        unordered: false,
        restart: false,
        settings: Settings { out: dir.path().join("out"), timeout, ..Settings::default() },
    };
    let worker = |(n, script): (usize, &&str)| Worker {
        device: format!("fake{n}"),
        command: ["sh", "-c", script].map(Into::into).to_vec(),
    };
    let workers = scripts.iter().enumerate().map(worker).collect();
    let input = manifest::open(source.to_str().unwrap(), &[])?;
    let (disk, stats, stop) = (Disk::default(), Stats::default(), AtomicBool::new(false));
    let end = run_batch(&batch, input, || Ok(Compute::Workers(workers)), (&disk, &stats, &stop))?;
    assert!(end.complete);
    Ok(std::fs::read_to_string(dir.path().join("out").join(RESULTS)).unwrap())
}

/// A worker that hangs is ended, and what it had is tried once more, alone. One item hangs every worker: it is reported, and no other.
#[test]
fn a_worker_that_hangs_is_ended() {
    let answers = |poison: &str| {
        let say = r#"s/.*"index":\([0-9]*\).*/{"index":\1}\n{"done":\1,"status":"done","device_s":0}/p"#;
        format!("echo '{{\"ready\":\"fake\"}}'; exec sed -u -n -e '{poison}' -e '{say}'")
    };
    let record = |i: usize| format!("{{\"index\":{i}}}");
    // It says nothing of the poison and takes it for done with; nor does it end before its input does.
    let (hangs, works) = (answers("/poison/d"), answers(""));
    for scripts in [&[&hangs[..], &hangs][..], &[&hangs]] {
        let found = through(scripts).unwrap();
        let lines: Vec<&str> = found.lines().collect();
        assert_eq!(lines.len(), 6, "{found}");
        for i in [0, 1, 2, 4, 5] {
            assert_eq!(lines[i], record(i));
        }
        assert!(lines[3].contains("no answer for 2 s") && lines[3].contains("\"transient\""), "{found}");
        assert!(lines[3].contains("found one that ended, 2 times"), "{found}");
    }
    // Another device makes it good; also where one never is ready, or does not end with its input.
    let never = "exec sleep 600";
    let stays = format!("{}; exec sleep 600", works.replace("exec ", ""));
    // One that is slow says that it works.
    let slow = works.replace("exec ", "for i in 1 2 3 4; do sleep 1; echo '{\"steps\":'$i'}'; done; exec ");
    for scripts in [&[&hangs[..], &works][..], &[never, &works], &[&stays], &[&slow]] {
        assert_eq!(
            through(scripts).unwrap().lines().collect::<Vec<_>>(),
            (0..6).map(record).collect::<Vec<_>>()
        );
    }
    let e = through(&[never]).err().unwrap();
    assert!(matches!(&e, Error::Device { found, .. } if found.contains("no answer for 2 s")), "{e}");
}
