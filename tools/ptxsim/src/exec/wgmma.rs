//! wgmma.

/// A `wgmma`'s static part.
#[derive(Clone, Debug)]
pub(crate) struct WgmmaOp;
