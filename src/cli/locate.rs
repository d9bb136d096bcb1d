//! `mllmseg locate`: where in a picture an expression's object is, as a box or a point.

use super::chat::Generate;
use super::{Compute, make_dir, report};
use mllmseg::chat::coordinates::{Pixels, Place, places};
use mllmseg::chat::{Chat, Finish, Item, Reply};
use mllmseg::checkpoint::Checkpoint;
use mllmseg::image::{self, Limits, Mask, Rgb, overlay, read, write_file};
use mllmseg::text::{Question, shown, strip};
use mllmseg::{Engine, Error, Prompting, Result};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// Find boxes and points by expression
///
/// By the answer's text: the model is asked for coordinates and writes [[x1, y1, x2, y2]] or [[x, y]] in thousandths of the picture. By
/// the mask, with a checkpoint that has a mask decoder: the box around it. Prints each expression's places in pixels, boxes as [x, y, width,
/// height] (COCO's order) and points as [x, y], and draws them over the picture. An answer that is no list of places is an error that shows it.
///
/// Example: mllmseg locate --model DIR --image cats.jpg --expr "the left cat"
#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint: a folder, or ORG/NAME in the Hugging Face cache
    #[arg(long, value_name = "DIR|HF_REPO")]
    model: String,
    /// Picture (JPEG, PNG, WebP, BMP, TIFF, GIF)
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Expressions; once for each
    #[arg(long, value_name = "TEXT", required = true, allow_hyphen_values = true)]
    expr: Vec<String>,
    /// How [default: by the mask where the checkpoint has a mask decoder, else by the text]
    #[arg(long, value_enum)]
    by: Option<By>,
    /// The question of the text route: {} stands for the expression, <ref> and <box> are the model's tokens [default: the one that InternVL2.5
    /// was trained with]
    #[arg(long, value_name = "TEXT")]
    question: Option<String>,
    /// Most tiles that the text route cuts the picture into, the thumbnail not counted [default: the checkpoint's max_dynamic_patch]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=12))]
    max_tiles: Option<u16>,
    /// Folder for overlays
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// A line of JSON on stdout for each expression
    #[arg(long)]
    json: bool,
    /// Turn the picture as its EXIF orientation says (the published code does not)
    #[arg(long)]
    exif: bool,
    #[command(flatten)]
    generate: Generate,
    #[command(flatten)]
    compute: Compute,
}

/// What InternVL2.5 was trained with.
const QUESTION: &str =
    "Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>";

/// Where the places come from.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// The coordinates that the model writes
    Text,
    /// The box around the mask
    Mask,
}

impl By {
    fn name(self) -> &'static str {
        if self == By::Text { "text" } else { "mask" }
    }
}

/// The places of one expression, in pixels, and what the model wrote, if it was asked to.
struct Found {
    places: Result<Vec<Pixels>>,
    reply: Option<Reply>,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let picture = read(&args.image, &Limits::default(), args.exif)?;
    let by = match args.by {
        Some(by) => by,
        None if Checkpoint::open(&args.model)?.has_mask_decoder() => By::Mask,
        None => By::Text,
    };
    let texts = args.question.as_ref().map(|_| "--question");
    let texts = texts.or(args.max_tiles.map(|_| "--max-tiles")).or(args.generate.given());
    let masks = args.compute.log_nodes.as_ref().map(|_| "--log-nodes");
    let masks = masks.or((!args.compute.without.is_empty()).then_some("--without"));
    if let Some(option) = if by == By::Text { masks } else { texts } {
        let expected = format!("no such option when it is located by the {}", by.name());
        return Err(Error::usage(option, expected, "it"));
    }
    if args.question.as_ref().is_some_and(|q| !q.contains("{}")) {
        return Err(Error::usage("--question", "{} where the expression stands", "none"));
    }
    make_dir(&args.out)?;
    let found = match by {
        By::Text => by_text(&args, args.compute.on.chat(&args.model, args.generate.cache_tokens)?, &picture)?,
        By::Mask => by_mask(&args, args.compute.open(&args.model)?, &picture)?,
    };
    let mut code = ExitCode::SUCCESS;
    for (k, (expr, found)) in args.expr.iter().zip(found).enumerate() {
        if let Err(e) = tell(&args, &picture, k, expr, found, by) {
            report(&e);
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

fn by_text(args: &Args, mut chat: Chat, picture: &Rgb) -> Result<Vec<Found>> {
    let max = args.max_tiles.map_or(chat.max_tiles(), usize::from);
    let seen = chat.picture(picture, max)?;
    let template = args.question.as_deref().unwrap_or(QUESTION);
    let item = |expr: &String| Item {
        question: Question::about(template, expr),
        pictures: vec![seen.clone()],
        system: None,
        generation: args.generate.generation(),
    };
    let (w, h) = (picture.width, picture.height);
    let asked = |expr: &&String| !strip(expr).is_empty();
    let mut replies = chat.answer(args.expr.iter().filter(asked).map(item).collect()).into_iter();
    let found = |expr: &String| {
        let reply = asked(&expr).then(|| replies.next()).flatten().unwrap_or_else(|| {
            Err(Error::Text {
                what: format!("expression `{}`", shown(expr)),
                expected: "something to look for".into(),
                found: "nothing but spaces".into(),
            })
        });
        match reply {
            Ok(reply) => {
                let pixels = |found: Vec<Place>| found.into_iter().map(|p| p.pixels(w, h)).collect();
                Found { places: read_places(expr, &reply).map(pixels), reply: Some(reply) }
            }
            Err(e) => Found { places: Err(e), reply: None },
        }
    };
    Ok(args.expr.iter().map(found).collect())
}

/// The places in an answer; none in one that was cut off, of which nobody knows what it would have said.
fn read_places(expr: &str, reply: &Reply) -> Result<Vec<Place>> {
    let what = format!("answer about `{}`", shown(expr));
    let cut = match reply.finish {
        Finish::Stop => {
            return places(&reply.text).map_err(|e| match e {
                Error::Text { expected, found, .. } => Error::Text { what, expected, found },
                other => other,
            });
        }
        Finish::Length => "--max-new-tokens",
        Finish::CacheFull => "the end of the cache (--cache-tokens)",
        Finish::Cancelled => "an interrupt",
    };
    let found = format!("one cut off by {cut}, {:?}", shown(&reply.text));
    Err(Error::Text { what, expected: "an answer that ends".into(), found })
}

fn by_mask(args: &Args, mut engine: Engine, picture: &Rgb) -> Result<Vec<Found>> {
    let expressions: Vec<&str> = args.expr.iter().map(String::as_str).collect();
    let answers = engine.segment(picture, &expressions, Prompting::Single, false)?.answers;
    let found = |answer: Result<mllmseg::Answer>| {
        let places = answer.map(|a| {
            let found = if a.no_target { None } else { a.bbox };
            found.map(|b| Pixels::Box(b.map(|v| v as f64))).into_iter().collect()
        });
        Found { places, reply: None }
    };
    Ok(answers.into_iter().map(found).collect())
}

/// Prints one expression's places and draws them.
fn tell(args: &Args, picture: &Rgb, k: usize, expr: &str, found: Found, by: By) -> Result<()> {
    let (w, h) = (picture.width, picture.height);
    let name = args.image.to_string_lossy();
    let answer = found.reply.as_ref().map(|r| &r.text);
    let mut line = json!({"image": name, "expr": expr, "by": by.name(), "answer": answer});
    if let Some(r) = &found.reply {
        (line["tokens"], line["finish"], line["timings"]) =
            (json!(r.tokens), json!(r.finish), json!(r.timings));
    }
    let pixels = match found.places {
        Ok(pixels) => pixels,
        Err(e) => {
            line["error"] = e.to_string().into();
            if args.json {
                println!("{line}");
            }
            return Err(e);
        }
    };
    let stem = args.image.file_stem().map_or_else(|| "image".into(), |s| s.to_string_lossy().into_owned());
    let file = args.out.join(format!("{stem}_{k}_located.png"));
    let none = Mask::new(w, h, vec![0; w * h])?;
    let item = |p: &Pixels| image::Item { mask: &none, label: expr, score: None, bbox: Some(p.frame(w, h)) };
    let missing = format!("{expr} (not found)");
    let mut items: Vec<image::Item> = pixels.iter().map(item).collect();
    if items.is_empty() {
        items.push(image::Item { mask: &none, label: &missing, score: None, bbox: None });
    }
    // What was found is told whether or not it can be drawn.
    let drawn = write_file(&file, &overlay(picture, &items).to_png());
    let list = |wanted: fn(&Pixels) -> Option<&[f64]>| -> Vec<Value> {
        let rounded = |v: &[f64]| v.iter().map(|v| (v * 100.0).round() / 100.0).collect::<Vec<_>>();
        pixels.iter().filter_map(wanted).map(|v| rounded(v).into()).collect()
    };
    let boxes = list(|p| if let Pixels::Box(b) = p { Some(b) } else { None });
    let points = list(|p| if let Pixels::Point(p) = p { Some(p) } else { None });
    if args.json {
        line["size"] = json!([h, w]);
        line["boxes"] = boxes.into();
        line["points"] = points.into();
        line["overlay"] = drawn.is_ok().then(|| file.to_string_lossy()).into();
        println!("{line}");
    } else {
        let shown =
            |kind: &str, v: Vec<Value>| v.into_iter().map(|v| format!("{kind} {v}")).collect::<Vec<_>>();
        let mut all = [shown("box", boxes), shown("point", points)].concat();
        if all.is_empty() {
            all.push("not found".into());
        }
        let overlay = if drawn.is_ok() { format!(" -> {}", file.display()) } else { String::new() };
        println!("{name}: {expr:?}: {}{overlay}", all.join(", "));
    }
    drawn
}
