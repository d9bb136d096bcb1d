//! Modules, launches, streams, events, capture and graphs, through cudarc.

mod common;

use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, LaunchConfig, PushKernelArg, result,
};
use cudarc::nvrtc::Ptx;

const ENV: [(&str, &str); 3] = [("PTXSIM_DEVICES", "2"), ("PTXSIM_MEMORY", "256M"), ("PTXSIM_QUIET", "1")];

fn module(ctx: &Arc<CudaContext>) -> Arc<CudaModule> {
    ctx.load_module(Ptx::from_src(common::PTX)).unwrap()
}

fn launch_add(stream: &Arc<CudaStream>, add: &CudaFunction, y: &mut CudaSlice<f32>, x: &CudaSlice<f32>) {
    let n = x.len() as i32;
    let mut args = stream.launch_builder(add);
    args.arg(y).arg(x).arg(&n);
    // SAFETY: the kernel stays inside both buffers.
    unsafe { args.launch(LaunchConfig::for_num_elems(n as u32)) }.unwrap();
}

#[test]
fn vector_add() {
    let _turn = common::driver(&ENV);
    common::reset();
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.default_stream();
    let add = module(&ctx).load_function("add").unwrap();
    let x: Vec<f32> = (0..3000).map(|i| i as f32).collect();
    let dx = stream.clone_htod(&x).unwrap();
    let mut dy = stream.clone_htod(&vec![0.5f32; 3000]).unwrap();
    launch_add(&stream, &add, &mut dy, &dx);
    let y = stream.clone_dtoh(&dy).unwrap();
    assert!(y.iter().enumerate().all(|(i, v)| *v == i as f32 + 0.5));
    let report = common::json();
    assert_eq!(report["kernels"]["add"]["launches"], 1);
    assert_eq!(report["launches"][0]["counters"]["global_store"]["bytes"], 12000);
    assert_eq!(report["found"], serde_json::json!({}));
    assert!(report["launches"][0]["roofline_model"]["seconds"].as_f64().unwrap() > 0.0);
    assert!(report["launches"][0]["occupancy_model"]["blocks_per_sm"].as_u64().unwrap() >= 2);
}

/// A file of 16 GiB, mapped read-only: kernels read it where it is, and nothing of that size is made for it.
#[test]
fn a_mapped_file_is_read_in_place() {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;
    const BYTES: usize = 16 << 30;
    const AT: usize = 13 << 30;
    let _turn = common::driver(&ENV);
    common::reset();
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.default_stream();
    let module = module(&ctx);
    let add = module.load_function("add").unwrap();
    let x: Vec<f32> = (0..3000).map(|i| i as f32).collect();
    let file = tempfile::tempfile().unwrap();
    file.set_len(BYTES as u64).unwrap();
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    file.write_all_at(&bytes, AT as u64).unwrap();
    // SAFETY: a new map of a file that nobody else changes; it is registered while it is mapped, kernels read inside it, and
    // what must not be written is refused.
    unsafe {
        let at =
            libc::mmap(std::ptr::null_mut(), BYTES, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(at, libc::MAP_FAILED);
        let register = |bytes, flags| sys::cuMemHostRegister_v2(at, bytes, flags);
        assert_eq!(register(BYTES, sys::CU_MEMHOSTREGISTER_DEVICEMAP), CUresult::CUDA_ERROR_INVALID_VALUE);
        let flags = sys::CU_MEMHOSTREGISTER_DEVICEMAP | sys::CU_MEMHOSTREGISTER_READ_ONLY;
        assert_eq!(register(usize::MAX / 2, flags), CUresult::CUDA_ERROR_INVALID_VALUE);
        register(BYTES, flags).result().unwrap();
        let mut mapped = 0u64;
        sys::cuMemHostGetDevicePointer_v2(&mut mapped, at, 0).result().unwrap();
        let mut y = stream.clone_htod(&vec![0.5f32; 3000]).unwrap();
        let (from, n) = (mapped + AT as u64, 3000i32);
        let config = LaunchConfig::for_num_elems(3000);
        // The race shadow starts afresh every 63 launches.
        for _ in 0..130 {
            stream.launch_builder(&add).arg(&mut y).arg(&from).arg(&n).launch(config).unwrap();
        }
        let y = stream.clone_dtoh(&y).unwrap();
        assert!(y.iter().enumerate().all(|(i, v)| *v == 130.0 * i as f32 + 0.5));
        assert_eq!(common::json()["found"], serde_json::json!({}));
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let anonymous = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
        let kib: u64 = anonymous.trim().trim_end_matches(" kB").trim().parse().unwrap();
        assert!(kib < 1 << 20, "{kib} KiB");
        sys::cuMemHostUnregister(at).result().unwrap();
        libc::munmap(at, BYTES);
    }
}

#[test]
fn launch_parameters_may_come_in_a_buffer() {
    let _turn = common::driver(&ENV);
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.new_stream().unwrap();
    let poke = module(&ctx).load_function("poke").unwrap();
    // SAFETY: the kernel writes 4 bytes to `p`.
    unsafe {
        let p = result::malloc_sync(4).unwrap();
        let mut eight = 8usize;
        let bytes = &raw mut eight;
        let mut extra: [*mut c_void; 5] =
            [1 as _, (&raw const p) as _, 2 as _, bytes as _, std::ptr::null_mut()];
        let launch = |grid: u32, block: u32, shared: u32, extra: *mut *mut c_void| {
            sys::cuLaunchKernel(
                poke.cu_function(),
                grid,
                1,
                1,
                block,
                1,
                1,
                shared,
                stream.cu_stream(),
                std::ptr::null_mut(),
                extra,
            )
        };
        launch(1, 1, 0, extra.as_mut_ptr()).result().unwrap();
        let mut back = 0u32;
        stream.synchronize().unwrap();
        sys::cuMemcpyDtoH_v2((&raw mut back).cast(), p, 4).result().unwrap();
        assert_eq!(back, 7);
        // What no GPU accepts is refused at once, and does no harm.
        let bad = |r: CUresult| assert_eq!(r, CUresult::CUDA_ERROR_INVALID_VALUE);
        bad(launch(0, 1, 0, extra.as_mut_ptr()));
        bad(launch(1, 1025, 0, extra.as_mut_ptr()));
        bad(launch(1, 1, 49 << 10, extra.as_mut_ptr()));
        bad(launch(1, 1, 0, std::ptr::null_mut()));
        let mut params = [(&raw const p).cast_mut().cast::<c_void>()];
        bad(sys::cuLaunchKernel(
            poke.cu_function(),
            1,
            1,
            1,
            1,
            1,
            1,
            0,
            stream.cu_stream(),
            params.as_mut_ptr(),
            extra.as_mut_ptr(),
        ));
        *bytes = 4;
        bad(launch(1, 1, 0, extra.as_mut_ptr()));
        use sys::CUfunction_attribute as A;
        poke.set_attribute(A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 100 << 10).unwrap();
        *bytes = 8;
        launch(1, 1, 100 << 10, extra.as_mut_ptr()).result().unwrap();
        let more = poke.set_attribute(A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 164 << 10);
        assert_eq!(common::code(more), CUresult::CUDA_ERROR_INVALID_VALUE);
        ctx.synchronize().unwrap();
        result::free_sync(p).unwrap();
    }
}

#[test]
fn fat_binaries_of_every_compression_hold_the_same_ptx() {
    let _turn = common::driver(&ENV);
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.default_stream();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/");
    for name in ["add.none.fatbin", "add.speed.fatbin", "add.size.fatbin"] {
        let bytes = std::fs::read(format!("{folder}{name}")).unwrap();
        let path = CString::new(format!("{folder}{name}")).unwrap();
        // SAFETY: a whole fat binary; a file of one.
        unsafe {
            for from_file in [false, true] {
                let mut module = std::ptr::null_mut();
                if from_file {
                    sys::cuModuleLoad(&mut module, path.as_ptr()).result().unwrap();
                } else {
                    sys::cuModuleLoadData(&mut module, bytes.as_ptr().cast()).result().unwrap();
                }
                let (mut function, mut at, mut size, mut count) = (std::ptr::null_mut(), 0, 0, 0u32);
                sys::cuModuleGetFunctionCount(&mut count, module).result().unwrap();
                assert_eq!(count, 2);
                sys::cuModuleGetFunction(&mut function, module, c"bump".as_ptr()).result().unwrap();
                let null = std::ptr::null_mut();
                sys::cuLaunchKernel(function, 3, 1, 1, 64, 1, 1, 0, stream.cu_stream(), null, null)
                    .result()
                    .unwrap();
                sys::cuModuleGetGlobal_v2(&mut at, &mut size, module, c"counter".as_ptr()).result().unwrap();
                let mut value = 0u32;
                sys::cuMemcpyDtoH_v2((&raw mut value).cast(), at, size).result().unwrap();
                assert_eq!(value, 192, "{name}");
                let missing = sys::cuModuleGetFunction(&mut function, module, c"nothing".as_ptr());
                assert_eq!(missing, CUresult::CUDA_ERROR_NOT_FOUND);
                sys::cuModuleUnload(module).result().unwrap();
                let gone = sys::cuModuleGetFunction(&mut function, module, c"bump".as_ptr());
                assert_eq!(gone, CUresult::CUDA_ERROR_INVALID_HANDLE);
            }
        }
    }
}

#[test]
fn images_that_cannot_run_say_why() {
    let _turn = common::driver(&ENV);
    let _ctx = CudaContext::new(0).unwrap();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/");
    let cubin = std::fs::read(format!("{folder}add.cubin_only.fatbin")).unwrap();
    let newer = common::PTX.replace("sm_80", "sm_90a") + "\0";
    let broken = common::PTX.replace("mad.lo.s32", "mad.lo.s32 nonsense") + "\0";
    let load = |image: &[u8]| {
        use sys::CUjit_option_enum::{CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
        let mut log = [0u8; 200];
        let mut options = [CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr() as *mut c_void, 200 as *mut c_void];
        let mut module = std::ptr::null_mut();
        // SAFETY: the image is whole, the log has 200 bytes.
        let code = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                image.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        (code, std::ffi::CStr::from_bytes_until_nul(&log).unwrap().to_str().unwrap().to_owned())
    };
    let (code, log) = load(&cubin);
    assert_eq!(code, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert!(log.contains("no PTX"), "{log}");
    let (code, log) = load(newer.as_bytes());
    assert_eq!(code, CUresult::CUDA_ERROR_INVALID_PTX);
    assert!(log.contains("sm_90a") && log.contains("8.0"), "{log}");
    let (code, log) = load(broken.as_bytes());
    assert_eq!(code, CUresult::CUDA_ERROR_INVALID_PTX);
    assert!(log.contains("line "), "{log}");
    assert_eq!(load(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\0").0, CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert_ne!(load(b"once upon a time\0").0, CUresult::CUDA_SUCCESS);
}

#[test]
fn libraries_and_the_linker_lead_to_functions() {
    let _turn = common::driver(&ENV);
    let _ctx = CudaContext::new(0).unwrap();
    let ptx = CString::new(common::PTX).unwrap();
    let (none, zero) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: handles and texts are valid.
    unsafe {
        let (mut library, mut kernel, mut function) =
            (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        sys::cuLibraryLoadData(
            &mut library,
            ptx.as_ptr().cast(),
            none,
            zero,
            0,
            std::ptr::null_mut(),
            zero,
            0,
        )
        .result()
        .unwrap();
        sys::cuLibraryGetKernel(&mut kernel, library, c"poke".as_ptr()).result().unwrap();
        sys::cuKernelGetFunction(&mut function, kernel).result().unwrap();
        let p = result::malloc_sync(4).unwrap();
        let mut params = [(&raw const p) as *mut c_void];
        // A kernel stands for its function in the current context.
        for f in [function, kernel as sys::CUfunction] {
            let (stream, extra) = (std::ptr::null_mut(), std::ptr::null_mut());
            sys::cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, stream, params.as_mut_ptr(), extra).result().unwrap();
        }
        sys::cuCtxSynchronize().result().unwrap();
        sys::cuLibraryUnload(library).result().unwrap();
        assert_eq!(sys::cuKernelGetFunction(&mut function, kernel), CUresult::CUDA_ERROR_INVALID_HANDLE);

        let (mut link, mut image, mut bytes) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        sys::cuLinkCreate_v2(0, std::ptr::null_mut(), zero, &mut link).result().unwrap();
        let kind = sys::CUjitInputType::CU_JIT_INPUT_PTX;
        let text = ptx.as_bytes_with_nul();
        let data = text.as_ptr() as *mut c_void;
        sys::cuLinkAddData_v2(link, kind, data, text.len(), c"a".as_ptr(), 0, std::ptr::null_mut(), zero)
            .result()
            .unwrap();
        sys::cuLinkComplete(link, &mut image, &mut bytes).result().unwrap();
        let mut module = std::ptr::null_mut();
        sys::cuModuleLoadData(&mut module, image).result().unwrap();
        sys::cuLinkDestroy(link).result().unwrap();
        sys::cuModuleGetFunction(&mut function, module, c"add".as_ptr()).result().unwrap();
        let (mut offset, mut size) = (0, 0);
        sys::cuFuncGetParamInfo(function, 2, &mut offset, &mut size).result().unwrap();
        assert_eq!((offset, size), (16, 4));
        let past = sys::cuFuncGetParamInfo(function, 3, &mut offset, &mut size);
        assert_eq!(past, CUresult::CUDA_ERROR_INVALID_VALUE);
        sys::cuModuleUnload(module).result().unwrap();
        result::free_sync(p).unwrap();
    }
}

#[test]
fn streams_events_and_host_functions_keep_their_order() {
    let _turn = common::driver(&ENV);
    let ctx = CudaContext::new(0).unwrap();
    let (a, b) = (ctx.new_stream().unwrap(), ctx.new_stream().unwrap());
    let add = module(&ctx).load_function("add").unwrap();
    static SEEN: AtomicU32 = AtomicU32::new(0);
    unsafe extern "C" fn note(value: *mut c_void) {
        SEEN.store(SEEN.load(Ordering::SeqCst) * 10 + value as u32, Ordering::SeqCst);
        // Driver calls are not allowed here.
        // SAFETY: refused before anything is looked at.
        assert_eq!(unsafe { sys::cuCtxSynchronize() }, CUresult::CUDA_ERROR_NOT_PERMITTED);
    }
    let x = a.clone_htod(&[1.0f32; 512]).unwrap();
    let mut y = a.clone_htod(&[0.0f32; 512]).unwrap();
    let event = ctx.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    let start = a.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    launch_add(&a, &add, &mut y, &x);
    // SAFETY: the function takes a number.
    unsafe { sys::cuLaunchHostFunc(a.cu_stream(), Some(note), std::ptr::without_provenance_mut(1)) }
        .result()
        .unwrap();
    event.record(&a).unwrap();
    b.wait(&event).unwrap();
    // SAFETY: as above.
    unsafe { sys::cuLaunchHostFunc(b.cu_stream(), Some(note), std::ptr::without_provenance_mut(2)) }
        .result()
        .unwrap();
    launch_add(&b, &add, &mut y, &x);
    b.synchronize().unwrap();
    assert_eq!(SEEN.load(Ordering::SeqCst), 12);
    assert_eq!(b.clone_dtoh(&y).unwrap(), [2.0; 512]);
    assert!(event.is_complete());
    assert!(start.elapsed_ms(&event).unwrap() >= 0.0);
}

#[test]
fn a_host_function_may_wait_for_the_program() {
    let _turn = common::driver(&ENV);
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.new_stream().unwrap();
    static GO: AtomicU32 = AtomicU32::new(0);
    unsafe extern "C" fn wait(_: *mut c_void) {
        while GO.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
    }
    // SAFETY: the function takes nothing.
    unsafe { sys::cuLaunchHostFunc(stream.cu_stream(), Some(wait), std::ptr::null_mut()) }.result().unwrap();
    let event = stream.record_event(None).unwrap();
    // SAFETY: a live stream.
    assert_eq!(unsafe { sys::cuStreamQuery(stream.cu_stream()) }, CUresult::CUDA_ERROR_NOT_READY);
    assert!(!event.is_complete());
    GO.store(1, Ordering::SeqCst);
    event.synchronize().unwrap();
    assert!(event.is_complete());
}

#[test]
fn a_captured_fork_and_join_replays() {
    let _turn = common::driver(&ENV);
    let ctx = CudaContext::new(0).unwrap();
    let (a, b) = (ctx.new_stream().unwrap(), ctx.new_stream().unwrap());
    let add = module(&ctx).load_function("add").unwrap();
    // SAFETY: this test orders its streams itself.
    unsafe { ctx.disable_event_tracking() };
    let x = a.clone_htod(&[1.0f32; 256]).unwrap();
    let mut y = a.clone_htod(&[0.0f32; 256]).unwrap();
    let mut z = a.clone_htod(&[0.0f32; 256]).unwrap();
    a.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    launch_add(&a, &add, &mut y, &x);
    b.join(&a).unwrap();
    launch_add(&b, &add, &mut z, &y);
    launch_add(&a, &add, &mut y, &x);
    a.join(&b).unwrap();
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = a.end_capture(flags).unwrap().expect("work was captured");
    // Nothing has run yet.
    assert_eq!(a.clone_dtoh(&y).unwrap(), [0.0; 256]);
    for _ in 0..3 {
        graph.launch().unwrap();
    }
    // z = 1, then + 3 and + 5 if the second kernel of `a` runs before: with y read at any time, the fork is a race.
    assert_eq!(a.clone_dtoh(&y).unwrap(), [6.0; 256]);
    let mut nodes = 0;
    // SAFETY: a live graph.
    unsafe { sys::cuGraphGetNodes(graph.cu_graph(), std::ptr::null_mut(), &mut nodes) }.result().unwrap();
    assert_eq!(nodes, 3);
    // SAFETY: as it was.
    unsafe { ctx.enable_event_tracking() };
}

#[test]
fn captures_refuse_what_they_cannot_hold() {
    let _turn = common::driver(&ENV);
    let ctx = CudaContext::new(0).unwrap();
    let (a, b) = (ctx.new_stream().unwrap(), ctx.new_stream().unwrap());
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
    let end = || {
        let mut graph = std::ptr::null_mut();
        // SAFETY: a live stream.
        unsafe { sys::cuStreamEndCapture(a.cu_stream(), &mut graph) }
    };
    // Waiting breaks it.
    a.begin_capture(mode).unwrap();
    // SAFETY: live handles.
    unsafe {
        assert_eq!(sys::cuStreamSynchronize(a.cu_stream()), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        assert_eq!(end(), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        // So does an allocation, in this mode.
        a.begin_capture(mode).unwrap();
        let mut p = 0;
        assert_eq!(sys::cuMemAlloc_v2(&mut p, 4), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        assert_eq!(end(), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        // A fork that does not come back.
        a.begin_capture(mode).unwrap();
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).unwrap();
        sys::cuEventRecord(event, a.cu_stream()).result().unwrap();
        sys::cuStreamWaitEvent(b.cu_stream(), event, 0).result().unwrap();
        let poke = module_in_relaxed_mode(&ctx);
        let p = 0u64;
        let mut params = [(&raw const p) as *mut c_void];
        let null = std::ptr::null_mut();
        sys::cuLaunchKernel(poke, 1, 1, 1, 1, 1, 1, 0, b.cu_stream(), params.as_mut_ptr(), null)
            .result()
            .unwrap();
        assert_eq!(end(), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
        // The event of a capture that has ended stands for nothing.
        let wait = sys::cuStreamWaitEvent(b.cu_stream(), event, 0);
        assert_eq!(wait, CUresult::CUDA_ERROR_CAPTURED_EVENT);
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE;
        sys::cuStreamIsCapturing(b.cu_stream(), &mut status).result().unwrap();
        assert_eq!(status, sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE);
        // A capture ends with its stream; those that joined it go on.
        let mut c = std::ptr::null_mut();
        sys::cuStreamCreate(&mut c, 1).result().unwrap();
        sys::cuStreamBeginCapture_v2(c, mode).result().unwrap();
        sys::cuEventRecord(event, c).result().unwrap();
        sys::cuStreamWaitEvent(b.cu_stream(), event, 0).result().unwrap();
        sys::cuStreamDestroy_v2(c).result().unwrap();
        let p = result::malloc_sync(4).unwrap();
        result::free_sync(p).unwrap();
        b.synchronize().unwrap();
        // Ending what did not begin.
        assert_eq!(end(), CUresult::CUDA_ERROR_ILLEGAL_STATE);
        result::event::destroy(event).unwrap();
    }
    // All streams are usable again.
    a.synchronize().unwrap();
    b.synchronize().unwrap();
}

fn module_in_relaxed_mode(ctx: &Arc<CudaContext>) -> sys::CUfunction {
    let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: a mode to exchange.
    unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }.result().unwrap();
    let function = module(ctx).load_function("poke").unwrap();
    let handle = function.cu_function();
    std::mem::forget(function); // keeps its module
    // SAFETY: as above.
    unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) }.result().unwrap();
    handle
}

#[test]
fn graphs_are_built_launched_and_updated() {
    let _turn = common::driver(&ENV);
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.new_stream().unwrap();
    let poke = module(&ctx).load_function("poke").unwrap();
    // SAFETY: handles are live, kernels and copies stay inside what was allocated.
    unsafe {
        let p = result::malloc_sync(16).unwrap();
        let q = result::malloc_sync(16).unwrap();
        let (mut graph, mut fill, mut kernel, mut copy, mut host) = (
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        );
        sys::cuGraphCreate(&mut graph, 0).result().unwrap();
        let memset =
            sys::CUDA_MEMSET_NODE_PARAMS { dst: p, pitch: 0, value: 9, elementSize: 4, width: 4, height: 1 };
        sys::cuGraphAddMemsetNode(&mut fill, graph, std::ptr::null(), 0, &memset, ctx.cu_ctx())
            .result()
            .unwrap();
        let target = p + 4;
        let mut params = [(&raw const target) as *mut c_void];
        let mut node: sys::CUDA_KERNEL_NODE_PARAMS = std::mem::zeroed();
        node.func = poke.cu_function();
        (node.gridDimX, node.gridDimY, node.gridDimZ) = (1, 1, 1);
        (node.blockDimX, node.blockDimY, node.blockDimZ) = (1, 1, 1);
        node.kernelParams = params.as_mut_ptr();
        sys::cuGraphAddKernelNode_v2(&mut kernel, graph, &fill, 1, &node).result().unwrap();
        let mut move3 = std::mem::MaybeUninit::<sys::CUDA_MEMCPY3D>::zeroed();
        (*move3.as_mut_ptr()).srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        (*move3.as_mut_ptr()).dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        let mut move3 = move3.assume_init();
        (move3.srcDevice, move3.dstDevice, move3.WidthInBytes, move3.Height, move3.Depth) = (p, q, 16, 1, 1);
        sys::cuGraphAddMemcpyNode(&mut copy, graph, &kernel, 1, &move3, ctx.cu_ctx()).result().unwrap();
        static RUNS: AtomicU32 = AtomicU32::new(0);
        unsafe extern "C" fn count(_: *mut c_void) {
            RUNS.fetch_add(1, Ordering::SeqCst);
        }
        let call = sys::CUDA_HOST_NODE_PARAMS { fn_: Some(count), userData: std::ptr::null_mut() };
        sys::cuGraphAddHostNode(&mut host, graph, &copy, 1, &call).result().unwrap();

        let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
        sys::cuGraphNodeGetType(copy, &mut kind).result().unwrap();
        assert_eq!(kind, sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEMCPY);
        let (mut after, mut n) = ([std::ptr::null_mut(); 4], 4);
        sys::cuGraphNodeGetDependencies_v2(copy, after.as_mut_ptr(), std::ptr::null_mut(), &mut n)
            .result()
            .unwrap();
        assert_eq!((after[0], n), (kernel, 1));

        let mut exec = std::ptr::null_mut();
        sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0).result().unwrap();
        let run = |exec| {
            sys::cuGraphLaunch(exec, stream.cu_stream()).result().unwrap();
            stream.synchronize().unwrap();
            let mut back = [0u32; 4];
            sys::cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), q, 16).result().unwrap();
            back
        };
        assert_eq!(run(exec), [9, 7, 9, 9]);
        // New parameters for one node; the graph it came from is as it was.
        let target = p + 12;
        let mut params = [(&raw const target) as *mut c_void];
        node.kernelParams = params.as_mut_ptr();
        sys::cuGraphExecKernelNodeSetParams_v2(exec, kernel, &node).result().unwrap();
        assert_eq!(run(exec), [9, 9, 9, 7]);
        sys::cuGraphNodeSetEnabled(exec, kernel, 0).result().unwrap();
        assert_eq!(run(exec), [9, 9, 9, 9]);
        // A clone with another fill takes over as an update, and as a child.
        let (mut clone, mut twin) = (std::ptr::null_mut(), std::ptr::null_mut());
        sys::cuGraphClone(&mut clone, graph).result().unwrap();
        sys::cuGraphNodeFindInClone(&mut twin, fill, clone).result().unwrap();
        let memset = sys::CUDA_MEMSET_NODE_PARAMS { value: 4, ..memset };
        sys::cuGraphMemsetNodeSetParams(twin, &memset).result().unwrap();
        let mut info = std::mem::zeroed();
        sys::cuGraphExecUpdate_v2(exec, clone, &mut info).result().unwrap();
        sys::cuGraphNodeSetEnabled(exec, kernel, 1).result().unwrap();
        assert_eq!(run(exec), [4, 7, 4, 4]);
        let (mut parent, mut child, mut exec2) =
            (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        sys::cuGraphCreate(&mut parent, 0).result().unwrap();
        sys::cuGraphAddChildGraphNode(&mut child, parent, std::ptr::null(), 0, clone).result().unwrap();
        sys::cuGraphInstantiateWithFlags(&mut exec2, parent, 0).result().unwrap();
        assert_eq!(run(exec2), [4, 7, 4, 4]);
        // Another shape is no update.
        let refused = sys::cuGraphExecUpdate_v2(exec, parent, &mut info);
        assert_eq!(refused, CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
        assert_eq!(RUNS.load(Ordering::SeqCst), 5);
        // Rings are refused.
        sys::cuGraphAddDependencies_v2(graph, &copy, &fill, std::ptr::null(), 1).result().unwrap();
        let mut none = std::ptr::null_mut();
        assert_eq!(sys::cuGraphInstantiateWithFlags(&mut none, graph, 0), CUresult::CUDA_ERROR_INVALID_VALUE);
        for g in [graph, clone, parent] {
            sys::cuGraphDestroy(g).result().unwrap();
        }
        assert_eq!(run(exec), [4, 7, 4, 4]);
        sys::cuGraphExecDestroy(exec).result().unwrap();
        sys::cuGraphExecDestroy(exec2).result().unwrap();
        result::free_sync(p).unwrap();
        result::free_sync(q).unwrap();
    }
}

#[test]
fn occupancy_follows_the_device() {
    let _turn = common::driver(&ENV);
    let ctx = CudaContext::new(0).unwrap();
    let poke = module(&ctx).load_function("poke").unwrap();
    assert_eq!(poke.occupancy_max_active_blocks_per_multiprocessor(1024, 0, None).unwrap(), 2);
    assert_eq!(poke.occupancy_max_active_blocks_per_multiprocessor(32, 0, None).unwrap(), 32);
    extern "C" fn none(_: i32) -> usize {
        0
    }
    let (grid, block) = poke.occupancy_max_potential_block_size(none, 0, 0, None).unwrap();
    assert_eq!((grid, block), (216, 1024));
}

#[test]
fn threads_may_share_the_driver() {
    let _turn = common::driver(&ENV);
    let ctx = CudaContext::new(0).unwrap();
    let module = module(&ctx);
    std::thread::scope(|scope| {
        for t in 0..4 {
            let (ctx, module) = (&ctx, &module);
            scope.spawn(move || {
                ctx.bind_to_thread().unwrap();
                let stream = ctx.new_stream().unwrap();
                let add = module.load_function("add").unwrap();
                let x = stream.clone_htod(&vec![t as f32; 300]).unwrap();
                let mut y = stream.alloc_zeros::<f32>(300).unwrap();
                for _ in 0..10 {
                    launch_add(&stream, &add, &mut y, &x);
                }
                assert_eq!(stream.clone_dtoh(&y).unwrap(), vec![10.0 * t as f32; 300]);
            });
        }
    });
}
