//! The static graph as data: tensors, nodes, names. Nothing here belongs to a device.

use crate::ops::Op;
use crate::{Error, Result};
use serde::Serialize;
use std::fmt::{self, Write as _};
use std::ops::Range;
use std::sync::Arc;

/// What one element of a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum DType {
    /// An activation: bf16 on a GPU, f32 on the CPU.
    Act,
    /// A weight of the checkpoint.
    Bf16,
    /// f32 everywhere: pixels, probabilities, logits, folded weights.
    F32,
    /// Token ids, positions, row numbers.
    I32,
    /// Pixels of a picture or a mask.
    U8,
}

impl DType {
    /// Bytes of one element where an activation takes `act` bytes (2 on a GPU, 4 on the CPU).
    pub fn bytes(self, act: usize) -> usize {
        match self {
            DType::Act => act,
            DType::Bf16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::U8 => 1,
        }
    }
}

/// Where a tensor's bytes live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In the checkpoint: `Checkpoint::weight(id)`.
    Weight(u32),
    /// Computed from weights once, at load (`models::Weights::derived`).
    Derived(u32),
    /// In a buffer that outlives a run (inputs, K/V cache, results), by number.
    State(u32),
    /// In the plan's arena, by number.
    Activation(u32),
}

/// A contiguous row-major tensor: what it is called, its shape, and where its bytes live.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The checkpoint's name for a weight, the graph's for everything else.
    pub name: Arc<str>,
    /// One element.
    pub dtype: DType,
    /// Row-major extents.
    pub shape: Vec<usize>,
    /// Where its bytes live.
    pub place: Place,
    /// Elements between the start of that place and this tensor (views of leading indices).
    pub offset: usize,
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.name, self.dtype, self.shape)
    }
}

impl Tensor {
    /// A whole buffer: no offset.
    pub fn new(name: impl Into<Arc<str>>, dtype: DType, shape: impl Into<Vec<usize>>, place: Place) -> Self {
        Self { name: name.into(), dtype, shape: shape.into(), place, offset: 0 }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it holds no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Extents, which must be `N` in number.
    ///
    /// # Errors
    /// [`Error::Shape`], naming `what`, if they are more or fewer.
    pub fn dims<const N: usize>(&self, what: &str) -> Result<[usize; N]> {
        self.shape.as_slice().try_into().map_err(|_| self.misfit(what, format!("{N} extents")))
    }

    /// Rows and columns when all leading extents are taken as rows.
    pub fn matrix(&self) -> (usize, usize) {
        let c = self.shape.last().copied().unwrap_or(1);
        (self.len().checked_div(c).unwrap_or(0), c)
    }

    /// An error unless the shape is `shape`.
    ///
    /// # Errors
    /// [`Error::Shape`], naming `what`.
    pub fn expect(&self, what: &str, shape: &[usize]) -> Result<()> {
        if self.shape == shape { Ok(()) } else { Err(self.misfit(what, format!("{shape:?}"))) }
    }

    /// An error unless it holds exactly `len` elements.
    ///
    /// # Errors
    /// [`Error::Shape`], naming `what`.
    pub fn expect_len(&self, what: &str, len: usize) -> Result<()> {
        if self.len() == len { Ok(()) } else { Err(self.misfit(what, format!("{len} elements"))) }
    }

    fn misfit(&self, what: &str, expected: String) -> Error {
        Error::shape(format!("{what} (`{}`)", self.name), expected, format!("{:?}", self.shape))
    }

    /// The same elements under another shape.
    pub fn reshape(&self, shape: impl Into<Vec<usize>>) -> Tensor {
        let t = Tensor { shape: shape.into(), ..self.clone() };
        assert_eq!(t.len(), self.len(), "reshape of `{}`", self.name);
        t
    }

    /// Rows `range` of the first extent: still contiguous.
    pub fn rows(&self, range: Range<usize>) -> Tensor {
        assert!(range.start <= range.end && range.end <= self.shape[0], "rows {range:?} of `{}`", self.name);
        let row: usize = self.shape[1..].iter().product();
        let mut t = self.clone();
        t.offset += range.start * row;
        t.shape[0] = range.len();
        t
    }

    /// Element `i` of the first extent, which goes away.
    pub fn index(&self, i: usize) -> Tensor {
        let mut t = self.rows(i..i + 1);
        t.shape.remove(0);
        t
    }

    /// The columns from `col` on, as a window of `width` columns.
    pub fn cols(&self, col: usize, width: usize) -> Window {
        assert!(col + width <= self.matrix().1, "columns {col}..{} of `{}`", col + width, self.name);
        Window { of: self.clone(), col, width }
    }

    /// All columns.
    pub fn all(&self) -> Window {
        self.cols(0, self.matrix().1)
    }

    /// First element and length in the place, for overlap checks.
    fn span(&self) -> (Place, Range<usize>) {
        (self.place, self.offset..self.offset + self.len())
    }

    /// Whether the two share bytes; of two types, whether they share a place.
    pub fn overlaps(&self, other: &Tensor) -> bool {
        let ((p, a), (q, b)) = (self.span(), other.span());
        p == q && (self.dtype != other.dtype || (a.start < b.end && b.start < a.end))
    }
}

/// Columns `col..col + width` of every row of a matrix: how one buffer holds q|k|v, or the three thirds of a concatenation.
#[derive(Clone, Debug)]
pub struct Window {
    /// The whole matrix; its last extent is the distance between rows.
    pub of: Tensor,
    /// First column.
    pub col: usize,
    /// Number of columns.
    pub width: usize,
}

/// What a node must do at the least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Floating point operations (a multiply-add is two).
    pub flops: u64,
    /// Bytes that must be read or written once, activations in bf16.
    pub bytes: u64,
}

/// A named op.
pub struct Node {
    /// What profiles, errors and dumps print: `llm.7.wqkv`.
    pub name: String,
    /// What is computed, on which operands.
    pub op: Box<dyn Op>,
}

impl Node {
    /// An error if the op writes bytes that `share` says another operand has. The one operand that an op updates in place, which stands in both of its
    /// lists, is no other; a tensor that was given to it twice is.
    pub(crate) fn apart(&self, share: impl Fn(&Tensor, &Tensor) -> bool) -> Result<()> {
        let (reads, writes) = (self.op.reads(), self.op.writes());
        for (i, w) in writes.iter().enumerate() {
            let mut others = reads.iter().filter(|r| !std::ptr::eq(**r, *w)).chain(&writes[i + 1..]);
            if let Some(o) = others.find(|o| share(w, o)) {
                let (expected, found) = ("written operands apart from the others", format!("{w} over {o}"));
                let source = Box::new(Error::shape(self.op.kind(), expected, found));
                return Err(Error::Node { node: self.name.clone(), source });
            }
        }
        Ok(())
    }
}

/// A value with a name of its own: what a golden tensor or a dump calls it.
pub struct Tap {
    /// The published stage's name: `llm.layer7`, `dec.mask`.
    pub name: String,
    /// Where it stands after node `after` (an index) has run; a later node may overwrite it.
    pub value: Window,
    /// Its published shape.
    pub shape: Vec<usize>,
    /// Whether the published layout has channels before pixels; then the value is `(.., P, C)` and the shape `(.., C, rows, columns)`.
    pub channels_first: bool,
    /// Index of the node that completes it.
    pub after: usize,
}

/// Nodes in the order in which they run.
#[derive(Default)]
pub struct Graph {
    /// In order.
    pub nodes: Vec<Node>,
    /// Activations by number (`Place::Activation`).
    pub activations: Vec<Tensor>,
    /// Named values.
    pub taps: Vec<Tap>,
    scope: String,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names of the nodes pushed from here on begin with `scope.`.
    pub fn scope(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// A new activation in the arena.
    pub fn act(&mut self, name: &str, shape: impl Into<Vec<usize>>) -> Tensor {
        self.buffer(name, DType::Act, shape)
    }

    /// A new buffer of any type in the arena.
    pub fn buffer(&mut self, name: &str, dtype: DType, shape: impl Into<Vec<usize>>) -> Tensor {
        let place = Place::Activation(self.activations.len() as u32);
        let t = Tensor::new(name, dtype, shape, place);
        self.activations.push(t.clone());
        t
    }

    /// Appends a node.
    pub fn push(&mut self, name: &str, op: impl Op + 'static) {
        let name = if self.scope.is_empty() { name.to_string() } else { format!("{}.{name}", self.scope) };
        self.nodes.push(Node { name, op: Box::new(op) });
    }

    /// Gives `tensor`, as the last node left it, a published name; a leading extent of one item is dropped from its shape.
    pub fn tap(&mut self, name: impl Into<String>, tensor: &Tensor) {
        let lead = usize::from(tensor.shape.len() > 2 && tensor.shape[0] == 1);
        self.tap_as(name, &tensor.all(), &tensor.shape[lead..], false);
    }

    /// The same for a window or another published shape; see [`Tap`].
    pub fn tap_as(&mut self, name: impl Into<String>, value: &Window, shape: &[usize], channels_first: bool) {
        let after = self.nodes.len().saturating_sub(1);
        self.taps.push(Tap {
            name: name.into(),
            value: value.clone(),
            shape: shape.into(),
            channels_first,
            after,
        });
    }

    /// Sum over the nodes.
    pub fn cost(&self) -> Cost {
        self.nodes
            .iter()
            .map(|n| n.op.cost())
            .fold(Cost::default(), |a, c| Cost { flops: a.flops + c.flops, bytes: a.bytes + c.bytes })
    }

    /// A table of the nodes: name, op, shapes, FLOPs, bytes.
    pub fn table(&self) -> String {
        let mut s =
            format!("{:<36} {:<20} {:>9} {:>9}  {}\n", "node", "op", "GFLOP", "MB", "writes <- reads");
        for n in &self.nodes {
            let c = n.op.cost();
            let _ = writeln!(
                s,
                "{:<36} {:<20} {:>9.3} {:>9.3}  {} <- {}",
                n.name,
                n.op.kind(),
                c.flops as f64 / 1e9,
                c.bytes as f64 / 1e6,
                list(&n.op.writes()),
                list(&n.op.reads()),
            );
        }
        s
    }

    /// Graphviz: an edge from the last writer of a buffer to each reader.
    pub fn dot(&self) -> String {
        let mut s = String::from("digraph mllmseg {\n  rankdir=TB; node [shape=box, fontname=monospace];\n");
        let mut writer: std::collections::HashMap<Place, usize> = Default::default();
        for (i, n) in self.nodes.iter().enumerate() {
            let out = list(&n.op.writes());
            let _ = writeln!(s, "  n{i} [label={:?}];", format!("{}\n{}\n{out}", n.name, n.op.kind()));
            let mut from: Vec<usize> =
                n.op.reads().iter().filter_map(|t| writer.get(&t.place).copied()).collect();
            from.sort_unstable();
            from.dedup();
            for j in from {
                let _ = writeln!(s, "  n{j} -> n{i};");
            }
            writer.extend(n.op.writes().iter().map(|t| (t.place, i)));
        }
        s + "}\n"
    }

    /// The nodes as JSON values.
    pub fn json(&self) -> serde_json::Value {
        let tensor = |t: &&Tensor| serde_json::json!({"name": &*t.name, "dtype": t.dtype, "shape": t.shape});
        let node = |n: &Node| {
            let c = n.op.cost();
            serde_json::json!({
                "name": n.name, "op": n.op.kind(), "flops": c.flops, "bytes": c.bytes,
                "reads": n.op.reads().iter().map(tensor).collect::<Vec<_>>(),
                "writes": n.op.writes().iter().map(tensor).collect::<Vec<_>>(),
            })
        };
        self.nodes.iter().map(node).collect()
    }
}

fn list(tensors: &[&Tensor]) -> String {
    let one = |t: &&Tensor| format!("{}{:?}", t.name.rsplit("layers.").next().unwrap_or(&t.name), t.shape);
    tensors.iter().map(one).collect::<Vec<_>>().join(" ")
}
