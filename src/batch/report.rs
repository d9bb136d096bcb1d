//! One static page that shows results: each item's overlay, its expressions and scores; a click shows the overlay large. No script.

use super::item::{Outcome, Record};
use super::journal::{REPORT, RESULTS};
use super::pipeline::Settings;
use crate::image::write_file;
use crate::{Error, Result};
use serde_json::Value;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// Items on a page: browsers show so many pictures well.
const MOST: u64 = 1000;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1300px;padding:0 1rem;color:#1c2430;background:#fafbfc}\
h1{font-size:1.5rem;margin:0}p{color:#67758a;margin:.3rem 0 1.5rem}\
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(280px,1fr));gap:1rem}\
figure{margin:0;border:1px solid #dde3ea;border-radius:8px;background:#fff;overflow:hidden}\
.small{display:grid;place-items:center;height:200px;background:#eef1f5;color:#67758a}.small img{width:100%;height:200px;object-fit:contain}\
figcaption{padding:.6rem .8rem;overflow-wrap:anywhere}h2{font-size:.85rem;margin:0 0 .3rem;color:#67758a;font-weight:500}\
table{border-collapse:collapse;width:100%}td{padding:.1rem 0;vertical-align:top}td+td{text-align:right;white-space:nowrap;padding-left:.8rem;font-variant-numeric:tabular-nums}\
.none{color:#67758a}.bad{color:#b3261e}.says,.bad{padding:0 0 .3rem .8rem}\
.large{display:none;position:fixed;inset:0;background:#10151df2;padding:1.5rem;z-index:1;cursor:zoom-out}\
.large:target{display:grid;place-items:center}.large img{max-width:100%;max-height:calc(100vh - 3rem);min-width:min(60vw,100%);object-fit:contain}";

/// Writes `report.html` beside finished results: of the first [`MOST`] items each expression, those that failed too.
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] if the results hold anything but records.
pub fn report(dir: &Path) -> Result<PathBuf> {
    let results = dir.join(RESULTS);
    let lines = BufReader::new(File::open(&results).map_err(Error::io(&results, "open"))?).lines();
    let mut page = Page::default();
    for line in lines {
        let line = line.map_err(Error::io(&results, "read"))?;
        let record: Record = serde_json::from_str(&line)
            .map_err(|e| Error::file(&results, "a record as a line of JSON", e.to_string()))?;
        page.add(&record, dir.join(Settings::overlay_file(record.index)).exists());
    }
    let path = dir.join(REPORT);
    write_file(&path, page.finish().as_bytes())?;
    Ok(path)
}

#[derive(Default)]
struct Page {
    body: String,
    /// The item that is being written, if it is shown.
    open: Option<u64>,
    last: Option<u64>,
    items: u64,
    masks: u64,
    none: u64,
    words: u64,
    failed: u64,
    failed_items: u64,
    last_failed: Option<u64>,
}

impl Page {
    /// Adds a record of an item that has an overlay or none.
    fn add(&mut self, r: &Record, overlay: bool) {
        if self.last != Some(r.index) {
            self.close();
            self.last = Some(r.index);
            self.items += 1;
            if self.items <= MOST {
                self.open = Some(r.index);
                let (n, image) = (r.index, escape(&r.image));
                let id = match &r.id {
                    Value::Null => n.to_string(),
                    Value::String(id) => escape(id),
                    id => escape(&id.to_string()),
                };
                let file = Settings::overlay_file(n);
                let _ = write!(self.body, "<figure id=\"f{n}\">");
                let _ = if overlay {
                    write!(
                        self.body,
                        "<a class=small href=\"#i{n}\"><img src=\"{file}\" loading=lazy alt=\"\"></a>\
                         <a class=large id=\"i{n}\" href=\"#f{n}\"><img src=\"{file}\" loading=lazy alt=\"\"></a>"
                    )
                } else {
                    write!(self.body, "<div class=small>no overlay</div>")
                };
                let _ = write!(self.body, "<figcaption><h2>{id} · {image}</h2><table>");
            }
        }
        // Sentences have a row of their own.
        let (class, text) = match &r.outcome {
            Outcome::Failed { error } => {
                self.failed += 1;
                if self.last_failed.replace(r.index) != Some(r.index) {
                    self.failed_items += 1;
                }
                ("bad", escape(&error.message))
            }
            Outcome::Text(said) => {
                self.words += 1;
                ("says", escape(&said.answer))
            }
            Outcome::Mask(m) if m.no_target => {
                self.none += 1;
                ("none", "not in the picture".into())
            }
            Outcome::Mask(m) => {
                self.masks += 1;
                ("score", format!("{:.2}", m.score))
            }
        };
        if self.open.is_some() {
            let expr = escape(r.expr.as_deref().or(r.question.as_deref()).unwrap_or(""));
            let _ = match class {
                "bad" | "says" => write!(
                    self.body,
                    "<tr><td colspan=2>{expr}</td></tr><tr><td colspan=2 class={class}>{text}</td></tr>"
                ),
                _ => write!(self.body, "<tr><td>{expr}</td><td class={class}>{text}</td></tr>"),
            };
        }
    }

    fn close(&mut self) {
        if self.open.take().is_some() {
            self.body.push_str("</table></figcaption></figure>\n");
        }
    }

    fn finish(mut self) -> String {
        self.close();
        let Self { body, items, masks, none, words, failed, failed_items, .. } = self;
        let failed = match failed {
            0 => "none failed".into(),
            n => {
                format!("{n} failed, of {failed_items} {}", if failed_items == 1 { "item" } else { "items" })
            }
        };
        let words = if words > 0 { format!(" {words} questions answered,") } else { String::new() };
        let shown = if items > MOST { format!("; the first {MOST} items are shown") } else { String::new() };
        format!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
             <title>mllmseg batch</title><style>{STYLE}</style><h1>Which pixels are they?</h1>\
             <p>{items} items: {masks} masks, {none} expressions not in their pictures,{words} {failed}{shown}.</p>\
             <main>\n{body}</main></html>\n"
        )
    }
}

/// Text for HTML, inside elements and quoted attributes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
