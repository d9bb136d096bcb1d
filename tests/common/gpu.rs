//! One op on the simulated driver, every check on, beside the same op on the CPU's reference; or on a GPU (see [`device`]).

use half::bf16;
use mllmseg::device::Cpu;
use mllmseg::device::cuda::{self, Cuda};
use mllmseg::device::{Choice, Device};
use mllmseg::graph::{DType, Graph, Tensor};
use mllmseg::models::Bound;
use mllmseg::models::mllmseg::States;
use mllmseg::ops::Op;
use mllmseg::plan::Plan;
use mllmseg::reference::Precision;
use std::sync::{Mutex, MutexGuard};

/// The simulated driver is the process's: one test at a time uses it.
static DRIVER: Mutex<()> = Mutex::new(());

/// Operands of an op, and what they hold before it runs.
#[derive(Default)]
pub struct Case {
    states: States,
    values: Vec<Contents>,
    outputs: Vec<Tensor>,
}

enum Contents {
    Floats(Vec<f32>),
    Bytes(Vec<u8>),
    Ints(Vec<i32>),
    /// NaN, or bytes of 0xff.
    Poison,
}

/// An output on both devices; integers as f32.
pub struct Output {
    pub name: String,
    /// The kernel's.
    pub gpu: Vec<f32>,
    /// `reference/`, in f32, from the same inputs.
    pub cpu: Vec<f32>,
}

/// What a run gave: its outputs in the order in which they were made, and the simulator's report.
pub struct Ran {
    pub outputs: Vec<Output>,
    pub report: serde_json::Value,
}

impl Case {
    pub fn new() -> Self {
        Self::default()
    }

    fn make(&mut self, name: &str, dtype: DType, shape: &[usize], values: Contents) -> Tensor {
        self.values.push(values);
        self.states.make(name, dtype, shape)
    }

    /// An operand that is read. Activations are rounded to bf16, so that both devices see the same values.
    pub fn input(&mut self, name: &str, dtype: DType, shape: &[usize], values: &[f32]) -> Tensor {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
        let round = |&v: &f32| if dtype == DType::Act { bf16::from_f32(v).to_f32() } else { v };
        self.make(name, dtype, shape, Contents::Floats(values.iter().map(round).collect()))
    }

    /// Integers that are read.
    pub fn ints(&mut self, name: &str, shape: &[usize], values: &[i32]) -> Tensor {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
        self.make(name, DType::I32, shape, Contents::Ints(values.into()))
    }

    /// Bytes that are read.
    pub fn bytes(&mut self, name: &str, values: &[u8]) -> Tensor {
        self.make(name, DType::U8, &[values.len()], Contents::Bytes(values.into()))
    }

    /// An operand that is written; poisoned before.
    pub fn output(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Tensor {
        let t = self.make(name, dtype, shape, Contents::Poison);
        self.outputs.push(t.clone());
        t
    }

    /// An operand that is written and means nothing afterwards.
    pub fn scratch(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Tensor {
        self.make(name, dtype, shape, Contents::Poison)
    }

    /// An operand that is updated in place, or of which a part alone is written.
    pub fn inout(&mut self, name: &str, dtype: DType, shape: &[usize], values: &[f32]) -> Tensor {
        let t = self.input(name, dtype, shape, values);
        self.outputs.push(t.clone());
        t
    }

    /// Integers that are updated in place.
    pub fn inout_ints(&mut self, name: &str, shape: &[usize], values: &[i32]) -> Tensor {
        let t = self.ints(name, shape, values);
        self.outputs.push(t.clone());
        t
    }

    fn fill(&self, device: &mut dyn Device) {
        for (t, values) in self.states.tensors.iter().zip(&self.values) {
            device.allocate(t).unwrap();
            match (values, t.dtype) {
                (Contents::Floats(v), _) => device.write_f32(t, v).unwrap(),
                (Contents::Bytes(v), _) => device.write_u8(t, v).unwrap(),
                (Contents::Ints(v), _) => device.write_i32(t, v).unwrap(),
                (Contents::Poison, DType::I32) => device.write_i32(t, &vec![-1; t.len()]).unwrap(),
                (Contents::Poison, DType::U8) => {}
                (Contents::Poison, _) => device.write_f32(t, &vec![f32::NAN; t.len()]).unwrap(),
            }
        }
    }

    fn outputs(&self, device: &dyn Device) -> Vec<Vec<f32>> {
        let read = |t: &Tensor| match t.dtype {
            DType::I32 => device.read_i32(t).unwrap().iter().map(|&v| v as f32).collect(),
            DType::U8 => device.read_u8(t).unwrap().iter().map(|&v| f32::from(v)).collect(),
            _ => device.f32(t).unwrap(),
        };
        self.outputs.iter().map(read).collect()
    }

    /// Runs the op on both devices.
    ///
    /// # Panics
    /// If a kernel faults, or the simulator finds anything.
    #[track_caller]
    pub fn run(&self, op: impl Op + 'static) -> Ran {
        let mut graph = Graph::new();
        graph.push("op", op);
        self.run_graph(graph)
    }

    /// The same for several nodes.
    #[track_caller]
    pub fn run_graph(&self, graph: Graph) -> Ran {
        let _driver = driver();
        let mut gpu = open();
        let gpu_plan = Plan::new(graph, 2).unwrap();
        self.fill(&mut gpu);
        cuda::reset_simulator();
        gpu.run(&gpu_plan, true, &mut |_, _, _, _| Ok(())).unwrap();
        let on_gpu = self.outputs(&gpu);
        let report = report();
        expect_clean(&report);

        let mut cpu = Cpu::new(Bound::default(), Precision::F32);
        let plan = Plan::new(gpu_plan.graph, 4).unwrap();
        self.fill(&mut cpu);
        cpu.run(&plan, true, &mut |_, _, _, _| Ok(())).unwrap();
        let on_cpu = self.outputs(&cpu);
        let name = |t: &Tensor| t.name.to_string();
        let outputs = self.outputs.iter().zip(on_gpu.into_iter().zip(on_cpu));
        Ran { outputs: outputs.map(|(t, (gpu, cpu))| Output { name: name(t), gpu, cpu }).collect(), report }
    }
}

/// Where kernels are tested: the simulated driver, or what `MLLMSEG_TEST_DEVICE` names (`cuda:0`).
#[allow(dead_code)] // not by every test
pub fn device() -> Choice {
    let name = std::env::var("MLLMSEG_TEST_DEVICE").unwrap_or_else(|_| "sim".into());
    name.parse().unwrap_or_else(|e| panic!("MLLMSEG_TEST_DEVICE: {e}"))
}

/// Whether what kernels do is counted; a test of counts ends here on a GPU.
#[allow(dead_code)]
pub fn counted() -> bool {
    let counted = device() == Choice::Sim;
    if !counted {
        eprintln!("skipped: only the simulator counts");
    }
    counted
}

/// The simulator's report; an empty one on a GPU.
pub fn report() -> serde_json::Value {
    match device() {
        Choice::Sim => cuda::simulator_report().expect("the simulated driver reports"),
        _ => serde_json::json!({"found": {}, "unsupported": {}, "launches": [], "kernels": {}}),
    }
}

/// The driver, for this test alone.
pub fn driver() -> MutexGuard<'static, ()> {
    DRIVER.lock().unwrap_or_else(|e| e.into_inner())
}

/// The CUDA device, without weights.
pub fn open() -> Cuda {
    Cuda::open(device(), Bound::default(), &mut |_, _| ()).unwrap()
}

/// Nothing was found by any check.
#[track_caller]
pub fn expect_clean(report: &serde_json::Value) {
    let found = report["found"].as_object().expect("a report has `found`");
    assert!(found.is_empty(), "the simulator found {found:?}: {}", report["kernels"]);
    let unsupported = report["unsupported"].as_object().expect("a report has `unsupported`");
    assert!(unsupported.is_empty(), "unsupported: {unsupported:?}");
}

impl Output {
    /// Every value equal.
    #[track_caller]
    pub fn expect_equal(&self) {
        for (i, (g, c)) in self.gpu.iter().zip(&self.cpu).enumerate() {
            assert!(
                g == c || g.is_nan() && c.is_nan(),
                "{}: element {i} is {g}, the reference's {c}",
                self.name
            );
        }
    }

    /// No value further from the reference than twice the furthest of `plain` (the same computed plainly in bf16), or `floor` where that
    /// is more; with `whole`, also `1 - 2<a,b>/(<a,a>+<b,b>) < 1e-5` over the whole tensor.
    #[track_caller]
    pub fn expect_as_close_as(&self, plain: &[f32], floor: f32, whole: bool) {
        assert_eq!(self.cpu.len(), plain.len(), "{}", self.name);
        let off = |x: &[f32]| {
            let off = x.iter().zip(&self.cpu).map(|(x, c)| (x - c).abs());
            off.enumerate().fold((0, 0.0f32), |a, (i, d)| if d > a.1 || d.is_nan() { (i, d) } else { a })
        };
        let ((i, worst), bound) = (off(&self.gpu), (2.0 * off(plain).1).max(floor));
        assert!(
            worst <= bound,
            "{}: element {i} is {}, the reference's {}: off by {worst:e}, bound {bound:e}",
            self.name,
            self.gpu[i],
            self.cpu[i]
        );
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let (gg, cc, gc) = (dot(&self.gpu, &self.gpu), dot(&self.cpu, &self.cpu), dot(&self.gpu, &self.cpu));
        let apart = if gg + cc > 0.0 { 1.0 - 2.0 * gc / (gg + cc) } else { 0.0 };
        assert!(!whole || apart < 1e-5, "{}: the whole differs by {apart:e}", self.name);
    }
}

/// bf16 rounding, for plain versions.
pub fn round(v: f32) -> f32 {
    bf16::from_f32(v).to_f32()
}

/// Standard normal numbers that depend on the seed alone, a few of them ten times larger.
pub fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        ((s >> 40) as f32 + 0.5) / (1u32 << 24) as f32
    };
    for _ in 0..4 {
        uniform();
    }
    let draw = |_| {
        let (a, b) = (uniform(), uniform());
        let v = (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos();
        if uniform() < 0.002 { 10.0 * v } else { v }
    };
    (0..n).map(draw).collect()
}
