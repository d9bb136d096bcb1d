//! The published data sets, in the files that they are published as.
//!
//! ```text
//! ROOT/refcoco/refs(unc).p                      a pickled list of refs, by split; one annotation a ref
//! ROOT/refcoco/instances.json                   images and annotations, as COCO writes them
//! ROOT/refcoco+/..., ROOT/refcocog/refs(umd).p  likewise
//! ROOT/grefcoco/grefs(unc).p or .json           refs with any number of annotations; [-1] says that there is no target
//! ROOT/images/mscoco/images/train2014/*.jpg     COCO's pictures of all these
//! ROOT/ReasonSeg/val/*.jpg and *.json           one query a picture, its outlines beside it
//! ```
//! `ROOT` may also be the folder above `refer_seg/` or `reason_seg/`, as the published code lays them out. What each field
//! means is what the interfaces that are published with the data sets make of it (`REFER`, `G_REFER`).

use super::pickle::Pickle;
use super::reason_seg;
use crate::image::Rle;
use crate::{Error, Result};
use serde::de::{self, DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Largest file of annotations.
const MAX_BYTES: u64 = 4 << 30;

/// A published data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Name {
    RefCoco,
    RefCocoPlus,
    RefCocoG,
    GRefCoco,
    ReasonSeg,
}

impl Name {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::RefCoco, Self::RefCocoPlus, Self::RefCocoG, Self::GRefCoco, Self::ReasonSeg];

    /// Its folder's name, as published.
    pub fn folder(self) -> &'static str {
        match self {
            Self::RefCoco => "refcoco",
            Self::RefCocoPlus => "refcoco+",
            Self::RefCocoG => "refcocog",
            Self::GRefCoco => "grefcoco",
            Self::ReasonSeg => "ReasonSeg",
        }
    }

    /// Who split it, if the user does not say.
    pub fn split_by(self) -> &'static str {
        if self == Self::RefCocoG { "umd" } else { "unc" }
    }

    /// Whether an expression may have no target, or several.
    pub fn generalized(self) -> bool {
        self == Self::GRefCoco
    }

    /// The splits that results are reported on.
    pub fn splits(self, split_by: &str) -> &'static [&'static str] {
        match (self, split_by) {
            (Self::RefCocoG, "google") => &["val"],
            (Self::RefCocoG, _) | (Self::ReasonSeg, _) | (Self::RefCoco | Self::RefCocoPlus, "google") => {
                &["val", "test"]
            }
            _ => &["val", "testA", "testB"],
        }
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let named = |n: &Self| n.folder().eq_ignore_ascii_case(s);
        let all = || Self::ALL.map(Self::folder).join(", ");
        Self::ALL.into_iter().find(named).ok_or_else(|| format!("expected one of {}", all()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.folder())
    }
}

/// A split of a data set: its pictures, with all that is asked of each.
pub struct Split {
    /// The data set.
    pub name: Name,
    /// Who split it: `unc`, `umd`, `google`.
    pub split_by: String,
    /// `val`, `testA`, ...
    pub split: String,
    /// In the order in which the refs name them.
    pub pictures: Vec<Picture>,
}

/// A picture and its queries, in the order of the refs and of their sentences.
pub struct Picture {
    /// Its file.
    pub path: PathBuf,
    /// `[height, width]` that the annotations are for; not known of ReasonSeg's.
    pub size: Option<[usize; 2]>,
    /// What is asked of it.
    pub queries: Vec<Query>,
}

/// An expression and what it refers to.
pub struct Query {
    /// Its ref; 0 in ReasonSeg.
    pub ref_id: i64,
    /// Its sentence; the picture's number in ReasonSeg.
    pub sent_id: i64,
    /// The expression as the file has it.
    pub text: String,
    /// How it is asked, if not as a referring expression.
    pub form: Form,
    /// What it refers to.
    pub truth: Arc<Truth>,
}

/// What kind of text a query is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A referring expression.
    Referring,
    /// A phrase for "What is {phrase} in this image?".
    Phrase,
    /// A whole sentence.
    Sentence,
}

/// What a query refers to.
pub struct Truth {
    outlines: Outlines,
    /// `[x, y, width, height]` of the annotation, if there is exactly one.
    pub bbox: Option<[f64; 4]>,
}

enum Outlines {
    /// Of annotations; none where there is no target.
    Coco(Vec<Arc<Annotation>>),
    ReasonSeg(Vec<reason_seg::Shape>),
}

/// A ground truth as pixels.
pub struct Pixels {
    /// What belongs to the target.
    pub target: Rle,
    /// What is not judged, if anything.
    pub ignored: Option<Rle>,
}

impl Truth {
    /// Its pixels in a picture of `size` `[height, width]`. Polygons and several annotations are united. Polygons of fewer than
    /// three corners are left out, as the published code does for gRefCOCO.
    ///
    /// # Errors
    /// [`Error::Shape`] if a mask of it cannot be: a malformed RLE, one of another size, a corner that is not finite, an
    /// annotation with no polygon that has three corners.
    pub fn pixels(&self, size: [usize; 2]) -> Result<Pixels> {
        match &self.outlines {
            Outlines::Coco(annotations) => {
                let masks =
                    annotations.iter().map(|a| a.segmentation.mask(size)).collect::<Result<Vec<_>>>()?;
                Ok(Pixels { target: Rle::union(size, &masks)?, ignored: None })
            }
            Outlines::ReasonSeg(shapes) => reason_seg::pixels(shapes, size),
        }
    }
}

/// An annotation of `instances.json`.
#[derive(Deserialize)]
struct Annotation {
    id: i64,
    image_id: i64,
    segmentation: Segmentation,
    bbox: Option<[f64; 4]>,
}

/// COCO's ways to write a mask.
#[derive(Deserialize)]
#[serde(untagged, expecting = "polygons, an RLE, or a list of RLEs")]
enum Segmentation {
    Polygons(Vec<Vec<f64>>),
    Rle(Runs),
    Rles(Vec<Runs>),
}

#[derive(Deserialize)]
struct Runs {
    size: [usize; 2],
    counts: Counts,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Counts {
    Compressed(String),
    Plain(Vec<u32>),
}

impl Segmentation {
    fn mask(&self, size: [usize; 2]) -> Result<Rle> {
        let runs = |r: &Runs| match &r.counts {
            Counts::Compressed(s) => Rle::from_compressed(r.size, s),
            Counts::Plain(counts) => Ok(Rle { size: r.size, counts: counts.clone() }),
        };
        let masks = match self {
            Self::Polygons(polygons) => {
                let whole = |p: &&Vec<f64>| p.len() >= 6 && p.len().is_multiple_of(2);
                let masks: Vec<Rle> = polygons
                    .iter()
                    .filter(whole)
                    .map(|p| Rle::from_polygon(size, p))
                    .collect::<Result<_>>()?;
                if masks.is_empty() && !polygons.is_empty() {
                    let found = format!("{} polygons, none with three corners", polygons.len());
                    return Err(Error::shape("annotation", "a polygon of three corners or more", found));
                }
                masks
            }
            Self::Rle(r) => vec![runs(r)?],
            Self::Rles(all) => all.iter().map(runs).collect::<Result<_>>()?,
        };
        Rle::union(size, &masks)
    }
}

#[derive(Deserialize)]
struct Instances {
    images: Vec<Image>,
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Image {
    id: i64,
    file_name: String,
    height: usize,
    width: usize,
}

#[derive(Deserialize)]
struct Ref {
    ref_id: i64,
    #[serde(deserialize_with = "one_or_many")]
    ann_id: Vec<i64>,
    image_id: i64,
    split: String,
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    sent_id: i64,
    sent: String,
}

/// An id or a list of ids.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<i64>, D::Error> {
    struct Ids;
    impl<'de> Visitor<'de> for Ids {
        type Value = Vec<i64>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an id or a list of ids")
        }

        fn visit_i64<E: de::Error>(self, id: i64) -> Result<Vec<i64>, E> {
            Ok(vec![id])
        }

        fn visit_u64<E: de::Error>(self, id: u64) -> Result<Vec<i64>, E> {
            i64::try_from(id).map(|id| vec![id]).map_err(E::custom)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<i64>, A::Error> {
            let mut ids = Vec::new();
            while let Some(id) = seq.next_element()? {
                ids.push(id);
            }
            Ok(ids)
        }
    }
    deserializer.deserialize_any(Ids)
}

/// Where a data set lies and which part of it is meant.
#[derive(Clone, Debug)]
pub struct Place {
    /// The folder that holds the data sets' folders.
    pub root: PathBuf,
    /// COCO's pictures, if they are not where the published code has them.
    pub images: Option<PathBuf>,
    /// The data set.
    pub name: Name,
    /// Who split it.
    pub split_by: String,
}

impl Place {
    /// Reads these splits. The files of RefCOCO and its like hold all of them and are read once.
    ///
    /// # Errors
    /// [`Error::Usage`] for a split without a ref, or a folder that is not there; [`Error::File`] and [`Error::Field`] for files that
    /// are not as published.
    pub fn read(&self, splits: &[String]) -> Result<Vec<Split>> {
        if self.name == Name::ReasonSeg {
            let folder = self.folder("reason_seg")?;
            return splits.iter().map(|split| self.split(split, reason_seg::read(&folder, split)?)).collect();
        }
        let folder = self.folder("refer_seg")?;
        let refs = self.refs(&folder)?;
        let path = folder.join("instances.json");
        let instances: Instances = json(&path, &read_file(&path)?)?;
        let images: HashMap<i64, Image> = instances.images.into_iter().map(|i| (i.id, i)).collect();
        let mut wanted: HashMap<i64, Option<Arc<Annotation>>> =
            refs.iter().flat_map(|r| &r.ann_id).map(|&id| (id, None)).collect();
        for annotation in instances.annotations {
            if let Some(place) = wanted.get_mut(&annotation.id) {
                *place = Some(Arc::new(annotation));
            }
        }
        let files = self.images(&folder)?;
        splits
            .iter()
            .map(|split| {
                let here = refs.iter().filter(|r| self.is_in(&r.split, split));
                self.split(split, pictures(here, &path, &images, &wanted, &files)?)
            })
            .collect()
    }

    fn split(&self, split: &str, pictures: Vec<Picture>) -> Result<Split> {
        if pictures.is_empty() {
            let expected =
                format!("a split of {} ({})", self.name, self.name.splits(&self.split_by).join(", "));
            return Err(Error::usage("--split", expected, format!("`{split}`, of which there is nothing")));
        }
        Ok(Split { name: self.name, split_by: self.split_by.clone(), split: split.into(), pictures })
    }

    /// The data set's folder, under the root or under `parent` in it.
    fn folder(&self, parent: &str) -> Result<PathBuf> {
        let places = [self.root.join(self.name.folder()), self.root.join(parent).join(self.name.folder())];
        let found = places.iter().find(|p| p.is_dir()).cloned();
        found.ok_or_else(|| {
            let expected = format!("the folder {} there, or in {parent} there", self.name);
            Error::usage(self.root.display().to_string(), expected, "neither")
        })
    }

    fn refs(&self, folder: &Path) -> Result<Vec<Ref>> {
        let prefix = if self.name.generalized() { "grefs" } else { "refs" };
        let [pickle, text] = ["p", "json"].map(|e| folder.join(format!("{prefix}({}).{e}", self.split_by)));
        if self.name.generalized() && !pickle.exists() {
            return json(&text, &read_file(&text)?);
        }
        Pickle::parse(&pickle, &read_file(&pickle)?)?.read(&pickle)
    }

    /// The folder of COCO's pictures.
    fn images(&self, folder: &Path) -> Result<PathBuf> {
        if let Some(images) = &self.images {
            return Ok(images.clone());
        }
        let above = folder.parent().unwrap_or(Path::new("."));
        let usual = ["images/mscoco/images/train2014", "images/train2014", "train2014"];
        usual.iter().map(|p| above.join(p)).find(|p| p.is_dir()).ok_or_else(|| {
            let expected = format!("COCO's pictures in {} of {}", usual.join(" or "), above.display());
            Error::usage("--images", expected, "no such folder")
        })
    }

    /// Whether a ref's `split` is in the one that is asked for, as the published interfaces decide: `testA` is also in
    /// `testAB`, and `test` in all of these.
    fn is_in(&self, of_ref: &str, split: &str) -> bool {
        match split {
            _ if self.name.generalized() => of_ref == split,
            "testA" | "testB" | "testC" => of_ref.contains(&split[4..]),
            "test" => of_ref.contains("test"),
            _ => of_ref == split,
        }
    }
}

/// Groups refs by picture.
fn pictures<'a>(
    refs: impl Iterator<Item = &'a Ref>,
    instances: &Path,
    images: &HashMap<i64, Image>,
    annotations: &HashMap<i64, Option<Arc<Annotation>>>,
    files: &Path,
) -> Result<Vec<Picture>> {
    let mut pictures: Vec<Picture> = Vec::new();
    let mut places: HashMap<i64, usize> = HashMap::new();
    for r in refs {
        let missing = |what: &str, id: i64| {
            let expected = format!("{what} {id} of ref {}", r.ref_id);
            Error::file(instances, expected, "none")
        };
        let image = images.get(&r.image_id).ok_or_else(|| missing("image", r.image_id))?;
        let place = *places.entry(r.image_id).or_insert_with(|| {
            let (path, size) = (files.join(&image.file_name), Some([image.height, image.width]));
            pictures.push(Picture { path, size, queries: Vec::new() });
            pictures.len() - 1
        });
        let mut parts = Vec::new();
        for &id in r.ann_id.iter().filter(|_| r.ann_id != [-1]) {
            let annotation = annotations.get(&id).and_then(Clone::clone);
            let annotation = annotation.ok_or_else(|| missing("annotation", id))?;
            if annotation.image_id != r.image_id {
                let expected = format!("annotation {id} on image {}, as ref {} has it", r.image_id, r.ref_id);
                return Err(Error::file(instances, expected, format!("image {}", annotation.image_id)));
            }
            parts.push(annotation);
        }
        let bbox = if let [one] = &parts[..] { one.bbox } else { None };
        let truth = Arc::new(Truth { outlines: Outlines::Coco(parts), bbox });
        pictures[place].queries.extend(r.sentences.iter().map(|s| Query {
            ref_id: r.ref_id,
            sent_id: s.sent_id,
            text: s.sent.clone(),
            form: Form::Referring,
            truth: Arc::clone(&truth),
        }));
    }
    Ok(pictures)
}

impl Truth {
    /// Of ReasonSeg's outlines.
    pub(super) fn of_shapes(shapes: Vec<reason_seg::Shape>) -> Self {
        Truth { outlines: Outlines::ReasonSeg(shapes), bbox: None }
    }
}

/// A file of annotations as bytes.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::file(path, format!("at most {MAX_BYTES} bytes"), "more"));
    }
    Ok(bytes)
}

/// JSON as a `T`; errors name the field.
pub(super) fn json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    let mut text = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut text).map_err(|e| Error::Field {
        path: path.into(),
        field: e.path().to_string(),
        expected: "the published layout".into(),
        found: e.inner().to_string(),
    })
}
