//! What a run did so far, for people and machines.

use serde::Serialize;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A stage of the pipeline: the time that its threads worked, not what they waited.
#[derive(Debug, Default)]
pub struct Stage {
    threads: AtomicU64,
    busy_ns: AtomicU64,
}

impl Stage {
    /// Adds time that one of its threads worked.
    pub fn add(&self, time: Duration) {
        self.busy_ns.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    /// Runs `work` as one of its threads.
    pub(super) fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        self.add(start.elapsed());
        done
    }

    pub(super) fn set_threads(&self, n: usize) {
        self.threads.store(n as u64, Relaxed);
    }
}

/// Names of the stages, in order.
pub const STAGES: [&str; 5] = ["read", "decode", "device", "encode", "write"];

/// Counters that all threads of a run add to.
#[derive(Debug, Default)]
pub struct Stats {
    /// When the stages began.
    start: OnceLock<Instant>,
    /// In the order of [`STAGES`].
    pub(super) stages: [Stage; 5],
    pub(super) items: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) expressions: AtomicU64,
    /// Masks that devices gave, and steps towards answers in words.
    pub(super) steps: AtomicU64,
}

/// A stage in a [`Summary`].
#[derive(Clone, Debug, Serialize)]
pub struct StageSummary {
    /// One of [`STAGES`].
    pub stage: &'static str,
    /// How many.
    pub threads: u64,
    /// Share of the time that each of them worked.
    pub busy: f64,
}

/// A run in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Wall time.
    pub seconds: f64,
    /// Items that ended in this run.
    pub items: u64,
    /// Those of them of which something failed.
    pub failed: u64,
    /// Expressions and questions of these items.
    pub expressions: u64,
    /// Items in a second.
    pub images_per_s: f64,
    /// Expressions in a second.
    pub expressions_per_s: f64,
    /// The stages that ran in this process.
    pub stages: Vec<StageSummary>,
    /// The busiest of them.
    pub limits: Option<&'static str>,
}

impl Stats {
    /// Starts the clock, if it does not run.
    pub(super) fn begin(&self) {
        self.start.get_or_init(Instant::now);
    }

    /// Seconds that the device has worked; where several threads compute, on average.
    pub fn device_s(&self) -> f64 {
        let device = &self.stages[2];
        device.busy_ns.load(Relaxed) as f64 * 1e-9 / device.threads.load(Relaxed).max(1) as f64
    }

    /// Masks that the devices gave so far, and steps that they made towards answers in words: it grows while they work, whether or not an item
    /// ends.
    pub fn steps(&self) -> u64 {
        self.steps.load(Relaxed)
    }

    /// The numbers now.
    pub fn summary(&self) -> Summary {
        let seconds = self.start.get().map_or(0.0, |s| s.elapsed().as_secs_f64()).max(1e-9);
        let (items, expressions) = (self.items.load(Relaxed), self.expressions.load(Relaxed));
        let stages: Vec<StageSummary> = STAGES
            .iter()
            .zip(&self.stages)
            .map(|(stage, s)| {
                let threads = s.threads.load(Relaxed);
                let all = seconds * threads.max(1) as f64;
                StageSummary { stage, threads, busy: s.busy_ns.load(Relaxed) as f64 * 1e-9 / all }
            })
            .filter(|s| s.threads > 0)
            .collect();
        Summary {
            seconds,
            items,
            failed: self.failed.load(Relaxed),
            expressions,
            images_per_s: items as f64 / seconds,
            expressions_per_s: expressions as f64 / seconds,
            limits: stages.iter().max_by(|a, b| a.busy.total_cmp(&b.busy)).map(|s| s.stage),
            stages,
        }
    }

    /// One line; `left` is the share of the source that this run has still to do, and `all` the share that it began with.
    pub fn line(&self, left: Option<(f64, f64)>) -> String {
        let s = self.summary();
        let device = s.stages.iter().find(|s| s.stage == "device");
        let busy = device.map_or_else(String::new, |d| format!(", device busy {:.0} %", 100.0 * d.busy));
        let limits = s.limits.map_or_else(String::new, |l| format!(", {l} limits"));
        let eta = left.filter(|(left, all)| all > left).map_or_else(String::new, |(left, all)| {
            format!(", {} left", duration(s.seconds * left / (all - left)))
        });
        format!(
            "{} items ({} failed), {:.1} images/s, {:.1} expressions/s{busy}{limits}{eta}",
            s.items, s.failed, s.images_per_s, s.expressions_per_s
        )
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{} items ({} failed), {} expressions in {:.1} s: {:.1} images/s, {:.1} expressions/s",
            self.items,
            self.failed,
            self.expressions,
            self.seconds,
            self.images_per_s,
            self.expressions_per_s
        )?;
        for s in &self.stages {
            let limits = if self.limits == Some(s.stage) { "  limits" } else { "" };
            let threads = if s.threads == 1 { "1 thread".into() } else { format!("{} threads", s.threads) };
            writeln!(f, "  {:<7} {threads:<11} busy {:>5.1} %{limits}", s.stage, 100.0 * s.busy)?;
        }
        Ok(())
    }
}

fn duration(seconds: f64) -> String {
    let s = seconds.clamp(0.0, 1e9) as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}
