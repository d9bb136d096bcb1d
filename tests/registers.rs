//! What ptxas gave each kernel on each architecture, and what a multiprocessor then holds, kept in tests/data/registers.txt: a change shows
//! in review. No kernel spills, every launch fits every GPU.
//!
//! `UPDATE=1 cargo test --release --workspace --test registers` writes the table.

mod common;

use common::hollow::hollow;
use mllmseg::checkpoint::Checkpoint;
use mllmseg::device::cuda::{self, Usage};
use mllmseg::device::gpu::{ARCHS, occupancy};
use mllmseg::graph::Graph;
use mllmseg::models::chat;
use mllmseg::models::mllmseg::{self as model, Along, Model, PictureRoom, Savings, States};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

/// ptxas of another release gives other numbers.
const NVCC: &str = "13.0.88";

/// Ways in which a kernel is launched: threads and bytes of dynamic shared memory.
type Launches = BTreeMap<&'static str, BTreeSet<(u32, u32)>>;

fn add(launches: &mut Launches, graph: &Graph) {
    for node in &graph.nodes {
        for (_, gpu) in ARCHS {
            for l in node.op.launch(&gpu).unwrap_or_else(|e| panic!("{}: {e}", node.name)) {
                launches.entry(l.entry).or_default().insert((l.block.iter().product(), l.smem));
            }
        }
    }
}

/// The launches of all graphs of a model, at sizes from the smallest to the largest.
fn add_model(launches: &mut Launches, checkpoint: &Arc<Checkpoint>) {
    let (m, _) = Model::bind(checkpoint).unwrap();
    for savings in [Savings::ALL, Savings::NONE] {
        for (images, rows, q) in [(1, 32, 1), (2, 96, 2), (8, 640, 5), (32, 2048, 16)] {
            let mut states = States::default();
            let s = &mut states;
            let kv = s.kv_cache(&m.config, 4096);
            let (system, system_io) = model::system(&m, s, &kv, 60, savings).unwrap();
            let (before, img) = if savings.system_once { (0, Some(&system_io.img)) } else { (60, None) };
            let (image, io) = model::image(&m, s, images).unwrap();
            let along = Along { image: &io, system: before, img };
            let (text, text_io) = model::text(&m, s, &kv, Some(along), [rows, q, q], savings).unwrap();
            let (more, _) = model::text(&m, s, &kv, None, [rows, q, q], savings).unwrap();
            let masks = model::masks(&m, s, &io.sa, &text_io.t_q, q, q << 11, false, savings).unwrap().0;
            let room = PictureRoom { bytes: images << 20, tables: images << 12, lines: images << 10 };
            add(launches, &model::pictures(&m, s, &io.patches, images, room).unwrap().0);
            for graph in [&system, &image, &text, &more, &masks] {
                add(launches, graph);
            }
        }
    }
    let (m_chat, _) = chat::Model::bind(checkpoint).unwrap();
    let buffers = chat::Buffers::new(&m_chat, &mut States::default(), 64);
    add(launches, &chat::vision(&m_chat, &buffers, 3).unwrap());
    for rows in [32, chat::PROMPT_ROWS] {
        add(launches, &chat::prompt(&m_chat, &buffers, rows, true).unwrap());
    }
    for rows in 1..=chat::STEP_ROWS {
        add(launches, &chat::step(&m_chat, &buffers, rows).unwrap());
    }
    let mut states = States::default();
    add(launches, &model::whole(&m, &mut states, 400, 3).unwrap().0);
}

#[test]
fn registers_and_occupancy() {
    let usage: BTreeMap<(&str, &str), Usage> = cuda::usage().map(|u| ((u.entry, u.arch), u)).collect();
    for u in usage.values() {
        assert_eq!(u.stack, 0, "{} on sm_{} spills, or has an array in local memory", u.entry, u.arch);
    }
    let archs: Vec<_> = ARCHS.iter().filter(|a| usage.keys().any(|k| k.1 == a.0)).collect();
    if archs.len() < ARCHS.len() || cuda::compiler() != NVCC {
        eprintln!("skipped: compiled by nvcc {} for {} of 6 architectures", cuda::compiler(), archs.len());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut launches = Launches::new();
    for (name, preset) in [
        ("8b", include_str!("../src/checkpoint/presets/8b.json")),
        ("2b", include_str!("../src/checkpoint/presets/2b.json")),
        ("tiny", include_str!("../src/checkpoint/presets/tiny.json")),
    ] {
        add_model(&mut launches, &hollow(&dir.path().join(name), preset));
    }
    add_model(&mut launches, &Arc::new(Checkpoint::open("assets/demo/model").unwrap()));

    let mut table = format!(
        "Registers a thread, and share of a multiprocessor's warps that are resident, by architecture; nvcc {NVCC}.\n\
         Threads a block and bytes of shared memory are those of launches by the 8B, 2B, tiny and demo models; `-`: by none of them.\n\
         {:<34} {:>7} {:>7}",
        "kernel", "threads", "shared"
    );
    for (arch, _) in ARCHS {
        let _ = write!(table, " {:>9}", format!("sm_{arch}"));
    }
    for entry in cuda::kernels().flat_map(|k| k.1) {
        if !launches.contains_key(entry) {
            let _ = write!(table, "\n{entry:<34} {:>7} {:>7}", "-", "-");
            for (arch, _) in ARCHS {
                let _ = write!(table, " {:>9}", format!("{}     ", usage[&(*entry, arch)].registers));
            }
        }
        for (threads, smem) in launches.get(entry).into_iter().flatten() {
            let shared = usage[&(*entry, "80")].shared + smem;
            let _ = write!(table, "\n{entry:<34} {threads:>7} {shared:>7}");
            for (arch, gpu) in ARCHS {
                let u = usage[&(*entry, arch)];
                let o = occupancy(gpu.arch, u.registers, u.shared + smem, *threads);
                assert!(o.blocks > 0, "{entry}: {threads} threads, {smem} bytes do not fit sm_{arch}");
                let _ = write!(table, " {:>9}", format!("{} {:>3.0}%", u.registers, 100.0 * o.share));
            }
        }
    }
    let table: String = table.lines().map(|l| l.trim_end().to_string() + "\n").collect();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/registers.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let (before, now): (BTreeSet<_>, BTreeSet<_>) = (kept.lines().collect(), table.lines().collect());
    let differ: Vec<_> = before.difference(&now).map(|l| format!("-{l}")).collect();
    let differ: Vec<_> = differ.into_iter().chain(now.difference(&before).map(|l| format!("+{l}"))).collect();
    assert!(
        differ.is_empty(),
        "tests/data/registers.txt differs (UPDATE=1 writes it):\n{}",
        differ.join("\n")
    );
}
