//! PTX text, read and checked; and its globals placed in memory.

use std::sync::Arc;

use crate::{Error, Memory, Result};

/// A kernel parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamInfo {
    /// Its name.
    pub name: String,
    /// Where it lies in the parameter buffer.
    pub offset: u32,
    /// Its size in bytes.
    pub bytes: u32,
    /// Its alignment in bytes.
    pub align: u32,
}

/// What is known of a kernel before it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelInfo {
    /// Its name, as a module look-up wants it.
    pub name: String,
    /// Its parameters in order.
    pub params: Vec<ParamInfo>,
    /// Size of the parameter buffer.
    pub param_bytes: u32,
    /// Shared memory with a size fixed at compile time.
    pub static_shared: u32,
    /// Local memory a thread.
    pub local_bytes: u32,
    /// Constant memory of its module.
    pub const_bytes: u32,
    /// 32-bit registers a thread needs at once in the PTX (ptxas decides the real number).
    pub registers: u32,
    /// `.maxntid`, or 1024.
    pub max_threads: u32,
    /// `.reqntid`.
    pub required_block: Option<[u32; 3]>,
    /// `.reqnctapercluster`.
    pub required_cluster: Option<[u32; 3]>,
    /// `.maxnreg`.
    pub max_registers: Option<u32>,
}

/// A global or constant variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolInfo {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether it is `.const`.
    pub constant: bool,
}

/// An opcode with its modifiers, as a module uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The opcode with its modifiers.
    pub text: String,
    /// Instructions of that form.
    pub count: usize,
    /// The first line it is on.
    pub line: u32,
    /// `None` if it can be run, else why not.
    pub unsupported: Option<String>,
}

/// A PTX module. Instructions are decoded at parse; one that is not implemented is an error when its kernel is launched.
#[derive(Debug)]
pub struct Module {}

impl Module {
    /// Reads PTX text (a trailing NUL is allowed).
    ///
    /// # Errors
    /// [`Error::Parse`] with the line of what is not PTX, [`Error::Unsupported`] for an unknown directive.
    pub fn parse(_ptx: &str) -> Result<Module> {
        Err(Error::parse(0, "not there yet"))
    }
    /// The kernels, in the order of the text.
    pub fn kernels(&self) -> Vec<KernelInfo> {
        Vec::new()
    }
    /// The kernel of that name.
    pub fn kernel(&self, name: &str) -> Option<KernelInfo> {
        self.kernels().into_iter().find(|k| k.name == name)
    }
    /// Global and constant variables.
    pub fn symbols(&self) -> Vec<SymbolInfo> {
        Vec::new()
    }
    /// Every opcode form that the module uses.
    pub fn forms(&self) -> Vec<Form> {
        Vec::new()
    }
    /// `.target`, as in `sm_80` or `sm_90a`.
    pub fn target(&self) -> &str {
        ""
    }
    /// `.version`.
    pub fn version(&self) -> (u32, u32) {
        (0, 0)
    }
}

/// A module whose globals and constants have addresses.
#[derive(Debug)]
pub struct LoadedModule {
    module: Arc<Module>,
}

impl LoadedModule {
    /// Allocates the module's variables in `memory` and writes their initial values.
    ///
    /// # Errors
    /// [`Error::Memory`] if they do not fit.
    pub fn load(module: Arc<Module>, _memory: &Memory) -> Result<LoadedModule> {
        Ok(LoadedModule { module })
    }
    /// Frees the module's variables.
    pub fn unload(&self, _memory: &Memory) {}
    /// The module.
    pub fn module(&self) -> &Arc<Module> {
        &self.module
    }
    /// Address and size of a global or constant variable.
    pub fn symbol(&self, _name: &str) -> Option<(u64, u64)> {
        None
    }
    /// The address that stands for a kernel or device function in a function pointer.
    pub fn function_address(&self, _name: &str) -> Option<u64> {
        None
    }
}
