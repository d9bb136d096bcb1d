//! PTX text, read and checked; and its globals placed in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use crate::ast::{Ast, Function, Space, Var};
use crate::decode::{self, Resolve};
use crate::program::Program;
use crate::{Error, Memory, Result, parse};

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

/// A PTX module. An instruction that is not implemented is an error when a kernel that uses it is launched.
pub struct Module {
    pub(crate) ast: Ast,
    kernels: Vec<KernelInfo>,
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.kernels.iter().map(|k| k.name.as_str()).collect();
        write!(f, "Module({names:?})")
    }
}

/// Addresses that stand for variables before a module is loaded.
struct Anywhere;
impl Resolve for Anywhere {
    fn address(&self, _: &str) -> Option<u64> {
        Some(0)
    }
}

impl Module {
    /// Reads PTX text (a trailing NUL is allowed).
    ///
    /// # Errors
    /// [`Error::Parse`] with the line of what is not PTX, [`Error::Unsupported`] for an unknown directive.
    pub fn parse(ptx: &str) -> Result<Module> {
        let ast = parse::parse(ptx)?;
        let kernels =
            ast.functions.iter().filter(|f| f.kernel && f.has_body).map(|f| info(&ast, f)).collect();
        Ok(Module { ast, kernels })
    }
    /// The kernels, in the order of the text.
    pub fn kernels(&self) -> Vec<KernelInfo> {
        self.kernels.clone()
    }
    /// The kernel of that name.
    pub fn kernel(&self, name: &str) -> Option<KernelInfo> {
        self.kernels.iter().find(|k| k.name == name).cloned()
    }
    /// Global and constant variables.
    pub fn symbols(&self) -> Vec<SymbolInfo> {
        let of = |v: &&Var| matches!(v.space, Space::Global | Space::Const);
        self.ast
            .vars
            .iter()
            .filter(of)
            .map(|v| SymbolInfo { name: v.name.clone(), bytes: v.bytes, constant: v.space == Space::Const })
            .collect()
    }
    /// Every opcode form that the module uses, and whether it can be run.
    pub fn forms(&self) -> Vec<Form> {
        let mut forms: BTreeMap<&str, Form> = BTreeMap::new();
        for f in self.ast.functions.iter().filter(|f| f.has_body) {
            let errors = decode::probe(&self.ast, f);
            for (inst, error) in f.insts.iter().zip(errors) {
                if inst.opcode.starts_with('.') {
                    continue;
                }
                let form = forms.entry(&inst.opcode).or_insert_with(|| Form {
                    text: inst.opcode.to_string(),
                    count: 0,
                    line: inst.line,
                    unsupported: None,
                });
                form.count += 1;
                if form.unsupported.is_none() {
                    form.unsupported = error.map(|e| e.to_string());
                }
            }
        }
        forms.into_values().collect()
    }
    /// `.target`, as in `sm_80` or `sm_90a`.
    pub fn target(&self) -> &str {
        &self.ast.target
    }
    /// `.version`.
    pub fn version(&self) -> (u32, u32) {
        self.ast.version
    }
}

fn info(ast: &Ast, f: &Function) -> KernelInfo {
    let mut at = 0u64;
    let mut params = Vec::new();
    for &v in &f.params {
        let var = &f.vars[v as usize];
        at = at.next_multiple_of(u64::from(var.align));
        params.push(ParamInfo {
            name: var.name.clone(),
            offset: at as u32,
            bytes: var.bytes as u32,
            align: var.align,
        });
        at += var.bytes;
    }
    let program = decode::decode(ast, f, &Anywhere).ok();
    let p = program.as_ref();
    KernelInfo {
        name: f.name.clone(),
        params,
        param_bytes: at as u32,
        static_shared: p.map_or(0, |p| p.static_shared),
        local_bytes: p.map_or(0, |p| p.local_bytes),
        const_bytes: ast.vars.iter().filter(|v| v.space == Space::Const).map(|v| v.bytes as u32).sum(),
        registers: p.map_or(0, |p| p.registers),
        max_threads: f.max_threads.unwrap_or(1024).min(1024),
        required_block: f.required_block,
        required_cluster: f.required_cluster,
        max_registers: f.max_registers,
    }
}

/// A module whose globals and constants have addresses.
pub struct LoadedModule {
    module: Arc<Module>,
    /// Address and size by name.
    places: HashMap<String, (u64, u64)>,
    programs: Mutex<HashMap<String, Arc<Program>>>,
}

impl std::fmt::Debug for LoadedModule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Loaded{:?}", self.module)
    }
}

/// Addresses that stand for functions in function pointers.
const FUNCTIONS: u64 = 5 << 56;

impl Resolve for HashMap<String, (u64, u64)> {
    fn address(&self, name: &str) -> Option<u64> {
        self.get(name).map(|p| p.0)
    }
}

impl LoadedModule {
    /// Allocates the module's variables in `memory` and writes their initial values.
    ///
    /// # Errors
    /// [`Error::Memory`] if they do not fit, [`Error::NotFound`] if an initialiser names an unknown symbol.
    pub fn load(module: Arc<Module>, memory: &Memory) -> Result<LoadedModule> {
        let ast = &module.ast;
        let mut places = HashMap::new();
        let mut data: Vec<(&Var, u64)> = Vec::new();
        for (i, f) in ast.functions.iter().enumerate() {
            places.insert(f.name.clone(), (FUNCTIONS + 16 * (i as u64 + 1), 0));
        }
        let of_functions = ast
            .functions
            .iter()
            .flat_map(|f| f.vars.iter().map(move |v| (format!("{}.{}", f.name, v.name), v)));
        let vars = ast.vars.iter().map(|v| (v.name.clone(), v)).chain(of_functions);
        let allocate = || -> Result<()> {
            for (name, v) in vars.filter(|(_, v)| matches!(v.space, Space::Global | Space::Const)) {
                if v.external && v.bytes == 0 {
                    continue;
                }
                let at = memory.alloc(v.bytes.max(1), u64::from(v.align.max(16)))?;
                data.push((v, at));
                places.insert(name, (at, v.bytes));
            }
            for &(v, at) in &data {
                // Variables start as zero (PTX ISA "Variable Initialization"), as fresh memory does.
                memory.mark_written(at, v.bytes)?;
                let mut init = v.init.clone();
                for r in &v.relocs {
                    let Some(&(to, _)) = places.get(&r.symbol) else {
                        return Err(Error::NotFound { what: "symbol", name: r.symbol.clone() });
                    };
                    let value = (to.wrapping_add(r.addend as u64) >> r.shift).to_le_bytes();
                    let (from, n) = (r.offset as usize, r.bytes as usize);
                    init[from..from + n].copy_from_slice(&value[..n]);
                }
                memory.write(at, &init)?;
            }
            Ok(())
        };
        let result = allocate();
        if let Err(e) = result {
            for (_, at) in data {
                // They were allocated above; the first error is the one to tell.
                let _ = memory.free(at);
            }
            return Err(e);
        }
        Ok(LoadedModule { module: module.clone(), places, programs: Mutex::default() })
    }
    /// Frees the module's variables.
    pub fn unload(&self, memory: &Memory) {
        for &(at, _) in self.places.values().filter(|p| p.0 < FUNCTIONS) {
            // Freed already only if the caller did so by its address.
            let _ = memory.free(at);
        }
    }
    /// The module.
    pub fn module(&self) -> &Arc<Module> {
        &self.module
    }
    /// Address and size of a global or constant variable.
    pub fn symbol(&self, name: &str) -> Option<(u64, u64)> {
        self.places.get(name).copied().filter(|p| p.0 < FUNCTIONS)
    }
    /// The address that stands for a kernel or device function in a function pointer.
    pub fn function_address(&self, name: &str) -> Option<u64> {
        self.places.get(name).map(|p| p.0).filter(|&a| a >= FUNCTIONS)
    }

    /// The kernel, decoded on first use.
    pub(crate) fn program(&self, kernel: &str) -> Result<Arc<Program>> {
        let mut programs = self.programs.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(p) = programs.get(kernel) {
            return Ok(p.clone());
        }
        let f = self.module.ast.functions.iter().find(|f| f.kernel && f.has_body && f.name == kernel);
        let f = f.ok_or_else(|| Error::NotFound { what: "kernel", name: kernel.into() })?;
        let p = Arc::new(decode::decode(&self.module.ast, f, &self.places)?);
        programs.insert(kernel.to_string(), p.clone());
        Ok(p)
    }
}
