//! `libcuda.so.1` without a GPU: the CUDA driver API over [`ptxsim`].
//!
//! Programs load it as they load NVIDIA's: put its folder first in `LD_LIBRARY_PATH`, or open it before they do. Work is
//! done by one thread in the order in which it was submitted (see `queue`), so results are the same in every run. What is
//! not supported says so: `CUDA_ERROR_NOT_SUPPORTED`, one line on standard error, and an entry in the JSON report.
//!
//! `tools/ptxsim/README.md` lists the `PTXSIM_*` variables; `include/ptxsim.h` the two functions beside the driver API.

// The library has no Rust interface; what is exported is documented in NVIDIA's "CUDA Driver API".
#![allow(missing_docs)]

mod abi;
mod config;
mod copy;
mod device;
mod errors;
mod fatbin;
mod graph;
mod launch;
mod memory;
mod module;
mod queue;
mod record;
mod state;
mod stream;
mod tensor_map;
mod types;
mod unsupported;
