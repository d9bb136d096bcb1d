//! What only `PTXSIM_GPU=h100` has: clusters, launch attributes, tensor maps; and the start-up of the null stream's variants.

mod common;

use std::ffi::c_void;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, result};

const ENV: [(&str, &str); 3] = [("PTXSIM_GPU", "h100"), ("PTXSIM_MEMORY", "64M"), ("PTXSIM_QUIET", "1")];

/// Each thread writes its block's rank in the cluster.
const PTX: &std::ffi::CStr = cr#"
.version 9.0
.target sm_90
.address_size 64
.visible .entry rank(.param .u64 y)
{
    .reg .b32 %r<3>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [y];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %cluster_ctarank;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r2;
    ret;
}
"#;

#[test]
fn a_cluster_launch_ranks_its_blocks() {
    let _turn = common::driver(&ENV);
    let ctx = CudaContext::new(0).unwrap();
    assert_eq!(ctx.compute_capability().unwrap(), (9, 0));
    let stream = ctx.new_stream().unwrap();
    // SAFETY: the kernel writes one word a block.
    unsafe {
        let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        sys::cuModuleLoadData(&mut module, PTX.as_ptr().cast()).result().unwrap();
        sys::cuModuleGetFunction(&mut function, module, c"rank".as_ptr()).result().unwrap();
        let y = result::malloc_sync(32).unwrap();
        let params = [(&raw const y) as *mut c_void];
        let launch = |cluster: u32, grid: u32| {
            let mut attributes = [std::mem::zeroed::<[u64; 9]>(); 2];
            // Cluster size, then programmatic serialisation.
            attributes[0][..3].copy_from_slice(&[4, u64::from(cluster) | 1 << 32, 1]);
            attributes[1][..2].copy_from_slice(&[6, 1]);
            let config = sys::CUlaunchConfig {
                gridDimX: grid,
                gridDimY: 1,
                gridDimZ: 1,
                blockDimX: 1,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: 0,
                hStream: stream.cu_stream(),
                attrs: attributes.as_mut_ptr().cast(),
                numAttrs: 2,
            };
            sys::cuLaunchKernelEx(&config, function, params.clone().as_mut_ptr(), std::ptr::null_mut())
        };
        launch(4, 8).result().unwrap();
        stream.synchronize().unwrap();
        let mut back = [9u32; 8];
        sys::cuMemcpyDtoH_v2(back.as_mut_ptr().cast(), y, 32).result().unwrap();
        assert_eq!(back, [0, 1, 2, 3, 0, 1, 2, 3]);
        // A grid that the cluster does not divide, and a cluster that needs a permission.
        assert_eq!(launch(3, 8), CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE);
        assert_eq!(launch(16, 16), CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE);
        // Cooperative: all blocks at once, or not at all.
        let cooperative = |grid| {
            sys::cuLaunchCooperativeKernel(
                function,
                grid,
                1,
                1,
                1024,
                1,
                1,
                0,
                stream.cu_stream(),
                params.clone().as_mut_ptr(),
            )
        };
        cooperative(8).result().unwrap();
        assert_eq!(cooperative(100_000), CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
        // The thread's own default stream.
        type Copy = unsafe extern "C" fn(*mut c_void, u64, usize) -> CUresult;
        let copy: Copy = *common::loaded().get(b"cuMemcpyDtoH_v2_ptds").unwrap();
        copy(back.as_mut_ptr().cast(), y, 32).result().unwrap();
        result::free_sync(y).unwrap();
        sys::cuModuleUnload(module).result().unwrap();
    }
}

#[test]
fn tensor_maps_are_encoded_or_refused() {
    let _turn = common::driver(&ENV);
    let _ctx = CudaContext::new(0).unwrap();
    #[repr(align(64))]
    struct Map([u8; 128]);
    type Encode = unsafe extern "C" fn(
        *mut Map,
        u32,
        u32,
        u64,
        *const u64,
        *const u64,
        *const u32,
        *const u32,
        u32,
        u32,
        u32,
        u32,
    ) -> CUresult;
    // SAFETY: arrays have the length of the rank.
    unsafe {
        let encode: Encode = *common::loaded().get(b"cuTensorMapEncodeTiled").unwrap();
        let p = result::malloc_sync(64 * 64 * 2).unwrap();
        let mut map = Map([0; 128]);
        let mut tiled = |address, box_columns: u32, stride: u64| {
            let (dims, strides) = ([64u64, 64], [stride]);
            // bf16, no interleave, 128-byte swizzle.
            encode(
                &mut map,
                9,
                2,
                address,
                dims.as_ptr(),
                strides.as_ptr(),
                [box_columns, 8].as_ptr(),
                [1, 1].as_ptr(),
                0,
                3,
                0,
                0,
            )
        };
        tiled(p, 64, 128).result().unwrap();
        assert_eq!(tiled(p + 8, 64, 128), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(tiled(p, 128, 128), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(tiled(p, 64, 120), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_ne!(map.0, [0; 128]);
        result::free_sync(p).unwrap();
    }
}
