//! What launches did: kept since the last reset, printed for a person as it is found, given as JSON on request.

use std::collections::BTreeMap;
use std::ffi::c_char;
use std::io::Write;
use std::sync::Mutex;

use ptxsim::{Counters, LaunchReport, Occupancy, Report, Roofline};
use serde::Serialize;

use crate::abi::{self, lock};
use crate::config::{self, complain};
use crate::queue;
use crate::state::driver;

/// Launches kept one by one; of those beyond, only the sums by kernel are.
const LAUNCHES_KEPT: usize = 4096;
/// Findings that are printed between resets.
const PRINTED: usize = 8;

#[derive(Default)]
struct Records {
    launches: Vec<Entry>,
    kernels: BTreeMap<String, Kernel>,
    /// Findings outside launches, such as leaks.
    reports: Vec<Report>,
    /// Findings by kind.
    found: BTreeMap<String, u64>,
    printed: usize,
}

/// One launch.
#[derive(Serialize)]
struct Entry {
    device: usize,
    #[serde(flatten)]
    report: LaunchReport,
    occupancy_model: Occupancy,
    roofline_model: Roofline,
}

/// All launches of a kernel.
#[derive(Default, Serialize)]
struct Kernel {
    launches: u64,
    faults: u64,
    /// Simulation time, not what a GPU would take.
    simulated_s: f64,
    /// What a roofline makes of the counters, added up.
    roofline_model_s: f64,
    found: BTreeMap<String, u64>,
    counters: Counters,
}

#[derive(Serialize)]
struct Json<'a> {
    gpu: &'static str,
    devices: usize,
    launches: &'a [Entry],
    kernels: &'a BTreeMap<String, Kernel>,
    reports: &'a [Report],
    found: &'a BTreeMap<String, u64>,
    unsupported: BTreeMap<String, u64>,
    /// Calls of the program, by function.
    calls: BTreeMap<&'static str, u64>,
}

static RECORDS: Mutex<Records> = Mutex::new(Records {
    launches: Vec::new(),
    kernels: BTreeMap::new(),
    reports: Vec::new(),
    found: BTreeMap::new(),
    printed: 0,
});

impl Records {
    fn print(&mut self, finding: &dyn std::fmt::Display) {
        self.printed += 1;
        match self.printed.cmp(&(PRINTED + 1)) {
            std::cmp::Ordering::Less => complain(&finding.to_string()),
            std::cmp::Ordering::Equal => complain("further findings are counted, not printed"),
            std::cmp::Ordering::Greater => {}
        }
    }
}

/// Keeps a launch that has ended, and prints what it printed and what was found in it.
pub fn launch(report: LaunchReport, device: usize, occupancy_model: Occupancy) {
    if !report.output.is_empty() {
        let mut out = std::io::stdout().lock();
        // Nobody is there to be told that standard output is closed.
        let _ = out.write_all(report.output.as_bytes()).and_then(|()| out.flush());
    }
    let mut records = lock(&RECORDS);
    if let Some(fault) = &report.fault {
        let message = format!("kernel {}: {fault}", report.kernel);
        records.print(&message);
    }
    for finding in &report.reports {
        if !matches!(finding.kind, ptxsim::ReportKind::Fault(_)) {
            records.print(finding);
        }
    }
    for (kind, n) in &report.found {
        *records.found.entry(kind.clone()).or_default() += n;
    }
    let Ok(driver) = driver() else { return };
    let blocks = report.grid.iter().map(|n| u64::from(*n)).product();
    let roofline_model = driver.devices[device].gpu.roofline(&report.counters, &occupancy_model, blocks);
    let kernel = records.kernels.entry(report.kernel.clone()).or_default();
    kernel.launches += 1;
    kernel.faults += u64::from(report.fault.is_some());
    kernel.simulated_s += report.seconds;
    kernel.roofline_model_s += roofline_model.seconds;
    for (kind, n) in &report.found {
        *kernel.found.entry(kind.clone()).or_default() += n;
    }
    kernel.counters.add(&report.counters);
    if records.launches.len() < LAUNCHES_KEPT {
        records.launches.push(Entry { device, report, occupancy_model, roofline_model });
    }
}

/// Keeps and prints a finding outside a launch.
pub fn report(report: Report) {
    let mut records = lock(&RECORDS);
    records.print(&report);
    *records.found.entry(kind_name(&report)).or_default() += report.count;
    records.reports.push(report);
}

fn kind_name(report: &Report) -> String {
    match serde_json::to_value(report.kind) {
        Ok(serde_json::Value::String(name)) => name,
        _ => format!("{:?}", report.kind),
    }
}

/// Everything since the last reset, as JSON.
fn json() -> String {
    queue::wait(queue::last());
    let records = lock(&RECORDS);
    let json = Json {
        gpu: config::get().map_or("", |c| c.gpu.name),
        devices: driver().map_or(0, |d| d.devices.len()),
        launches: &records.launches,
        kernels: &records.kernels,
        reports: &records.reports,
        found: &records.found,
        unsupported: abi::unsupported_calls(),
        calls: abi::calls(),
    };
    serde_json::to_string(&json).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"))
}

/// Waits for all submitted work, then writes what was recorded since the last reset as JSON, ended by a NUL, if it fits
/// into `capacity` bytes. Answers the bytes it needs, the NUL included. See include/ptxsim.h.
///
/// # Safety
/// `out` is null or has `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptxsim_report_json(out: *mut c_char, capacity: usize) -> usize {
    let Ok(json) = std::panic::catch_unwind(json) else { return 0 };
    let bytes = json.as_bytes();
    if !out.is_null() && bytes.len() < capacity {
        // SAFETY: there is room for the bytes and the NUL.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), out.cast(), bytes.len());
            out.add(bytes.len()).write(0);
        }
    }
    bytes.len() + 1
}

/// Waits for all submitted work, then forgets what was recorded and starts the counts of `PTXSIM_FAIL` anew.
#[unsafe(no_mangle)]
pub extern "C" fn ptxsim_reset() {
    let _ = std::panic::catch_unwind(|| {
        queue::wait(queue::last());
        *lock(&RECORDS) = Records::default();
        abi::reset_calls();
    });
}
