//! Bulk copies.

/// A bulk copy's static part.
#[derive(Clone, Debug)]
pub(crate) struct BulkOp;
