//! Allocation, copies in all shapes, fills, pools, host memory, pointer attributes: no kernel involved.

mod common;

use std::ffi::c_void;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, result};

const ENV: [(&str, &str); 3] = [("PTXSIM_DEVICES", "2"), ("PTXSIM_MEMORY", "64M"), ("PTXSIM_QUIET", "1")];

#[test]
fn devices_are_what_the_environment_says() {
    let _turn = common::driver(&ENV);
    assert_eq!(CudaContext::device_count().unwrap(), 2);
    let ctx = CudaContext::new(1).unwrap();
    assert_eq!(ctx.name().unwrap(), "NVIDIA A100-SXM4-80GB");
    assert_eq!(ctx.compute_capability().unwrap(), (8, 0));
    assert_eq!(ctx.total_mem().unwrap(), 64 << 20);
    use sys::CUdevice_attribute as A;
    for (attribute, value) in [
        (A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 108),
        (A::CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32),
        (A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 163 << 10),
        (A::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1),
        (A::CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH, 0),
    ] {
        assert_eq!(ctx.attribute(attribute).unwrap(), value, "{attribute:?}");
    }
    assert_eq!(common::code(CudaContext::new(2)), CUresult::CUDA_ERROR_INVALID_DEVICE);
    assert_ne!(ctx.uuid().unwrap().bytes, CudaContext::new(0).unwrap().uuid().unwrap().bytes);
}

#[test]
fn copies_round_trip_and_memory_is_accounted() {
    let _turn = common::driver(&ENV);
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.new_stream().unwrap();
    let (free, total) = ctx.mem_get_info().unwrap();
    assert_eq!(total, 64 << 20);
    let host: Vec<u32> = (0..1000).collect();
    let a = stream.clone_htod(&host).unwrap();
    let mut b = stream.alloc_zeros::<u32>(1000).unwrap();
    assert_eq!(free - ctx.mem_get_info().unwrap().0, 8000);
    assert_eq!(stream.clone_dtoh(&b).unwrap(), vec![0; 1000]);
    stream.memcpy_dtod(&a, &mut b).unwrap();
    assert_eq!(stream.clone_dtoh(&b).unwrap(), host);
    drop((a, b));
    stream.synchronize().unwrap();
    assert_eq!(ctx.mem_get_info().unwrap().0, free);
    // More than there is, freed memory that is reused, and nothing at all.
    // SAFETY: the memory is not read.
    let too_much = unsafe { stream.alloc::<u8>(65 << 20) };
    assert_eq!(common::code(too_much), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    for _ in 0..4 {
        // SAFETY: as above.
        drop(unsafe { stream.alloc::<u8>(40 << 20) }.unwrap());
    }
}

#[test]
fn bad_ranges_are_refused_before_anything_is_done() {
    let _turn = common::driver(&ENV);
    let _ctx = CudaContext::new(0).unwrap();
    let mut host = [0u8; 64];
    // SAFETY: what is wrong is looked at, not followed.
    unsafe {
        let p = result::malloc_sync(64).unwrap();
        let bad = |r: CUresult| assert_eq!(r, CUresult::CUDA_ERROR_INVALID_VALUE);
        bad(sys::cuMemcpyHtoD_v2(p + 1, host.as_ptr().cast(), 64));
        bad(sys::cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), p - 1, 64));
        bad(sys::cuMemcpyHtoD_v2(p, std::ptr::null(), 64));
        bad(sys::cuMemsetD32_v2(p + 2, 0, 1));
        bad(sys::cuMemsetD32_v2(p, 0, 17));
        bad(sys::cuMemFree_v2(p + 1));
        bad(sys::cuMemAlloc_v2(std::ptr::null_mut(), 64));
        result::free_sync(p).unwrap();
        bad(sys::cuMemFree_v2(p));
        bad(sys::cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), p, 64));
        assert_eq!(sys::cuMemFree_v2(0), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuStreamSynchronize(77 as *mut _), CUresult::CUDA_ERROR_INVALID_HANDLE);
        assert_eq!(
            sys::cuEventRecord(77 as *mut _, std::ptr::null_mut()),
            CUresult::CUDA_ERROR_INVALID_HANDLE
        );
    }
}

#[test]
fn pitched_2d_and_3d_copies_move_the_right_bytes() {
    let _turn = common::driver(&ENV);
    let _ctx = CudaContext::new(0).unwrap();
    // SAFETY: all ranges are inside what was allocated.
    unsafe {
        let (mut p, mut pitch) = (0, 0);
        sys::cuMemAllocPitch_v2(&mut p, &mut pitch, 10, 6, 4).result().unwrap();
        assert!(pitch >= 10 && pitch % 256 == 0);
        // Rows 1..4 and columns 2..7 of a host image of 10 x 6, into columns 3.. of the device's rows 2...
        let host: Vec<u8> = (0..60).collect();
        let mut copy = std::mem::MaybeUninit::<sys::CUDA_MEMCPY2D>::zeroed();
        (*copy.as_mut_ptr()).srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_HOST;
        (*copy.as_mut_ptr()).dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        let mut copy = copy.assume_init();
        copy.srcHost = host.as_ptr().cast();
        (copy.srcPitch, copy.srcXInBytes, copy.srcY) = (10, 2, 1);
        copy.dstDevice = p;
        (copy.dstPitch, copy.dstXInBytes, copy.dstY) = (pitch, 3, 2);
        (copy.WidthInBytes, copy.Height) = (5, 3);
        sys::cuMemsetD8_v2(p, 0xff, pitch * 6).result().unwrap();
        sys::cuMemcpy2D_v2(&copy).result().unwrap();
        let mut back = vec![0u8; pitch * 6];
        sys::cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), p, back.len()).result().unwrap();
        for y in 0..6 {
            for x in 0..pitch {
                let inside = (2..5).contains(&y) && (3..8).contains(&x);
                let expected = if inside { host[(y - 1) * 10 + x - 1] } else { 0xff };
                assert_eq!(back[y * pitch + x], expected, "row {y}, column {x}");
            }
        }
        // The box does not fit any more one row further down.
        copy.dstY = 4;
        assert_eq!(sys::cuMemcpy2D_v2(&copy), CUresult::CUDA_ERROR_INVALID_VALUE);

        let mut copy = std::mem::MaybeUninit::<sys::CUDA_MEMCPY3D>::zeroed();
        (*copy.as_mut_ptr()).srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        (*copy.as_mut_ptr()).dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_HOST;
        let mut copy = copy.assume_init();
        copy.srcDevice = p;
        (copy.srcPitch, copy.srcHeight) = (pitch, 3);
        let mut cube = [0u8; 2 * 2 * 4];
        copy.dstHost = cube.as_mut_ptr().cast();
        (copy.dstPitch, copy.dstHeight) = (4, 2);
        (copy.WidthInBytes, copy.Height, copy.Depth) = (4, 2, 2);
        (copy.srcXInBytes, copy.srcY) = (3, 1);
        sys::cuMemcpy3D_v2(&copy).result().unwrap();
        for (i, byte) in cube.iter().enumerate() {
            let (z, y, x) = (i / 8, i / 4 % 2, i % 4);
            assert_eq!(*byte, back[(z * 3 + y + 1) * pitch + x + 3], "{z} {y} {x}");
        }
        result::free_sync(p).unwrap();
    }
}

#[test]
fn fills_of_every_width() {
    let _turn = common::driver(&ENV);
    let _ctx = CudaContext::new(0).unwrap();
    // SAFETY: all ranges are inside what was allocated.
    unsafe {
        let p = result::malloc_sync(64).unwrap();
        let mut back = [0u8; 64];
        sys::cuMemsetD8_v2(p, 0x11, 64).result().unwrap();
        sys::cuMemsetD16_v2(p + 8, 0x2233, 4).result().unwrap();
        sys::cuMemsetD32_v2(p + 16, 0x4455_6677, 2).result().unwrap();
        sys::cuMemsetD2D32_v2(p + 32, 16, 0x8899_aabb, 1, 2).result().unwrap();
        sys::cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), p, 64).result().unwrap();
        let mut expected = [0x11u8; 64];
        expected[8..16].copy_from_slice(&[0x33, 0x22, 0x33, 0x22, 0x33, 0x22, 0x33, 0x22]);
        expected[16..24].copy_from_slice(&[0x77, 0x66, 0x55, 0x44, 0x77, 0x66, 0x55, 0x44]);
        expected[32..36].copy_from_slice(&[0xbb, 0xaa, 0x99, 0x88]);
        expected[48..52].copy_from_slice(&[0xbb, 0xaa, 0x99, 0x88]);
        assert_eq!(back, expected);
        result::free_sync(p).unwrap();
    }
}

#[test]
fn host_memory_is_known_by_its_address() {
    let _turn = common::driver(&ENV);
    let ctx = CudaContext::new(0).unwrap();
    let mut plain = vec![3u32; 256];
    let attribute = |which, at: u64| {
        let mut value = 0u64;
        // SAFETY: every attribute asked for has at most 8 bytes.
        let code = unsafe { sys::cuPointerGetAttribute((&raw mut value).cast::<c_void>(), which, at) };
        code.result().map(|()| value).map_err(|e| e.0)
    };
    use sys::CUpointer_attribute as P;
    // SAFETY: pointers are the driver's or this test's own.
    unsafe {
        let mut pinned = std::ptr::null_mut();
        sys::cuMemHostAlloc(&mut pinned, 4096, 0).result().unwrap();
        assert_eq!(attribute(P::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, pinned as u64), Ok(1));
        let mut device = 0;
        sys::cuMemHostGetDevicePointer_v2(&mut device, pinned, 0).result().unwrap();
        assert_eq!(device, pinned as u64);
        let (mut flags, inside) = (0, pinned.byte_add(4095));
        sys::cuMemHostGetFlags(&mut flags, inside).result().unwrap();
        assert_eq!(flags & sys::CU_MEMHOSTALLOC_DEVICEMAP, sys::CU_MEMHOSTALLOC_DEVICEMAP);
        let past = sys::cuMemHostGetFlags(&mut flags, pinned.byte_add(4096));
        assert_eq!(past, CUresult::CUDA_ERROR_INVALID_VALUE);

        let mut managed = 0;
        sys::cuMemAllocManaged(&mut managed, 4096, 1).result().unwrap();
        assert_eq!(attribute(P::CU_POINTER_ATTRIBUTE_IS_MANAGED, managed), Ok(1));
        *(managed as *mut u32) = 17; // the host uses it directly
        let mut back = 0u32;
        sys::cuMemcpyDtoH_v2((&raw mut back).cast(), managed, 4).result().unwrap();
        assert_eq!(back, 17);

        let at = plain.as_mut_ptr();
        assert_eq!(
            attribute(P::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at as u64),
            Err(CUresult::CUDA_ERROR_INVALID_VALUE)
        );
        sys::cuMemHostRegister_v2(at.cast(), 1024, 0).result().unwrap();
        let again = sys::cuMemHostRegister_v2(at.cast(), 1024, 0);
        assert_eq!(again, CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        assert_eq!(attribute(P::CU_POINTER_ATTRIBUTE_RANGE_SIZE, at.add(3) as u64), Ok(1024));
        sys::cuMemHostUnregister(at.cast()).result().unwrap();
        let again = sys::cuMemHostUnregister(at.cast());
        assert_eq!(again, CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);

        let p = result::malloc_sync(100).unwrap();
        assert_eq!(attribute(P::CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p + 50), Ok(2));
        assert_eq!(attribute(P::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, p + 50), Ok(p));
        assert_eq!(attribute(P::CU_POINTER_ATTRIBUTE_CONTEXT, p), Ok(ctx.cu_ctx() as u64));
        assert_eq!(
            attribute(P::CU_POINTER_ATTRIBUTE_RANGE_SIZE, p + 100),
            Err(CUresult::CUDA_ERROR_INVALID_VALUE)
        );
        result::free_sync(p).unwrap();
        sys::cuMemFree_v2(managed).result().unwrap();
        sys::cuMemFreeHost(pinned).result().unwrap();
    }
}

#[test]
fn pools_keep_books() {
    let _turn = common::driver(&ENV);
    let ctx = CudaContext::new(1).unwrap();
    let stream = ctx.new_stream().unwrap();
    let used = |pool| {
        let mut value = 0u64;
        let which = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
        // SAFETY: this attribute has 8 bytes.
        unsafe { sys::cuMemPoolGetAttribute(pool, which, (&raw mut value).cast()) }.result().unwrap();
        value
    };
    // SAFETY: handles are the driver's.
    unsafe {
        let (mut pool, mut p) = (std::ptr::null_mut(), 0);
        sys::cuDeviceGetDefaultMemPool(&mut pool, ctx.cu_device()).result().unwrap();
        let before = used(pool);
        sys::cuMemAllocAsync(&mut p, 5000, stream.cu_stream()).result().unwrap();
        assert_eq!(used(pool) - before, 5000);
        sys::cuMemFreeAsync(p, stream.cu_stream()).result().unwrap();
        stream.synchronize().unwrap();
        assert_eq!(used(pool), before);
        assert_eq!(sys::cuMemFreeAsync(p, stream.cu_stream()), CUresult::CUDA_ERROR_INVALID_VALUE);
    }
}

#[test]
fn devices_copy_between_each_other() {
    let _turn = common::driver(&ENV);
    let (a, b) = (CudaContext::new(0).unwrap(), CudaContext::new(1).unwrap());
    let (sa, sb) = (a.default_stream(), b.default_stream());
    let x = sa.clone_htod(&[1u32, 2, 3, 4]).unwrap();
    let mut y = sb.alloc_zeros::<u32>(4).unwrap();
    sb.memcpy_dtod(&x, &mut y).unwrap();
    assert_eq!(sb.clone_dtoh(&y).unwrap(), [1, 2, 3, 4]);
}

#[test]
fn contexts_stack_and_die_with_their_memory() {
    let _turn = common::driver(&ENV);
    common::reset();
    // SAFETY: handles are the driver's, or refused.
    unsafe {
        let (mut old, mut ctx, mut now) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        result::init().unwrap();
        sys::cuCtxGetCurrent(&mut old).result().unwrap();
        sys::cuCtxCreate_v4(&mut ctx, std::ptr::null_mut(), 0, 0).result().unwrap();
        sys::cuCtxGetCurrent(&mut now).result().unwrap();
        assert_eq!(now, ctx);
        let p = result::malloc_sync(333).unwrap();
        sys::cuCtxDestroy_v2(ctx).result().unwrap();
        sys::cuCtxGetCurrent(&mut now).result().unwrap();
        assert_eq!(now, old);
        assert_eq!(sys::cuCtxSetCurrent(ctx), CUresult::CUDA_ERROR_INVALID_CONTEXT);
        let report = common::json();
        assert_eq!(report["found"]["leak"], 1);
        let message = report["reports"][0]["message"].as_str().unwrap();
        assert!(message.contains("333 bytes") && message.contains(&format!("{p:#x}")), "{message}");
    }
}

#[test]
fn names_are_found_and_what_is_missing_is_noted() {
    let _turn = common::driver(&ENV);
    result::init().unwrap();
    common::reset();
    // SAFETY: strings and out pointers are this test's own.
    unsafe {
        let (mut at, mut status) =
            (std::ptr::null_mut(), sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS);
        sys::cuGetProcAddress_v2(c"cuMemAlloc".as_ptr(), &mut at, 13000, 0, &mut status).result().unwrap();
        let direct: *mut c_void = *common::loaded().get::<*mut c_void>(b"cuMemAlloc_v2").unwrap();
        assert_eq!(at, direct);
        let code = sys::cuGetProcAddress_v2(c"cuFrobnicate".as_ptr(), &mut at, 13000, 0, &mut status);
        assert_eq!(code, CUresult::CUDA_ERROR_NOT_FOUND);
        assert!(at.is_null());
        let mut handle = std::mem::zeroed();
        assert_eq!(sys::cuIpcGetMemHandle(&mut handle, 0), CUresult::CUDA_ERROR_NOT_SUPPORTED);
        let mut text = std::ptr::null();
        sys::cuGetErrorName(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, &mut text).result().unwrap();
        assert_eq!(std::ffi::CStr::from_ptr(text), c"CUDA_ERROR_ILLEGAL_ADDRESS");
    }
    assert_eq!(common::json()["unsupported"]["cuIpcGetMemHandle"], 1);
}

#[test]
fn every_symbol_that_cudarc_knows_is_exported() {
    let _turn = common::driver(&ENV);
    let library = common::loaded();
    for name in [
        "cuInit",
        "cuLaunchKernelEx",
        "cuGraphLaunch",
        "cuTensorMapEncodeTiled",
        "cuMulticastCreate",
        "cuTexObjectCreate",
    ] {
        // SAFETY: only looked up.
        assert!(unsafe { library.get::<*const c_void>(name.as_bytes()) }.is_ok(), "{name}");
    }
}
