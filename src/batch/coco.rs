//! Results as an instances file of COCO's, which pycocotools and annotation tools (CVAT, Datumaro) load.
//!
//! One image for each picture that has a mask or an answer that there is none, one annotation for each mask that is not empty:
//! compressed RLE, box, area, score. All are of one category, `target`; the expression and the item's id stand in
//! `attributes`. Ids count from 1 in the order of the results.

use super::item::{Outcome, Record};
use super::records::{replace, walk};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::Path;

/// Writes `path` from the records in `results`, whole or not at all. Memory does not grow with the number of results.
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] for results that are not records.
pub fn write(results: &Path, path: &Path) -> Result<()> {
    replace(path, |out| {
        let io = |e: io::Error| Error::io(path, "write")(e);
        out.write_all(br#"{"info":{"description":"mllmseg"},"licenses":[],"images":["#).map_err(io)?;
        let mut separator = "\n";
        let (mut images, mut last) = (0u64, None);
        walk(results, |record| {
            let Some(size) = size(&record).filter(|_| last != Some(record.index)) else { return Ok(()) };
            last = Some(record.index);
            images += 1;
            let image = json!({"id": images, "file_name": record.image, "height": size[0], "width": size[1]});
            write!(out, "{separator}{image}").map_err(io)?;
            separator = ",\n";
            Ok(())
        })?;
        out.write_all(b"],\"annotations\":[").map_err(io)?;
        separator = "\n";
        let mut annotations = 0u64;
        (images, last) = (0, None);
        walk(results, |record| {
            if size(&record).is_some() && last != Some(record.index) {
                last = Some(record.index);
                images += 1;
            }
            let Outcome::Mask(found) = record.outcome else { return Ok(()) };
            if found.area == 0 {
                return Ok(());
            }
            annotations += 1;
            let annotation = json!({
                "id": annotations, "image_id": images, "category_id": 1, "iscrowd": 0,
                "segmentation": found.segmentation, "bbox": found.bbox, "area": found.area, "score": found.score,
                "attributes": {"expression": record.expr, "item": scalar(record.id)},
            });
            write!(out, "{separator}{annotation}").map_err(io)?;
            separator = ",\n";
            Ok(())
        })?;
        let categories = json!([{"id": 1, "name": "target", "supercategory": ""}]);
        writeln!(out, "],\"categories\":{categories}}}").map_err(io)
    })
}

/// Attributes are strings and numbers.
fn scalar(id: Value) -> Value {
    if id.is_string() || id.is_number() { id } else { id.to_string().into() }
}

/// `[height, width]` of the record's picture, if it has an answer.
fn size(record: &Record) -> Option<[usize; 2]> {
    match &record.outcome {
        Outcome::Mask(found) => Some(found.segmentation.size),
        _ => None,
    }
}
