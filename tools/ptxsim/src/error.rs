//! What can go wrong before a kernel runs. What goes wrong while it runs is a [`Fault`](crate::Fault).

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// An input that cannot be run, named with its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is not PTX.
    #[error("PTX line {line}: {message}")]
    Parse {
        /// 1-based line of the PTX text.
        line: u32,
        /// What was expected and what was found.
        message: String,
    },
    /// The text is PTX, but this instruction, modifier or directive is not implemented.
    #[error("PTX line {line}: `{form}` is not supported{}", if detail.is_empty() { String::new() } else { format!(": {detail}") })]
    Unsupported {
        /// 1-based line of the PTX text.
        line: u32,
        /// The opcode with its modifiers, or the directive.
        form: String,
        /// Which part is unknown, if not all of it.
        detail: String,
    },
    /// No kernel or symbol of that name.
    #[error("the module has no {what} `{name}`")]
    NotFound {
        /// "kernel" or "symbol".
        what: &'static str,
        /// The name asked for.
        name: String,
    },
    /// A launch that no GPU would accept.
    #[error("kernel `{kernel}`: {message}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// What was expected and what was found.
        message: String,
    },
    /// A memory request that cannot be met: out of memory, not an allocation, outside its allocation.
    #[error("{0}")]
    Memory(String),
}

impl Error {
    pub(crate) fn parse(line: u32, message: impl Into<String>) -> Error {
        Error::Parse { line, message: message.into() }
    }
    pub(crate) fn unsupported(line: u32, form: impl Into<String>, detail: impl Into<String>) -> Error {
        Error::Unsupported { line, form: form.into(), detail: detail.into() }
    }
}
