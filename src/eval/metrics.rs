//! What the papers report, from counts of pixels.
//!
//! ```text
//! cIoU   sum of intersections / sum of unions
//! gIoU   mean of the IoUs
//! P@t    share of expressions with a target whose IoU is t or more
//! REC    share of expressions whose mask's box has IoU > 0.5 with the annotation's box
//! N-acc  of the expressions without a target, the share that is rejected
//! T-acc  of the expressions with a target, the share that is not
//! ```
//! Sums are exact: of integers, or in f64. The published scripts add in f32, in an order that depends on the number of GPUs, with
//! epsilons of 1e-5 to 1e-10; what that changes is far below the digits that they print, and is not reproduced.

use super::dataset::{Name, Pixels};
use crate::Result;
use crate::image::Rle;
use half::f16;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The thresholds of P@t.
pub const THRESHOLDS: [f64; 5] = [0.5, 0.6, 0.7, 0.8, 0.9];

/// How expressions are asked and how answers are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// As MLLMSeg's published scripts do it. All expressions of a picture stand in one prompt, and the slots in it hold the ground
    /// truth: `[REJ]` where there is no target while it is decided what is rejected, `[SEG]` everywhere while masks are read.
    /// Of RefCOCO and its like, gIoU is the mean over pictures of each picture's mean; of gRefCOCO, a target that is
    /// rejected keeps its mask. The boxes of REC lack the last row and column, and the annotations' are rounded to f16.
    Upstream,
    /// As the model is used: every expression alone, nothing of the ground truth in the prompt; what is rejected has an empty mask.
    Deploy,
    /// Asked as in `deploy`, counted as in the paper of gRefCOCO (ReLA): a target that is rejected has no intersection, but the
    /// union is that of its mask.
    Rela,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Upstream => "upstream",
            Self::Deploy => "deploy",
            Self::Rela => "rela",
        })
    }
}

/// One answer compared with its ground truth, whatever the protocol.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    /// Pixels of both masks.
    pub intersection: u64,
    /// Pixels of the predicted mask, as the decoder gave it, without those that are not judged.
    pub predicted: u64,
    /// Pixels of the ground truth; 0 where there is no target.
    pub truth: u64,
    /// The model rejects the expression.
    pub rejected: bool,
    /// Box of the predicted mask, `[x, y, width, height]`.
    predicted_box: [usize; 4],
    /// Box of the annotation.
    truth_box: Option<[f64; 4]>,
}

impl Compared {
    /// Compares.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if the masks' sizes differ.
    pub fn new(predicted: &Rle, rejected: bool, truth: &Pixels, truth_box: Option<[f64; 4]>) -> Result<Self> {
        let judged = match &truth.ignored {
            Some(ignored) => &predicted.without(ignored)?,
            None => predicted,
        };
        Ok(Self {
            intersection: judged.intersection(&truth.target)?,
            predicted: judged.area(),
            truth: truth.target.area(),
            rejected,
            predicted_box: predicted.bbox(),
            truth_box,
        })
    }

    /// Pixels of either mask.
    pub fn union(&self) -> u64 {
        self.predicted + self.truth - self.intersection
    }

    /// Intersection over union; 1 if both masks are empty.
    pub fn iou(&self) -> f64 {
        ratio(self.intersection, self.union())
    }

    /// Whether the box of the mask finds the annotation's box.
    fn finds_box(&self, protocol: Protocol) -> Option<bool> {
        let truth = self.truth_box?;
        let empty = self.predicted_box[2] == 0 || (protocol != Protocol::Upstream && self.rejected);
        Some(
            !empty
                && if protocol == Protocol::Upstream {
                    self.finds_box_upstream(truth)
                } else {
                    let found = self.predicted_box.map(|v| v as f64);
                    let side = |i: usize| {
                        (found[i] + found[i + 2]).min(truth[i] + truth[i + 2]) - found[i].max(truth[i])
                    };
                    let both = side(0).max(0.0) * side(1).max(0.0);
                    both / (found[2] * found[3] + truth[2] * truth[3] - both) > 0.5
                },
        )
    }

    /// In f32, the annotation's box rounded to f16 first, corners of the mask's box on its last pixels.
    fn finds_box_upstream(&self, truth: [f64; 4]) -> bool {
        let t = truth.map(|v| f16::from_f64(v).to_f32());
        let t = [t[0], t[1], t[0] + t[2], t[1] + t[3]];
        let [x, y, w, h] = self.predicted_box.map(|v| v as f32);
        let p = [x, y, x + w - 1.0, y + h - 1.0];
        let (w, h) = (p[2].min(t[2]) - p[0].max(t[0]), p[3].min(t[3]) - p[1].max(t[1]));
        if w <= 0.0 || h <= 0.0 {
            return false;
        }
        let area = |b: [f32; 4]| (b[2] - b[0]) * (b[3] - b[1]);
        let union = area(p) + area(t) - w * h;
        union > 0.0 && w * h / union > 0.5
    }
}

/// `a / b`; 1 for nothing of nothing.
fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 1.0 } else { a as f64 / b as f64 }
}

/// Figures of one split under one protocol; shares are 0 to 1.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Metrics {
    /// Expressions that were compared.
    pub expressions: u64,
    /// Those without a target.
    pub no_target: u64,
    /// Pictures that these are of.
    pub pictures: u64,
    pub ciou: Option<f64>,
    pub giou: Option<f64>,
    /// At each of [`THRESHOLDS`]; none if nothing has a target.
    pub precision: Option<[f64; 5]>,
    /// None where annotations have no boxes.
    pub rec: Option<f64>,
    /// None if everything has a target.
    pub n_acc: Option<f64>,
    /// None if nothing has a target, or if nothing can be without one.
    pub t_acc: Option<f64>,
}

impl Metrics {
    /// Of the answers of each picture.
    pub fn new(name: Name, protocol: Protocol, pictures: &[Vec<Compared>]) -> Self {
        let upstream = protocol == Protocol::Upstream;
        let (mut intersections, mut unions) = (0u64, 0u64);
        let (mut iou_of_expressions, mut iou_of_pictures) = (0.0, 0.0);
        let (mut expressions, mut with_answers) = (0u64, 0u64);
        let (mut precise, mut targets) = ([0u64; 5], 0u64);
        let (mut boxes, mut found_boxes) = (0u64, 0u64);
        let (mut rejected_targets, mut rejected_others) = (0u64, 0u64);
        for answers in pictures.iter().filter(|a| !a.is_empty()) {
            let mut iou_here = 0.0;
            for a in answers {
                let emptied = protocol == Protocol::Deploy && a.rejected;
                let iou = if name.generalized() && a.truth == 0 {
                    // Only a rejection is right; a mask for nothing counts in the union.
                    unions += if a.rejected { 0 } else { a.predicted };
                    f64::from(u8::from(a.rejected))
                } else {
                    let nothing = emptied || (protocol == Protocol::Rela && a.rejected);
                    let intersection = if nothing { 0 } else { a.intersection };
                    let union = if emptied { a.truth } else { a.union() };
                    intersections += intersection;
                    unions += union;
                    ratio(intersection, union)
                };
                iou_here += iou;
                if a.truth > 0 {
                    targets += 1;
                    rejected_targets += u64::from(a.rejected);
                    for (n, t) in precise.iter_mut().zip(THRESHOLDS) {
                        *n += u64::from(iou >= t);
                    }
                } else {
                    rejected_others += u64::from(a.rejected);
                }
                if let Some(found) = a.finds_box(protocol).filter(|_| !name.generalized()) {
                    boxes += 1;
                    found_boxes += u64::from(found);
                }
            }
            expressions += answers.len() as u64;
            with_answers += 1;
            iou_of_expressions += iou_here;
            iou_of_pictures += iou_here / answers.len() as f64;
        }
        let by_picture = upstream && !name.generalized();
        let share = |n: u64, of: u64| (of > 0).then(|| n as f64 / of as f64);
        Self {
            expressions,
            no_target: expressions - targets,
            pictures: with_answers,
            ciou: (expressions > 0).then(|| ratio(intersections, unions)),
            giou: if by_picture {
                (with_answers > 0).then(|| iou_of_pictures / with_answers as f64)
            } else {
                (expressions > 0).then(|| iou_of_expressions / expressions as f64)
            },
            precision: (targets > 0).then(|| precise.map(|n| n as f64 / targets as f64)),
            rec: share(found_boxes, boxes),
            n_acc: share(rejected_others, expressions - targets),
            t_acc: share(targets - rejected_targets, targets).filter(|_| name.generalized()),
        }
    }
}
