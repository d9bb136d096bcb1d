//! One static page that shows results: each item's overlay, its expressions and scores; a click shows the overlay large. No script.

use super::item::{Outcome, Record};
use super::journal::RESULTS;
use super::pipeline::Settings;
use crate::image::write_file;
use crate::{Error, Result};
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
.small img{display:block;width:100%;height:200px;object-fit:contain;background:#eef1f5}\
figcaption{padding:.6rem .8rem;overflow-wrap:anywhere}h2{font-size:.85rem;margin:0 0 .3rem;color:#67758a;font-weight:500}\
table{border-collapse:collapse;width:100%}td{padding:.1rem 0;vertical-align:top}td+td{text-align:right;white-space:nowrap;padding-left:.8rem;font-variant-numeric:tabular-nums}\
.none{color:#67758a}.says,.bad{white-space:normal;text-align:left}.bad{color:#b3261e}\
.large{display:none;position:fixed;inset:0;background:#10151df2;padding:1.5rem;z-index:1;cursor:zoom-out}\
.large:target{display:grid;place-items:center}.large img{max-width:100%;max-height:calc(100vh - 3rem);min-width:min(60vw,100%);object-fit:contain}";

/// Writes `report.html` beside finished results: at most [`MOST`] items, those that failed among them.
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
        page.add(&record);
    }
    let path = dir.join("report.html");
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
}

impl Page {
    fn add(&mut self, r: &Record) {
        if self.last != Some(r.index) {
            self.close();
            self.last = Some(r.index);
            self.items += 1;
            if self.items <= MOST {
                self.open = Some(r.index);
                let (n, image) = (r.index, escape(&r.image));
                let id = escape(&if r.id.is_null() { n.to_string() } else { r.id.to_string() });
                let file = Settings::overlay_file(n);
                let _ = write!(
                    self.body,
                    "<figure><a class=small href=\"#i{n}\"><img src=\"{file}\" loading=lazy alt=\"no overlay\"></a>\
                     <a class=large id=\"i{n}\" href=\"#x\"><img src=\"{file}\" loading=lazy alt=\"no overlay\"></a>\
                     <figcaption><h2>{id} · {image}</h2><table>"
                );
            }
        }
        let (class, text) = match &r.outcome {
            Outcome::Failed { error } => {
                self.failed += 1;
                (" class=bad", escape(&error.message))
            }
            Outcome::Text(said) => {
                self.words += 1;
                (" class=says", escape(&said.answer))
            }
            Outcome::Mask(m) if m.no_target => {
                self.none += 1;
                (" class=none", "not in the picture".into())
            }
            Outcome::Mask(m) => {
                self.masks += 1;
                ("", format!("{:.2}", m.score))
            }
        };
        if self.open.is_some() {
            let expr = escape(r.expr.as_deref().or(r.question.as_deref()).unwrap_or(""));
            let _ = write!(self.body, "<tr><td>{expr}</td><td{class}>{text}</td></tr>");
        }
    }

    fn close(&mut self) {
        if self.open.take().is_some() {
            self.body.push_str("</table></figcaption></figure>\n");
        }
    }

    fn finish(mut self) -> String {
        self.close();
        let Self { body, items, masks, none, words, failed, .. } = self;
        let words = if words > 0 { format!(" {words} questions answered,") } else { String::new() };
        let shown = if items > MOST { format!("; the first {MOST} items are shown") } else { String::new() };
        format!(
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
             <title>mllmseg batch</title><style>{STYLE}</style><h1>Which pixels are they?</h1>\
             <p>{items} items: {masks} masks, {none} expressions not in their pictures,{words} {failed} failed{shown}.</p>\
             <main id=x>\n{body}</main></html>\n"
        )
    }
}

/// Text for HTML, inside elements and quoted attributes.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
