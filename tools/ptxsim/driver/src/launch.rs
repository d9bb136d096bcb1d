//! Launches: their geometry and parameters checked against the function and the device, then run on the worker.

use std::ffi::c_void;
use std::sync::Arc;

use ptxsim::{FaultKind, Options};

use crate::abi::{api, call_out, get, get_all, lock, put, unsupported};
use crate::config::complain;
use crate::errors::*;
use crate::module::{Function, code_of, function, max_dynamic};
use crate::record;
use crate::state::{Context, driver};
use crate::stream::{Work, stream};
use crate::types::*;

/// A launch that has been checked.
pub struct Launch {
    pub function: Arc<Function>,
    config: ptxsim::LaunchConfig,
    /// Pointers to each parameter in `config.params`, for programs that ask for a node's parameters.
    shown: Vec<usize>,
}

/// What is asked for, before it is checked.
struct Request {
    grid: [u32; 3],
    block: [u32; 3],
    cluster: [u32; 3],
    shared: u32,
    cooperative: bool,
}

impl Launch {
    fn new(function: Arc<Function>, request: &Request, params: Vec<u8>) -> Result<Launch> {
        check(&function, request)?;
        let config = ptxsim::LaunchConfig {
            grid: request.grid,
            block: request.block,
            cluster: request.cluster,
            dynamic_shared: request.shared,
            cooperative: request.cooperative,
            params,
        };
        let base = config.params.as_ptr() as usize;
        let shown = function.info.params.iter().map(|p| base + p.offset as usize).collect();
        Ok(Launch { function, config, shown })
    }

    /// The launch that a graph's kernel node describes.
    ///
    /// # Safety
    /// Parameters are as the driver API wants them.
    pub unsafe fn from_node(handle: usize, node: &KernelNodeV1) -> Result<Launch> {
        let function = function(handle)?;
        // SAFETY: the caller's promise.
        let params = unsafe { gather(&function, node.params, node.extra)? };
        let request = Request {
            grid: node.grid,
            block: node.block,
            cluster: cluster_of(&function),
            shared: node.shared_bytes,
            cooperative: false,
        };
        Launch::new(function, &request, params)
    }

    /// The node that describes this launch; its pointers live as long as this.
    pub fn node_params(&self) -> KernelNodeV1 {
        KernelNodeV1 {
            function: self.function.handle,
            grid: self.config.grid,
            block: self.config.block,
            shared_bytes: self.config.dynamic_shared,
            params: self.shown.as_ptr().cast(),
            extra: std::ptr::null(),
        }
    }

    /// This launch with one attribute changed.
    pub fn with_attribute(&self, attribute: &LaunchAttribute) -> Result<Launch> {
        let mut request = Request {
            grid: self.config.grid,
            block: self.config.block,
            cluster: self.config.cluster,
            shared: self.config.dynamic_shared,
            cooperative: self.config.cooperative,
        };
        apply(&mut request, attribute)?;
        Launch::new(self.function.clone(), &request, self.config.params.clone())
    }

    /// The value of an attribute.
    pub fn attribute(&self, id: u32) -> [u64; 8] {
        let [x, y, z] = self.config.cluster.map(u64::from);
        match id {
            2 => [self.config.cooperative.into(), 0, 0, 0, 0, 0, 0, 0],
            4 => [x | y << 32, z, 0, 0, 0, 0, 0, 0],
            _ => [0; 8],
        }
    }

    /// Runs it, on the worker.
    ///
    /// # Errors
    /// The code of its fault.
    pub fn run(&self, context: &Context) -> Result<()> {
        let config = driver()?.config;
        let device = context.device();
        let options = Options {
            checks: config.checks,
            threads: config.threads,
            seed: config.seed,
            gpu: device.gpu,
            ..Options::default()
        };
        let name = &self.function.info.name;
        let report =
            ptxsim::launch(&device.memory, &self.function.module.loaded, name, &self.config, &options);
        let report = report.map_err(|e| {
            complain(&format!("kernel {name}: {e}"));
            if let ptxsim::Error::Unsupported { form, .. } = &e {
                unsupported(&format!("PTX instruction {form}"));
            }
            code_of(&e)
        })?;
        let fault = report.fault.as_ref().map(|f| f.kind);
        let [x, y, z] = self.config.block;
        let occupancy = device.gpu.occupancy(&self.function.info, x * y * z, self.config.dynamic_shared);
        record::launch(report, device.ordinal, occupancy);
        fault.map_or(Ok(()), |kind| {
            Err(match kind {
                FaultKind::IllegalAddress => CUDA_ERROR_ILLEGAL_ADDRESS,
                FaultKind::MisalignedAddress => CUDA_ERROR_MISALIGNED_ADDRESS,
                FaultKind::InvalidAddressSpace => CUDA_ERROR_INVALID_ADDRESS_SPACE,
                FaultKind::IllegalInstruction => CUDA_ERROR_ILLEGAL_INSTRUCTION,
                FaultKind::InvalidPc => CUDA_ERROR_INVALID_PC,
                FaultKind::Trap | FaultKind::StackOverflow => CUDA_ERROR_LAUNCH_FAILED,
                FaultKind::Assert => CUDA_ERROR_ASSERT,
                FaultKind::Deadlock | FaultKind::Timeout => CUDA_ERROR_LAUNCH_TIMEOUT,
            })
        })
    }
}

/// The cluster that a function asks for itself.
fn cluster_of(function: &Function) -> [u32; 3] {
    function.info.required_cluster.unwrap_or(lock(&function.settings).cluster).map(|n| n.max(1))
}

/// Checks geometry and resources as a driver does when it is asked to launch.
fn check(function: &Function, request: &Request) -> Result<()> {
    let (info, gpu) = (&function.info, function.module.context.device().gpu);
    let Request { grid, block, cluster, shared, .. } = *request;
    let threads = block.iter().map(|n| u64::from(*n)).product::<u64>();
    if grid.contains(&0)
        || block.contains(&0)
        || grid[0] > i32::MAX as u32
        || grid[1] > 65535
        || grid[2] > 65535
    {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    if block[2] > 64 || threads > 1024 || info.required_block.is_some_and(|b| b != block) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    if threads > u64::from(info.max_threads) {
        return Err(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    }
    if shared > max_dynamic(function) || shared + info.static_shared > gpu.smem_per_block_optin {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let blocks = cluster.iter().map(|n| u64::from(*n)).product::<u64>();
    if blocks > 1 {
        let most = if lock(&function.settings).non_portable_cluster { 16 } else { 8 };
        let divides = grid.iter().zip(cluster).all(|(g, c)| c > 0 && g.is_multiple_of(c));
        let required = info.required_cluster.is_some_and(|c| c != cluster);
        if gpu.capability.0 < 9 || blocks > most || !divides || required {
            return Err(CUDA_ERROR_INVALID_CLUSTER_SIZE);
        }
    }
    if request.cooperative {
        let resident =
            u64::from(gpu.occupancy(info, threads as u32, shared).blocks_per_sm) * u64::from(gpu.sms);
        if grid.iter().map(|n| u64::from(*n)).product::<u64>() > resident {
            return Err(CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
        }
    }
    Ok(())
}

/// The parameter buffer, from an array of pointers or from `extra`, but not from both.
unsafe fn gather(
    function: &Function,
    params: *const *const c_void,
    extra: *const *const c_void,
) -> Result<Vec<u8>> {
    if !params.is_null() && !extra.is_null() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let info = &function.info;
    let mut buffer = vec![0u8; info.param_bytes as usize];
    if info.params.is_empty() {
        return Ok(buffer);
    }
    if !params.is_null() {
        for (i, param) in info.params.iter().enumerate() {
            let at = param.offset as usize..(param.offset + param.bytes) as usize;
            // SAFETY: the program passed one pointer for each parameter, each to as many bytes as it takes.
            unsafe {
                let value: *const u8 = get(params.add(i))?.cast();
                if value.is_null() {
                    return Err(CUDA_ERROR_INVALID_VALUE);
                }
                std::ptr::copy_nonoverlapping(value, buffer[at].as_mut_ptr(), param.bytes as usize);
            }
        }
        return Ok(buffer);
    }
    if extra.is_null() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let (mut data, mut bytes, mut i) = (std::ptr::null::<u8>(), 0usize, 0);
    // SAFETY: the program passed pairs of a key and a pointer, ended by the key 0.
    unsafe {
        loop {
            let key = get(extra.add(i))? as usize;
            if key == 0 {
                break;
            }
            let value = get(extra.add(i + 1))?;
            match key {
                1 => data = value.cast(),
                2 => bytes = get(value.cast())?,
                _ => return Err(CUDA_ERROR_INVALID_VALUE),
            }
            i += 2;
        }
        let last = info.params.last().map_or(0, |p| (p.offset + p.bytes) as usize);
        if data.is_null() || bytes < last {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        std::ptr::copy_nonoverlapping(data, buffer.as_mut_ptr(), bytes.min(buffer.len()));
    }
    Ok(buffer)
}

/// Applies a launch attribute; those that only concern speed are accepted and have no effect.
fn apply(request: &mut Request, attribute: &LaunchAttribute) -> Result<()> {
    let v = &attribute.value;
    match attribute.id {
        2 => request.cooperative = v[0] as u32 != 0,
        4 => request.cluster = [v[0] as u32, (v[0] >> 32) as u32, v[1] as u32],
        // 6 is programmatic dependent launch: a kernel starts when the one before it has ended, which it allows.
        0 | 1 | 3 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 12 | 14 | 16 => {}
        id => return Err(unsupported(&format!("CUlaunchAttributeID {id}"))),
    }
    Ok(())
}

unsafe fn launch(
    handle: usize,
    request: &Request,
    on: usize,
    params: *const *const c_void,
    extra: *const *const c_void,
) -> Result<()> {
    let function = function(handle)?;
    let stream = stream(on)?;
    if function.module.context.handle != stream.context.handle {
        return Err(CUDA_ERROR_INVALID_HANDLE);
    }
    // SAFETY: the program passed parameters as the function declares them.
    let params = unsafe { gather(&function, params, extra)? };
    stream.issue(Work::Kernel(Arc::new(Launch::new(function, request, params)?)))
}

unsafe fn launch_config(
    config: *const LaunchConfig,
    function: &Function,
) -> Result<(Request, Vec<LaunchAttribute>)> {
    // SAFETY: the program passed a configuration and its attributes.
    let (config, attributes) = unsafe {
        let config = get(config)?;
        (config, get_all(config.attributes, config.attribute_count as usize)?)
    };
    let mut request = Request {
        grid: config.grid,
        block: config.block,
        cluster: cluster_of(function),
        shared: config.shared_bytes,
        cooperative: false,
    };
    for attribute in &attributes {
        apply(&mut request, attribute)?;
    }
    Ok((request, attributes))
}

/// Blocks of a function that an SM holds.
fn blocks(handle: usize, threads: i32, shared: usize) -> Result<i32> {
    let function = function(handle)?;
    let gpu = function.module.context.device().gpu;
    let threads = u32::try_from(threads).ok().filter(|n| *n > 0).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    let shared = u32::try_from(shared).map_err(|_| CUDA_ERROR_INVALID_VALUE)?;
    Ok(gpu.occupancy(&function.info, threads, shared).blocks_per_sm as i32)
}

/// The block size with the most resident threads, the largest among equals, and the grid that fills the device.
fn best_block(handle: usize, shared_of: BlockToShared, shared: usize, limit: i32) -> Result<(i32, i32)> {
    let function = function(handle)?;
    let gpu = function.module.context.device().gpu;
    let most = gpu.max_threads(&function.info) as i32;
    let most = if limit > 0 { most.min(limit) } else { most };
    let (mut best, mut best_resident) = ((0, 0), 0);
    let mut threads = most;
    while threads > 0 {
        let shared = match shared_of {
            // SAFETY: the program gave this function to be called with a block size.
            Some(of) => call_out(|| unsafe { of(threads) }),
            None => shared,
        };
        let n = blocks(handle, threads, shared)?;
        if n * threads > best_resident {
            (best, best_resident) = ((n * gpu.sms as i32, threads), n * threads);
        }
        threads = (threads - 1) / 32 * 32;
    }
    Ok(best)
}

/// Stages bytes of a parameter.
fn stage(handle: usize, offset: i32, bytes: &[u8]) -> Result<()> {
    let function = function(handle)?;
    let at = usize::try_from(offset).map_err(|_| CUDA_ERROR_INVALID_VALUE)?;
    let end = at.checked_add(bytes.len()).filter(|n| *n <= function.info.param_bytes as usize);
    let end = end.ok_or(CUDA_ERROR_INVALID_VALUE)?;
    let mut staged = lock(&function.staged);
    if staged.params.len() < end {
        staged.params.resize(end, 0);
    }
    staged.params[at..end].copy_from_slice(bytes);
    Ok(())
}

/// Launches what was staged.
fn launch_staged(handle: usize, x: i32, y: i32, on: usize) -> Result<()> {
    let function = function(handle)?;
    let staged = lock(&function.staged).clone();
    let size = |n: i32| u32::try_from(n).map_err(|_| CUDA_ERROR_INVALID_VALUE);
    let request = Request {
        grid: [size(x)?, size(y)?, 1],
        block: staged.block,
        cluster: cluster_of(&function),
        shared: staged.shared,
        cooperative: false,
    };
    let mut params = staged.params;
    params.resize(function.info.param_bytes as usize, 0);
    stream(on)?.issue(Work::Kernel(Arc::new(Launch::new(function, &request, params)?)))
}

api! {
    fn cuFuncSetBlockShape(handle: usize, x: i32, y: i32, z: i32) {
        let block = [x, y, z].map(|n| u32::try_from(n).unwrap_or(0));
        if block.contains(&0) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        lock(&function(handle)?.staged).block = block;
        Ok(())
    }
    fn cuFuncSetSharedSize(handle: usize, bytes: u32) {
        lock(&function(handle)?.staged).shared = bytes;
        Ok(())
    }
    fn cuParamSetSize(handle: usize, bytes: u32) {
        let function = function(handle)?;
        if bytes > function.info.param_bytes {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        lock(&function.staged).params.resize(bytes as usize, 0);
        Ok(())
    }
    fn cuParamSeti(handle: usize, offset: i32, value: u32) {
        stage(handle, offset, &value.to_le_bytes())
    }
    fn cuParamSetf(handle: usize, offset: i32, value: f32) {
        stage(handle, offset, &value.to_le_bytes())
    }
    fn cuParamSetv(handle: usize, offset: i32, data: *const u8, len: u32) {
        stage(handle, offset, &get_all(data, len as usize)?)
    }
    fn cuLaunch(handle: usize) {
        launch_staged(handle, 1, 1, 0)
    }
    fn cuLaunchGrid(handle: usize, x: i32, y: i32) {
        launch_staged(handle, x, y, 0)
    }
    fn cuLaunchGridAsync(handle: usize, x: i32, y: i32, on: usize) {
        launch_staged(handle, x, y, on)
    }
    fn cuLaunchKernel / cuLaunchKernel_ptsz(
        handle: usize, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        shared: u32, on: usize, params: *const *const c_void, extra: *const *const c_void,
    ) {
        let request = Request {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            cluster: cluster_of(&*function(handle)?),
            shared,
            cooperative: false,
        };
        launch(handle, &request, on, params, extra)
    }
    fn cuLaunchCooperativeKernel / cuLaunchCooperativeKernel_ptsz(
        handle: usize, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        shared: u32, on: usize, params: *const *const c_void,
    ) {
        let request = Request {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            cluster: cluster_of(&*function(handle)?),
            shared,
            cooperative: true,
        };
        launch(handle, &request, on, params, std::ptr::null())
    }
    fn cuLaunchKernelEx / cuLaunchKernelEx_ptsz(
        config: *const LaunchConfig, handle: usize, params: *const *const c_void, extra: *const *const c_void,
    ) {
        let on = get(config)?.stream;
        let (request, attributes) = launch_config(config, &*function(handle)?)?;
        launch(handle, &request, on, params, extra)?;
        // Programmatic and completion events: here they come when the launch is done.
        for attribute in attributes.iter().filter(|a| matches!(a.id, 7 | 12)) {
            let event = driver()?.events.get(attribute.value[0] as usize)?;
            stream(on)?.issue(Work::Record(event))?;
        }
        Ok(())
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(out: *mut i32, handle: usize, threads: i32, shared: usize) {
        put(out, blocks(handle, threads, shared)?)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(out: *mut i32, handle: usize, threads: i32, shared: usize, _flags: u32) {
        put(out, blocks(handle, threads, shared)?)
    }
    fn cuOccupancyMaxPotentialBlockSize(
        grid: *mut i32, block: *mut i32, handle: usize, shared_of: BlockToShared, shared: usize, limit: i32,
    ) {
        let (blocks, threads) = best_block(handle, shared_of, shared, limit)?;
        put(grid, blocks)?;
        put(block, threads)
    }
    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: *mut i32, block: *mut i32, handle: usize, shared_of: BlockToShared, shared: usize, limit: i32, _flags: u32,
    ) {
        let (blocks, threads) = best_block(handle, shared_of, shared, limit)?;
        put(grid, blocks)?;
        put(block, threads)
    }
    fn cuOccupancyAvailableDynamicSMemPerBlock(out: *mut usize, handle: usize, blocks: i32, threads: i32) {
        let function = function(handle)?;
        if blocks <= 0 || threads <= 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let gpu = function.module.context.device().gpu;
        let each = (gpu.smem_per_sm / blocks as u32) / 128 * 128;
        let available = each.saturating_sub(1024 + function.info.static_shared);
        put(out, available.min(max_dynamic(&function)) as usize)
    }
    fn cuOccupancyMaxPotentialClusterSize(out: *mut i32, handle: usize, config: *const LaunchConfig) {
        let function = function(handle)?;
        get(config)?;
        let gpu = function.module.context.device().gpu;
        let most = if lock(&function.settings).non_portable_cluster { 16 } else { 8 };
        put(out, if gpu.capability.0 < 9 { 1 } else { most })
    }
    /// SMs of a cluster are in one GPC; that some GPCs have fewer is not modelled.
    fn cuOccupancyMaxActiveClusters(out: *mut i32, handle: usize, config: *const LaunchConfig) {
        let function = function(handle)?;
        let (request, _) = launch_config(config, &function)?;
        let gpu = function.module.context.device().gpu;
        let threads = request.block.iter().product::<u32>();
        let resident = gpu.occupancy(&function.info, threads, request.shared).blocks_per_sm * gpu.sms;
        put(out, (resident / request.cluster.iter().product::<u32>().max(1)) as i32)
    }
}
