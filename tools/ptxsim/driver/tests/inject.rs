//! `PTXSIM_FAIL`: the n-th call of a function fails with the error that was asked for, and only that call.

mod common;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, result};

#[test]
fn the_third_allocation_fails() {
    let _turn = common::driver(&[
        (
            "PTXSIM_FAIL",
            "cuMemAlloc_v2:3=CUDA_ERROR_OUT_OF_MEMORY,cuStreamSynchronize:1=CUDA_ERROR_ECC_UNCORRECTABLE",
        ),
        ("PTXSIM_QUIET", "1"),
    ]);
    let ctx = CudaContext::new(0).unwrap();
    for round in 0..2 {
        // SAFETY: allocated and freed.
        let codes: Vec<CUresult> = (0..5)
            .map(|_| unsafe {
                let mut p = 0;
                let code = sys::cuMemAlloc_v2(&mut p, 16);
                if code == CUresult::CUDA_SUCCESS {
                    result::free_sync(p).unwrap();
                }
                code
            })
            .collect();
        for (i, code) in codes.iter().enumerate() {
            let expected = if i == 2 { CUresult::CUDA_ERROR_OUT_OF_MEMORY } else { CUresult::CUDA_SUCCESS };
            assert_eq!(*code, expected, "round {round}, call {}", i + 1);
        }
        // A reset counts anew.
        common::reset();
    }
    let stream = ctx.default_stream();
    assert_eq!(common::code(stream.synchronize()), CUresult::CUDA_ERROR_ECC_UNCORRECTABLE);
    stream.synchronize().unwrap();
}
