//! `mllmseg demo`: a tiny trained model finds shapes in drawn scenes; nothing is downloaded.

use super::{Compute, PromptingArg, make_dir};
use mllmseg::image::{Item, Limits, Mask, Rle, overlay, read, write_file};
use mllmseg::{Answer, Error, Result};
use serde::Deserialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Segment drawn scenes with a tiny trained model: nothing to download
///
/// The model has the architecture of the 8B one (vision tower, language model, mask decoder) and 4.5 M parameters; it
/// was trained on drawings of shapes. Prints each expression's IoU with the ground truth, writes overlays and one page,
/// index.html, that shows them side by side.
///
/// Example: mllmseg demo --out overlays
#[derive(clap::Args)]
pub struct Args {
    /// Folder for overlays and the page
    #[arg(long, value_name = "DIR", default_value = "out/demo")]
    out: PathBuf,
    /// The demo's files [default: assets/demo here, or in the sources that this program was built from]
    #[arg(long, value_name = "DIR")]
    assets: Option<PathBuf>,
    /// Only the first N scenes
    #[arg(long, value_name = "N")]
    scenes: Option<usize>,
    /// How the expressions are asked
    #[arg(long, value_enum, default_value_t = PromptingArg::Single)]
    prompting: PromptingArg,
    #[command(flatten)]
    compute: Compute,
}

/// One line of scenes.jsonl.
#[derive(Deserialize)]
struct Scene {
    id: String,
    image: String,
    expressions: Vec<Expression>,
}

#[derive(Deserialize)]
struct Expression {
    text: String,
    present: bool,
    gt: Runs,
}

/// Ground truth as uncompressed COCO run lengths.
#[derive(Deserialize)]
struct Runs {
    size: [usize; 2],
    counts: Vec<u32>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let assets = match &args.assets {
        Some(dir) => dir.clone(),
        None => find()?,
    };
    let scenes = scenes(&assets.join("scenes.jsonl"))?;
    let start = Instant::now();
    let mut engine = args.compute.open(&assets.join("model").to_string_lossy())?;
    let opened = start.elapsed();
    make_dir(&args.out)?;
    let mut page = Page::default();
    let (mut ious, mut rejected, mut seconds) = (Vec::new(), 0, 0.0);
    println!("{:<5} {:<34} {:>6}  answer", "scene", "expression", "IoU");
    for scene in scenes.iter().take(args.scenes.unwrap_or(usize::MAX)) {
        let picture = read(&assets.join(&scene.image), &Limits::default(), false)?;
        let expressions: Vec<&str> = scene.expressions.iter().map(|e| e.text.as_str()).collect();
        let start = Instant::now();
        let result = engine.segment(&picture, &expressions, args.prompting.into(), false)?;
        let took = start.elapsed().as_secs_f64();
        seconds += took;
        let mut shown: Vec<(String, Answer)> = Vec::new();
        for (e, answer) in scene.expressions.iter().zip(result.answers) {
            let mut answer = answer?;
            let truth = Rle { size: e.gt.size, counts: e.gt.counts.clone() }.decode()?;
            let iou = answer.mask.iou(&truth)?;
            // What is not in the picture has no mask to compare: there the rejection is what counts.
            let score = if e.present {
                ious.push(iou);
                format!("{iou:.3}")
            } else {
                "-".into()
            };
            let right = answer.no_target != e.present;
            rejected += usize::from(right);
            let verdict = match (answer.no_target, right) {
                (false, true) => "found",
                (false, false) => "found, though it is not there",
                (true, true) => "not in the picture",
                (true, false) => "rejected, though it is there",
            };
            println!("{:<5} {:<34} {score:>6}  {verdict}", scene.id, e.text);
            if answer.no_target {
                answer.mask =
                    Mask::new(picture.width, picture.height, vec![0; picture.width * picture.height])?;
            }
            page.row(&e.text, &score, verdict, right);
            shown.push((e.text.clone(), answer));
        }
        let items: Vec<Item> = shown
            .iter()
            .filter(|(_, a)| !a.no_target)
            .map(|(text, a)| Item { mask: &a.mask, label: text, score: Some(a.score), bbox: a.bbox })
            .collect();
        let files = [format!("{}.png", scene.id), format!("{}_overlay.png", scene.id)];
        write_file(&args.out.join(&files[0]), &picture.to_png())?;
        write_file(&args.out.join(&files[1]), &overlay(&picture, &items).to_png())?;
        page.scene(&scene.id, &files, took);
    }
    let n: usize = page.rows;
    if ious.is_empty() || n == 0 {
        return Err(Error::usage("--scenes", "a scene with something to find", "none"));
    }
    let mean = ious.iter().sum::<f64>() / ious.len() as f64;
    let index = args.out.join("index.html");
    write_file(&index, page.finish(mean, rejected).as_bytes())?;
    println!(
        "\nmean IoU {mean:.4} over {} expressions with a target; {rejected} of {n} decisions right",
        ious.len()
    );
    println!(
        "opened in {:.2} s, {n} expressions in {seconds:.2} s; overlays side by side: {}",
        opened.as_secs_f64(),
        index.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// The demo's folder: under this one, or under the sources that hold `target/*/mllmseg`.
fn find() -> Result<PathBuf> {
    let exe = std::env::current_exe().unwrap_or_default();
    let mut roots = vec![PathBuf::new()];
    roots.extend(exe.ancestors().skip(1).take(4).map(Path::to_path_buf));
    let found =
        roots.into_iter().map(|root| root.join("assets/demo")).find(|dir| dir.join("scenes.jsonl").is_file());
    found.ok_or_else(|| {
        Error::usage("demo", "the folder assets/demo here (or --assets DIR)", "no such folder")
    })
}

fn scenes(path: &Path) -> Result<Vec<Scene>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    let scene = |(i, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|e| Error::file(path, "a scene as a line of JSON", format!("line {}: {e}", i + 1)))
    };
    text.lines().enumerate().map(scene).collect()
}

/// The page, as it grows: a row a scene.
#[derive(Default)]
struct Page {
    body: String,
    table: String,
    rows: usize,
}

impl Page {
    fn row(&mut self, text: &str, iou: &str, verdict: &str, right: bool) {
        let class = if right { "right" } else { "wrong" };
        let text = escape(text);
        let _ = write!(
            self.table,
            "<tr><td>{text}</td><td class=n>{iou}</td><td class={class}>{verdict}</td></tr>"
        );
        self.rows += 1;
    }

    fn scene(&mut self, id: &str, files: &[String; 2], seconds: f64) {
        let [picture, overlay] = files.each_ref().map(|f| escape(f));
        let table = std::mem::take(&mut self.table);
        let _ = writeln!(
            self.body,
            "<section><h2>{}</h2><img src=\"{picture}\" alt=\"picture\"><img src=\"{overlay}\" alt=\"masks\">\
             <div><table><tr><th>expression<th class=n>IoU<th>answer</tr>{table}</table><p>{:.0} ms</p></div></section>",
            escape(id),
            seconds * 1e3
        );
    }

    fn finish(self, mean: f64, right: usize) -> String {
        format!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
             <title>mllmseg demo</title><style>\
             body{{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1100px;padding:0 1rem;color:#1c2430;background:#fafbfc}}\
             section{{display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start;border-top:1px solid #dde3ea;padding:1rem 0}}\
             h1{{font-size:1.5rem;margin:0}}h2{{font-size:1rem;width:2.5rem;margin:0;color:#67758a;font-variant-numeric:tabular-nums}}\
             img{{height:230px;max-width:100%;border-radius:6px;border:1px solid #dde3ea;background:#fff}}\
             table{{border-collapse:collapse}}td,th{{text-align:left;padding:.15rem .8rem .15rem 0;vertical-align:top}}\
             th{{color:#67758a;font-weight:500}}.n{{text-align:right;font-variant-numeric:tabular-nums}}\
             .right{{color:#17794a}}.wrong{{color:#b3261e}}p{{color:#67758a;margin:.4rem 0}}</style>\
             <h1>Which pixels are it?</h1><p>A 4.5 M parameter MLLMSeg on scenes that it never saw: picture, masks, answers. \
             Mean IoU {mean:.4} where there is a target; {right} of {} decisions right.</p>\n{}</html>\n",
            self.rows, self.body
        )
    }
}

/// Text for HTML, inside elements and quoted attributes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
