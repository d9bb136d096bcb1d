//! A launch: its geometry, its options, and the run over all blocks.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use crate::ast::Ast;
use crate::check::global;
use crate::exec::block::{AlignedRow, Block, NONE, Pass};
use crate::exec::counting::Traffic;
use crate::exec::moves::Sreg;
use crate::exec::{Cx, Stop};
use crate::memory::Alloc;
use crate::program::Program;
use crate::report::{Fault, FaultKind, Report, ReportKind};
use crate::{Checks, Error, GpuSpec, KernelInfo, LaunchReport, LoadedModule, Memory, Result};

/// Geometry and arguments of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads a block in x, y, z.
    pub block: [u32; 3],
    /// Blocks a cluster in x, y, z.
    pub cluster: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub dynamic_shared: u32,
    /// Whether all blocks must be resident at once (`cuLaunchCooperativeKernel`).
    pub cooperative: bool,
    /// The parameter buffer, laid out as [`KernelInfo::params`](crate::KernelInfo::params) says.
    pub params: Vec<u8>,
}

impl LaunchConfig {
    /// A one-dimensional launch with no arguments.
    pub fn new(blocks: u32, threads: u32) -> LaunchConfig {
        LaunchConfig::with_dims([blocks, 1, 1], [threads, 1, 1])
    }
    /// A launch with no arguments.
    #[must_use]
    pub fn with_dims(grid: [u32; 3], block: [u32; 3]) -> LaunchConfig {
        LaunchConfig {
            grid,
            block,
            cluster: [1; 3],
            dynamic_shared: 0,
            cooperative: false,
            params: Vec::new(),
        }
    }
    /// With `bytes` of dynamic shared memory.
    pub fn shared(mut self, bytes: u32) -> LaunchConfig {
        self.dynamic_shared = bytes;
        self
    }
    /// With one more argument, at the next multiple of its size.
    pub fn arg<T: Arg>(mut self, value: T) -> LaunchConfig {
        let b = value.bytes();
        self.params.resize(self.params.len().next_multiple_of(b.as_ref().len()), 0);
        self.params.extend_from_slice(b.as_ref());
        self
    }
}

/// A scalar kernel argument.
pub trait Arg {
    /// Its bytes, as many as its alignment.
    fn bytes(self) -> impl AsRef<[u8]>;
}
macro_rules! args {
    ($($t:ty)*) => { $(impl Arg for $t {
        fn bytes(self) -> impl AsRef<[u8]> { self.to_le_bytes() }
    })* };
}
args!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

/// How a launch is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Checks that run.
    pub checks: Checks,
    /// Whether instructions and traffic are counted.
    pub counters: bool,
    /// Worker threads; 0 means one for each core.
    pub threads: usize,
    /// Seed of the order in which warps run, and blocks; 0: blocks in theirs.
    pub seed: u64,
    /// Findings kept in full; all are counted.
    pub max_reports: usize,
    /// Warp instructions after which a block is given up; 0 means no limit.
    pub max_instructions: u64,
    /// The GPU to pretend.
    pub gpu: &'static GpuSpec,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            checks: Checks::ALL,
            counters: true,
            threads: 0,
            seed: 0,
            max_reports: 20,
            max_instructions: 0,
            gpu: &GpuSpec::all()[0],
        }
    }
}

/// An allocation as kernels see it.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    pub start: u64,
    pub bytes: u64,
    /// What turns a device address into a host address.
    pub delta: u64,
    pub writable: bool,
    pub alloc: *const Alloc,
}

impl Region {
    /// The lanes whose `bytes` at `addr` lie inside.
    #[inline(always)]
    pub fn covers(&self, addr: &[u64; 32], bytes: u32) -> u32 {
        let room = self.bytes.wrapping_sub(u64::from(bytes));
        if u64::from(bytes) > self.bytes {
            return 0;
        }
        crate::exec::bits(
            #[inline(always)]
            |i| addr[i].wrapping_sub(self.start) <= room,
        )
    }
}

/// The cluster that runs.
#[derive(Default)]
pub(crate) struct Cluster {
    pub blocks: Vec<*mut Block>,
    /// Threads that arrived at the cluster barrier, and how often it opened.
    pub arrived: u64,
    pub phase: u64,
    /// How often nobody could run but those whose wait for an mbarrier was cut short, since a phase of one ended.
    pub timeouts: u32,
}

/// Waits for mbarriers that may be cut short in a row before it counts as a deadlock.
const TIMEOUTS: u32 = 4000;
/// Passes over a cluster's blocks after which such a wait is cut short while others run.
const WAIT_PASSES: u32 = 100;

/// What one worker thread keeps while it runs blocks.
pub(crate) struct Worker<'a> {
    pub memory: &'a Memory,
    pub ast: &'a Ast,
    pub checks: Checks,
    pub regions: Vec<Region>,
    /// The region that an instruction found last, by the low bits of its address.
    pub hot: [u32; 64],
    pub traffic: Vec<Traffic>,
    pub reports: BTreeMap<(ReportKind, u32), (u64, Report)>,
    pub found: BTreeMap<ReportKind, u64>,
    pub fault: Option<(u64, Fault)>,
    pub output: Vec<(u64, String)>,
    pub cluster: Cluster,
    pub grid: [u32; 3],
    pub epoch: u32,
    pub sync: &'a global::Sync,
    pub acquired: HashMap<u64, global::Blocks>,
    /// The same of relaxed reads, until a fence makes them count.
    pub unfenced: HashMap<u64, global::Blocks>,
    /// Whether global accesses are noted for races and distinct bytes.
    pub track_distinct: bool,
    pub distinct: u64,
    pub atomics: u64,
    pub barriers: u64,
    pub async_bytes: u64,
    pub in_flight_max: u64,
    /// Bulk copies to shared memory that have been issued and not made.
    pub bulk: Vec<crate::exec::bulk::PendingLoad>,
    /// A strong load or an atomic ran: the block may be waiting for another one.
    pub polled: bool,
}

impl Cx {
    /// Block `rank` of the running cluster. The caller must not hold another reference to it.
    pub fn peer(&mut self, rank: u16) -> &mut Block {
        let b = self.worker().cluster.blocks.get(usize::from(rank)).copied().unwrap_or(self.block);
        // SAFETY: the blocks of the cluster live as long as the worker, on this thread.
        unsafe { &mut *b }
    }
    /// Shared memory of block `rank` of the cluster, and its size.
    pub fn peer_shared(&mut self, rank: u16) -> Option<(*mut u8, u32)> {
        let b = self.worker().cluster.blocks.get(usize::from(rank)).copied()?;
        // SAFETY: as for `peer`.
        let b = unsafe { &mut *b };
        Some((b.shared.as_mut_ptr().cast(), b.shared_bytes))
    }
}

/// Runs `kernel` over its grid.
///
/// A fault while it runs is no error: it is [`LaunchReport::fault`], and the memory keeps what was written before it.
///
/// # Errors
/// [`Error::NotFound`] for an unknown kernel, [`Error::Unsupported`] if it uses an instruction that is not implemented,
/// [`Error::Launch`] for a geometry or parameter buffer that the kernel or the GPU does not allow.
pub fn launch(
    memory: &Memory,
    module: &LoadedModule,
    kernel: &str,
    config: &LaunchConfig,
    options: &Options,
) -> Result<LaunchReport> {
    let start = Instant::now();
    if !crate::exec::supported() {
        return Err(Error::Launch {
            kernel: kernel.into(),
            message: "this machine has no AVX2 and FMA".into(),
        });
    }
    let prog = module.program(kernel)?;
    let info = module
        .module()
        .kernel(kernel)
        .ok_or_else(|| Error::NotFound { what: "kernel", name: kernel.into() })?;
    check_geometry(&info, config, options)?;
    let mut params = config.params.clone();
    params.resize(params.len().max(info.param_bytes as usize) + 16, 0);

    // A cooperative launch finds its workspace (size, barrier) through registers of the driver.
    let workspace = if config.cooperative { memory.alloc(64, 256)? } else { 0 };
    if workspace != 0 {
        memory.fill(workspace, &[0], 64)?;
        memory.write(workspace, &64u32.to_le_bytes())?;
    }
    let allocs = memory.snapshot();
    let number = memory.epoch.fetch_add(1, Relaxed);
    let epoch = global::begin(&allocs, number);
    let regions: Vec<Region> = allocs
        .iter()
        .map(|a| Region {
            start: a.addr,
            bytes: a.bytes,
            delta: (a.host as u64).wrapping_sub(a.addr),
            writable: a.writable,
            alloc: &**a,
        })
        .collect();
    let blocks = config.grid.iter().map(|&g| u64::from(g)).product::<u64>();
    let per_cluster = config.cluster.iter().map(|&c| u64::from(c)).product::<u64>();
    let clusters = blocks / per_cluster;
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        n => n,
    };
    let threads = (threads as u64).clamp(1, clusters.max(1)) as usize;
    let shared = Shared {
        prog: &prog,
        config,
        options,
        params: &params,
        next: AtomicU64::new(0),
        clusters,
        stop: AtomicBool::new(false),
        sync: global::Sync::default(),
        regions: SendRegions(regions),
        memory,
        ast: &module.module().ast,
        epoch,
        grid_id: u64::from(number),
        workspace,
        done: AtomicU64::new(0),
    };
    let parts: Vec<Part> = std::thread::scope(|s| {
        let handles: Vec<_> = (1..threads).map(|_| s.spawn(|| work(&shared))).collect();
        let mut parts = vec![work(&shared)];
        // A worker that panicked has found a bug of the simulator; it goes on in the caller.
        parts.extend(handles.into_iter().map(|h| h.join().unwrap_or_else(|p| std::panic::resume_unwind(p))));
        parts
    });
    drop(allocs);
    if workspace != 0 {
        memory.free(workspace)?;
    }
    Ok(gather(&prog, module, config, options, parts, start))
}

fn check_geometry(info: &KernelInfo, c: &LaunchConfig, o: &Options) -> Result<()> {
    let bad = |message: String| Err(Error::Launch { kernel: info.name.clone(), message });
    let [x, y, z] = c.block;
    let threads = u64::from(x) * u64::from(y) * u64::from(z);
    if threads == 0 || threads > 1024 || z > 64 {
        return bad(format!("block {x}x{y}x{z}: 1 to 1024 threads, at most 64 in z"));
    }
    if threads > u64::from(info.max_threads) {
        return bad(format!(
            "block {x}x{y}x{z} has {threads} threads, the kernel was compiled for at most {}",
            info.max_threads
        ));
    }
    if let Some(r) = info.required_block
        && r != c.block
    {
        return bad(format!("block {x}x{y}x{z}, the kernel requires {}x{}x{}", r[0], r[1], r[2]));
    }
    let [gx, gy, gz] = c.grid;
    if gx == 0 || gy == 0 || gz == 0 || gx > i32::MAX as u32 || gy > 65535 || gz > 65535 {
        return bad(format!("grid {gx}x{gy}x{gz}: 1 to 2^31-1 blocks in x, 65535 in y and z"));
    }
    let cluster: u64 = c.cluster.iter().map(|&v| u64::from(v)).product();
    if cluster == 0 || cluster > 16 || (0..3).any(|i| !c.grid[i].is_multiple_of(c.cluster[i].max(1))) {
        return bad(format!("cluster {:?}: 1 to 16 blocks that divide the grid {:?}", c.cluster, c.grid));
    }
    if let Some(r) = info.required_cluster
        && r != c.cluster
    {
        return bad(format!("cluster {:?}, the kernel requires {r:?}", c.cluster));
    }
    let shared = u64::from(info.static_shared) + u64::from(c.dynamic_shared);
    if shared > u64::from(o.gpu.smem_per_block_optin) {
        return bad(format!(
            "{shared} bytes of shared memory, {} has {}",
            o.gpu.full_name, o.gpu.smem_per_block_optin
        ));
    }
    if c.params.len() < info.param_bytes as usize {
        return bad(format!("{} bytes of arguments, the kernel takes {}", c.params.len(), info.param_bytes));
    }
    Ok(())
}

/// Regions point into allocations that the launch holds.
struct SendRegions(Vec<Region>);
// SAFETY: the pointers are only read, and what they point to is shared between threads already (see `Alloc`).
unsafe impl Send for SendRegions {}
// SAFETY: as above.
unsafe impl Sync for SendRegions {}

struct Shared<'a> {
    prog: &'a Program,
    config: &'a LaunchConfig,
    options: &'a Options,
    params: &'a [u8],
    next: AtomicU64,
    clusters: u64,
    stop: AtomicBool,
    sync: global::Sync,
    regions: SendRegions,
    memory: &'a Memory,
    ast: &'a Ast,
    epoch: u32,
    grid_id: u64,
    workspace: u64,
    done: AtomicU64,
}

/// What one worker found and counted.
struct Part {
    counts: Vec<[u64; 2]>,
    traffic: Vec<Traffic>,
    reports: BTreeMap<(ReportKind, u32), (u64, Report)>,
    found: BTreeMap<ReportKind, u64>,
    fault: Option<(u64, Fault)>,
    output: Vec<(u64, String)>,
    distinct: u64,
    atomics: u64,
    barriers: u64,
    async_bytes: u64,
    in_flight_max: u64,
}

/// A cluster on its way.
struct Resident {
    blocks: Vec<Block>,
    state: Cluster,
    passes: u32,
}

/// Runs clusters until there are none left.
fn work(s: &Shared) -> Part {
    let checks = s.options.checks;
    let prog = s.prog;
    let track_shared =
        checks.has(Checks::SHARED_RACE) || checks.has(Checks::UNINIT) || checks.has(Checks::ASYNC);
    let mut counts = vec![[0u64; 2]; prog.ops.len()];
    let mut worker = Worker {
        memory: s.memory,
        ast: s.ast,
        checks,
        regions: s.regions.0.clone(),
        hot: [0; 64],
        traffic: vec![Traffic::default(); prog.ops.len()],
        reports: BTreeMap::new(),
        found: BTreeMap::new(),
        fault: None,
        output: Vec::new(),
        cluster: Cluster::default(),
        grid: s.config.grid,
        epoch: s.epoch,
        sync: &s.sync,
        acquired: HashMap::new(),
        unfenced: HashMap::new(),
        track_distinct: checks.has(Checks::GLOBAL_RACE),
        distinct: 0,
        atomics: 0,
        barriers: 0,
        async_bytes: 0,
        in_flight_max: 0,
        bulk: Vec::new(),
        polled: false,
    };
    let mut consts: Vec<AlignedRow> = prog.consts.iter().map(|r| AlignedRow(*r)).collect();
    let mut cx = Cx {
        banks: [std::ptr::null_mut(), consts.as_mut_ptr().cast()],
        preds: std::ptr::null_mut(),
        pc: 0,
        mask: 0,
        rpc: NONE,
        node: NONE,
        frame: NONE,
        fuel: 0,
        stop: Stop::Gone,
        prog,
        block: std::ptr::null_mut(),
        warp: std::ptr::null_mut(),
        shared: std::ptr::null_mut(),
        shared_bytes: 0,
        local: std::ptr::null_mut(),
        params: s.params.as_ptr(),
        // The worker outlives `cx`; the lifetime of what it borrows is that of the launch.
        w: (&raw mut worker).cast(),
        counts: counts.as_mut_ptr(),
        counting: s.options.counters || s.options.max_instructions > 0,
        watch_registers: false,
        track_shared,
        track_global: checks.has(Checks::GLOBAL_RACE) || checks.has(Checks::UNINIT),
    };
    let mut resident: Vec<Resident> = Vec::new();
    let mut spare: Vec<Resident> = Vec::new();
    let mut instructions_left = s.options.max_instructions;
    let mut turn = 0;
    'work: while !s.stop.load(Relaxed) {
        // A new cluster starts when there is none, or when those here have run for long and may wait for one that has not
        // started.
        let wants = resident.is_empty()
            || (worker.polled && resident.iter().all(|r| r.passes > 2))
            || s.config.cooperative;
        if wants {
            let index = s.next.fetch_add(1, Relaxed);
            if index < s.clusters {
                let mut r = spare.pop().unwrap_or_else(|| Resident {
                    blocks: Vec::new(),
                    state: Cluster::default(),
                    passes: 0,
                });
                start(s, &mut r, index, track_shared);
                resident.push(r);
                worker.polled = false;
            } else if resident.is_empty() {
                break;
            }
        }
        turn = if turn + 1 < resident.len() { turn + 1 } else { 0 };
        let r = &mut resident[turn];
        r.state.blocks = r.blocks.iter_mut().map(|b| b as *mut Block).collect();
        std::mem::swap(&mut worker.cluster, &mut r.state);
        let mut done = true;
        let mut ran = false;
        for b in &mut r.blocks {
            cx.shared = b.shared.as_mut_ptr().cast();
            cx.shared_bytes = b.shared_bytes;
            match b.pass(&mut cx) {
                Pass::Done => {}
                Pass::Ran => {
                    done = false;
                    ran = true;
                }
                Pass::Stuck => done = false,
                Pass::Fault => {
                    s.stop.store(true, Relaxed);
                    break 'work;
                }
            }
        }
        std::mem::swap(&mut worker.cluster, &mut r.state);
        r.passes += 1;
        if ran && r.passes.is_multiple_of(WAIT_PASSES) {
            for b in &mut r.blocks {
                b.time_out();
            }
        }
        if done {
            let mut r = resident.swap_remove(turn);
            std::mem::swap(&mut worker.cluster, &mut r.state);
            for b in &mut r.blocks {
                b.finish(&mut cx);
            }
            std::mem::swap(&mut worker.cluster, &mut r.state);
            s.done.fetch_add(1, Relaxed);
            spare.push(r);
        } else if !ran && !r.blocks.iter_mut().fold(false, |any, b| b.part() | any) && !time_out(r) {
            // Nobody of this cluster can run, and only its own threads could wake them.
            std::mem::swap(&mut worker.cluster, &mut r.state);
            for b in &mut r.blocks {
                if !b.done {
                    b.deadlock(&mut cx);
                    break;
                }
            }
            s.stop.store(true, Relaxed);
            break;
        }
        if s.options.max_instructions > 0 {
            let total: u64 = counts.iter().map(|c| c[0]).sum();
            instructions_left = s.options.max_instructions.saturating_sub(total);
        }
        if s.options.max_instructions > 0
            && instructions_left == 0
            && let Some(r) = resident.first_mut()
        {
            let b = &mut r.blocks[0];
            cx.block = b;
            let pc = b.warps[0].frags.first().map_or(0, |f| f.pc);
            cx.warp = &mut b.warps[0];
            cx.fault_at(
                pc,
                1,
                FaultKind::Timeout,
                format!("more than {} warp instructions", s.options.max_instructions),
                None,
            );
            s.stop.store(true, Relaxed);
            break;
        }
    }
    Part {
        counts,
        traffic: worker.traffic,
        reports: worker.reports,
        found: worker.found,
        fault: worker.fault,
        output: worker.output,
        distinct: worker.distinct,
        atomics: worker.atomics,
        barriers: worker.barriers,
        async_bytes: worker.async_bytes,
        in_flight_max: worker.in_flight_max,
    }
}

/// Nobody of the cluster can run: cuts the waits for mbarriers short, unless that has led nowhere too often.
fn time_out(r: &mut Resident) -> bool {
    r.state.timeouts += 1;
    r.state.timeouts <= TIMEOUTS && r.blocks.iter_mut().fold(false, |any, b| b.time_out() | any)
}

/// The cluster that starts as the `i`-th of `n`: each one once.
fn cluster_at(i: u64, n: u64, seed: u64) -> u64 {
    // Primes: a step of so many reaches all clusters unless their number is a multiple.
    const STEPS: [u64; 4] = [2_147_483_647, 2_147_483_629, 2_147_483_587, 2_147_483_579];
    let step = STEPS[(seed % 4) as usize];
    if seed == 0 || n.is_multiple_of(step) {
        return i;
    }
    ((u128::from(i) * u128::from(step) + u128::from(seed)) % u128::from(n)) as u64
}

/// Makes the blocks of the `i`-th cluster.
fn start(s: &Shared, r: &mut Resident, i: u64, track: bool) {
    let (c, g) = (s.config.cluster, s.config.grid);
    let index = cluster_at(i, s.clusters, s.options.seed);
    let n: u32 = c.iter().product();
    while r.blocks.len() < n as usize {
        r.blocks.push(Block::new());
    }
    let (gx, gy) = (u64::from(g[0] / c[0]), u64::from(g[1] / c[1]));
    let at = [(index % gx) as u32, (index / gx % gy) as u32, (index / gx / gy) as u32];
    let clusters = [g[0] / c[0], g[1] / c[1], g[2] / c[2]];
    // Dynamic shared memory starts at the next multiple of 16; without any, the static variables end it.
    let shared = match s.config.dynamic_shared {
        0 => s.prog.static_shared,
        n => s.prog.static_shared.next_multiple_of(16) + n,
    };
    for (rank, b) in r.blocks.iter_mut().enumerate() {
        let rank = rank as u32;
        let inside = [rank % c[0], rank / c[0] % c[1], rank / c[0] / c[1]];
        let ctaid = [at[0] * c[0] + inside[0], at[1] * c[1] + inside[1], at[2] * c[2] + inside[2]];
        let linear = u64::from(ctaid[0])
            + u64::from(g[0]) * (u64::from(ctaid[1]) + u64::from(g[1]) * u64::from(ctaid[2]));
        b.reset(linear, s.config.block, s.prog, 0, shared, s.options.seed, track);
        b.ctaid = ctaid;
        b.rank = rank as u16;
        for (k, v) in [
            (Sreg::NtidX, s.config.block),
            (Sreg::CtaidX, ctaid),
            (Sreg::NctaidX, g),
            (Sreg::ClusteridX, at),
            (Sreg::NclusteridX, clusters),
            (Sreg::ClusterCtaidX, inside),
            (Sreg::ClusterNctaidX, c),
        ] {
            for i in 0..3 {
                b.sregs[k as usize + i] = u64::from(v[i]);
            }
        }
        let mut set = |k: Sreg, v: u64| b.sregs[k as usize] = v;
        set(Sreg::NwarpId, u64::from(s.config.block.iter().product::<u32>().div_ceil(32)));
        set(Sreg::SmId, linear % u64::from(s.options.gpu.sms));
        set(Sreg::NsmId, u64::from(s.options.gpu.sms));
        set(Sreg::GridId, s.grid_id);
        set(Sreg::Env1, s.workspace >> 32);
        set(Sreg::Env2, s.workspace & 0xffff_ffff);
        set(Sreg::ClusterCtarank, u64::from(rank));
        set(Sreg::ClusterNctarank, u64::from(n));
        set(Sreg::DynamicSmem, u64::from(s.config.dynamic_shared));
        set(Sreg::TotalSmem, u64::from(shared));
    }
    r.state = Cluster::default();
    r.passes = 0;
}

/// Puts the workers' parts together.
fn gather(
    prog: &Program,
    module: &LoadedModule,
    config: &LaunchConfig,
    options: &Options,
    parts: Vec<Part>,
    start: Instant,
) -> LaunchReport {
    let mut out = LaunchReport {
        kernel: prog.name.clone(),
        grid: config.grid,
        block: config.block,
        ..LaunchReport::default()
    };
    let mut reports: BTreeMap<(ReportKind, u32), (u64, Report)> = BTreeMap::new();
    let mut fault: Option<(u64, Fault)> = None;
    let mut output = Vec::new();
    let mut counts = vec![[0u64; 2]; prog.ops.len()];
    let mut traffic = vec![Traffic::default(); prog.ops.len()];
    let c = &mut out.counters;
    for p in parts {
        for (a, b) in counts.iter_mut().zip(&p.counts) {
            a[0] += b[0];
            a[1] += b[1];
        }
        for (a, b) in traffic.iter_mut().zip(&p.traffic) {
            a.add(b);
        }
        for (key, (block, r)) in p.reports {
            match reports.get_mut(&key) {
                None => {
                    reports.insert(key, (block, r));
                }
                Some((first, old)) => {
                    let count = old.count + r.count;
                    if block < *first {
                        (*first, *old) = (block, r);
                    }
                    old.count = count;
                }
            }
        }
        for (k, n) in p.found {
            *out.found.entry(k.name()).or_insert(0) += n;
        }
        if let Some(f) = p.fault
            && fault.as_ref().is_none_or(|g| f.0 < g.0)
        {
            fault = Some(f);
        }
        output.extend(p.output);
        c.distinct_bytes += p.distinct;
        c.atomics += p.atomics;
        c.barriers += p.barriers;
        c.async_bytes += p.async_bytes;
        c.async_in_flight_max = c.async_in_flight_max.max(p.in_flight_max);
    }
    output.sort_by_key(|o: &(u64, String)| o.0);
    out.output = output.into_iter().map(|o| o.1).collect();
    out.fault = fault.map(|f| f.1);
    let mut list: Vec<_> = reports.into_values().collect();
    list.sort_by_key(|a| a.0);
    out.reports = list.into_iter().take(options.max_reports).map(|r| r.1).collect();
    if options.counters {
        crate::counters::fill(&mut out.counters, prog, &module.module().ast, &counts, &traffic);
    }
    out.seconds = start.elapsed().as_secs_f64();
    out
}
