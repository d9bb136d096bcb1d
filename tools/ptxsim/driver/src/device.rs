//! Start-up, devices and their attributes, contexts, error names, and the look-up of functions by name.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use crate::abi::{api, get, lock, put, put_if, text, unsupported};
use crate::errors::*;
use crate::state::{
    self, Context, Device, context, current, current_any, device, driver, pop_current, push_current,
    set_current,
};
use crate::stream::forbid_in_capture;
use crate::types::{DeviceProperties, MemLocation};

/// CUDA 13.0.
pub const VERSION: i32 = 13000;
/// Flags that a context may have.
const CONTEXT_FLAGS: u32 = 0xff;

/// An attribute of a device: `CUdevice_attribute`. What an attribute asks of hardware that is not modelled is 0.
fn attribute(device: &Device, attribute: u32) -> Result<i32> {
    let gpu = device.gpu;
    let hopper = i32::from(gpu.capability.0 >= 9);
    Ok(match attribute {
        1 => 1024,                              // MAX_THREADS_PER_BLOCK
        2 | 3 => 1024,                          // MAX_BLOCK_DIM_X, Y
        4 => 64,                                // MAX_BLOCK_DIM_Z
        5 => i32::MAX,                          // MAX_GRID_DIM_X
        6 | 7 => 65535,                         // MAX_GRID_DIM_Y, Z
        8 => 48 << 10,                          // MAX_SHARED_MEMORY_PER_BLOCK
        9 => 64 << 10,                          // TOTAL_CONSTANT_MEMORY
        10 => 32,                               // WARP_SIZE
        11 => i32::MAX,                         // MAX_PITCH
        12 | 82 => 65536,                       // MAX_REGISTERS_PER_BLOCK, _PER_MULTIPROCESSOR
        13 => gpu.clock_khz as i32,             // CLOCK_RATE
        14 => 512,                              // TEXTURE_ALIGNMENT
        15 => 1,                                // GPU_OVERLAP
        16 => gpu.sms as i32,                   // MULTIPROCESSOR_COUNT
        17 | 18 => 0,                           // KERNEL_EXEC_TIMEOUT, INTEGRATED
        19 => 1,                                // CAN_MAP_HOST_MEMORY
        20 => 0,                                // COMPUTE_MODE: default
        30 => 512,                              // SURFACE_ALIGNMENT
        31 => 1,                                // CONCURRENT_KERNELS
        32 => i32::from(gpu.name != "rtx4090"), // ECC_ENABLED
        33 => device.ordinal as i32 + 1,        // PCI_BUS_ID
        34 => 0,                                // PCI_DEVICE_ID
        36 => gpu.memory_clock_khz as i32,      // MEMORY_CLOCK_RATE
        37 => gpu.memory_bus_bits as i32,       // GLOBAL_MEMORY_BUS_WIDTH
        38 => gpu.l2_bytes as i32,              // L2_CACHE_SIZE
        39 => gpu.threads_per_sm as i32,        // MAX_THREADS_PER_MULTIPROCESSOR
        40 => 3,                                // ASYNC_ENGINE_COUNT
        41 => 1,                                // UNIFIED_ADDRESSING
        50 => 0,                                // PCI_DOMAIN_ID
        51 => 32,                               // TEXTURE_PITCH_ALIGNMENT
        75 => gpu.capability.0 as i32,          // COMPUTE_CAPABILITY_MAJOR
        76 => gpu.capability.1 as i32,          // COMPUTE_CAPABILITY_MINOR
        78..=80 => 1,                           // STREAM_PRIORITIES, GLOBAL_L1, LOCAL_L1
        81 => gpu.smem_per_sm as i32,           // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        83 => 1,                                // MANAGED_MEMORY
        85 => device.ordinal as i32,            // MULTI_GPU_BOARD_GROUP_ID
        87 => {
            if gpu.name == "rtx4090" {
                64
            } else {
                2
            }
        } // SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO
        89 => 1,                                // CONCURRENT_MANAGED_ACCESS
        90 => 1,                                // COMPUTE_PREEMPTION_SUPPORTED
        91 => 1,                                // CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM
        95 => 1,                                // COOPERATIVE_LAUNCH
        97 => gpu.smem_per_block_optin as i32,  // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        99 => 1,                                // HOST_REGISTER_SUPPORTED
        106 => gpu.blocks_per_sm as i32,        // MAX_BLOCKS_PER_MULTIPROCESSOR
        108 | 109 => 0,                         // MAX_PERSISTING_L2_CACHE_SIZE, MAX_ACCESS_POLICY_WINDOW_SIZE
        111 => 1024,                            // RESERVED_SHARED_MEMORY_PER_BLOCK
        113 => 1,                               // READ_ONLY_HOST_REGISTER_SUPPORTED
        115 => 1,                               // MEMORY_POOLS_SUPPORTED
        120 => hopper,                          // CLUSTER_LAUNCH
        126 => {
            if hopper == 1 {
                4
            } else {
                1
            }
        } // MEM_SYNC_DOMAIN_COUNT
        127 => hopper,                          // TENSOR_MAP_ACCESS_SUPPORTED
        131 | 134 => -1,                        // NUMA_ID, HOST_NUMA_ID
        0 | 149.. => return Err(CUDA_ERROR_INVALID_VALUE),
        _ => 0,
    })
}

/// Limits that can be set (`CUlimit`) and their defaults.
fn limit(of: u32) -> Result<usize> {
    match of {
        0 => Ok(1024),
        1 => Ok(1 << 20),
        2 => Ok(8 << 20),
        5 => Ok(128),
        6 => Ok(0),
        _ => Err(CUDA_ERROR_UNSUPPORTED_LIMIT),
    }
}

/// Writes a string of at most `len` bytes, its NUL included.
unsafe fn put_text(out: *mut c_char, len: i32, value: &str) -> Result<()> {
    let len = usize::try_from(len).ok().filter(|n| *n > 0).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    if out.is_null() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let bytes = &value.as_bytes()[..value.len().min(len - 1)];
    // SAFETY: the program gave `len` bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), out.cast(), bytes.len());
        out.add(bytes.len()).write(0);
    }
    Ok(())
}

fn uuid(device: &Device) -> [u8; 16] {
    let mut uuid = *b"ptxsim-device-\0\0";
    uuid[15] = device.ordinal as u8;
    uuid
}

fn bus_id(device: &Device) -> String {
    format!("0000:{:02X}:00.0", device.ordinal + 1)
}

fn release_primary(ordinal: i32) -> Result<()> {
    let last = {
        let mut primary = lock(&device(ordinal)?.primary);
        primary.retained = primary.retained.checked_sub(1).ok_or(CUDA_ERROR_INVALID_CONTEXT)?;
        if primary.retained == 0 { primary.context.take() } else { None }
    };
    last.map_or(Ok(()), |context| context.destroy())
}

fn reset_primary(ordinal: i32) -> Result<()> {
    let context = {
        let mut primary = lock(&device(ordinal)?.primary);
        primary.context.take()
    };
    let Some(context) = context else { return Ok(()) };
    // Whoever retained it still has to release it.
    context.destroy()
}

fn set_primary_flags(ordinal: i32, flags: u32) -> Result<()> {
    if flags & !CONTEXT_FLAGS != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let mut primary = lock(&device(ordinal)?.primary);
    primary.flags = flags;
    if let Some(context) = &primary.context {
        context.flags.store(flags, Ordering::Relaxed);
    }
    Ok(())
}

unsafe fn create(out: *mut usize, flags: u32, ordinal: i32) -> Result<()> {
    if flags & !CONTEXT_FLAGS != 0 {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let context = Context::create(device(ordinal)?, flags, false)?;
    push_current(context.handle);
    // SAFETY: an out pointer of the program.
    unsafe { put(out, context.handle) }
}

fn destroy(handle: usize) -> Result<()> {
    let context = driver()?.contexts.get(handle).map_err(|_| CUDA_ERROR_INVALID_CONTEXT)?;
    if context.primary {
        return Err(CUDA_ERROR_INVALID_CONTEXT);
    }
    if current() == handle {
        pop_current();
    }
    context.destroy()
}

fn set(handle: usize) -> Result<()> {
    if handle != 0 {
        driver()?.contexts.get(handle).map_err(|_| CUDA_ERROR_INVALID_CONTEXT)?;
    }
    set_current(handle);
    Ok(())
}

fn push(handle: usize) -> Result<()> {
    driver()?.contexts.get(handle).map_err(|_| CUDA_ERROR_INVALID_CONTEXT)?;
    push_current(handle);
    Ok(())
}

unsafe fn pop(out: *mut usize) -> Result<()> {
    driver()?;
    let context = pop_current().ok_or(CUDA_ERROR_INVALID_CONTEXT)?;
    // SAFETY: an out pointer of the program, or null.
    unsafe { put_if(out, context) };
    Ok(())
}

/// Every exported function.
fn symbols() -> &'static BTreeMap<&'static str, usize> {
    static ALL: OnceLock<BTreeMap<&'static str, usize>> = OnceLock::new();
    ALL.get_or_init(|| {
        let lists = [
            crate::graph::symbols(),
            crate::launch::symbols(),
            crate::memory::symbols(),
            crate::module::symbols(),
            crate::stream::symbols(),
            crate::tensor_map::symbols(),
            crate::unsupported::symbols(),
            self::exports::symbols(),
        ];
        lists.into_iter().flatten().map(|(name, at)| (name, at as usize)).collect()
    })
}

/// The variants of a function that came with a version of CUDA later than 3.2 and are not binary compatible with the one
/// before: name, suffix, version (cudaTypedefs.h of CUDA 13.0).
const VARIANTS: [(&str, &str, i32); 29] = [
    ("cuCtxCreate", "_v3", 11040),
    ("cuCtxCreate", "_v4", 12050),
    ("cuCtxGetDevice", "_v2", 13000),
    ("cuCtxSynchronize", "_v2", 13000),
    ("cuDeviceGetUuid", "_v2", 11040),
    ("cuEventElapsedTime", "_v2", 12080),
    ("cuGetProcAddress", "_v2", 12000),
    ("cuGraphAddDependencies", "_v2", 12030),
    ("cuGraphAddKernelNode", "_v2", 12000),
    ("cuGraphAddNode", "_v2", 12030),
    ("cuGraphExecKernelNodeSetParams", "_v2", 12000),
    ("cuGraphExecUpdate", "_v2", 12000),
    ("cuGraphGetEdges", "_v2", 12030),
    ("cuGraphInstantiate", "_v2", 11000),
    ("cuGraphInstantiate", "WithFlags", 11040),
    ("cuGraphKernelNodeGetParams", "_v2", 12000),
    ("cuGraphKernelNodeSetParams", "_v2", 12000),
    ("cuGraphNodeGetDependencies", "_v2", 12030),
    ("cuGraphNodeGetDependentNodes", "_v2", 12030),
    ("cuGraphRemoveDependencies", "_v2", 12030),
    ("cuMemAdvise", "_v2", 12020),
    ("cuMemPrefetchAsync", "_v2", 12020),
    ("cuMemcpyBatchAsync", "_v2", 13000),
    ("cuStreamBeginCapture", "_v2", 10010),
    ("cuStreamGetCaptureInfo", "_v2", 11030),
    ("cuStreamGetCaptureInfo", "_v3", 12030),
    ("cuStreamGetCtx", "_v2", 12050),
    ("cuStreamUpdateCaptureDependencies", "_v2", 12030),
    ("cuMemcpy3DBatchAsync", "_v2", 13000),
];

/// The address that `cuGetProcAddress` answers, for a base name at a version of CUDA.
fn lookup(name: &str, version: i32, per_thread: bool) -> Option<usize> {
    let find = |name: &str| {
        let variants = [format!("{name}_ptsz"), format!("{name}_ptds")];
        let own = per_thread.then(|| variants.iter().find_map(|n| symbols().get(n.as_str()))).flatten();
        own.or_else(|| symbols().get(name)).copied()
    };
    let dated: Vec<_> = VARIANTS.iter().filter(|(n, ..)| *n == name).collect();
    let newest = dated.iter().rfind(|(.., since)| *since <= version);
    if let Some((_, suffix, _)) = newest {
        return find(&format!("{name}{suffix}"));
    }
    let late = |suffix: &str| dated.iter().any(|(_, s, _)| *s == suffix);
    let v2 = if late("_v2") { None } else { find(&format!("{name}_v2")) };
    v2.or_else(|| find(name))
}

unsafe fn proc_address(
    name: *const c_char,
    out: *mut usize,
    version: i32,
    flags: u64,
    status: *mut u32,
) -> Result<()> {
    // SAFETY: the program passed a string and out pointers.
    unsafe {
        let name = text(name)?;
        put(out, 0)?;
        match lookup(&name, version, flags & 2 != 0) {
            Some(at) => {
                put_if(status, 0);
                put(out, at)
            }
            None => {
                put_if(status, 1);
                Err(CUDA_ERROR_NOT_FOUND)
            }
        }
    }
}

pub mod exports {
    use super::*;

    api! {
        fn cuInit(flags: u32) {
            if flags != 0 {
                return Err(CUDA_ERROR_INVALID_VALUE);
            }
            state::init()
        }
        fn cuDriverGetVersion(out: *mut i32) {
            put(out, crate::config::get().map_or(VERSION, |c| c.driver))
        }
        fn cuGetErrorName(code: u32, out: *mut *const c_char) {
            let found = describe(code);
            put(out, found.map_or(std::ptr::null(), |(name, _)| name.as_ptr()))?;
            found.map(drop).ok_or(CUDA_ERROR_INVALID_VALUE)
        }
        fn cuGetErrorString(code: u32, out: *mut *const c_char) {
            let found = describe(code);
            put(out, found.map_or(std::ptr::null(), |(_, text)| text.as_ptr()))?;
            found.map(drop).ok_or(CUDA_ERROR_INVALID_VALUE)
        }
        fn cuGetProcAddress(name: *const c_char, out: *mut usize, version: i32, flags: u64) {
            proc_address(name, out, version, flags, std::ptr::null_mut())
        }
        fn cuGetProcAddress_v2(name: *const c_char, out: *mut usize, version: i32, flags: u64, status: *mut u32) {
            proc_address(name, out, version, flags, status)
        }
        fn cuGetProcAddress_v2_ptsz(name: *const c_char, out: *mut usize, version: i32, flags: u64, status: *mut u32) {
            proc_address(name, out, version, if flags == 0 { 2 } else { flags }, status)
        }
        fn cuProfilerStart() {
            context().map(drop)
        }
        fn cuProfilerStop() {
            context().map(drop)
        }

        fn cuDeviceGet(out: *mut i32, ordinal: i32) {
            put(out, device(ordinal)?.ordinal as i32)
        }
        fn cuDeviceGetCount(out: *mut i32) {
            put(out, driver()?.devices.len() as i32)
        }
        fn cuDeviceGetName(out: *mut c_char, len: i32, of: i32) {
            put_text(out, len, device(of)?.gpu.full_name)
        }
        fn cuDeviceGetUuid(out: *mut [u8; 16], of: i32) {
            put(out, uuid(device(of)?))
        }
        fn cuDeviceGetUuid_v2(out: *mut [u8; 16], of: i32) {
            put(out, uuid(device(of)?))
        }
        fn cuDeviceTotalMem_v2(out: *mut usize, of: i32) {
            put(out, device(of)?.memory.stats().limit as usize)
        }
        fn cuDeviceGetAttribute(out: *mut i32, which: u32, of: i32) {
            put(out, attribute(device(of)?, which)?)
        }
        fn cuDeviceComputeCapability(major: *mut i32, minor: *mut i32, of: i32) {
            let (a, b) = device(of)?.gpu.capability;
            put(major, a as i32)?;
            put(minor, b as i32)
        }
        fn cuDeviceGetProperties(out: *mut DeviceProperties, of: i32) {
            let device = device(of)?;
            put(out, DeviceProperties {
                max_threads: 1024,
                max_block: [1024, 1024, 64],
                max_grid: [i32::MAX, 65535, 65535],
                shared_bytes: 48 << 10,
                constant_bytes: 64 << 10,
                warp: 32,
                max_pitch: i32::MAX,
                registers: 65536,
                clock_khz: device.gpu.clock_khz as i32,
                texture_alignment: 512,
            })
        }
        fn cuDeviceGetPCIBusId(out: *mut c_char, len: i32, of: i32) {
            put_text(out, len, &bus_id(device(of)?))
        }
        fn cuDeviceGetByPCIBusId(out: *mut i32, id: *const c_char) {
            let id = text(id)?;
            let found = driver()?.devices.iter().find(|d| bus_id(d).eq_ignore_ascii_case(&id));
            put(out, found.ok_or(CUDA_ERROR_INVALID_VALUE)?.ordinal as i32)
        }
        fn cuDeviceGetExecAffinitySupport(out: *mut i32, _kind: u32, of: i32) {
            device(of)?;
            put(out, 0)
        }
        /// Devices copy between each other, but a kernel reaches only its own device's memory.
        fn cuDeviceCanAccessPeer(out: *mut i32, of: i32, peer: i32) {
            device(of)?;
            device(peer)?;
            put(out, 0)
        }
        fn cuDeviceGetP2PAttribute(out: *mut i32, _which: u32, of: i32, peer: i32) {
            device(of)?;
            device(peer)?;
            put(out, 0)
        }
        fn cuCtxEnablePeerAccess(peer: usize, _flags: u32) {
            context()?;
            driver()?.contexts.get(peer).map_err(|_| CUDA_ERROR_INVALID_CONTEXT)?;
            Err(CUDA_ERROR_PEER_ACCESS_UNSUPPORTED)
        }
        fn cuCtxDisablePeerAccess(peer: usize) {
            context()?;
            driver()?.contexts.get(peer).map_err(|_| CUDA_ERROR_INVALID_CONTEXT)?;
            Err(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED)
        }
        fn cuMemGetAllocationGranularity(out: *mut usize, _props: *const c_void, _option: u32) {
            put(out, 2 << 20)?;
            Err(unsupported("cuMemGetAllocationGranularity"))
        }
        fn cuMemPoolExportToShareableHandle(_out: *mut c_void, _pool: usize, _kind: u32, _flags: u64) {
            Err(unsupported("cuMemPoolExportToShareableHandle"))
        }
        fn cuMemGetDefaultMemPool(out: *mut usize, location: *const MemLocation, _kind: u32) {
            let at = get(location)?;
            if at.kind != 1 {
                return Err(unsupported("cuMemGetDefaultMemPool outside device memory"));
            }
            put(out, device(at.id)?.default_pool)
        }

        fn cuDevicePrimaryCtxRetain(out: *mut usize, of: i32) {
            let device = device(of)?;
            let mut primary = lock(&device.primary);
            if primary.context.is_none() {
                primary.context = Some(Context::create(device, primary.flags, true)?);
            }
            primary.retained += 1;
            put(out, primary.context.as_ref().map_or(0, |c| c.handle))
        }
        fn cuDevicePrimaryCtxRelease(of: i32) {
            release_primary(of)
        }
        fn cuDevicePrimaryCtxRelease_v2(of: i32) {
            release_primary(of)
        }
        fn cuDevicePrimaryCtxReset(of: i32) {
            reset_primary(of)
        }
        fn cuDevicePrimaryCtxReset_v2(of: i32) {
            reset_primary(of)
        }
        fn cuDevicePrimaryCtxSetFlags(of: i32, flags: u32) {
            set_primary_flags(of, flags)
        }
        fn cuDevicePrimaryCtxSetFlags_v2(of: i32, flags: u32) {
            set_primary_flags(of, flags)
        }
        fn cuDevicePrimaryCtxGetState(of: i32, flags: *mut u32, active: *mut i32) {
            let primary = lock(&device(of)?.primary);
            put(flags, primary.flags)?;
            put(active, primary.context.is_some().into())
        }

        fn cuCtxCreate_v2(out: *mut usize, flags: u32, of: i32) {
            create(out, flags, of)
        }
        fn cuCtxCreate_v3(out: *mut usize, _params: *const c_void, len: i32, flags: u32, of: i32) {
            if len > 0 {
                return Err(CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY);
            }
            create(out, flags, of)
        }
        fn cuCtxCreate_v4(out: *mut usize, params: *const [usize; 3], flags: u32, of: i32) {
            if !params.is_null() && get(params)? != [0; 3] {
                return Err(unsupported("cuCtxCreate_v4(CUctxCreateParams)"));
            }
            create(out, flags, of)
        }
        fn cuCtxDestroy(handle: usize) {
            destroy(handle)
        }
        fn cuCtxDestroy_v2(handle: usize) {
            destroy(handle)
        }
        fn cuCtxPushCurrent(handle: usize) {
            push(handle)
        }
        fn cuCtxPushCurrent_v2(handle: usize) {
            push(handle)
        }
        fn cuCtxPopCurrent(out: *mut usize) {
            pop(out)
        }
        fn cuCtxPopCurrent_v2(out: *mut usize) {
            pop(out)
        }
        fn cuCtxSetCurrent(handle: usize) {
            set(handle)
        }
        fn cuCtxGetCurrent(out: *mut usize) {
            driver()?;
            put(out, current())
        }
        fn cuCtxGetDevice(out: *mut i32) {
            put(out, current_any()?.device as i32)
        }
        fn cuCtxGetDevice_v2(out: *mut i32, handle: usize) {
            let context = if handle == 0 { current_any()? } else { driver()?.contexts.get(handle)? };
            put(out, context.device as i32)
        }
        fn cuCtxGetFlags(out: *mut u32) {
            put(out, current_any()?.flags.load(Ordering::Relaxed))
        }
        fn cuCtxSetFlags(flags: u32) {
            if flags & !CONTEXT_FLAGS != 0 {
                return Err(CUDA_ERROR_INVALID_VALUE);
            }
            current_any()?.flags.store(flags, Ordering::Relaxed);
            Ok(())
        }
        fn cuCtxGetId(handle: usize, out: *mut u64) {
            let handle = if handle == 0 { current_any()?.handle } else { driver()?.contexts.get(handle)?.handle };
            put(out, handle as u64)
        }
        fn cuCtxGetApiVersion(_handle: usize, out: *mut u32) {
            put(out, 3020)
        }
        fn cuCtxSetLimit(which: u32, value: usize) {
            limit(which)?;
            lock(&context()?.limits).insert(which, value);
            Ok(())
        }
        fn cuCtxGetLimit(out: *mut usize, which: u32) {
            let default = limit(which)?;
            put(out, lock(&context()?.limits).get(&which).copied().unwrap_or(default))
        }
        fn cuCtxGetCacheConfig(out: *mut u32) {
            put(out, context()?.cache_config.load(Ordering::Relaxed))
        }
        fn cuCtxSetCacheConfig(config: u32) {
            context()?.cache_config.store(config, Ordering::Relaxed);
            Ok(())
        }
        fn cuCtxGetSharedMemConfig(out: *mut u32) {
            put(out, context()?.shared_config.load(Ordering::Relaxed))
        }
        fn cuCtxSetSharedMemConfig(config: u32) {
            context()?.shared_config.store(config, Ordering::Relaxed);
            Ok(())
        }
        fn cuCtxGetStreamPriorityRange(least: *mut i32, greatest: *mut i32) {
            context()?;
            put_if(least, 0);
            put_if(greatest, -5);
            Ok(())
        }
        fn cuCtxResetPersistingL2Cache() {
            context().map(drop)
        }
        fn cuCtxAttach(out: *mut usize, flags: u32) {
            if flags != 0 {
                return Err(CUDA_ERROR_INVALID_VALUE);
            }
            forbid_in_capture()?;
            put(out, context()?.handle)
        }
        fn cuCtxDetach(handle: usize) {
            driver()?.contexts.get(handle).map(drop)
        }
        fn cuFlushGPUDirectRDMAWrites(_target: u32, _scope: u32) {
            context().map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_the_variant_of_their_version() {
        let at = |name: &str| symbols().get(name).copied();
        assert_eq!(lookup("cuMemAlloc", 13000, false), at("cuMemAlloc_v2"));
        assert_eq!(lookup("cuCtxCreate", 12000, false), at("cuCtxCreate_v3"));
        assert_eq!(lookup("cuCtxCreate", 13000, false), at("cuCtxCreate_v4"));
        assert_eq!(lookup("cuCtxCreate", 9000, false), at("cuCtxCreate_v2"));
        assert_eq!(lookup("cuEventElapsedTime", 12000, false), at("cuEventElapsedTime"));
        assert_eq!(lookup("cuMemcpyHtoD", 13000, true), at("cuMemcpyHtoD_v2_ptds"));
        assert_eq!(lookup("cuLaunchKernel", 13000, true), at("cuLaunchKernel_ptsz"));
        assert_eq!(lookup("cuInit", 13000, true), at("cuInit"));
        assert_eq!(lookup("cuNonsense", 13000, false), None);
        for (name, suffix, _) in VARIANTS {
            assert!(at(&format!("{name}{suffix}")).is_some(), "{name}{suffix}");
        }
    }
}
