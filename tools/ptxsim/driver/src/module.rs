//! Modules, libraries and the linker: PTX, alone or in fat binaries, and the functions in it.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_void};
use std::sync::{Arc, Mutex};

use ptxsim::{KernelInfo, LoadedModule};

use crate::abi::{api, get_all, lock, put, put_if, text, unsupported};
use crate::config::complain;
use crate::errors::*;
use crate::fatbin;
use crate::queue;
use crate::state::{Context, context, device, driver};
use crate::stream::forbid_in_capture;

const INFO_LOG: u32 = 3;
const INFO_LOG_BYTES: u32 = 4;
const ERROR_LOG: u32 = 5;
const ERROR_LOG_BYTES: u32 = 6;

/// A module in a context.
pub struct Module {
    pub handle: usize,
    pub context: Arc<Context>,
    pub loaded: LoadedModule,
    functions: Mutex<BTreeMap<String, usize>>,
}

/// A kernel of a module in a context.
pub struct Function {
    pub handle: usize,
    pub module: Arc<Module>,
    pub info: KernelInfo,
    name: CString,
    pub settings: Mutex<Settings>,
    pub staged: Mutex<Staged>,
}

/// What the launch functions of before CUDA 4 set one by one.
#[derive(Clone, Default)]
pub struct Staged {
    pub block: [u32; 3],
    pub shared: u32,
    pub params: Vec<u8>,
}

/// What `cuFuncSetAttribute` and its kin set.
#[derive(Clone, Copy, Default)]
pub struct Settings {
    /// Dynamic shared memory a launch may ask for, if it was set.
    pub max_dynamic: Option<u32>,
    pub carveout: Option<i32>,
    pub cache: u32,
    pub non_portable_cluster: bool,
    pub cluster: [u32; 3],
    pub scheduling: i32,
}

/// A library: a module that every context gets when it first uses it.
pub struct Library {
    pub handle: usize,
    parsed: Arc<ptxsim::Module>,
    loaded: Mutex<BTreeMap<usize, Arc<Module>>>,
    kernels: Mutex<BTreeMap<String, usize>>,
}

/// A kernel of a library.
pub struct Kernel {
    pub handle: usize,
    library: Arc<Library>,
    info: KernelInfo,
    name: CString,
}

/// A link under way: the texts so far, and the image once it is complete.
pub struct LinkState {
    pub handle: usize,
    inputs: Mutex<Vec<String>>,
    image: Mutex<Option<Vec<u8>>>,
}

impl Module {
    fn load(context: &Arc<Context>, parsed: Arc<ptxsim::Module>) -> Result<Arc<Module>> {
        let loaded = LoadedModule::load(parsed, &context.device().memory).map_err(|e| {
            complain(&e.to_string());
            CUDA_ERROR_OUT_OF_MEMORY
        })?;
        let context = context.clone();
        Ok(driver()?.modules.insert(|handle| Module { handle, context, loaded, functions: Mutex::default() }))
    }

    /// The kernel of that name.
    ///
    /// # Errors
    /// `CUDA_ERROR_NOT_FOUND`.
    pub fn function(self: &Arc<Self>, name: &str) -> Result<Arc<Function>> {
        let driver = driver()?;
        let mut functions = lock(&self.functions);
        if let Some(handle) = functions.get(name) {
            return driver.functions.get(*handle);
        }
        let info = self.loaded.module().kernel(name).ok_or(CUDA_ERROR_NOT_FOUND)?;
        let c_name = CString::new(name).map_err(|_| CUDA_ERROR_NOT_FOUND)?;
        let function = driver.functions.insert(|handle| Function {
            handle,
            module: self.clone(),
            info,
            name: c_name,
            settings: Mutex::default(),
            staged: Mutex::default(),
        });
        functions.insert(name.to_owned(), function.handle);
        Ok(function)
    }
}

impl Library {
    fn in_context(&self, context: &Arc<Context>) -> Result<Arc<Module>> {
        let mut loaded = lock(&self.loaded);
        if let Some(module) = loaded.get(&context.handle) {
            return Ok(module.clone());
        }
        let module = Module::load(context, self.parsed.clone())?;
        loaded.insert(context.handle, module.clone());
        Ok(module)
    }
    /// Drops what it loaded in a context that ends.
    pub fn forget(&self, context: &Context) {
        lock(&self.loaded).remove(&context.handle);
    }
}

/// The function of a `CUfunction`, or of a `CUkernel` in the current context.
///
/// # Errors
/// `CUDA_ERROR_INVALID_HANDLE`.
pub fn function(handle: usize) -> Result<Arc<Function>> {
    let driver = driver()?;
    if let Ok(function) = driver.functions.get(handle) {
        return Ok(function);
    }
    let kernel = driver.kernels.get(handle)?;
    kernel.library.in_context(&context()?)?.function(&kernel.info.name)
}

/// The options of a JIT call.
struct Options(Vec<(u32, usize)>);

impl Options {
    unsafe fn read(len: u32, keys: *const u32, values: *const usize) -> Result<Options> {
        // SAFETY: the program passed `len` of each.
        let (keys, values) = unsafe { (get_all(keys, len as usize)?, get_all(values, len as usize)?) };
        Ok(Options(keys.into_iter().zip(values).collect()))
    }
    fn value(&self, key: u32) -> Option<usize> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }
    /// Writes a log to the buffer that the program gave for it.
    fn log(&self, buffer: u32, bytes: u32, message: &str) {
        let (Some(buffer), Some(room)) = (self.value(buffer), self.value(bytes)) else { return };
        if buffer == 0 || room == 0 {
            return;
        }
        let message = &message.as_bytes()[..message.len().min(room - 1)];
        // SAFETY: the program says that the buffer has that many bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(message.as_ptr(), buffer as *mut u8, message.len());
            (buffer as *mut u8).add(message.len()).write(0);
        }
    }
}

/// Whether PTX of a target runs on a device of that capability: `sm_80` on 8.0 and later, `sm_90a` on 9.0 only.
fn runs_on(target: &str, capability: (u32, u32)) -> bool {
    let arch = target.strip_prefix("sm_").or_else(|| target.strip_prefix("compute_")).unwrap_or(target);
    let digits: String = arch.chars().take_while(char::is_ascii_digit).collect();
    let Ok(number) = digits.parse::<u32>() else { return false };
    let (own, suffix) = (capability.0 * 10 + capability.1, &arch[digits.len()..]);
    match suffix {
        "a" => number == own,
        "f" => number <= own && number / 10 == own / 10,
        _ => number <= own,
    }
}

/// Reads a program image: PTX text, a fat binary or its wrapper.
///
/// # Safety
/// `image` is null or points to one of these, complete.
unsafe fn text_of(image: *const c_void) -> Result<Vec<String>, (CUresult, String)> {
    if image.is_null() {
        return Err((CUDA_ERROR_INVALID_VALUE, "the image is null".into()));
    }
    let bytes: *const u8 = image.cast();
    // SAFETY: any image has a byte, and goes on while no NUL was met; binaries have at least 16.
    let starts = |with: &[u8]| with.iter().enumerate().all(|(i, b)| unsafe { *bytes.add(i) } == *b);
    if starts(&fatbin::WRAPPER.to_le_bytes()) {
        // SAFETY: the wrapper is magic, version, then the pointer to the fat binary.
        return unsafe { text_of(bytes.add(8).cast::<*const c_void>().read_unaligned()) };
    }
    if starts(&fatbin::MAGIC.to_le_bytes()) {
        // SAFETY: a fat binary has its header of 16 bytes, and then as many as that says.
        let all = unsafe {
            let total = fatbin::total_bytes(std::slice::from_raw_parts(bytes, 16));
            let total = total.ok_or((CUDA_ERROR_INVALID_IMAGE, "fat binary: absurd size".to_owned()))?;
            std::slice::from_raw_parts(bytes, total)
        };
        let mut found = fatbin::ptx(all).map_err(|e| (CUDA_ERROR_INVALID_IMAGE, e))?;
        found.sort_by_key(|(arch, _)| std::cmp::Reverse(*arch));
        return match found.is_empty() {
            true => Err((CUDA_ERROR_NO_BINARY_FOR_GPU, "the fat binary holds no PTX".into())),
            false => Ok(found.into_iter().map(|(_, text)| text).collect()),
        };
    }
    if starts(b"\x7fELF") {
        let message = "machine code (a cubin) cannot be simulated: load PTX or a fat binary with PTX";
        return Err((CUDA_ERROR_NO_BINARY_FOR_GPU, message.into()));
    }
    // SAFETY: what is none of the above is text, which ends with a NUL.
    let text = unsafe { text(bytes.cast()) };
    text.map(|t| vec![t])
        .map_err(|_| (CUDA_ERROR_INVALID_IMAGE, "the image is neither text nor a fat binary".into()))
}

/// Parses the first text that runs on a device of that capability.
fn parse(texts: &[String], capability: (u32, u32)) -> Result<Arc<ptxsim::Module>, (CUresult, String)> {
    let mut unfit = String::new();
    for text in texts {
        let module = ptxsim::Module::parse(text).map_err(|e| (code_of(&e), e.to_string()))?;
        if runs_on(module.target(), capability) {
            return Ok(Arc::new(module));
        }
        unfit = format!(
            "PTX for {} does not run on a device of compute capability {}.{}",
            module.target(),
            capability.0,
            capability.1
        );
    }
    Err((if texts.len() > 1 { CUDA_ERROR_NO_BINARY_FOR_GPU } else { CUDA_ERROR_INVALID_PTX }, unfit))
}

/// The code that a driver gives for such a module.
pub fn code_of(error: &ptxsim::Error) -> CUresult {
    match error {
        ptxsim::Error::Parse { .. } => CUDA_ERROR_INVALID_PTX,
        ptxsim::Error::Unsupported { .. } => CUDA_ERROR_NOT_SUPPORTED,
        ptxsim::Error::NotFound { .. } => CUDA_ERROR_NOT_FOUND,
        ptxsim::Error::Launch { .. } => CUDA_ERROR_INVALID_VALUE,
        ptxsim::Error::Memory(_) => CUDA_ERROR_OUT_OF_MEMORY,
    }
}

unsafe fn read_image(
    image: *const c_void,
    capability: (u32, u32),
    options: &Options,
) -> Result<Arc<ptxsim::Module>> {
    options.log(INFO_LOG, INFO_LOG_BYTES, "");
    options.log(ERROR_LOG, ERROR_LOG_BYTES, "");
    // SAFETY: the caller's promise.
    let parsed = unsafe { text_of(image) }.and_then(|texts| parse(&texts, capability));
    parsed.map_err(|(code, message)| {
        options.log(ERROR_LOG, ERROR_LOG_BYTES, &message);
        complain(&message);
        code
    })
}

unsafe fn load(out: *mut usize, image: *const c_void, options: &Options) -> Result<()> {
    let context = context()?;
    forbid_in_capture()?;
    // SAFETY: the program passed an image.
    let parsed = unsafe { read_image(image, context.device().gpu.capability, options)? };
    // SAFETY: an out pointer of the program.
    unsafe { put(out, Module::load(&context, parsed)?.handle) }
}

/// A file's bytes, ended by a NUL.
unsafe fn read_file(path: *const c_char) -> Result<Vec<u8>> {
    // SAFETY: the program passed a string.
    let path = unsafe { text(path)? };
    let mut bytes = std::fs::read(&path).map_err(|e| {
        complain(&format!("{path}: {e}"));
        CUDA_ERROR_FILE_NOT_FOUND
    })?;
    // Room to sniff a magic number in any file.
    bytes.extend([0; 16]);
    if bytes.starts_with(&fatbin::MAGIC.to_le_bytes())
        && fatbin::total_bytes(&bytes).is_none_or(|total| total > bytes.len())
    {
        complain(&format!("{path}: the fat binary is cut off"));
        return Err(CUDA_ERROR_INVALID_IMAGE);
    }
    if bytes.starts_with(&fatbin::WRAPPER.to_le_bytes()) {
        return Err(CUDA_ERROR_INVALID_IMAGE);
    }
    Ok(bytes)
}

fn symbol(module: &Module, name: &str) -> Result<(u64, usize)> {
    module.loaded.symbol(name).map(|(at, bytes)| (at, bytes as usize)).ok_or(CUDA_ERROR_NOT_FOUND)
}

fn unload(handle: usize) -> Result<()> {
    let driver = driver()?;
    let module = driver.modules.remove(handle)?;
    queue::wait(queue::last());
    for function in lock(&module.functions).values() {
        let _ = driver.functions.remove(*function);
    }
    module.loaded.unload(&module.context.device().memory);
    Ok(())
}

unsafe fn load_library(out: *mut usize, image: *const c_void, options: &Options) -> Result<()> {
    let driver = driver()?;
    // A library serves every device; they are all of one kind.
    let capability = device(0)?.gpu.capability;
    // SAFETY: the program passed an image.
    let parsed = unsafe { read_image(image, capability, options)? };
    let library = driver.libraries.insert(|handle| Library {
        handle,
        parsed,
        loaded: Mutex::default(),
        kernels: Mutex::default(),
    });
    // SAFETY: an out pointer of the program.
    unsafe { put(out, library.handle) }
}

fn kernel_of(library: &Arc<Library>, name: &str) -> Result<usize> {
    let mut kernels = lock(&library.kernels);
    if let Some(handle) = kernels.get(name) {
        return Ok(*handle);
    }
    let info = library.parsed.kernel(name).ok_or(CUDA_ERROR_NOT_FOUND)?;
    let c_name = CString::new(name).map_err(|_| CUDA_ERROR_NOT_FOUND)?;
    let library = library.clone();
    let kernel = driver()?.kernels.insert(|handle| Kernel { handle, library, info, name: c_name });
    kernels.insert(name.to_owned(), kernel.handle);
    Ok(kernel.handle)
}

/// An attribute of a function on its device.
fn attribute(function: &Function, attribute: u32) -> Result<i32> {
    let info = &function.info;
    let gpu = function.module.context.device().gpu;
    let settings = *lock(&function.settings);
    let capability = (gpu.capability.0 * 10 + gpu.capability.1) as i32;
    let required = info.required_cluster.unwrap_or(settings.cluster);
    Ok(match attribute {
        0 => gpu.max_threads(info) as i32,
        1 => info.static_shared as i32,
        2 => info.const_bytes as i32,
        3 => info.local_bytes as i32,
        4 => gpu.registers(info) as i32,
        5 => {
            let (major, minor) = function.module.loaded.module().version();
            (major * 10 + minor) as i32
        }
        6 => capability,
        7 => 0,
        8 => max_dynamic(function) as i32,
        9 => settings.carveout.unwrap_or(-1),
        10 => info.required_cluster.is_some().into(),
        11..=13 => required[attribute as usize - 11] as i32,
        14 => settings.non_portable_cluster.into(),
        15 => settings.scheduling,
        _ => return Err(CUDA_ERROR_INVALID_VALUE),
    })
}

/// Dynamic shared memory that a launch of this function may ask for.
pub fn max_dynamic(function: &Function) -> u32 {
    let default = (48u32 << 10).saturating_sub(function.info.static_shared);
    lock(&function.settings).max_dynamic.unwrap_or(default)
}

fn set_attribute(function: &Function, attribute: u32, value: i32) -> Result<()> {
    let gpu = function.module.context.device().gpu;
    let mut settings = lock(&function.settings);
    let positive = u32::try_from(value).map_err(|_| CUDA_ERROR_INVALID_VALUE);
    match attribute {
        8 => {
            let bytes = positive?;
            if bytes.saturating_add(function.info.static_shared) > gpu.smem_per_block_optin {
                return Err(CUDA_ERROR_INVALID_VALUE);
            }
            settings.max_dynamic = Some(bytes);
        }
        9 if (-1..=100).contains(&value) => settings.carveout = Some(value),
        11..=13 if function.info.required_cluster.is_none() => {
            settings.cluster[attribute as usize - 11] = positive?
        }
        14 => settings.non_portable_cluster = value != 0,
        15 => settings.scheduling = value,
        _ => return Err(CUDA_ERROR_INVALID_VALUE),
    }
    Ok(())
}

unsafe fn param_info(info: &KernelInfo, index: usize, offset: *mut usize, bytes: *mut usize) -> Result<()> {
    let param = info.params.get(index).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    // SAFETY: out pointers of the program.
    unsafe {
        put_if(bytes, param.bytes as usize);
        put(offset, param.offset as usize)
    }
}

fn kernel(handle: usize) -> Result<Arc<Kernel>> {
    driver()?.kernels.get(handle)
}

/// A kernel as a function in the current context, or in the primary context of a device.
fn kernel_on(handle: usize, ordinal: i32) -> Result<Arc<Function>> {
    let kernel = kernel(handle)?;
    let primary = lock(&device(ordinal)?.primary).context.clone();
    let context = match (context(), primary) {
        (Ok(current), _) if current.device == ordinal as usize => current,
        (_, Some(primary)) => primary,
        _ => return Err(CUDA_ERROR_INVALID_CONTEXT),
    };
    kernel.library.in_context(&context)?.function(&kernel.info.name)
}

/// Joins texts into one: the first one's `.version`, `.target` and `.address_size` stand for all.
fn join(inputs: &[String]) -> String {
    let mut joined = String::new();
    for (i, input) in inputs.iter().enumerate() {
        for line in input.lines() {
            let word = line.split_whitespace().next().unwrap_or_default();
            if i == 0 || !matches!(word, ".version" | ".target" | ".address_size") {
                joined.push_str(line);
                joined.push('\n');
            }
        }
    }
    joined
}

unsafe fn add_to_link(state: usize, kind: u32, data: &[u8]) -> Result<()> {
    let state = driver()?.links.get(state)?;
    let texts = match kind {
        1 => {
            let text = data.split(|b| *b == 0).next().unwrap_or_default().to_vec();
            vec![String::from_utf8(text).map_err(|_| CUDA_ERROR_INVALID_PTX)?]
        }
        2 => fatbin::ptx(data)
            .map_err(|_| CUDA_ERROR_INVALID_IMAGE)?
            .into_iter()
            .map(|(_, t)| t)
            .take(1)
            .collect(),
        _ => return Err(unsupported(&format!("cuLinkAddData(CUjitInputType {kind})"))),
    };
    lock(&state.inputs).extend(texts);
    Ok(())
}

api! {
    fn cuModuleLoadData(out: *mut usize, image: *const c_void) {
        load(out, image, &Options(Vec::new()))
    }
    fn cuModuleLoadDataEx(out: *mut usize, image: *const c_void, len: u32, keys: *const u32, values: *const usize) {
        load(out, image, &Options::read(len, keys, values)?)
    }
    fn cuModuleLoadFatBinary(out: *mut usize, image: *const c_void) {
        load(out, image, &Options(Vec::new()))
    }
    fn cuModuleLoad(out: *mut usize, path: *const c_char) {
        context()?;
        let bytes = read_file(path)?;
        load(out, bytes.as_ptr().cast(), &Options(Vec::new()))
    }
    fn cuModuleUnload(handle: usize) {
        unload(handle)
    }
    fn cuModuleGetLoadingMode(out: *mut u32) {
        put(out, 1)
    }
    fn cuModuleGetFunction(out: *mut usize, handle: usize, name: *const c_char) {
        put(out, driver()?.modules.get(handle)?.function(&text(name)?)?.handle)
    }
    fn cuModuleGetFunctionCount(out: *mut u32, handle: usize) {
        put(out, driver()?.modules.get(handle)?.loaded.module().kernels().len() as u32)
    }
    fn cuModuleEnumerateFunctions(out: *mut usize, len: u32, handle: usize) {
        let module = driver()?.modules.get(handle)?;
        for (i, info) in module.loaded.module().kernels().iter().take(len as usize).enumerate() {
            put(if out.is_null() { out } else { out.add(i) }, module.function(&info.name)?.handle)?;
        }
        Ok(())
    }
    fn cuModuleGetGlobal_v2(out: *mut u64, bytes: *mut usize, handle: usize, name: *const c_char) {
        let (address, size) = symbol(&*driver()?.modules.get(handle)?, &text(name)?)?;
        put_if(out, address);
        put_if(bytes, size);
        Ok(())
    }

    fn cuLibraryLoadData(
        out: *mut usize, image: *const c_void, keys: *const u32, values: *const usize, len: u32,
        _library_keys: *const u32, _library_values: *const usize, _library_len: u32,
    ) {
        load_library(out, image, &Options::read(len, keys, values)?)
    }
    fn cuLibraryLoadFromFile(
        out: *mut usize, path: *const c_char, keys: *const u32, values: *const usize, len: u32,
        _library_keys: *const u32, _library_values: *const usize, _library_len: u32,
    ) {
        let bytes = read_file(path)?;
        load_library(out, bytes.as_ptr().cast(), &Options::read(len, keys, values)?)
    }
    fn cuLibraryUnload(handle: usize) {
        let driver = driver()?;
        let library = driver.libraries.remove(handle)?;
        for module in std::mem::take(&mut *lock(&library.loaded)).values() {
            unload(module.handle)?;
        }
        for kernel in std::mem::take(&mut *lock(&library.kernels)).values() {
            let _ = driver.kernels.remove(*kernel);
        }
        Ok(())
    }
    fn cuLibraryGetKernel(out: *mut usize, handle: usize, name: *const c_char) {
        put(out, kernel_of(&driver()?.libraries.get(handle)?, &text(name)?)?)
    }
    fn cuLibraryGetKernelCount(out: *mut u32, handle: usize) {
        put(out, driver()?.libraries.get(handle)?.parsed.kernels().len() as u32)
    }
    fn cuLibraryEnumerateKernels(out: *mut usize, len: u32, handle: usize) {
        let library = driver()?.libraries.get(handle)?;
        for (i, info) in library.parsed.kernels().iter().take(len as usize).enumerate() {
            put(if out.is_null() { out } else { out.add(i) }, kernel_of(&library, &info.name)?)?;
        }
        Ok(())
    }
    fn cuLibraryGetModule(out: *mut usize, handle: usize) {
        put(out, driver()?.libraries.get(handle)?.in_context(&context()?)?.handle)
    }
    fn cuLibraryGetGlobal(out: *mut u64, bytes: *mut usize, handle: usize, name: *const c_char) {
        let module = driver()?.libraries.get(handle)?.in_context(&context()?)?;
        let (address, size) = symbol(&module, &text(name)?)?;
        put_if(out, address);
        put_if(bytes, size);
        Ok(())
    }
    fn cuKernelGetFunction(out: *mut usize, handle: usize) {
        kernel(handle)?;
        put(out, function(handle)?.handle)
    }
    fn cuKernelGetLibrary(out: *mut usize, handle: usize) {
        put(out, kernel(handle)?.library.handle)
    }
    fn cuKernelGetName(out: *mut *const c_char, handle: usize) {
        put(out, kernel(handle)?.name.as_ptr())
    }
    fn cuKernelGetParamInfo(handle: usize, index: usize, offset: *mut usize, bytes: *mut usize) {
        param_info(&kernel(handle)?.info, index, offset, bytes)
    }
    fn cuKernelGetAttribute(out: *mut i32, which: u32, handle: usize, device: i32) {
        put(out, attribute(&*kernel_on(handle, device)?, which)?)
    }
    fn cuKernelSetAttribute(which: u32, value: i32, handle: usize, device: i32) {
        set_attribute(&*kernel_on(handle, device)?, which, value)
    }
    fn cuKernelSetCacheConfig(handle: usize, config: u32, device: i32) {
        lock(&kernel_on(handle, device)?.settings).cache = config;
        Ok(())
    }

    fn cuFuncGetAttribute(out: *mut i32, which: u32, handle: usize) {
        put(out, attribute(&*function(handle)?, which)?)
    }
    fn cuFuncSetAttribute(handle: usize, which: u32, value: i32) {
        set_attribute(&*function(handle)?, which, value)
    }
    fn cuFuncSetCacheConfig(handle: usize, config: u32) {
        if config > 3 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        lock(&function(handle)?.settings).cache = config;
        Ok(())
    }
    fn cuFuncSetSharedMemConfig(handle: usize, _config: u32) {
        function(handle).map(drop)
    }
    fn cuFuncGetModule(out: *mut usize, handle: usize) {
        put(out, function(handle)?.module.handle)
    }
    fn cuFuncGetName(out: *mut *const c_char, handle: usize) {
        put(out, function(handle)?.name.as_ptr())
    }
    fn cuFuncGetParamInfo(handle: usize, index: usize, offset: *mut usize, bytes: *mut usize) {
        param_info(&function(handle)?.info, index, offset, bytes)
    }
    fn cuFuncIsLoaded(out: *mut u32, handle: usize) {
        function(handle)?;
        put(out, 1)
    }
    fn cuFuncLoad(handle: usize) {
        function(handle).map(drop)
    }

    fn cuLinkCreate_v2(_len: u32, _keys: *const u32, _values: *const usize, out: *mut usize) {
        let state = driver()?.links.insert(|handle| LinkState {
            handle,
            inputs: Mutex::default(),
            image: Mutex::default(),
        });
        put(out, state.handle)
    }
    fn cuLinkAddData_v2(
        state: usize, kind: u32, data: *const c_void, bytes: usize, _name: *const c_char,
        _len: u32, _keys: *const u32, _values: *const usize,
    ) {
        if data.is_null() {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        add_to_link(state, kind, std::slice::from_raw_parts(data.cast(), bytes))
    }
    fn cuLinkAddFile_v2(state: usize, kind: u32, path: *const c_char, _len: u32, _keys: *const u32, _values: *const usize) {
        add_to_link(state, kind, &read_file(path)?)
    }
    /// The image is the joined PTX text.
    fn cuLinkComplete(state: usize, out: *mut *const c_void, bytes: *mut usize) {
        let state = driver()?.links.get(state)?;
        let mut image = join(&lock(&state.inputs)).into_bytes();
        image.push(0);
        let mut kept = lock(&state.image);
        let image = kept.insert(image);
        put_if(bytes, image.len());
        put(out, image.as_ptr().cast())
    }
    fn cuLinkDestroy(state: usize) {
        driver()?.links.remove(state).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_run_where_they_should() {
        assert!(runs_on("sm_80", (8, 0)) && runs_on("sm_80", (9, 0)) && runs_on("compute_75", (8, 9)));
        assert!(!runs_on("sm_90", (8, 9)));
        assert!(runs_on("sm_90a", (9, 0)) && !runs_on("sm_90a", (10, 0)) && !runs_on("sm_90a", (8, 0)));
        assert!(!runs_on("pentium", (9, 0)));
    }

    #[test]
    fn joined_texts_have_one_header() {
        let a = ".version 9.0\n.target sm_80\n.address_size 64\n.global .u32 a;".to_owned();
        let b = ".version 8.0\n.target sm_80\n.address_size 64\n.global .u32 b;".to_owned();
        assert_eq!(
            join(&[a, b]),
            ".version 9.0\n.target sm_80\n.address_size 64\n.global .u32 a;\n.global .u32 b;\n"
        );
    }
}
