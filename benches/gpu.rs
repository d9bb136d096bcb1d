//! Kernels on a GPU at the 8B model's shapes, cuBLAS beside them: microseconds, median of 20, the L2 cache flushed before each.
//!
//!     cargo bench --bench gpu -- --device cuda:0
//!     cargo bench --bench gpu -- --device sim       (small shapes, answers checked, nothing timed)
//!
//! Prints one line of JSON a shape. Every answer is compared with the CPU device's, a matmul's with cuBLAS's too; where libcublas cannot be
//! opened, a line on standard error says so. Times are between two events around the launch, for both. tools/gpu-check runs it and keeps the record.

use cudarc::driver::result as cu;
use cudarc::driver::sys;
use half::bf16;
use mllmseg::device::Cpu;
use mllmseg::device::cuda::Cuda;
use mllmseg::device::{Choice, Device, Values};
use mllmseg::graph::{DType, Graph, Tensor};
use mllmseg::models::Bound;
use mllmseg::models::mllmseg::States;
use mllmseg::ops::{self, KvCache, SEGMENT};
use mllmseg::plan::Plan;
use mllmseg::reference::Precision;
use serde_json::json;
use std::ffi::{CStr, c_int, c_void};

/// Times of each shape.
const RUNS: usize = 20;
/// Largest relative L2 distance of an answer in bf16 from the CPU's in f32, and of two answers in bf16.
const DISTANCE: f64 = 5e-3;
/// More than any L2 cache, in bf16 elements.
const FLUSH: usize = 64 << 20;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let device = args.iter().position(|a| a == "--device").and_then(|i| args.get(i + 1)).map(|d| d.parse());
    let Some(Ok(choice @ (Choice::Cuda(_) | Choice::Sim))) = device else {
        // `cargo test --benches` and `cargo bench` of everything come here.
        return eprintln!("skipped: --device cuda:N or --device sim says where to run");
    };
    let sim = choice == Choice::Sim;
    let cublas = Cublas::open();
    if cublas.is_none() {
        eprintln!("cuBLAS: skipped: libcublas.so.13 or .12 cannot be opened");
    }
    let matmuls: &[(usize, usize, usize)] = match sim {
        true => &[(130, 264, 128)],
        false => &[
            (1025, 3072, 1024),
            (1025, 4096, 1024),
            (1025, 1024, 4096),
            (258, 6144, 4096),
            (258, 4096, 4096),
            (258, 14336, 4096),
            (258, 4096, 14336),
            (2064, 6144, 4096),
            (2064, 4096, 14336),
            (64, 6144, 4096),
            (1, 6144, 4096),
            (1024, 1024, 1024),
            (4096, 4096, 4096),
        ],
    };
    for &(m, n, k) in matmuls {
        let mut b = Bench::new(choice);
        let (xs, ws) = (values(1, m * k, 1.0), values(2, n * k, 1.0 / (k as f32).sqrt()));
        let (x, w) = (b.input("x", &[m, k], &xs), b.input("w", &[n, k], &ws));
        let y = b.state("y", DType::Act, &[m, n]);
        let us = b.time(&y, |g| g.push("matmul", ops::matmul(&y, &x, &w).unwrap()));
        let ours = b.device.f32(&y).unwrap();
        let theirs = cublas.as_ref().map(|c| c.matmul(&xs, &ws, [m, n, k]));
        let distance = theirs.as_ref().map(|t| relative(&ours, &t.0));
        if let Some(d) = distance {
            assert!(d < DISTANCE, "matmul {m}x{n}x{k} and cuBLAS's differ by {d}");
        }
        let tflops = |us: f64| 2e-6 * (m * n * k) as f64 / us;
        let cublas = theirs.map(|t| t.1);
        print(
            sim,
            "matmul",
            &[m, n, k],
            us,
            json!({
                "tflops": tflops(us), "cublas_us": cublas, "cublas_over_ours": cublas.map(|c| c / us), "distance": distance,
            }),
        );
    }
    attention(choice);
    norms(choice);
}

fn attention(choice: Choice) {
    let sim = choice == Choice::Sim;
    let shapes: &[[usize; 5]] = match sim {
        true => &[[1, 2, 64, 70, 70]],
        false => &[
            [1, 16, 64, 1025, 1025],
            [8, 16, 64, 1025, 1025],
            [1, 8, 128, 1024, 1024],
            [1, 8, 128, 1024, 256],
        ],
    };
    for &[batch, heads, hd, tq, tk] in shapes {
        let (mut b, c) = (Bench::new(choice), heads * hd);
        let q = b.input("q", &[batch * tq, c], &values(1, batch * tq * c, 1.0));
        let kv = b.input("kv", &[batch * tk, 2 * c], &values(2, 2 * batch * tk * c, 1.0));
        let y = b.state("y", DType::Act, &[batch * tq, c]);
        let (k, v) = (kv.cols(0, c), kv.cols(c, c));
        let us = b.time(&y, |g| {
            g.push("attention", ops::attention(&y, &q.all(), &k, &v, batch, heads).unwrap());
        });
        let tflops = 4e-6 * (batch * heads * hd * tq * tk) as f64 / us;
        print(sim, "attention", &[batch, heads, hd, tq, tk], us, json!({"tflops": tflops}));
    }
    // One causal sequence: what a GPU's libraries have, too.
    let (nh, nkv, hd, t) = if sim { (4, 1, 128, 70) } else { (32, 8, 128, 2048) };
    let mut b = Bench::new(choice);
    let q = b.input("q", &[t, nh, hd], &values(1, t * nh * hd, 1.0));
    let [k, v] = [2, 3].map(|seed| b.input("kv", &[1, nkv, t, hd], &values(seed, nkv * t * hd, 1.0)));
    let segments = b.state("segments", DType::I32, &[1, SEGMENT]);
    let segment = mllmseg::models::mllmseg::Segment { rows: (0, t), seen: [(0, 0); 2], kv: 0 };
    let y = b.state("y", DType::Act, &[t, nh * hd]);
    b.device.write_i32(&segments, &segment.fields()).unwrap();
    b.cpu.write_i32(&segments, &segment.fields()).unwrap();
    let us = b.time(&y, |g| {
        let kv = KvCache { k: k.clone(), v: v.clone() };
        g.push("attention", ops::attention_ranges(&y, &q, &kv, 0, &segments, t).unwrap());
    });
    let tflops = 2e-6 * (nh * hd * t * (t + 1)) as f64 / us;
    print(sim, "attention_causal", &[nh, nkv, hd, t], us, json!({"tflops": tflops}));
}

fn norms(choice: Choice) {
    let sim = choice == Choice::Sim;
    let shapes: &[[usize; 2]] = if sim { &[[3, 1024]] } else { &[[1025, 1024], [2064, 4096], [1024, 4096]] };
    for &[n, c] in shapes {
        let mut b = Bench::new(choice);
        let x = b.input("x", &[n, c], &values(1, n * c, 1.0));
        let [w, bias] = [2, 3].map(|seed| b.input("w", &[c], &values(seed, c, 1.0)));
        let y = b.state("y", DType::Act, &[n, c]);
        let gbps = |us: f64| json!({"gbps": 4e-3 * (n * c) as f64 / us});
        let us = b.time(&y, |g| g.push("rmsnorm", ops::rmsnorm(&y, &x, &w, 1e-5).unwrap()));
        print(sim, "rmsnorm", &[n, c], us, gbps(us));
        let us = b.time(&y, |g| g.push("layernorm", ops::layernorm(&y.all(), &x, &w, &bias, 1e-6).unwrap()));
        print(sim, "layernorm", &[n, c], us, gbps(us));
    }
}

fn print(sim: bool, op: &str, shape: &[usize], us: f64, mut more: serde_json::Value) {
    more["op"] = op.into();
    more["shape"] = shape.into();
    more["us"] = us.into();
    if sim {
        // Times of the simulation say nothing.
        more = json!({"op": op, "shape": shape, "ran": true});
    }
    println!("{more}");
}

/// Numbers in [-scale, scale) that depend on the seed alone, exact in bf16.
fn values(seed: u64, n: usize, scale: f32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let draw = |_| {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        bf16::from_f32(((s >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * scale).to_f32()
    };
    (0..n).map(draw).collect()
}

/// Relative L2 distance.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    let sum = |f: &dyn Fn(f64, f64) -> f64| {
        a.iter().zip(b).map(|(a, b)| f(f64::from(*a), f64::from(*b))).sum::<f64>()
    };
    (sum(&|a, b| (a - b) * (a - b)) / sum(&|_, b| b * b).max(f64::MIN_POSITIVE)).sqrt()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A device and the CPU beside it, and the operands of one op on both.
struct Bench {
    device: Cuda,
    cpu: Cpu,
    states: States,
    flush: Option<[Tensor; 2]>,
}

impl Bench {
    fn new(choice: Choice) -> Self {
        let device = Cuda::open(choice, Bound::default(), &mut |_, _| ()).unwrap_or_else(|e| panic!("{e}"));
        let cpu = Cpu::new(Bound::default(), Precision::F32);
        let mut b = Self { device, cpu, states: States::default(), flush: None };
        if choice != Choice::Sim {
            b.flush = Some(["from", "to"].map(|name| b.state(name, DType::Act, &[FLUSH / 1024, 1024])));
        }
        b
    }

    fn state(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Tensor {
        let t = self.states.make(name, dtype, shape);
        self.device.allocate(&t).unwrap();
        self.cpu.allocate(&t).unwrap();
        t
    }

    fn input(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Tensor {
        let t = self.state(name, DType::Act, shape);
        self.device.write_f32(&t, values).unwrap();
        self.cpu.write_f32(&t, values).unwrap();
        t
    }

    /// Median microseconds of the node that `push` appends, once its answer `y` is the CPU's.
    fn time(&mut self, y: &Tensor, push: impl Fn(&mut Graph)) -> f64 {
        let mut graph = Graph::new();
        for _ in 0..if self.flush.is_some() { RUNS + 1 } else { 1 } {
            if let Some([from, to]) = &self.flush {
                graph.push("flush", ops::copy(&to.all(), from).unwrap());
            }
            push(&mut graph);
        }
        let plan = Plan::new(graph, 2).unwrap();
        let mut times = Vec::new();
        let seen: mllmseg::device::Seen = &mut |_, node, time, _| {
            if node.name != "flush" {
                times.push(time.as_secs_f64() * 1e6);
            }
            Ok(())
        };
        self.device.run(&plan, true, seen).unwrap_or_else(|e| panic!("{e}"));

        let mut graph = Graph::new();
        push(&mut graph);
        let name = graph.nodes[0].name.clone();
        let plan = Plan::new(graph, 4).unwrap();
        self.cpu.run(&plan, true, &mut |_, _, _, _| Ok(())).unwrap_or_else(|e| panic!("{e}"));
        let d = relative(&self.device.f32(y).unwrap(), &self.cpu.f32(y).unwrap());
        assert!(d < DISTANCE, "{name} {:?}: the answer is {d} from the CPU's", y.shape);

        median(times.split_off(usize::from(times.len() > 1))) // without the first, which warms up
    }
}

type Create = unsafe extern "C" fn(*mut *mut c_void) -> c_int;
#[rustfmt::skip]
type GemmEx = unsafe extern "C" fn(
    *mut c_void, c_int, c_int, c_int, c_int, c_int, *const f32, u64, c_int, c_int, u64, c_int, c_int, *const f32, u64, c_int, c_int, c_int, c_int,
) -> c_int;

/// cuBLAS, if this machine has it. Its handle needs a context, so it is made at each product.
struct Cublas {
    create: Create,
    gemm: GemmEx,
    destroy: unsafe extern "C" fn(*mut c_void) -> c_int,
}

impl Cublas {
    fn open() -> Option<Self> {
        let library = |name: &CStr| {
            // SAFETY: a library of NVIDIA's.
            let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
            (!handle.is_null()).then_some(handle)
        };
        let library =
            [c"libcublas.so.13", c"libcublas.so.12", c"libcublas.so"].into_iter().find_map(library)?;
        // SAFETY: cublas_api.h gives these symbols these types.
        unsafe {
            let create = libc::dlsym(library, c"cublasCreate_v2".as_ptr());
            let gemm = libc::dlsym(library, c"cublasGemmEx".as_ptr());
            let destroy = libc::dlsym(library, c"cublasDestroy_v2".as_ptr());
            (![create, gemm, destroy].contains(&std::ptr::null_mut())).then(|| Self {
                destroy: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void) -> c_int>(
                    destroy,
                ),
                create: std::mem::transmute::<*mut c_void, Create>(create),
                gemm: std::mem::transmute::<*mut c_void, GemmEx>(gemm),
            })
        }
    }

    /// `x (M,K) @ w (N,K)ᵀ` in bf16 with f32 sums: the result and its median microseconds. A context must be current.
    fn matmul(&self, x: &[f32], w: &[f32], [m, n, k]: [usize; 3]) -> (Vec<f32>, f64) {
        const BF16: c_int = 14; // CUDA_R_16BF
        const SUM_F32: c_int = 68; // CUBLAS_COMPUTE_32F
        let (yes, no) = (1, 0); // CUBLAS_OP_T, CUBLAS_OP_N
        let bytes = |v: &[f32]| v.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect::<Vec<u8>>();
        let [m32, n32, k32] = [m, n, k].map(|v| v as c_int);
        let stream = std::ptr::null_mut();
        // SAFETY: memory of these sizes, events and a handle, made and used here; cuBLAS works on the default stream.
        unsafe {
            let mut handle = std::ptr::null_mut();
            assert_eq!((self.create)(&raw mut handle), 0, "cublasCreate");
            let [xd, wd, yd, flush] =
                [2 * m * k, 2 * n * k, 2 * m * n, 2 * FLUSH].map(|n| cu::malloc_sync(n).unwrap());
            cu::memcpy_htod_sync(xd, &bytes(x)).unwrap();
            cu::memcpy_htod_sync(wd, &bytes(w)).unwrap();
            let events = [(); 2].map(|()| cu::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).unwrap());
            let mut times = Vec::new();
            for _ in 0..RUNS + 1 {
                cu::memset_d8_sync(flush, 0, 2 * FLUSH).unwrap();
                cu::event::record(events[0], stream).unwrap();
                // Column-major, y is (N, M), w (K, N) transposed, x (K, M).
                let done = (self.gemm)(
                    handle, yes, no, n32, m32, k32, &1.0, wd, BF16, k32, xd, BF16, k32, &0.0, yd, BF16, n32,
                    SUM_F32, -1,
                );
                assert_eq!(done, 0, "cublasGemmEx");
                cu::event::record(events[1], stream).unwrap();
                cu::event::synchronize(events[1]).unwrap();
                times.push(f64::from(cu::event::elapsed(events[0], events[1]).unwrap()) * 1e3);
            }
            let mut y = vec![0u8; 2 * m * n];
            cu::memcpy_dtoh_sync(&mut y, yd).unwrap();
            for at in [xd, wd, yd, flush] {
                cu::free_sync(at).unwrap();
            }
            events.into_iter().for_each(|e| cu::event::destroy(e).unwrap());
            (self.destroy)(handle);
            let y = y.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect();
            (y, median(times.split_off(1)))
        }
    }
}
