//! Time of one tensor instruction on one core: minimum and median of 400 runs of a fraction of a millisecond,
//! after ten to warm up.

use ptxsim::tensor::Reg;
use ptxsim::tensor::mma::Mma;
use ptxsim::tensor::wgmma::{Scale, Wgmma};
use std::convert::Infallible;
use std::hint::black_box;
use std::time::Instant;

/// Nanoseconds a call: (minimum, median).
fn time(calls: u32, mut f: impl FnMut()) -> (f64, f64) {
    let mut runs: Vec<f64> = (0..410)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..calls {
                f();
            }
            start.elapsed().as_nanos() as f64 / f64::from(calls)
        })
        .skip(10)
        .collect();
    runs.sort_by(f64::total_cmp);
    (runs[0], runs[runs.len() / 2])
}

fn main() {
    for opcode in [
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32",
    ] {
        let mma = Mma::parse(opcode).expect("a form that exists");
        let regs = mma.regs();
        // Ones and twos of bf16, harmless in the other types.
        let source: Vec<Reg> = (0..regs.a.max(regs.c))
            .map(|i| std::array::from_fn(|l| if (l + i) % 3 == 0 { 0x3f80_4000 } else { 0x4000_3f80 }))
            .collect();
        let refs: Vec<&Reg> = source.iter().collect();
        let (a, b, c) = (&refs[..regs.a], &refs[..regs.b], &refs[..regs.c]);
        let mut d = vec![[0; 32]; regs.d];
        let (ns, median) =
            time(1000, || mma.run(black_box(&mut d), black_box(a), black_box(b), black_box(c)));
        println!("{opcode:60} {ns:8.1} ns (median {median:8.1}) {:8.1} GFLOP/s", mma.flops() as f64 / ns);
    }
    for opcode in [
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16",
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16",
        "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3",
    ] {
        let form = Wgmma::parse(opcode).expect("a form that exists");
        // A and B K-major, 128-byte swizzle, rows of 128 bytes.
        let smem: Vec<u8> =
            (0..128 << 10).map(|i| if i % 2 == 0 { 0 } else { 0x3f + (i / 2 % 2) as u8 }).collect();
        let descriptor = |start: u64| start >> 4 | (1024 >> 4) << 32 | 1 << 62;
        let read = |at: u32, row: &mut [u8; 16]| -> Result<(), Infallible> {
            row.copy_from_slice(&smem[at as usize..][..16]);
            Ok(())
        };
        let mut d = vec![[[0; 32]; 128]; 4];
        let scale = Scale { accumulate: false, negate_a: false, negate_b: false };
        let (ns, median) = time(10, || {
            let Ok(b) = form.load_b(black_box(descriptor(0x4000)), false, read);
            for (warp, d) in d.iter_mut().enumerate() {
                let Ok(a) = form.load_a(black_box(descriptor(0)), false, warp as u32, read);
                form.run(black_box(d), a.each_ref(), &b, scale);
            }
        });
        println!("{opcode:60} {ns:8.1} ns (median {median:8.1}) {:8.1} GFLOP/s", form.flops() as f64 / ns);
    }
}
