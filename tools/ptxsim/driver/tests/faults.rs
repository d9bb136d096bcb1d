//! Faults end their context with the code that a GPU gives, and no other.

mod common;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

const ENV: [(&str, &str); 2] = [("PTXSIM_MEMORY", "64M"), ("PTXSIM_QUIET", "1")];

const ONE: LaunchConfig = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (1, 1, 1), shared_mem_bytes: 0 };

#[test]
fn a_fault_is_sticky_until_its_context_is_destroyed() {
    let _turn = common::driver(&ENV);
    common::reset();
    for (address, kernel, expected) in [
        (64, "poke", CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
        (0, "poke", CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
        (2, "poke", CUresult::CUDA_ERROR_MISALIGNED_ADDRESS),
        (0, "stop", CUresult::CUDA_ERROR_LAUNCH_FAILED),
    ] {
        let ctx = CudaContext::new_non_primary(0, 0).unwrap();
        let stream = ctx.new_stream().unwrap();
        let function = ctx.load_module(Ptx::from_src(common::PTX)).unwrap().load_function(kernel).unwrap();
        let y = stream.alloc_zeros::<u8>(64).unwrap();
        let base = cudarc::driver::DevicePtr::device_ptr(&y, &stream).0;
        // 64: just behind the allocation; 0: null; 2: inside, but no multiple of 4.
        let target = if address == 0 { 0u64 } else { base + address };
        let mut args = stream.launch_builder(&function);
        if kernel == "poke" {
            args.arg(&target);
        }
        // The launch itself succeeds: the fault comes while it runs.
        // SAFETY: none on a GPU; here the access is caught.
        unsafe { args.launch(ONE) }.unwrap();
        assert_eq!(common::code(stream.synchronize()), expected, "{kernel} at {address}");
        // Every later call meets it.
        assert_eq!(common::code(stream.synchronize()), expected);
        assert_eq!(common::code(stream.alloc_zeros::<u8>(64)), expected);
        assert_eq!(common::code(ctx.synchronize()), expected);
        let (mut p, mut event) = (0, std::ptr::null_mut());
        // SAFETY: out pointers.
        unsafe {
            assert_eq!(sys::cuMemAlloc_v2(&mut p, 4), expected);
            assert_eq!(sys::cuEventCreate(&mut event, 0), expected);
        }
        // Another context works meanwhile.
        let other = CudaContext::new(0).unwrap();
        let s = other.new_stream().unwrap();
        assert_eq!(s.clone_dtoh(&s.clone_htod(&[1u8, 2]).unwrap()).unwrap(), [1, 2]);
        ctx.bind_to_thread().ok();
        drop(y);
    }
    let report = common::json();
    let launches = report["launches"].as_array().unwrap();
    assert_eq!(launches.len(), 4);
    let first = &launches[0]["fault"];
    assert_eq!(first["kind"], "illegal-address");
    assert!(first["place"]["ptx_line"].as_u64().unwrap() > 0, "{first}");
    assert_eq!(report["kernels"]["poke"]["faults"], 3);
}

#[test]
fn a_primary_context_works_again_after_a_reset() {
    let _turn = common::driver(&ENV);
    // SAFETY: handles are the driver's; the fault is caught.
    unsafe {
        sys::cuInit(0).result().unwrap();
        let (mut ctx, mut again) = (std::ptr::null_mut(), std::ptr::null_mut());
        sys::cuDevicePrimaryCtxRetain(&mut ctx, 0).result().unwrap();
        sys::cuCtxSetCurrent(ctx).result().unwrap();
        let ptx = std::ffi::CString::new(common::PTX).unwrap();
        let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        sys::cuModuleLoadData(&mut module, ptx.as_ptr().cast()).result().unwrap();
        sys::cuModuleGetFunction(&mut function, module, c"stop".as_ptr()).result().unwrap();
        let none = std::ptr::null_mut();
        sys::cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, std::ptr::null_mut(), none, none)
            .result()
            .unwrap();
        assert_eq!(sys::cuCtxSynchronize(), CUresult::CUDA_ERROR_LAUNCH_FAILED);
        sys::cuDevicePrimaryCtxReset_v2(0).result().unwrap();
        let mut p = 0;
        assert_eq!(sys::cuMemAlloc_v2(&mut p, 4), CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
        sys::cuDevicePrimaryCtxRetain(&mut again, 0).result().unwrap();
        assert_eq!(again, ctx);
        sys::cuMemAlloc_v2(&mut p, 4).result().unwrap();
        sys::cuMemFree_v2(p).result().unwrap();
        sys::cuDevicePrimaryCtxRelease_v2(0).result().unwrap();
        sys::cuDevicePrimaryCtxRelease_v2(0).result().unwrap();
    }
}
