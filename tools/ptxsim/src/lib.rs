//! A CUDA driver that runs PTX on the CPU, checks every access and counts every instruction.
//!
//! Three steps: [`Module::parse`] reads PTX text, [`LoadedModule::load`] places its globals in a device's [`Memory`],
//! [`launch`] runs one kernel over its grid and answers with a [`LaunchReport`]: the fault if there was one, what the
//! checks found, and what was counted.
//!
//! ```
//! use ptxsim::{LaunchConfig, LoadedModule, Memory, Module, Options, launch};
//! let ptx = r#"
//! .version 9.0
//! .target sm_80
//! .address_size 64
//! .visible .entry twice(.param .u64 p) {
//!     .reg .b32 %r<3>; .reg .b64 %rd<5>;
//!     ld.param.u64 %rd1, [p];
//!     cvta.to.global.u64 %rd2, %rd1;
//!     mov.u32 %r1, %tid.x;
//!     mul.wide.u32 %rd3, %r1, 4;
//!     add.s64 %rd4, %rd2, %rd3;
//!     ld.global.u32 %r2, [%rd4];
//!     add.s32 %r2, %r2, %r2;
//!     st.global.u32 [%rd4], %r2;
//!     ret;
//! }"#;
//! let memory = Memory::new(1 << 30);
//! let module = LoadedModule::load(Module::parse(ptx)?.into(), &memory)?;
//! let p = memory.alloc(16, 256)?;
//! memory.write(p, bytemuck_cast(&[1, 2, 3, 4]))?;
//! let report = launch(&memory, &module, "twice", &LaunchConfig::new(1, 4).arg(p), &Options::default())?;
//! assert!(report.is_clean());
//! let mut y = [0u8; 16];
//! memory.read(p, &mut y)?;
//! assert_eq!(&y[..], bytemuck_cast(&[2, 4, 6, 8]));
//! # fn bytemuck_cast(x: &[u32; 4]) -> &[u8] { unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), 16) } }
//! # Ok::<(), ptxsim::Error>(())
//! ```

#![allow(clippy::needless_range_loop)] // A lane or register number indexes several arrays at once.

mod ast;
mod check;
mod counters;
mod decode;
mod error;
mod exec;
mod gpu;
mod launch;
mod lex;
mod memory;
mod module;
mod parse;
mod printf;
mod program;
mod report;
pub mod tensor;

pub use counters::{
    Class, Counters, GlobalCounters, LineCounters, OpCounters, SharedCounters, TensorCounters,
};
pub use decode::opcodes::OPCODES;
pub use error::{Error, Result};
pub use gpu::{GpuSpec, Occupancy, Roofline};
pub use launch::{Arg, LaunchConfig, Options, launch};
pub use memory::{AllocInfo, AllocKind, Memory, MemoryStats};
pub use module::{Form, KernelInfo, LoadedModule, Module, ParamInfo, SymbolInfo};
pub use report::{Checks, Fault, FaultKind, LaunchReport, Party, Place, Report, ReportKind};
