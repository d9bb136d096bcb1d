//! `mllmseg batch`: what goes in comes out, in order, once, whatever happens on the way.

mod common;

use common::chat::edited;
use common::demo::{assets, engine, model, picture, run, scenes};
use mllmseg::batch::{
    Batch, Compute, Disk, Fault, Models, Outcome, Record, RunEnd, Settings, Stats, manifest, run_batch,
};
use mllmseg::image::Rle;
use mllmseg::{Error, Options, Prompting};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// A manifest of `n` items of the demo's scenes, one expression each (every fifth has two), ids of every kind.
fn write_manifest(dir: &Path, n: usize) -> PathBuf {
    let scenes = scenes();
    let line = |i: usize| {
        let scene = &scenes[i % scenes.len()];
        let image = assets().join(&scene.image).display().to_string();
        let texts = scene.texts();
        let id = [json!(i), json!(format!("item {i}")), json!({"n": [i, null]}), Value::Null][i % 4].clone();
        match i % 5 {
            0 => json!({"id": id, "image": image, "exprs": [texts[0], texts[1 % texts.len()]]}),
            _ => json!({"id": id, "image": image, "expr": texts[i % texts.len()]}),
        }
        .to_string()
    };
    let path = dir.join("manifest.jsonl");
    std::fs::write(&path, (0..n).map(|i| line(i) + "\n").collect::<String>()).unwrap();
    path
}

fn command(manifest: &Path, out: &Path, more: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_mllmseg"));
    c.arg("batch").arg(manifest).args(["--model", &model(), "--out"]).arg(out).args(more);
    c
}

fn batch(manifest: &Path, out: &Path, more: &[&str]) -> Output {
    command(manifest, out, more).output().unwrap()
}

#[track_caller]
fn exits(o: &Output, code: i32) {
    let stderr = String::from_utf8_lossy(&o.stderr);
    assert_eq!(o.status.code(), Some(code), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

fn records(out: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(out.join("results.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every file below a folder, by relative name.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().display().to_string();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[track_caller]
fn same_files(found: &Path, expected: &Path) {
    let (found, expected) = (files(found), files(expected));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in &expected {
        assert!(found[name] == *bytes, "{name} differs");
    }
}

#[test]
fn records_are_what_segment_says_in_the_manifests_order() {
    let dir = tempfile::tempdir().unwrap();
    let scenes: Vec<_> = scenes().into_iter().take(10).collect();
    let mut lines = String::new();
    for (i, scene) in scenes.iter().enumerate() {
        // Beside the manifest, in base64, absolute.
        let mut line = json!({"id": format!("s{i}"), "exprs": scene.texts()});
        let source = assets().join(&scene.image);
        match i % 3 {
            0 => {
                let name = format!("pictures/{i}.img");
                std::fs::create_dir_all(dir.path().join("pictures")).unwrap();
                std::fs::copy(source, dir.path().join(&name)).unwrap();
                line["image"] = name.into();
            }
            1 => {
                use base64::Engine as _;
                let bytes = std::fs::read(source).unwrap();
                line["image_b64"] = base64::engine::general_purpose::STANDARD.encode(bytes).into();
            }
            _ => line["image"] = source.display().to_string().into(),
        }
        lines += &format!("{line}\n");
    }
    let manifest = dir.path().join("m.jsonl");
    std::fs::write(&manifest, lines).unwrap();
    let out = dir.path().join("out");
    let o = batch(&manifest, &out, &["--masks", "png", "--report", "--json"]);
    exits(&o, 0);
    let numbers: Value = serde_json::from_slice(&o.stdout).unwrap();
    assert_eq!((numbers["items"].as_u64(), numbers["complete"].as_bool()), (Some(10), Some(true)));
    assert_eq!(numbers["recorded"], json!({"done": 10, "permanent": 0, "transient": 0}));
    let mut found = records(&out).into_iter();
    let mut engine = engine();
    for (i, scene) in scenes.iter().enumerate() {
        let answers =
            engine.segment(&picture(&scene.image), &scene.texts(), Prompting::Single, false).unwrap();
        for (k, (text, answer)) in scene.texts().iter().zip(answers.answers).enumerate() {
            let (r, answer) = (found.next().unwrap(), answer.unwrap());
            assert_eq!((r.index, r.id, r.expr.as_deref()), (i as u64, json!(format!("s{i}")), Some(*text)));
            let Outcome::Mask(m) = r.outcome else { panic!("{i} {k}") };
            assert_eq!(m.no_target, answer.no_target);
            let mask = m.segmentation.rle().unwrap().decode().unwrap();
            if answer.no_target {
                assert!(mask.area() == 0 && m.score == 0.0 && m.area == 0 && m.bbox == [0; 4]);
            } else {
                assert!(mask == answer.mask && m.score == answer.score, "{i} {k}");
                assert_eq!(m.segmentation.rle().unwrap(), Rle::encode(&mask).unwrap());
                assert_eq!((m.area, m.bbox), (mask.area() as u64, mask.bbox().unwrap_or_default()));
            }
            let file = out.join(m.mask.unwrap());
            let png = mllmseg::image::Mask::from_png(&std::fs::read(file).unwrap(), "mask").unwrap();
            assert!(png == mask, "{i} {k}");
        }
        assert!(out.join(format!("overlays/00000/{i:08}.png")).is_file());
    }
    assert!(found.next().is_none());
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.matches("<figure ").count() == 10 && page.contains("#i9") && page.contains("s9"), "{page}");
    // Again: nothing is left to do, and nothing changes.
    let before = files(&out);
    exits(&batch(&manifest, &out, &["--masks", "png", "--overlays"]), 0);
    assert!(files(&out) == before);
    // Other options are another run.
    let o = batch(&manifest, &out, &[]);
    exits(&o, 2);
    assert!(String::from_utf8_lossy(&o.stderr).contains("differs in its options"));
}

#[test]
fn a_folder_and_a_glob_are_sources() {
    let dir = tempfile::tempdir().unwrap();
    let glob = assets().join("images/00?.*").display().to_string();
    let ask = ["--expr", "the white square", "--expr", "a red cat", "--unordered"];
    exits(&batch(Path::new(&glob), &dir.path().join("glob"), &ask), 0);
    let pictures = dir.path().join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    for r in records(&dir.path().join("glob")).iter().step_by(2) {
        let name = Path::new(&r.image).file_name().unwrap();
        std::fs::copy(&r.image, pictures.join(name)).unwrap();
    }
    std::fs::write(pictures.join("notes.txt"), "no picture").unwrap();
    exits(&batch(&pictures, &dir.path().join("folder"), &ask), 0);
    let key = |r: Record| {
        let Outcome::Mask(m) = r.outcome else { panic!("{r:?}") };
        (r.index, r.expr, m.segmentation.counts)
    };
    let sorted = |out: &str| {
        let mut keys: Vec<_> = records(&dir.path().join(out)).into_iter().map(key).collect();
        keys.sort();
        keys
    };
    assert_eq!(sorted("glob").len(), 2 * std::fs::read_dir(&pictures).unwrap().count() - 2);
    assert_eq!(sorted("glob"), sorted("folder"));
    let o = batch(&pictures, &dir.path().join("none"), &[]);
    exits(&o, 2);
    assert!(String::from_utf8_lossy(&o.stderr).contains("--expr"));
}

/// What is wrong with one item is in its lines; the others are as if it were not there.
#[test]
fn failures_stay_with_their_items() {
    let dir = tempfile::tempdir().unwrap();
    let good = write_manifest(dir.path(), 12);
    let lines = std::fs::read_to_string(&good).unwrap();
    std::fs::write(
        dir.path().join("torn.png"),
        &std::fs::read(assets().join("images/000.png")).unwrap()[..500],
    )
    .unwrap();
    std::fs::create_dir(dir.path().join("folder.png")).unwrap();
    let image = assets().join("images/000.png").display().to_string();
    let bad = [
        ("{\"id\":\"torn\",\"image\":\"torn.png\",\"expr\":\"a\"}".to_string(), "torn.png"),
        ("{\"id\":\"gone\",\"image\":\"gone.png\",\"exprs\":[\"a\",\"b\"]}".into(), "gone.png"),
        ("{\"id\":\"dir\",\"image\":\"folder.png\",\"expr\":\"a\"}".into(), "folder.png"),
        ("{\"id\":\"empty\",\"image_b64\":\"\",\"expr\":\"a\"}".into(), "an empty file"),
        (
            format!("{{\"id\":\"dots\",\"image\":\"{image}\",\"exprs\":[\"white square\",\" . \"]}}"),
            "nothing but",
        ),
        ("not json".into(), "expected a JSON object"),
    ];
    let mut mixed = String::new();
    for (i, line) in lines.lines().enumerate() {
        mixed += &format!("{line}\n");
        if let Some((bad, _)) = bad.get(i) {
            mixed += &format!("{bad}\n");
        }
    }
    let manifest = dir.path().join("mixed.jsonl");
    std::fs::write(&manifest, mixed).unwrap();
    let (out, clean) = (dir.path().join("out"), dir.path().join("clean"));
    exits(&batch(&manifest, &out, &[]), 3);
    exits(&batch(&good, &clean, &[]), 0);
    // Lines without their place in the manifest.
    let text = |r: &Record| serde_json::to_string(&Record { index: 0, ..r.clone() }).unwrap();
    let clean: Vec<String> = records(&clean).iter().map(text).collect();
    let mut rest: Vec<Record> = records(&out);
    let mut failed = Vec::new();
    rest.retain(|r| {
        let is_bad = r.index < 12 && r.index % 2 == 1;
        if is_bad {
            failed.push(r.clone());
        }
        !is_bad
    });
    assert_eq!(rest.iter().map(text).collect::<Vec<_>>(), clean);
    for (i, (_, said)) in bad.iter().enumerate() {
        let of: Vec<&Record> = failed.iter().filter(|r| r.index == 2 * i as u64 + 1).collect();
        let errors: Vec<_> = of
            .iter()
            .filter_map(|r| match &r.outcome {
                Outcome::Failed { error } => Some(error),
                _ => None,
            })
            .collect();
        assert!(errors.iter().all(|e| e.message.contains(said)), "{of:?}");
        assert_eq!(
            (of.len(), errors.len()),
            if i == 1 {
                (2, 2)
            } else if i == 4 {
                (2, 1)
            } else {
                (1, 1)
            },
            "{of:?}"
        );
    }
    // All permanent: the next run has nothing to do, and says the same.
    exits(&batch(&manifest, &out, &[]), 3);
    // A dry run finds the same items.
    let o = batch(&manifest, &dir.path().join("dry"), &["--dry-run", "--json"]);
    exits(&o, 3);
    let found: Value = serde_json::from_slice(&o.stdout).unwrap();
    assert_eq!((found["items"].as_u64(), found["failing"].as_u64()), (Some(18), Some(5)), "{found}");
    assert!(found["device_bytes"].as_array().unwrap().len() == 4 && !dir.path().join("dry").exists());
}

#[test]
fn shards_join_to_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_manifest(dir.path(), 11);
    let (out, whole, merged) = (dir.path().join("out"), dir.path().join("whole"), dir.path().join("merged"));
    exits(&batch(&manifest, &whole, &["--masks", "png"]), 0);
    let merge = || {
        let mut args = vec!["merge".to_string(), "--out".into(), merged.display().to_string()];
        let mut shards: Vec<_> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().path()).collect();
        shards.sort();
        args.extend(shards.iter().rev().map(|p| p.display().to_string()));
        run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    for i in 0..3 {
        let o = command(&manifest, &out, &["--masks", "png", "--shard", "auto"])
            .env("SLURM_ARRAY_TASK_ID", i.to_string())
            .env("SLURM_ARRAY_TASK_COUNT", "3")
            .output()
            .unwrap();
        exits(&o, 0);
        let o = merge();
        if i < 2 {
            exits(&o, 2);
            assert!(String::from_utf8_lossy(&o.stderr).contains("none of shard"), "{o:?}");
        } else {
            exits(&o, 0);
        }
    }
    same_files(&merged, &whole);
    // A record that was changed is found.
    let results = out.join("shard-00001-of-00003/results.jsonl");
    let text = std::fs::read_to_string(&results).unwrap();
    std::fs::write(&results, text.replacen("\"area\":", "\"area\":1", 1)).unwrap();
    let o = merge();
    exits(&o, 1);
    assert!(String::from_utf8_lossy(&o.stderr).contains("shard-00001-of-00003"), "{o:?}");
}

/// Kills a run again and again at moments that spread over its length, then lets it end: the files are those of one that was left alone.
fn killed(kills: usize, items: usize, more: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_manifest(dir.path(), items);
    let (out, expected) = (dir.path().join("out"), dir.path().join("expected"));
    let start = Instant::now();
    exits(&batch(&manifest, &expected, more), 0);
    let mut whole = start.elapsed();
    let mut random = 12345u64;
    let (mut died, mut tried) = (0, 0);
    while died < kills {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // Long enough to get somewhere, short enough that many kills fall into the run's length.
        let share = (random >> 40) as f64 / (1u64 << 24) as f64;
        let moment = whole.mul_f64(0.02 + share * (4.0 / kills as f64).clamp(0.05, 0.5));
        let mut child =
            command(&manifest, &out, more).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(moment);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        tried += 1;
        assert!(status.signal() == Some(9) || status.code() == Some(0), "run {tried}: {status}");
        died += usize::from(status.signal() == Some(9));
        if tried > 2 * died {
            // Too many ended by themselves: the machine may have been busy when the first run was timed.
            whole = whole.mul_f64(0.9);
        }
        let finished = out.join("results.jsonl").exists();
        if finished && tried % 2 == 0 {
            std::fs::remove_dir_all(&out).unwrap();
        }
    }
    exits(&batch(&manifest, &out, more), 0);
    same_files(&out, &expected);
    println!("{died} of {tried} runs were killed");
}

#[test]
fn killed_at_any_moment_it_ends_with_the_same_bytes() {
    killed(10, 60, &["--masks", "png", "--overlays"]);
}

#[test]
#[ignore = "minutes: 200 kills"]
fn killed_200_times_it_ends_with_the_same_bytes() {
    killed(200, 200, &["--masks", "png", "--overlays"]);
    killed(50, 100, &["--device", "cpu,cpu", "--masks", "png"]);
}

fn wait(mut child: Child) -> Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(300), "hangs");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn stopped_it_finishes_what_is_in_flight_and_continues() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_manifest(dir.path(), 300);
    let out = dir.path().join("out");
    let child = command(&manifest, &out, &[]).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    let journal = out.join("journal");
    while std::fs::read_to_string(&journal).unwrap_or_default().lines().count() < 10 {
        assert!(start.elapsed() < Duration::from_secs(300), "nothing is done");
        std::thread::sleep(Duration::from_millis(5));
    }
    // SAFETY: a signal to a child that was not waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let o = wait(child);
    exits(&o, 1);
    assert!(String::from_utf8_lossy(&o.stderr).contains("run the same again"), "{o:?}");
    let items = std::fs::read_to_string(&journal).unwrap().lines().count() - 1;
    assert!((9..300).contains(&items), "{items} items");
    let o = batch(&manifest, &out, &["--json"]);
    exits(&o, 0);
    let numbers: Value = serde_json::from_slice(&o.stdout).unwrap();
    assert_eq!(numbers["items"].as_u64(), Some(300 - items as u64), "{numbers}");
    let found = records(&out);
    assert_eq!(found.len(), 360);
    assert!(found.iter().map(|r| r.index).is_sorted());
}

/// A run in this process on a disk of its own.
fn on_disk(manifest: &Path, out: &Path, disk: &Disk) -> mllmseg::Result<RunEnd> {
    let settings = Settings { out: out.into(), masks: true, overlays: true, ..Settings::default() };
    let model = model();
    let batch = Batch {
        model: &model,
        options: String::new(),
        shard: [0, 1],
        unordered: false,
        restart: false,
        settings,
    };
    let input = manifest::open(&manifest.display().to_string(), &[])?;
    let compute = || Ok(Compute::Here(Box::new(Models::open(&model, Options::default(), 8192)?)));
    run_batch(&batch, input, compute, (disk, &Stats::default(), &AtomicBool::new(false)))
}

/// Every change on disk fails once, and everything after it: a clean end, and the next run completes.
#[test]
fn a_disk_that_fails_at_any_write_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_manifest(dir.path(), 2);
    let expected = dir.path().join("expected");
    assert!(on_disk(&manifest, &expected, &Disk::default()).unwrap().complete);
    for n in 0.. {
        let fault = [Fault::Full, Fault::Io, Fault::Short][n as usize % 3];
        let out = dir.path().join(format!("out{n}"));
        let disk = Disk::failing(fault, n);
        match on_disk(&manifest, &out, &disk) {
            // Threads that make the same folder at once take a step more, so how many there are is known at the end only.
            Ok(end) => {
                assert!(end.complete && disk.steps() <= n && n > 20, "step {n} of {}: {end:?}", disk.steps());
                break;
            }
            Err(Error::Io { source, .. }) => {
                assert!(
                    [libc::ENOSPC, libc::EIO].contains(&source.raw_os_error().unwrap()),
                    "step {n}: {source}"
                );
            }
            Err(e) => panic!("step {n}: {e}"),
        }
        let end = on_disk(&manifest, &out, &Disk::default()).unwrap();
        assert!(end.complete && end.counts.done == 2, "step {n}: {end:?}");
        same_files(&out, &expected);
    }
}

/// One write fails and the disk recovers: the item says so, the rest goes on, and the next run makes it good.
#[test]
fn a_write_that_fails_once_is_made_good() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_manifest(dir.path(), 4);
    let (out, expected) = (dir.path().join("out"), dir.path().join("expected"));
    assert!(on_disk(&manifest, &expected, &Disk::default()).unwrap().complete);
    // A file where the masks' folder should be.
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(out.join("masks"), "in the way").unwrap();
    let end = on_disk(&manifest, &out, &Disk::default()).unwrap();
    assert!(end.complete && end.counts.transient + end.counts.permanent == 4, "{end:?}");
    assert!(
        records(&out)
            .iter()
            .all(|r| matches!(&r.outcome, Outcome::Failed { error } if error.message.contains("masks")))
    );
    std::fs::remove_file(out.join("masks")).unwrap();
    let end = on_disk(&manifest, &out, &Disk::default()).unwrap();
    assert!(end.complete && end.counts.done == 4, "{end:?}");
    same_files(&out, &expected);
}

/// A run goes on with the checkpoint that it began with: another one of the same name is refused.
#[test]
fn a_checkpoint_that_changed_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let (manifest, out) = (write_manifest(dir.path(), 2), dir.path().join("out").display().to_string());
    let model = edited(&assets().join("model"), &dir.path().join("model"), |_| ());
    let again = || run(&["batch", &manifest.display().to_string(), "--model", &model, "--out", &out]);
    exits(&again(), 0);
    exits(&again(), 0);
    let config = dir.path().join("model/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text} ")).unwrap();
    let o = again();
    exits(&o, 2);
    assert!(String::from_utf8_lossy(&o.stderr).contains("differs in its model"), "{o:?}");
}

/// A folder keeps what it holds unless it is this run's: other files, other runs; and says in what a run differs.
#[test]
fn a_folder_keeps_what_is_not_this_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (manifest, out) = (write_manifest(dir.path(), 60), dir.path().join("out"));
    exits(&batch(&manifest, &out, &["--report"]), 0);
    let says = |o: &Output, code: i32, text: &str| {
        exits(o, code);
        let stderr = String::from_utf8_lossy(&o.stderr);
        assert!(stderr.contains(text), "{text}: {stderr}");
    };
    says(
        &batch(&manifest, &out, &["--report", "--exif"]),
        2,
        "differs in its options (exif false, not exif true)",
    );
    // One letter in the middle, and the same length.
    let lines = std::fs::read_to_string(&manifest).unwrap();
    let middle = lines[..lines.len() / 2].rfind("item ").unwrap();
    std::fs::write(&manifest, format!("{}itex {}", &lines[..middle], &lines[middle + 5..])).unwrap();
    says(&batch(&manifest, &out, &["--report"]), 2, "differs in its source (manifest.jsonl");
    std::fs::write(&manifest, &lines).unwrap();
    // What a byte that changed makes doubtful is done again, and it is said.
    let results = out.join("results.jsonl");
    let expected = std::fs::read(&results).unwrap();
    let mut damaged = expected.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&results, &damaged).unwrap();
    says(&batch(&manifest, &out, &["--report"]), 0, "lines of the journal did not fit the results");
    assert!(std::fs::read(&results).unwrap() == expected && out.join("report.html").exists());
    exits(&batch(&manifest, &out, &["--restart"]), 0);
    assert!(!out.join("report.html").exists());

    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("journal"), "dear diary").unwrap();
    says(&batch(&manifest, &foreign, &[]), 2, "no file `journal` but a run's");
    assert_eq!(std::fs::read(foreign.join("journal")).unwrap(), b"dear diary");
    // A first line that was not written to its end is a run's.
    std::fs::write(foreign.join("journal"), "mllmseg-bat").unwrap();
    exits(&batch(&manifest, &foreign, &[]), 0);
    for [option, file] in [
        ["--coco", &manifest.display().to_string()],
        ["--parquet", &results.display().to_string()],
        ["--coco", &out.join("masks/a").display().to_string()],
    ] {
        says(&batch(&manifest, &out, &[option, file]), 2, "a file of its own");
    }
    let both = dir.path().join("both").display().to_string();
    says(&batch(&manifest, &out, &["--coco", &both, "--parquet", &both]), 2, "a file of its own");
    assert!(std::fs::read_to_string(&manifest).unwrap() == lines);
}

/// A picture that was missing is looked for again by the next run.
#[test]
fn what_was_missing_may_come() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = dir.path().join("manifest.jsonl");
    std::fs::write(&manifest, json!({"image": "later.png", "expr": "ring"}).to_string()).unwrap();
    let out = dir.path().join("out");
    exits(&batch(&manifest, &out, &[]), 3);
    std::fs::copy(assets().join(&scenes()[0].image), dir.path().join("later.png")).unwrap();
    exits(&batch(&manifest, &out, &[]), 0);
    assert!(matches!(records(&out)[..], [Record { outcome: Outcome::Mask(_), .. }]));
}

/// What is no manifest is not read as one; what an editor puts before one is no part of it.
#[test]
fn manifests_are_text() {
    let dir = tempfile::tempdir().unwrap();
    let (manifest, out) = (write_manifest(dir.path(), 2), dir.path().join("out"));
    let lines = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, format!("\u{feff}{lines}")).unwrap();
    exits(&batch(&manifest, &out, &[]), 0);
    for (bytes, says) in
        [(&[0x1f, 0x8b, 8, 0][..], "compressed"), (&[9, 0, 0, 0, 0, 0, 0, 0, b'{'], "a binary one")]
    {
        std::fs::write(&manifest, bytes).unwrap();
        let o = batch(&manifest, &dir.path().join("none"), &[]);
        exits(&o, 2);
        assert!(String::from_utf8_lossy(&o.stderr).contains(says), "{o:?}");
    }
    let o = batch(Path::new("/dev/null"), &dir.path().join("none"), &[]);
    exits(&o, 2);
    assert!(String::from_utf8_lossy(&o.stderr).contains("a pipe or a device"), "{o:?}");
}

/// A named pipe that nobody writes to does not hold up the others.
#[test]
fn a_pipe_is_no_picture() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_manifest(dir.path(), 2);
    let pipe = dir.path().join("pipe.png");
    let name = std::ffi::CString::new(pipe.display().to_string()).unwrap();
    // SAFETY: a string that ends with 0.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let lines = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, format!("{}\n{lines}", json!({"image": pipe, "expr": "a"}))).unwrap();
    for (out, device) in [("one", "cpu"), ("two", "cpu,cpu")] {
        let out = dir.path().join(out);
        exits(
            &wait(command(&manifest, &out, &["--device", device]).stderr(Stdio::piped()).spawn().unwrap()),
            3,
        );
        let found = records(&out);
        let Outcome::Failed { error } = &found[0].outcome else { panic!("{:?}", found[0]) };
        assert!(error.message.contains("found a pipe"), "{error:?}");
        assert!(found[1..].iter().all(|r| !matches!(r.outcome, Outcome::Failed { .. })));
    }
}

/// A worker that is killed while items go to it ends neither the run nor an item.
#[test]
fn a_worker_that_is_killed_takes_nothing_with_it() {
    use base64::Engine as _;
    let dir = tempfile::tempdir().unwrap();
    // Long lines: the run is writing one when the worker is gone.
    let picture = std::fs::read(assets().join(&scenes()[0].image)).unwrap();
    let picture = base64::engine::general_purpose::STANDARD.encode(picture);
    let line = json!({"image_b64": picture, "expr": scenes()[0].texts()[0]}).to_string() + "\n";
    let manifest = dir.path().join("manifest.jsonl");
    std::fs::write(&manifest, line.repeat(200)).unwrap();
    let out = dir.path().join("out");
    let child = command(&manifest, &out, &["--device", "cpu,cpu"]).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    let mut killed = false;
    while !killed {
        assert!(start.elapsed() < Duration::from_secs(300), "no worker");
        std::thread::sleep(Duration::from_millis(5));
        if std::fs::read_to_string(out.join("journal")).unwrap_or_default().lines().count() > 10 {
            // Those of the threads that started them.
            let threads = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
            let children = threads.flat_map(|t| std::fs::read_to_string(t.unwrap().path().join("children")));
            let children: String = children.collect();
            let worker = children.split_whitespace().next().map(|pid| pid.parse::<i32>().unwrap());
            // SAFETY: a signal to a child of a child that was not waited for.
            killed = worker.is_some_and(|pid| unsafe { libc::kill(pid, libc::SIGKILL) } == 0);
        }
    }
    let o = wait(child);
    exits(&o, 0);
    assert!(String::from_utf8_lossy(&o.stderr).contains("are tried again"), "{o:?}");
    assert_eq!(records(&out).len(), 200);
}

#[test]
fn workers_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_manifest(dir.path(), 30);
    let lines = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, format!("{lines}nonsense\n{{\"image\":\"gone.png\",\"expr\":\"a\"}}\n"))
        .unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    exits(&batch(&manifest, &one, &["--masks", "png"]), 3);
    exits(&batch(&manifest, &two, &["--masks", "png", "--device", "cpu,cpu"]), 3);
    same_files(&two, &one);
}

/// A fault ends a worker, not the run: its items are tried once more, alone, and those with which it ends again are reported. On a device
/// that works the next run makes them good.
#[test]
fn a_fault_ends_its_worker_only() {
    let _driver = common::gpu::driver();
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_manifest(dir.path(), 12);
    let (out, expected) = (dir.path().join("out"), dir.path().join("expected"));
    let sim = |out: &Path, fail: &str| {
        command(&manifest, out, &["--device", "sim", "--no-graph"])
            .envs([("PTXSIM_CHECKS", "none"), ("PTXSIM_FAIL", fail)])
            .output()
            .unwrap()
    };
    exits(&sim(&expected, ""), 0);
    // Each process' context breaks in its second run, with what the first left of the 12 pictures, 4 or more: of those, tried alone, every
    // second one fails again.
    exits(&sim(&out, FAULT), 3);
    let found = records(&out);
    assert!(found.iter().map(|r| r.index).is_sorted());
    assert_eq!(found.len(), 15);
    let failed: Vec<_> = found
        .iter()
        .filter_map(|r| match &r.outcome {
            Outcome::Failed { error } => Some(error),
            _ => None,
        })
        .collect();
    assert!((1..14).contains(&failed.len()), "{} of 15 failed", failed.len());
    for error in failed {
        assert!(error.message.contains("sim") && error.message.contains("2 times"), "{error:?}");
        assert_eq!(error.kind, mllmseg::batch::Kind::Transient);
    }
    exits(&sim(&out, ""), 0);
    let results = |dir: &Path| std::fs::read_to_string(dir.join("results.jsonl")).unwrap();
    assert!(results(&out) == results(&expected));
    // A device on which nothing can be done ends the run, and a device that cannot be opened is given up.
    let o = sim(&dir.path().join("broken"), "cuLaunchKernel:60=CUDA_ERROR_LAUNCH_FAILED");
    exits(&o, 1);
    assert!(String::from_utf8_lossy(&o.stderr).contains("device sim"), "{o:?}");
    let o = batch(&manifest, &dir.path().join("one"), &["--device", "cpu,cuda:77"]);
    exits(&o, 0);
    assert!(String::from_utf8_lossy(&o.stderr).contains("cuda:77"), "{o:?}");
    exits(&batch(&manifest, &dir.path().join("none"), &["--device", "cuda:77"]), 1);
}

/// The launch at which a worker's context breaks: in the middle of its second run, each having about 145.
const FAULT: &str = "cuLaunchKernel:215=CUDA_ERROR_LAUNCH_FAILED";
