//! Time of one tensor instruction on one core: minimum and median of 400 runs of a fraction of a millisecond,
//! after ten to warm up.

use ptxsim::tensor::Reg;
use ptxsim::tensor::mma::Mma;
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
}
