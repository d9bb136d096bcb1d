//! What sources of several large files share: a thread that reads them, and items made of what is found.

use super::item::{Ask, Failure, Item, Picture, Source};
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};

/// Names under which data sets keep their expressions, the better one first.
pub(super) const EXPRESSIONS: [&str; 10] = [
    "exprs",
    "expr",
    "expressions",
    "expression",
    "captions",
    "caption",
    "sentences",
    "sentence",
    "text",
    "query",
];
/// And their questions, if they have no expressions.
pub(super) const QUESTIONS: [&str; 2] = ["questions", "question"];

/// Where items go; each gets the next place.
pub(super) struct Items {
    send: SyncSender<Result<Item>>,
    index: u64,
}

impl Items {
    /// One more item; whether more are wanted.
    pub fn push(&mut self, id: Value, picture: Picture, (texts, ask): (Vec<String>, Ask)) -> bool {
        let picture = match picture {
            Picture::Path { name, .. } | Picture::Bytes { name, .. } if texts.is_empty() => {
                let message = format!("{name}: expected at least one expression or question, found none");
                Picture::Bad(Failure::permanent(message))
            }
            picture => picture,
        };
        let item = Item { index: self.index, id, picture, texts, ask };
        self.index += 1;
        self.send.send(Ok(item)).is_ok()
    }
}

impl Items {
    /// An item for what could not be read of a file.
    pub fn push_broken(&mut self, file: &Path, e: &Error) -> bool {
        let name = file.to_string_lossy().into_owned();
        self.push(name.into(), Picture::Bad(Failure::from(e)), Default::default())
    }
}

/// The items that `read` pushes, on a thread of its own; its error ends them.
pub(super) fn spawn(read: impl FnOnce(&mut Items) -> Result<()> + Send + 'static) -> Source {
    // What is read ahead is counted nowhere else, so it is little.
    let (send, items) = sync_channel(1);
    std::thread::spawn(move || {
        let mut items = Items { send, index: 0 };
        if let Err(e) = read(&mut items) {
            let _ = items.send.send(Err(e)); // nobody waits for it
        }
    });
    Box::new(items.into_iter())
}

/// A string, or the strings of a list, or those of a list of objects with `sent` or `raw` in them.
pub(super) fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(s) => vec![s.clone()],
        Value::Array(all) => {
            let one = |v: &Value| v.as_str().or(v["sent"].as_str()).or(v["raw"].as_str()).map(String::from);
            all.iter().filter_map(one).collect()
        }
        _ => Vec::new(),
    }
}
