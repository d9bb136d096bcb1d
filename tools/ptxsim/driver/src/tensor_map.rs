//! `cuTensorMapEncodeTiled`: the descriptors of tensor copies.

use ptxsim::tensor::tensormap::{BYTES, TensorMap, TensorMapError, TiledParams};

use crate::abi::{api, get, get_all, put, unsupported};
use crate::config::complain;
use crate::errors::*;
use crate::state::driver;

fn code_of(error: &TensorMapError) -> CUresult {
    if let TensorMapError::Unsupported(what) = error {
        return unsupported(&format!("cuTensorMapEncodeTiled with {what}"));
    }
    complain(&error.to_string());
    CUDA_ERROR_INVALID_VALUE
}

api! {
    fn cuTensorMapEncodeTiled(
        out: *mut [u8; BYTES], data_type: u32, rank: u32, address: u64, dims: *const u64, strides: *const u64,
        box_dims: *const u32, element_strides: *const u32, interleave: u32, swizzle: u32, l2_promotion: u32,
        oob_fill: u32,
    ) {
        driver()?;
        if !(1..=5).contains(&rank) || !(out as usize).is_multiple_of(64) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let n = rank as usize;
        let map = TensorMap::tiled(&TiledParams {
            data_type,
            address,
            dims: &get_all(dims, n)?,
            strides: &get_all(strides, n - 1)?,
            box_dims: &get_all(box_dims, n)?,
            element_strides: &get_all(element_strides, n)?,
            interleave,
            swizzle,
            l2_promotion,
            oob_fill,
        });
        put(out, map.map_err(|e| code_of(&e))?.to_bytes())
    }
    fn cuTensorMapReplaceAddress(map: *mut [u8; BYTES], address: u64) {
        let mut changed = TensorMap::from_bytes(&get(map.cast_const())?).map_err(|e| code_of(&e))?;
        changed.replace_address(address).map_err(|e| code_of(&e))?;
        put(map, changed.to_bytes())
    }
}
