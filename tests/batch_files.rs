//! Batches from tar shards and Parquet files (`tests/data/parquet`, made by tools/data/parquet_vectors.py), and results as an instances file of COCO's
//! and as Parquet. What pycocotools and pyarrow make of the latter is checked by tools/check_eval.py.

use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::RowAccessor;
use flate2::write::GzEncoder;
use mllmseg::Error;
use mllmseg::batch::item::{Item, Picture, Record};
use mllmseg::batch::{coco, manifest, parquet, tar};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// What an item is, in a line: its place, id, picture (length of its bytes, a path, or what is wrong), and expressions.
fn line(item: &Item) -> String {
    let picture = match &item.picture {
        Picture::Bytes { name, bytes } => format!("{} with {} bytes", tail(name), bytes.len()),
        Picture::Path { name, path } => format!("{name} at {}", tail(&path.to_string_lossy())),
        Picture::Bad(failure) => format!("bad: {}", tail(&failure.message)),
    };
    format!("{} {} | {picture} | {}", item.index, item.id, item.texts.join("; "))
}

/// Without the folders of this machine.
fn tail(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn parquet_items(files: &[&str], exprs: &[&str]) -> (Vec<String>, u64) {
    let position = Arc::new(AtomicU64::new(0));
    let exprs: Vec<String> = exprs.iter().map(|e| e.to_string()).collect();
    let paths = files.iter().map(|f| data(&format!("parquet/{f}"))).collect();
    let items = parquet::read(paths, &exprs, Arc::clone(&position));
    let lines = items.map(|item| item.map_or_else(|e| format!("end: {e}"), |item| line(&item))).collect();
    (lines, position.load(Ordering::Relaxed))
}

#[test]
fn parquet_files_of_the_hub_become_items() {
    let files = ["hub.parquet", "plain.parquet", "sentences.parquet"];
    let (items, position) = parquet_items(&files, &[]);
    assert_eq!(
        items,
        [
            "0 10 | 0.png with 77 bytes | the left one; näher",
            "1 11 | 1.png with 77 bytes | the left one",
            "2 12 | bad: 2.png: expected at least one expression or question, found none | ",
            "3 13 | 3.png at 3.png | x",
            "4 14 | bad: hub.parquet#4: expected a picture's bytes or path, found neither | y",
            "5 \"a\" | plain.parquet#0 with 77 bytes | one",
            "6 \"b\" | bad: plain.parquet#1: expected at least one expression or question, found none | ",
            "7 null | sentences.parquet#0 with 77 bytes | the dog; It",
        ]
    );
    let paths: Vec<PathBuf> = files.iter().map(|f| data(&format!("parquet/{f}"))).collect();
    assert_eq!((position, parquet::rows(&paths).unwrap()), (8, 8));
    let (items, _) = parquet_items(&["plain.parquet"], &["a", "b"]);
    assert_eq!(items[1], "1 \"b\" | plain.parquet#1 with 77 bytes | a; b");
    let (items, _) = parquet_items(&["other.parquet"], &["a"]);
    assert!(items[0].contains("expected a column `image`, found columns a"), "{items:?}");
}

#[test]
fn a_damaged_parquet_file_ends_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(data("parquet/hub.parquet")).unwrap();
    let path = folder.path().join("damaged.parquet");
    let (mut errors, mut read) = (0, 0);
    for at in (4..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x41;
        std::fs::write(&path, bytes).unwrap();
        // Pictures are not checked here: a changed pixel is no damage. What matters is that it ends, and in an error if at all.
        match parquet::read(vec![path.clone()], &[], Arc::default()).last() {
            // A column of another name is not damage that can be told from another file.
            Some(Err(e)) => {
                assert!(
                    matches!(e, Error::Usage { .. })
                        && e.to_string().contains("damaged.parquet: expected a column"),
                    "{e}"
                );
            }
            Some(Ok(Item { picture: Picture::Bad(f), .. }))
                if f.message.contains("damaged.parquet: expected") =>
            {
                errors += 1;
            }
            _ => read += 1,
        }
    }
    assert!(errors > 20 && read > 20, "{errors} errors, {read} read");
    std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    assert_eq!(parquet::rows(&[path]).unwrap(), 1, "one item, which says so");
}

/// A tar file of these members.
fn shard(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn tar_items(paths: Vec<PathBuf>, exprs: &[String]) -> Vec<String> {
    let items = tar::read(paths, exprs, Arc::default());
    items.map(|item| item.map_or_else(|e| format!("end: {e}"), |item| line(&item))).collect()
}

#[test]
fn shards_are_named_in_braces() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["8", "9", "10"] {
        let members: [(&str, &[u8]); 2] = [(&format!("{name}.png"), b"1"), (&format!("{name}.txt"), b"x")];
        std::fs::write(folder.path().join(format!("a-{name}.tar")), shard(&members)).unwrap();
    }
    let open = |name: &str| manifest::open(&folder.path().join(name).display().to_string(), &[]);
    let ids = |name: &str| -> Vec<Value> { open(name).unwrap().items.map(|item| item.unwrap().id).collect() };
    // In the order of the names, not sorted as a glob's files are.
    assert_eq!(ids("a-{8..10}.tar"), ["8", "9", "10"]);
    assert_eq!(ids("a-{10,8}.tar"), ["10", "8"]);
    assert_eq!(ids("a-{8,1}*.tar"), ["8", "10"]);
    let e = open("{a,b}-*.tar").err().unwrap().to_string();
    assert!(e.contains("none for ") && e.contains("b-*.tar"), "{e}");
    let missing = open("a-{8..11}.tar").err().unwrap().to_string();
    assert!(missing.contains("a-11.tar"), "{missing}");
    let many = open("a-{0..99999999}.tar").err().unwrap().to_string();
    assert!(many.contains("at most 1048576 names"), "{many}");
    // A file that is really called so.
    std::fs::copy(folder.path().join("a-9.tar"), folder.path().join("a-{8,9}.tar")).unwrap();
    assert_eq!(ids("a-{8,9}.tar"), ["9"]);
}

#[test]
fn tar_shards_become_items() {
    let folder = tempfile::tempdir().unwrap();
    let long = "a".repeat(150);
    let first = shard(&[
        ("0/a.json", br#"{"id": {"n": 7}, "exprs": ["one", "two"], "other": 1}"#),
        ("0/a.jpg", b"12345"),
        ("0/a.txt", b"not asked"),
        ("0/b.PNG", b"123"),
        ("0/b.txt", b"three\r\n\n  four  \n"),
        ("1/b.png", b"1234"), // another folder, another sample
        ("1/b.cls", b"dog\n"),
        ("c.cls", b"17"),
        ("c.png", b"1"),
        ("d.json", br#"{"captions": ["five", 6, "seven"]}"#),
        ("e.json", b"{nonsense"),
        ("e.png", b"1"),
        (&format!("{long}.png"), b"12"),
        (&format!("{long}.json"), br#"{"caption": "long"}"#),
        ("README", b"no sample"),
    ]);
    let second = shard(&[("z.png", b"1"), ("z.jpg", b"2"), ("z.txt", b"x")]);
    let zipped = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    };
    let paths = ["0.tar", "1.tar.gz"].map(|name| folder.path().join(name));
    std::fs::write(&paths[0], &first).unwrap();
    std::fs::write(&paths[1], zipped(&second)).unwrap();
    let position = Arc::new(AtomicU64::new(0));
    assert_eq!(tar::read(paths.to_vec(), &[], Arc::clone(&position)).count(), 8);
    let bytes: u64 = paths.iter().map(|p| p.metadata().unwrap().len()).sum();
    assert!(position.load(Ordering::Relaxed) > bytes / 2 && position.load(Ordering::Relaxed) <= bytes);
    assert_eq!(
        tar_items(paths.to_vec(), &[]),
        [
            "0 {\"n\":7} | a with 5 bytes | one; two".to_string(),
            "1 \"0/b\" | b with 3 bytes | three; four".into(),
            "2 \"1/b\" | b with 4 bytes | dog".into(),
            "3 \"c\" | bad: 0.tar#c: expected at least one expression or question, found none | ".into(),
            "4 \"d\" | bad: 0.tar#d: expected a picture (jpg, jpeg, png, webp, bmp, tif, tiff, gif), found none | five; seven".into(),
            "5 \"e\" | bad: 0.tar#e: expected JSON, found key must be a string at line 1 column 2 | ".into(),
            format!("6 \"{long}\" | 0.tar#{long} with 2 bytes | long"),
            "7 \"z\" | bad: 1.tar.gz#z: expected one member of a kind, found another `jpg` | x".into(),
        ]
    );
    let asked = tar_items(vec![paths[0].clone()], &["q".to_string()]);
    assert_eq!(asked[0], "0 {\"n\":7} | a with 5 bytes | q");
    // Cut short, it ends with an item that says so after what is whole, and the next one is read.
    std::fs::write(&paths[0], &first[..3000]).unwrap();
    let cut = tar_items(paths.to_vec(), &[]);
    let broken = cut.iter().position(|l| l.contains("bad: 0.tar: expected a tar file")).unwrap();
    assert!(broken == 0 && cut.last().unwrap().contains("1.tar.gz#z"), "{cut:?}");
    std::fs::write(&paths[0], b"no tar file at all, whatever it may be ".repeat(40)).unwrap();
    assert!(tar_items(vec![paths[0].clone()], &[])[0].contains("0.tar: expected a tar file"));
}

/// Two pictures, an empty mask, an item that failed.
fn results(folder: &Path) -> (PathBuf, Vec<Value>) {
    let mask = |index: u64, expr: &str, counts: &str, bbox: [u64; 4], area: u64| {
        json!({"index": index, "id": {"n": index}, "image": format!("{index}.png"), "expr": expr, "area": area, "bbox": bbox,
            "score": 0.75, "no_target": area == 0, "segmentation": {"size": [2, 3], "counts": counts}})
    };
    let failed = json!({"index": 1, "id": "x", "image": "1.png", "expr": "e", "error": {"kind": "permanent", "message": "corrupt"}});
    let records = vec![
        mask(0, "the left \"one\"", "0220", [0, 0, 3, 2], 4),
        mask(0, "näher", "6", [0; 4], 0),
        failed,
        mask(2, "two", "111000", [0, 1, 3, 1], 3),
    ];
    let path = folder.join("results.jsonl");
    std::fs::write(&path, records.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
    (path, records)
}

#[test]
fn results_become_an_instances_file() {
    let folder = tempfile::tempdir().unwrap();
    let (results, records) = results(folder.path());
    let path = folder.path().join("coco.json");
    coco::write(&results, &path).unwrap();
    let file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(
        file["images"],
        json!([{"id": 1, "file_name": "0.png", "height": 2, "width": 3}, {"id": 2, "file_name": "2.png", "height": 2, "width": 3}])
    );
    let annotation = |id: u64, image: u64, record: &Value, item: &str| {
        json!({"id": id, "image_id": image, "category_id": 1, "iscrowd": 0, "segmentation": record["segmentation"],
            "bbox": record["bbox"], "area": record["area"], "score": 0.75,
            "attributes": {"expression": record["expr"], "item": item}})
    };
    let expected = [annotation(1, 1, &records[0], "{\"n\":0}"), annotation(2, 2, &records[3], "{\"n\":2}")];
    assert_eq!(file["annotations"], json!(expected));
    assert_eq!(file["categories"], json!([{"id": 1, "name": "target", "supercategory": ""}]));
    std::fs::write(&results, "nonsense\n").unwrap();
    let error = coco::write(&results, &path).expect_err("no records").to_string();
    assert!(error.contains("line 1"), "{error}");
    // What was there before is there still, and nothing else.
    assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap(), file);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn results_become_a_parquet_file() {
    let folder = tempfile::tempdir().unwrap();
    let (results, records) = results(folder.path());
    // More than one row group.
    let many: String = (0..1500).flat_map(|_| &records).map(|r| format!("{r}\n")).collect();
    std::fs::write(&results, many).unwrap();
    let path = folder.path().join("results.parquet");
    parquet::write(&results, &path).unwrap();
    let reader = SerializedFileReader::new(std::fs::File::open(&path).unwrap()).unwrap();
    assert_eq!(reader.metadata().file_metadata().num_rows(), 6000);
    assert_eq!(reader.num_row_groups(), 2);
    let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    for (row, record) in rows.iter().zip(records.iter().cycle()) {
        let parsed: Record = serde_json::from_value(record.clone()).unwrap();
        assert_eq!(row.get_long(0).unwrap() as u64, parsed.index);
        assert_eq!(serde_json::from_str::<Value>(row.get_string(1).unwrap()).unwrap(), record["id"]);
        assert_eq!(row.get_string(3).unwrap(), parsed.expr.as_ref().unwrap());
        if record["error"].is_null() {
            let numbers = [4, 5, 7, 8, 9, 10].map(|i| row.get_int(i).unwrap());
            let bbox = &record["bbox"];
            assert_eq!(json!(numbers), json!([2, 3, bbox[0], bbox[1], bbox[2], bbox[3]]));
            assert_eq!(row.get_string(6).unwrap(), record["segmentation"]["counts"].as_str().unwrap());
            assert_eq!(row.get_long(11).unwrap() as u64, record["area"]);
            assert_eq!((row.get_float(12).unwrap(), row.get_bool(13).unwrap()), (0.75, record["area"] == 0));
            assert!(row.get_string(14).is_err());
        } else {
            assert!(row.get_int(4).is_err() && row.get_bool(13).is_err());
            assert_eq!(
                (row.get_string(14).unwrap().as_str(), row.get_string(15).unwrap().as_str()),
                ("corrupt", "permanent")
            );
        }
    }
}

#[test]
fn a_batch_reads_and_makes_such_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let picture = std::fs::read("assets/demo/images/000.png").unwrap();
    let texts: &[u8] = b"the white square\na large ring\n";
    std::fs::write(path("a-0.tar"), shard(&[("0.png", &picture), ("0.txt", texts)])).unwrap();
    std::fs::write(path("a-1.tar"), shard(&[("1.png", &picture), ("1.txt", texts), ("2.txt", texts)]))
        .unwrap();
    let batch = |source: PathBuf, out: &str| {
        let status = Command::new(env!("CARGO_BIN_EXE_mllmseg"))
            .args(["batch", "--model", "assets/demo/model", "--out"])
            .arg(path(out))
            .arg(source)
            .arg("--coco")
            .arg(path("coco.json"))
            .arg("--parquet")
            .arg(path("results.parquet"))
            .status();
        status.expect("the command starts").code()
    };
    assert_eq!(batch(path("a-*.tar"), "of_tar"), Some(3)); // 2 has no picture
    let records = std::fs::read_to_string(path("of_tar/results.jsonl")).unwrap();
    let records: Vec<Value> = records.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let ids: Vec<_> = records.iter().map(|r| r["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["0", "0", "1", "1", "2", "2"]);
    assert_eq!(records[0]["segmentation"], records[2]["segmentation"]);
    assert!(records[4]["error"]["message"].as_str().unwrap().contains("a-1.tar#2: expected a picture"));
    let coco: Value = serde_json::from_slice(&std::fs::read(path("coco.json")).unwrap()).unwrap();
    assert_eq!(coco["images"].as_array().unwrap().len(), 2);
    let rows = |path: &Path| {
        SerializedFileReader::new(std::fs::File::open(path).unwrap())
            .unwrap()
            .metadata()
            .file_metadata()
            .num_rows()
    };
    assert_eq!(rows(&path("results.parquet")), 6);
    assert_eq!(batch(data("parquet/hub.parquet"), "of_parquet"), Some(3));
    assert_eq!(rows(&path("results.parquet")), 6);
    let records = std::fs::read_to_string(path("of_parquet/results.jsonl")).unwrap();
    assert_eq!(records.lines().filter(|l| l.contains("segmentation")).count(), 3);
}
