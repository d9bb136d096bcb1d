//! `mllmseg segment`: pictures and expressions in, masks out.

use super::{Compute, PromptingArg, make_dir, report};
use mllmseg::engine::Timings;
use mllmseg::image::{Item, Limits, Mask, Rgb, Rle, overlay, read, write_file};
use mllmseg::{Answer, Engine, Error, Result};
use serde_json::json;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Segment pictures by expression
///
/// Every expression is asked of every picture. For each pair: a mask (PNG, 0 or 255, the picture's size), an overlay, and
/// with --json a line of JSON on stdout with the mask as COCO RLE. Progress goes to stderr.
///
/// Example: mllmseg segment --model DIR --image cats.jpg --expr "the left cat" --expr "the cat on the right"
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint: a folder, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR|HF_REPO")]
    model: String,
    /// Pictures (JPEG, PNG, WebP, BMP, TIFF, GIF)
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    image: Vec<PathBuf>,
    /// Expressions; once for each
    #[arg(long, value_name = "TEXT", required = true, allow_hyphen_values = true)]
    expr: Vec<String>,
    /// How the expressions are asked
    #[arg(long, value_enum, default_value_t = PromptingArg::Single)]
    prompting: PromptingArg,
    /// Folder for masks and overlays
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// A line of JSON on stdout for each picture and expression
    #[arg(long)]
    json: bool,
    /// Keep the mask that the decoder gave for an expression that the model rejects
    #[arg(long)]
    keep_rejected: bool,
    /// Turn pictures as their EXIF orientation says (the published code does not)
    #[arg(long)]
    exif: bool,
    #[command(flatten)]
    compute: Compute,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let mut engine = args.compute.open(&args.model)?;
    make_dir(&args.out)?;
    let expressions: Vec<&str> = args.expr.iter().map(String::as_str).collect();
    let mut names = HashSet::new();
    let mut failed = false;
    for (i, path) in args.image.iter().enumerate() {
        let stem = unique(path, &mut names);
        if args.image.len() > 1 {
            eprintln!("[{}/{}] {}", i + 1, args.image.len(), path.display());
        }
        match one(&mut engine, &args, path, &stem, &expressions) {
            Ok(all) => failed |= !all,
            Err(e) => {
                failed = true;
                expressions.iter().for_each(|expr| fail(&args, path, expr, &e));
                report(&e);
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A line of JSON for a pair that has no mask.
fn fail(args: &Args, path: &Path, expr: &str, e: &Error) {
    if args.json {
        println!("{}", json!({"image": path.to_string_lossy(), "expr": expr, "error": e.to_string()}));
    }
}

/// The picture's name for its results; a second picture of the same name gets a number.
fn unique(path: &Path, names: &mut HashSet<String>) -> String {
    let stem = path.file_stem().map_or_else(|| "image".into(), |s| s.to_string_lossy().into_owned());
    let mut name = stem.clone();
    for count in 2.. {
        if names.insert(name.clone()) {
            break;
        }
        name = format!("{stem}-{count}");
    }
    name
}

/// One picture; whether every expression has its mask.
fn one(engine: &mut Engine, args: &Args, path: &Path, stem: &str, expressions: &[&str]) -> Result<bool> {
    let start = Instant::now();
    let picture = read(path, &Limits::default(), args.exif)?;
    let decode_ms = start.elapsed().as_secs_f64() * 1e3;
    let result = engine.segment(&picture, expressions, args.prompting.into(), false)?;
    let mut complete = true;
    let mut drawn = Vec::new();
    for (k, (expr, answer)) in expressions.iter().zip(result.answers).enumerate() {
        match answer.and_then(|a| {
            save(args, path, &picture, &format!("{stem}_{k}"), expr, a, (decode_ms, result.timings))
        }) {
            Ok(answer) => drawn.push((*expr, answer)),
            Err(e) => {
                complete = false;
                report(&e);
                fail(args, path, expr, &e);
            }
        }
    }
    if drawn.len() > 1 {
        let items: Vec<Item> = drawn.iter().map(|(expr, a)| item(expr, a)).collect();
        let file = args.out.join(format!("{stem}_all_overlay.png"));
        if let Err(e) = write_file(&file, &overlay(&picture, &items).to_png()) {
            complete = false;
            report(&e);
        }
    }
    Ok(complete)
}

fn item<'a>(expr: &'a str, a: &'a Answer) -> Item<'a> {
    let score = (a.area > 0).then_some(a.score);
    Item { mask: &a.mask, label: expr, score, bbox: a.bbox }
}

/// Writes one answer's files and its line; the answer as shown, an empty mask if it was rejected.
fn save(
    args: &Args,
    path: &Path,
    picture: &Rgb,
    name: &str,
    expr: &str,
    mut answer: Answer,
    (decode_ms, timings): (f64, Timings),
) -> Result<Answer> {
    if answer.no_target && !args.keep_rejected {
        answer.mask = Mask::new(picture.width, picture.height, vec![0; picture.width * picture.height])?;
        (answer.area, answer.bbox, answer.score) = (0, None, 0.0);
    }
    let [mask_file, overlay_file] =
        ["mask", "overlay"].map(|kind| args.out.join(format!("{name}_{kind}.png")));
    write_file(&mask_file, &answer.mask.to_png())?;
    let label = if answer.no_target { format!("{expr} (not in the picture)") } else { expr.into() };
    write_file(&overlay_file, &overlay(picture, &[item(&label, &answer)]).to_png())?;
    let (area, bbox) = (answer.area, answer.bbox);
    if args.json {
        let rle = Rle::encode(&answer.mask)?;
        let mut timings = serde_json::to_value(timings).unwrap_or_default();
        timings["decode_ms"] = decode_ms.into();
        println!(
            "{}",
            json!({
                "image": path.to_string_lossy(), "expr": expr, "size": rle.size,
                "segmentation": {"size": rle.size, "counts": rle.to_compressed()},
                "bbox": bbox.unwrap_or([0; 4]), "area": area, "score": answer.score, "no_target": answer.no_target,
                "mask": mask_file.to_string_lossy(), "overlay": overlay_file.to_string_lossy(), "timings": timings,
            })
        );
    } else {
        let share = 100.0 * area as f64 / (picture.width * picture.height) as f64;
        let found = match bbox {
            None if answer.no_target => "not in the picture".into(),
            None => "no pixel".into(),
            Some([x, y, w, h]) => format!("{share:.1} % at {x},{y} {w}x{h}, score {:.2}", answer.score),
        };
        println!("{}: {expr:?}: {found} -> {}", path.display(), mask_file.display());
    }
    Ok(answer)
}
