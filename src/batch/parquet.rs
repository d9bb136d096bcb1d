//! Parquet files: pictures and expressions in, as data sets on the Hugging Face hub have them; results out.
//!
//! | column | is |
//! | --- | --- |
//! | `image` | a picture file's bytes, `struct<bytes, path>` (as the hub's viewer shows pictures), or a path beside the file |
//! | `exprs`, `expr`, or another name of expressions (`captions`, `sentences`, `text`, ...); if there is none, `questions` or `question` | a string, a list of strings, or a list of structs with `sent` or `raw` |
//! | `id` | a string or an integer, if it is there |
//!
//! Other columns are not read. A row without a picture, or without expressions or questions, is an item that fails. Compression: none, Snappy, gzip, Zstandard.

use super::item::{Ask, Failure, Kind, Outcome, Picture, Record, Source};
use super::records::{replace, walk};
use super::shards::{EXPRESSIONS, Items, QUESTIONS, spawn, strings};
use crate::image::Limits;
use crate::{Error, Result};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, FloatType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::record::{Field, Row};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::Type;
use serde_json::Value;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Rows whose pictures are read together.
const BATCH: usize = 8;
/// Rows of results that are written together.
const ROW_GROUP: usize = 4096;

/// Rows of these files, by what their last pages say.
///
/// # Errors
/// [`Error::Io`].
pub fn rows(paths: &[PathBuf]) -> Result<u64> {
    let rows = |path: &PathBuf| match open(path) {
        Ok(file) => Ok(file.metadata().file_metadata().num_rows().max(0) as u64),
        Err(Error::File { .. }) => Ok(1), // an item that says so
        Err(e) => Err(e),
    };
    paths.iter().map(rows).sum()
}

/// Reads files one after another. If there are `exprs`, these are asked of every picture and the column of expressions is not
/// read. `position` counts rows.
pub fn read(paths: Vec<PathBuf>, exprs: &[String], position: Arc<AtomicU64>) -> Source {
    let exprs = exprs.to_vec();
    spawn(move |items| {
        for path in &paths {
            // One that is damaged is an item that says so, behind those before it: the others go on.
            let go_on = match read_file(path, &exprs, &position, items) {
                Err(e @ Error::File { .. }) => items.push_broken(path, &e),
                read => read?,
            };
            if !go_on {
                break;
            }
        }
        Ok(())
    })
}

/// Runs what may panic on a file that is damaged: the library checks much, but not everything.
fn guarded<T>(path: &Path, what: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(what)) {
        Ok(Ok(v)) => Ok(v),
        Ok(Err(e)) => Err(Error::file(path, "a Parquet file", e.to_string())),
        Err(_) => Err(Error::file(path, "a Parquet file", "one that is damaged")),
    }
}

fn open(path: &Path) -> Result<SerializedFileReader<File>> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    guarded(path, || SerializedFileReader::new(file))
}

/// One file; whether more are wanted.
fn read_file(path: &Path, exprs: &[String], position: &AtomicU64, items: &mut Items) -> Result<bool> {
    let reader = open(path)?;
    let schema = reader.metadata().file_metadata().schema().clone();
    let columns = if schema.is_group() { schema.get_fields().to_vec() } else { Vec::new() };
    let find = |name: &str| columns.iter().find(|c| c.name() == name).cloned();
    let image = find("image").or_else(|| find("jpg")).or_else(|| find("png"));
    let names = || columns.iter().map(|c| c.name()).collect::<Vec<_>>().join(", ");
    let Some(image) = image else {
        let found = format!("columns {}", names());
        return Err(Error::usage(path.display().to_string(), "a column `image`", found));
    };
    let texts = EXPRESSIONS.iter().chain(&QUESTIONS).find_map(|n| find(n)).filter(|_| exprs.is_empty());
    let questions = texts.as_ref().is_some_and(|t| QUESTIONS.contains(&t.name()));
    let ask = if questions { Ask::Questions } else { Ask::Expressions };
    if exprs.is_empty() && texts.is_none() {
        let expected = format!("a column of expressions ({}), or --expr", EXPRESSIONS.join(", "));
        return Err(Error::usage(path.display().to_string(), expected, format!("columns {}", names())));
    }
    let id = find("id").filter(|c| c.is_primitive());
    let wanted: Vec<Arc<Type>> =
        [Some(&image), texts.as_ref(), id.as_ref()].into_iter().flatten().cloned().collect();
    let mut rows = guarded(path, || {
        let projection = Type::group_type_builder(schema.name()).with_fields(wanted).build()?;
        Ok(reader.into_iter().project(Some(projection))?.with_batch_size(BATCH))
    })?;
    for number in 0u64.. {
        let Some(row) = guarded(path, || rows.next().transpose())? else { break };
        position.fetch_add(1, Relaxed);
        let (mut picture, mut found, mut name_of_row) = (None, exprs.to_vec(), Value::Null);
        for (name, field) in row.into_columns() {
            match name {
                n if n == image.name() => picture = Some(picture_of(path, number, field)),
                n if texts.as_ref().is_some_and(|t| t.name() == n) => found = strings(&plain(&field)),
                _ => name_of_row = plain(&field),
            }
        }
        let missing = || bad(path, number, "expected a picture, found none");
        if !items.push(name_of_row, picture.unwrap_or_else(missing), (found, ask.clone())) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn bad(path: &Path, row: u64, what: &str) -> Picture {
    Picture::Bad(Failure::permanent(format!("{}#{row}: {what}", path.display())))
}

fn picture_of(path: &Path, row: u64, field: Field) -> Picture {
    let (bytes, name) = match field {
        Field::Bytes(bytes) => (Some(bytes), None),
        Field::Str(name) => (None, Some(name)),
        Field::Group(group) => {
            let (mut bytes, mut name) = (None, None);
            for (column, field) in group.into_columns() {
                match (column.as_str(), field) {
                    ("bytes", Field::Bytes(b)) => bytes = Some(b),
                    ("path", Field::Str(s)) => name = Some(s),
                    _ => {}
                }
            }
            (bytes, name)
        }
        _ => (None, None),
    };
    match (bytes, name) {
        (Some(b), _) if b.len() as u64 > Limits::default().max_bytes => bad(
            path,
            row,
            &format!(
                "expected at most {} bytes of a picture, found {}",
                Limits::default().max_bytes,
                b.len()
            ),
        ),
        (Some(b), name) => {
            let name = name.unwrap_or_else(|| format!("{}#{row}", path.display()));
            Picture::Bytes { name, bytes: b.data().to_vec() }
        }
        (None, Some(name)) => {
            Picture::Path { path: path.parent().unwrap_or(Path::new("")).join(&name), name }
        }
        (None, None) => bad(path, row, "expected a picture's bytes or path, found neither"),
    }
}

/// Text, numbers, and lists and groups of them, as JSON; null for everything else.
fn plain(field: &Field) -> Value {
    match field {
        Field::Str(s) => s.as_str().into(),
        Field::Bytes(b) => std::str::from_utf8(b.data()).ok().into(),
        Field::Byte(v) => (*v).into(),
        Field::Short(v) => (*v).into(),
        Field::Int(v) => (*v).into(),
        Field::Long(v) => (*v).into(),
        Field::UByte(v) => (*v).into(),
        Field::UShort(v) => (*v).into(),
        Field::UInt(v) => (*v).into(),
        Field::ULong(v) => (*v).into(),
        Field::ListInternal(list) => list.elements().iter().map(plain).collect(),
        Field::Group(row) => group(row),
        _ => Value::Null,
    }
}

fn group(row: &Row) -> Value {
    Value::Object(row.get_column_iter().map(|(name, field)| (name.clone(), plain(field))).collect())
}

/// A row an expression or question. What has no mask has no values in the columns of the mask.
const SCHEMA: &str = "message results {
    required int64 index;
    required binary id (string);
    required binary image (string);
    optional binary expr (string);
    optional int32 height;
    optional int32 width;
    optional binary counts (string);
    optional int32 bbox_x;
    optional int32 bbox_y;
    optional int32 bbox_width;
    optional int32 bbox_height;
    optional int64 area;
    optional float score;
    optional boolean no_target;
    optional binary error (string);
    optional binary error_kind (string);
    optional binary question (string);
    optional binary answer (string);
}";

/// Writes `path` from the records in `results`, whole or not at all: a row an expression, `id` as JSON, the mask as COCO's compressed RLE
/// (`height`, `width`, `counts`).
///
/// # Errors
/// [`Error::Io`]; [`Error::File`] for results that are not records.
pub fn write(results: &Path, path: &Path) -> Result<()> {
    let broken = |e: ParquetError| Error::file(path, "a file that takes results", e.to_string());
    replace(path, |out| {
        let level = ZstdLevel::try_new(3).map_err(broken)?;
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
        let schema = parse_message_type(SCHEMA).map_err(broken)?;
        let mut writer =
            SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties)).map_err(broken)?;
        let mut rows = Vec::new();
        walk(results, |record| {
            rows.push(record);
            if rows.len() == ROW_GROUP {
                let mut group = writer.next_row_group().map_err(broken)?;
                write_rows(&mut group, &rows).map_err(broken)?;
                group.close().map_err(broken)?;
                rows.clear();
            }
            Ok(())
        })?;
        if !rows.is_empty() {
            let mut group = writer.next_row_group().map_err(broken)?;
            write_rows(&mut group, &rows).map_err(broken)?;
            group.close().map_err(broken)?;
        }
        writer.close().map_err(broken).map(drop)
    })
}

/// The columns of [`SCHEMA`] in turn.
fn write_rows(
    group: &mut SerializedRowGroupWriter<'_, impl std::io::Write + Send>,
    rows: &[Record],
) -> Result<(), ParquetError> {
    let bytes = |s: &str| ByteArray::from(s.as_bytes().to_vec());
    let found = |r: &Record| match &r.outcome {
        Outcome::Mask(found) => Some(found.clone()),
        _ => None,
    };
    let said = |r: &Record| match &r.outcome {
        Outcome::Text(said) => Some(bytes(&said.answer)),
        _ => None,
    };
    let failed = |r: &Record| match &r.outcome {
        Outcome::Failed { error } => Some(error.clone()),
        _ => None,
    };
    macro_rules! column {
        ($type:ty, $value:expr) => {{
            let values: Vec<_> = rows.iter().map($value).collect();
            let levels: Vec<i16> = values.iter().map(|v| i16::from(v.is_some())).collect();
            let values: Vec<_> = values.into_iter().flatten().collect();
            let mut column =
                group.next_column()?.ok_or_else(|| ParquetError::General("a column is missing".into()))?;
            column.typed::<$type>().write_batch(&values, Some(&levels), None)?;
            column.close()?;
        }};
    }
    column!(Int64Type, |r: &Record| Some(r.index as i64));
    column!(ByteArrayType, |r: &Record| Some(bytes(&r.id.to_string())));
    column!(ByteArrayType, |r: &Record| Some(bytes(&r.image)));
    column!(ByteArrayType, |r: &Record| r.expr.as_deref().map(bytes));
    for axis in 0..2 {
        column!(Int32Type, |r: &Record| found(r).map(|f| f.segmentation.size[axis] as i32));
    }
    column!(ByteArrayType, |r: &Record| found(r).map(|f| bytes(&f.segmentation.counts)));
    for side in 0..4 {
        column!(Int32Type, |r: &Record| found(r).map(|f| f.bbox[side] as i32));
    }
    column!(Int64Type, |r: &Record| found(r).map(|f| f.area as i64));
    column!(FloatType, |r: &Record| found(r).map(|f| f.score));
    column!(BoolType, |r: &Record| found(r).map(|f| f.no_target));
    column!(ByteArrayType, |r: &Record| failed(r).map(|e| bytes(&e.message)));
    column!(ByteArrayType, |r: &Record| {
        failed(r).map(|e| bytes(if e.kind == Kind::Permanent { "permanent" } else { "transient" }))
    });
    column!(ByteArrayType, |r: &Record| r.question.as_deref().map(bytes));
    column!(ByteArrayType, said);
    Ok(())
}
