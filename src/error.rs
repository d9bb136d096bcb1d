//! Every error that a user can meet: what it is about, what was expected, what was found.

use std::path::{Path, PathBuf};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The message is one line: the thing's name, what was expected, what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A flag or a request asks for something that cannot be (the command exits with 2).
    #[error("{what}: expected {expected}, found {found}")]
    #[allow(missing_docs)]
    Usage { what: String, expected: String, found: String },

    /// The operating system refused something.
    #[error("{}: cannot {doing}: {source}", path.display())]
    #[allow(missing_docs)]
    Io { path: PathBuf, doing: &'static str, source: std::io::Error },

    /// A file is not what it should be.
    #[error("{}: expected {expected}, found {found}", path.display())]
    #[allow(missing_docs)]
    File { path: PathBuf, expected: String, found: String },

    /// A field of a JSON file (`config.json`, an index) is missing or absurd.
    #[error("{}: `{field}`: expected {expected}, found {found}", path.display())]
    #[allow(missing_docs)]
    Field { path: PathBuf, field: String, expected: String, found: String },

    /// A tensor of a checkpoint is missing, misshapen, of another dtype, or out of its file.
    #[error("{}: tensor `{tensor}`: expected {expected}, found {found}", path.display())]
    #[allow(missing_docs)]
    Tensor { path: PathBuf, tensor: String, expected: String, found: String },

    /// A picture cannot be read. `image` is its path, or what the caller calls it.
    #[error("{image}: expected {expected}, found {found}")]
    #[allow(missing_docs)]
    Image { image: String, expected: String, found: String },

    /// An expression or a prompt cannot be used.
    #[error("{what}: expected {expected}, found {found}")]
    #[allow(missing_docs)]
    Text { what: String, expected: String, found: String },

    /// An operand of an op does not fit.
    #[error("{what}: expected {expected}, found {found}")]
    #[allow(missing_docs)]
    Shape { what: String, expected: String, found: String },

    /// A node of the graph failed.
    #[error("node `{node}`: {source}")]
    #[allow(missing_docs)]
    Node { node: String, source: Box<Error> },

    /// A device is absent or cannot do what is asked.
    #[error("device {device}: expected {expected}, found {found}")]
    #[allow(missing_docs)]
    Device { device: String, expected: String, found: String },

    /// A device has too little free memory.
    #[error("device {device}: expected {:.2} GB of free memory for {what}, found {:.2} GB", *need as f64 / 1e9, *free as f64 / 1e9)]
    #[allow(missing_docs)]
    OutOfMemory { device: String, what: String, need: u64, free: u64 },
}

impl Error {
    /// For `map_err` on file operations: `File::open(p).map_err(Error::io(p, "open"))?`.
    pub fn io(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { path, doing, source }
    }

    /// [`Error::File`].
    pub fn file(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::File { path: path.into(), expected: expected.into(), found: found.into() }
    }

    /// [`Error::Usage`].
    pub fn usage(what: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::Usage { what: what.into(), expected: expected.into(), found: found.into() }
    }

    /// [`Error::Shape`].
    pub fn shape(what: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::Shape { what: what.into(), expected: expected.into(), found: found.into() }
    }

    /// The process exit code that this error deserves: 2 for usage, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Error::Usage { .. }) { 2 } else { 1 }
    }
}
