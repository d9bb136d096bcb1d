//! Memory that is short on the CPU: an error of one line and not the end of the process; a batch is made do with in halves, and what comes after
//! is answered as ever. The limits are those of the address space (`ulimit -v`): of this process, so that
//! its tests take turns, or of a child.

mod common;

use common::chat::edited;
use common::demo::{assets, model, picture, scenes};
use mllmseg::engine::{Prepared, Request};
use mllmseg::image::{Rgb, resize_bicubic};
use mllmseg::{Answer, Engine, Error, Options, Prompting, Segmentation};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

const MB: u64 = 1 << 20;

/// The demo's model with `side` patches on a side and `width` channels in its vision tower's MLP; weights that are more are zero.
fn larger(to: &Path, side: usize, width: usize) -> String {
    let dir = edited(model().as_ref(), to, |c| {
        let (c, size) = (c.as_object_mut().unwrap(), serde_json::json!(14 * side));
        c["vision_config"]["intermediate_size"] = width.into();
        c["vision_config"]["image_size"] = size.clone();
        c["force_image_size"] = size;
    });
    let bytes = std::fs::read(Path::new(&model()).join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let larger = tensors.iter().map(|(name, t)| {
        let (mut shape, mut data) = (t.shape().to_vec(), t.data().to_vec());
        let (axis, extent) = match name.strip_prefix("vision_model.").and_then(|n| n.rsplit_once("mlp.")) {
            Some((_, "fc1.weight" | "fc1.bias")) => (0, width),
            Some((_, "fc2.weight")) => (1, width),
            _ if name.ends_with("position_embedding") => (1, 1 + side * side),
            _ => return (name, t.dtype(), shape, data),
        };
        let row = data.len() / shape[..axis].iter().product::<usize>();
        let more = vec![0; row / shape[axis] * (extent - shape[axis])];
        data = data.chunks_exact(row).flat_map(|row| [row, &more].concat()).collect();
        shape[axis] = extent;
        (name, t.dtype(), shape, data)
    });
    let larger: Vec<_> = larger.collect();
    let views = larger.iter().map(|(n, d, s, data)| (*n, TensorView::new(*d, s.clone(), data).unwrap()));
    std::fs::remove_file(to.join("model.safetensors")).unwrap(); // a link
    safetensors::serialize_to_file(views, None, &to.join("model.safetensors")).unwrap();
    dir
}

/// Bytes of address space that this process has.
fn used() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    // SAFETY: no pointer goes in or out.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
    pages.split(' ').next().unwrap().parse::<u64>().unwrap() * page
}

fn limit(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is read.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
}

/// What `f` gives where there is room for so many bytes more.
fn within<T>(bytes: u64, f: impl FnOnce() -> T) -> T {
    limit(used() + bytes);
    let result = f();
    limit(libc::RLIM_INFINITY);
    result
}

static TURN: Mutex<()> = Mutex::new(());

fn prepared(engine: &Engine, pictures: usize) -> Vec<Prepared> {
    let preprocessor = engine.preprocessor();
    let scenes = scenes();
    let requests = scenes.iter().take(pictures).map(|s| Request::new(picture(&s.image), s.texts()));
    requests.map(|r| preprocessor.prepare(&r).unwrap()).collect()
}

#[track_caller]
fn identical(a: &[Segmentation], b: &[Segmentation]) {
    let values = |s: &[Segmentation]| -> Vec<_> {
        let answers = s.iter().flat_map(|s| &s.answers).map(|a| a.as_ref().unwrap());
        answers.map(|a: &Answer| (a.score.to_bits(), a.area, a.bbox, a.no_target, a.mask.clone())).collect()
    };
    assert!(values(a) == values(b));
}

fn short(answer: &Result<Answer, Error>) -> bool {
    matches!(answer, Err(Error::OutOfMemory { .. }))
}

/// How often a graph runs from now on.
fn count(engine: &mut Engine, graph: &'static str) -> Arc<Mutex<usize>> {
    let runs = Arc::new(Mutex::new(0));
    let (count, mut first) = (Arc::clone(&runs), None);
    engine.observe(move |run| {
        if run.graph == graph {
            let first = first.get_or_insert_with(|| run.node.name.to_string());
            *count.lock().unwrap() += usize::from(run.node.name == first.as_str());
        }
    });
    runs
}

/// Later requests ask for as many masks at once as there was room for.
#[test]
fn masks_that_did_not_fit_together_are_made_apart() {
    let _turn = TURN.lock();
    let folder = tempfile::tempdir().unwrap();
    let dir = larger(&folder.path().join("large"), 32, 1024);
    let expressions = ["red ring"; 16];
    for room in (4..400).step_by(4) {
        let mut engine = Engine::open(&dir, Options::default()).unwrap();
        let runs = count(&mut engine, "masks");
        let mut ask = |expressions: &[&str], room: u64| {
            *runs.lock().unwrap() = 0;
            let mut prepared = [engine
                .preprocessor()
                .prepare_parts(&picture("images/000.png"), expressions, Prompting::Single)
                .unwrap()];
            let found = within(room, || engine.segment_batch(&mut prepared, false));
            let answered = found.is_ok_and(|f| f[0].answers.iter().all(Result::is_ok));
            answered.then_some(*runs.lock().unwrap())
        };
        // Where it answers in a few runs, the text had room and the masks had not.
        ask(&expressions[..8], 1 << 40);
        if let Some(2..=4) = ask(&expressions, room * MB) {
            assert!(ask(&expressions, 1 << 40).is_some_and(|runs| runs > 1), "{room} MB");
            return;
        }
    }
    panic!("masks never were too many");
}

#[test]
fn a_picture_of_many_lines_needs_no_room_for_all_of_them() {
    let _turn = TURN.lock();
    for (width, height) in [(1, 8_000_000), (8_000_000, 1)] {
        let long = Rgb::new(width, height, vec![90; 3 * width * height]).unwrap();
        let small = within(150 * MB, || resize_bicubic(&long, 448, 448)).unwrap();
        assert!(small.data.iter().all(|&v| v == 90));
    }
}

#[test]
fn a_batch_is_made_do_with_in_halves() {
    let _turn = TURN.lock();
    let folder = tempfile::tempdir().unwrap();
    let dir = larger(&folder.path().join("wide"), 16, 16384); // the MLP takes 17 MB a picture, most of what a run needs
    let open = || Engine::open(&dir, Options::default()).unwrap();
    let expected = open().segment_batch(&mut prepared(&open(), 8), false).unwrap();

    // Eight pictures' activations do not fit; four's do, but not what their products need beside them.
    let mut engine = open();
    let plan = engine.memory_plan([8, 300, 20, 20 * 300 * 300]).unwrap();
    assert!(plan.iter().any(|(what, bytes)| *what == "activations" && *bytes > 130 * MB), "{plan:?}");
    let mut pictures = prepared(&engine, 8);
    identical(&within(110 * MB, || engine.segment_batch(&mut pictures, false)).unwrap(), &expected);

    // One does not fit, which is the answer to what it was asked; when there is room again, nothing is left of that.
    let mut engine = open();
    let mut pictures = prepared(&engine, 1);
    let found = within(10 * MB, || engine.segment_batch(&mut pictures, false)).unwrap();
    assert!(found[0].answers.iter().all(short));
    identical(&engine.segment_batch(&mut prepared(&engine, 1), false).unwrap(), &expected[..1]);

    // Nor does a long text, beside which others do.
    let many: Vec<String> =
        (0..130).map(|i| format!("the large red square to the left of circle {i}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut engine = open();
    let long = engine.preprocessor().prepare_parts(&picture("images/000.png"), &many, Prompting::Joint);
    let long = long.unwrap();
    let needs = |rows, masks| {
        let plan = engine.memory_plan([1, rows, masks, masks * 300 * 300]).unwrap();
        plan.iter().map(|(_, bytes)| bytes).sum::<u64>()
    };
    let (few, all) = (needs(2048, 5), needs(long.rows(), 16));
    assert!(few + 15 * MB < all, "{few} {all}");
    let mut pictures = prepared(&engine, 2);
    pictures.insert(1, long);
    let mut found = within((few + all) / 2, || engine.segment_batch(&mut pictures, false)).unwrap();
    assert!(found.remove(1).answers.iter().all(short));
    identical(&found, &expected[..2]);

    // Pictures run together again after some that ran alone.
    let (other, runs) = (open(), count(&mut engine, "image"));
    let mut pairs = |n: usize| {
        *runs.lock().unwrap() = 0;
        (0..n).for_each(|_| _ = engine.segment_batch(&mut prepared(&other, 2), false).unwrap());
        *runs.lock().unwrap()
    };
    assert_eq!((pairs(2), pairs(16), pairs(1)), (4, 29, 1));
}

/// The program with so many bytes of address space.
fn program(bytes: u64, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mllmseg"));
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: it calls nothing but setrlimit, which may be called between fork and exec.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_AS, &limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        })
    };
    // A thread's heap is 64 MB of address space.
    command.args(args).env("RAYON_NUM_THREADS", "2").env("MALLOC_ARENA_MAX", "2").output().unwrap()
}

#[test]
fn the_program_says_what_does_not_fit() {
    let _turn = TURN.lock();
    let folder = tempfile::tempdir().unwrap();
    let large = larger(&folder.path().join("large"), 256, 16384); // the MLP takes 4.3 GB a picture
    let (model, out) = (model(), folder.path().join("out").display().to_string());
    let image = assets().join("images/000.png").display().to_string();
    let refused = |what: &str, bytes: u64, args: &[&str]| {
        let o = program(bytes, args);
        let stderr = String::from_utf8_lossy(&o.stderr);
        assert_eq!(o.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains("device cpu: expected"), "{stderr}");
        assert!(stderr.contains(&format!("GB of free memory for {what}")), "{stderr}");
    };
    let cache = ["--image", &image, "--cache-tokens", "16777216", "Where?"];
    refused("kv.k_pages", 16 << 30, &[&["chat", "--model", &model][..], &cache].concat());
    let ask = ["--image", &image, "--expr", "the red square", "--out", &out];
    refused("activations", 2 << 30, &[&["segment", "--model", &large][..], &ask].concat());
}
