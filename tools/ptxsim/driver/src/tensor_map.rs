//! `cuTensorMapEncodeTiled`: the descriptors of tensor copies.

use crate::abi::{api, unsupported};

api! {
    fn cuTensorMapEncodeTiled() {
        Err(unsupported("cuTensorMapEncodeTiled"))
    }
}
