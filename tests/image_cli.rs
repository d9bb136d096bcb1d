//! `mllmseg preprocess`.

use safetensors::SafeTensors;
use std::path::Path;
use std::process::{Command, Output};

fn preprocess(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mllmseg"))
        .arg("preprocess")
        .args(args)
        .output()
        .expect("the program runs")
}

fn data(name: &str) -> String {
    format!("{}/tests/data/preprocess/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn rgb(name: &str) -> Vec<u8> {
    mllmseg::image::read(Path::new(&data(name)), &Default::default(), false).expect(name).data
}

#[test]
fn writes_the_square_and_the_tiles() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("x.safetensors");
    let out = out.to_str().expect("UTF-8");
    let run = preprocess(&[
        "--image",
        &data("down_rgb.png"),
        "--size",
        "448",
        "--out",
        out,
        "--tiles",
        "--max-tiles",
        "6",
    ]);
    assert!(run.status.success(), "{run:?}");
    assert!(run.stdout.is_empty() && run.stderr.is_empty(), "{run:?}");
    let file = std::fs::read(out).expect("the result");
    let tensors = SafeTensors::deserialize(&file).expect("a safetensors file");
    let image = tensors.tensor("image").expect("image");
    assert_eq!((image.dtype(), image.shape()), (safetensors::Dtype::U8, &[448, 448, 3][..]));
    assert_eq!(image.data(), rgb("down_rgb.448.png"));
    let tiles = tensors.tensor("tiles").expect("tiles");
    assert_eq!(tiles.shape(), [7, 448, 448, 3]);
    for (i, tile) in tiles.data().chunks(448 * 448 * 3).enumerate() {
        assert_eq!(tile, rgb(&format!("down_rgb.tile{i}.png")), "tile {i}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1, "no temporary file is left");
}

#[test]
fn failures_are_one_line_and_leave_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("x.safetensors");
    let out = out.to_str().expect("UTF-8");
    let run = preprocess(&["--image", &data("preprocess.json"), "--out", out]);
    let message = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1));
    assert!(
        message.contains("preprocess.json: expected a JPEG") && message.lines().count() == 1,
        "{message}"
    );
    assert_eq!(preprocess(&["--image", "x.png"]).status.code(), Some(2), "usage");
    assert_eq!(
        preprocess(&["--image", "x.png", "--out", out, "--size", "0"]).status.code(),
        Some(2),
        "usage"
    );
    let nowhere = format!("{out}/no/such/folder.safetensors");
    let run = preprocess(&["--image", &data("gray_L.png"), "--out", &nowhere]);
    assert_eq!(run.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&run.stderr).contains("cannot write"), "{run:?}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0);
}
