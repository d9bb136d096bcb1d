//! Several devices: a worker process each, so that a fault that breaks a device's context ends that process and nothing else.
//!
//! A worker is `mllmseg worker --stdio`: lines of a manifest in, records out. An item that was with a worker when it ended is tried once
//! more, alone, on another device if there is one; then it is reported. A worker that ended is started again while that helps. One that has
//! items and says nothing for too long hangs, and is ended.

use super::budget::Budget;
use super::item::{Ask, Failure, Item, Picture};
use super::journal::Status;
use super::pipeline::{End, Ended, Job, Loaded, Shared, WINDOW, Work, read, write};
use crate::{Error, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lives of a worker in a row that answered nothing, after which its device is given up.
const FRUITLESS: usize = 3;
/// How often an item is tried.
const ATTEMPTS: usize = 2;
/// Longest line of a worker.
const MAX_LINE: u64 = 1 << 30;
/// How often a thread that waits looks around.
const TICK: Duration = Duration::from_millis(20);

/// How a worker is started.
#[derive(Clone, Debug)]
pub struct Worker {
    /// What to call its device.
    pub device: String,
    /// The program and its arguments.
    pub command: Vec<std::ffi::OsString>,
}

/// The line that a worker writes when it can take items.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// The device that it runs on.
    pub ready: String,
}

/// The line that a worker writes now and then while it works, whether or not an item ended, where it is asked to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Alive {
    /// Grows with every mask, and with every step towards an answer in words.
    pub steps: u64,
}

/// The line that a worker writes after an item's records.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Done {
    /// The item's place.
    pub done: u64,
    /// `done`, `permanent` or `transient`: the worst of its records.
    pub status: String,
    /// Time that its device has worked since the worker was started.
    pub device_s: f64,
}

impl Done {
    /// Of an item that ended.
    pub fn new(ended: &Ended, device_s: f64) -> Self {
        Self { done: ended.index, status: ended.status.word().into(), device_s }
    }
}

/// An item for a worker, and how often it was tried.
struct Task {
    job: Arc<Job>,
    attempts: usize,
    /// The device that it failed on.
    failed_on: usize,
}

/// What the devices' threads share.
struct Pool {
    /// Tried once already.
    again: Vec<Task>,
    /// Taken and not ended.
    out: usize,
    /// Devices that are not given up.
    alive: usize,
    /// Nothing more comes from the source.
    ended: bool,
}

/// One life of a worker.
struct Life {
    state: Mutex<LifeState>,
    changed: Condvar,
}

struct LifeState {
    ready: bool,
    /// Its input is closed: it ends.
    closed: bool,
    over: bool,
    /// It was ended, as it hung.
    hung: bool,
    answered: u64,
    /// By index.
    flying: BTreeMap<u64, Task>,
    /// When it last said something, or was given something to do.
    heard: Instant,
}

impl Life {
    fn new() -> Self {
        let state = LifeState {
            ready: false,
            closed: false,
            over: false,
            hung: false,
            answered: 0,
            flying: BTreeMap::new(),
            heard: Instant::now(),
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, LifeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the worker is over or `until` holds; whether it is not over.
    fn wait(&self, until: impl Fn(&LifeState) -> bool) -> bool {
        let mut state = self.lock();
        while !state.over && !until(&state) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.over
    }
}

/// Runs the wanted items of a source through workers; otherwise as [`run_here`](super::run_here).
///
/// # Errors
/// Those of the source and of `sink`; [`Error::Device`] when no worker is left.
pub fn run_workers(workers: &[Worker], work: Work<impl Iterator<Item = Result<Item>> + Send>) -> Result<End> {
    let Work { source, wanted, ordered, settings, disk, stats, stop, sink } = work;
    let shared = Shared::new(settings, disk, stats, stop);
    let budget = Budget::new(workers.len() * WINDOW, settings.bytes);
    stats.begin();
    let pool = Mutex::new(Pool { again: Vec::new(), out: 0, alive: workers.len(), ended: false });
    let end = std::thread::scope(|scope| {
        let (loaded, tasks) = bounded(1);
        let (ended, to_write) = unbounded(); // bounded by `budget`
        let (shared, pool) = (&shared, &pool);
        // Workers read the files themselves.
        let load = |item: &mut Item| {
            let bytes = if let Picture::Bytes { bytes, .. } = &item.picture { bytes.len() as u64 } else { 0 };
            (Ok(Vec::new()), 3 * bytes)
        };
        let reader = scope.spawn(move || {
            let end = read(shared, source, wanted, &budget, load, &loaded);
            pool.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            end
        });
        let writer = scope.spawn(move || write(shared, ordered, &to_write, sink));
        stats.stages[2].set_threads(workers.len());
        for (number, worker) in workers.iter().enumerate() {
            let (tasks, ended) = (tasks.clone(), ended.clone());
            scope.spawn(move || Device { number, worker, shared, pool, tasks, ended }.run());
        }
        drop((tasks, ended));
        let end = reader.join().expect("the reader returns its errors");
        writer.join().expect("the writer returns its errors");
        end
    });
    shared.result(end)
}

/// A device's thread.
struct Device<'a> {
    number: usize,
    worker: &'a Worker,
    shared: &'a Shared<'a>,
    pool: &'a Mutex<Pool>,
    tasks: Receiver<Loaded>,
    ended: Sender<(Arc<Job>, Ended)>,
}

/// What there is to do next.
enum Next {
    Task(Task),
    Later,
    Never,
}

impl Device<'_> {
    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut fruitless = 0;
        let mut why = String::new();
        while fruitless < FRUITLESS && !self.shared.abort.load(Relaxed) {
            match self.live() {
                Ok(None) => return,
                Ok(Some((answered, ended))) => {
                    fruitless = if answered > 0 { 0 } else { fruitless + 1 };
                    why = ended;
                }
                Err(e) => {
                    why = e;
                    break;
                }
            }
            note(&format!("the worker of {} ended ({why}); its items are tried again", self.worker.device));
        }
        let mut pool = self.pool();
        pool.alive -= 1;
        if pool.alive == 0 {
            let (device, expected) = (self.worker.device.clone(), "a worker that answers".into());
            self.shared.fail(Error::Device { device, expected, found: why });
        } else if !self.shared.abort.load(Relaxed) {
            note(&format!("{} is given up ({why})", self.worker.device));
        }
    }

    fn next(&self) -> Next {
        {
            let mut pool = self.pool();
            let mine = |t: &Task| t.failed_on != self.number || pool.alive == 1;
            if let Some(at) = pool.again.iter().position(mine) {
                pool.out += 1;
                return Next::Task(pool.again.remove(at));
            }
        }
        // Before it is taken: at no moment may an item be nowhere.
        self.pool().out += 1;
        let error = match self.tasks.recv_timeout(TICK) {
            Ok((job, _)) => return Next::Task(Task { job, attempts: 0, failed_on: usize::MAX }),
            Err(e) => e,
        };
        self.pool().out -= 1;
        match error {
            RecvTimeoutError::Timeout => Next::Later,
            RecvTimeoutError::Disconnected if self.nothing_left() => Next::Never,
            RecvTimeoutError::Disconnected => {
                std::thread::sleep(TICK);
                Next::Later
            }
        }
    }

    /// Whether the others have done everything.
    fn nothing_left(&self) -> bool {
        let pool = self.pool();
        pool.ended && pool.out == 0 && pool.again.is_empty() && self.tasks.is_empty()
    }

    fn end(&self, job: Arc<Job>, ended: Ended) {
        let _ = self.ended.send((job, ended));
        self.pool().out -= 1;
    }

    /// Starts a worker and gives it items until there are no more (`None`) or it ends: how many it answered, and how it ended.
    ///
    /// # Errors
    /// If it never was ready.
    fn live(&self) -> Result<Option<(u64, String)>, String> {
        let [program, args @ ..] = &self.worker.command[..] else { return Err("no command".into()) };
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", program.to_string_lossy()))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".into());
        };
        let (life, child) = (Life::new(), Mutex::new(child));
        let (all_done, mut status) = std::thread::scope(|scope| {
            let (life, child) = (&life, &child);
            scope.spawn(move || {
                self.collect(life, stdout);
                life.lock().over = true;
                life.changed.notify_all();
            });
            let (watched, unwatch) = bounded::<()>(0);
            scope.spawn(move || self.watch(life, child, &unwatch));
            let all_done = self.feed(life, stdin); // whose end closes the worker's input, and so ends it
            let mut state = life.lock();
            (state.closed, state.heard) = (true, Instant::now());
            drop(state);
            let status = wait(child);
            drop(watched);
            (all_done, status)
        });
        let state = life.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if state.hung {
            let most = self.shared.settings.timeout.unwrap_or_default();
            status = format!("no answer for {} s", most.as_secs_f64());
        }
        for (_, mut task) in state.flying {
            task.attempts += 1;
            task.failed_on = self.number;
            if task.attempts < ATTEMPTS {
                let mut pool = self.pool();
                pool.out -= 1;
                pool.again.push(task);
            } else {
                let failure = Failure::transient(format!(
                    "{}: expected a worker that answers, found one that ended, {ATTEMPTS} times ({status})",
                    self.worker.device
                ));
                let ended = task.job.failed(&failure);
                self.end(task.job, ended);
            }
        }
        match (all_done, state.ready) {
            (true, _) => Ok(None),
            (false, true) => Ok(Some((state.answered, status))),
            (false, false) => Err(status),
        }
    }

    /// Ends the worker if it says nothing for too long while it opens its device, has items, or should end, and if it is not needed before
    /// it is ready; until `unwatch` is closed.
    fn watch(&self, life: &Life, child: &Mutex<Child>, unwatch: &Receiver<()>) {
        while unwatch.recv_timeout(5 * TICK) == Err(RecvTimeoutError::Timeout) {
            let mut state = life.lock();
            let idle = state.ready && state.flying.is_empty() && !state.closed;
            let late = self.shared.settings.timeout.is_some_and(|most| state.heard.elapsed() > most);
            let needless = state.closed && !state.ready;
            if !(late && !idle || needless) {
                continue;
            }
            // Nobody waits for what it may still say.
            (state.hung, state.over) = (true, true);
            drop(state);
            life.changed.notify_all();
            let _ = child.lock().unwrap_or_else(PoisonError::into_inner).kill(); // it may have ended by now
            return;
        }
    }

    /// Writes items to the worker; whether there are no more.
    fn feed(&self, life: &Life, mut stdin: impl Write) -> bool {
        while !life.lock().ready {
            if life.lock().over {
                return false;
            }
            if self.shared.abort.load(Relaxed) || self.nothing_left() {
                return true;
            }
            std::thread::sleep(TICK);
        }
        loop {
            if self.shared.abort.load(Relaxed) {
                return true;
            }
            if !life.wait(|s| s.flying.len() < WINDOW) {
                return false;
            }
            let task = match self.next() {
                Next::Task(task) => task,
                Next::Later => {
                    if life.lock().over {
                        return false;
                    }
                    continue;
                }
                // The last ones may fail yet.
                Next::Never => return life.wait(|s| s.flying.is_empty()),
            };
            let line = match request(&task.job.item) {
                Ok(line) => line,
                Err(failure) => {
                    let ended = task.job.failed(&failure);
                    self.end(task.job, ended);
                    continue;
                }
            };
            // One that failed is tried alone: should it fail again, it takes no other with it.
            let alone = task.attempts > 0;
            if alone && !life.wait(|s| s.flying.is_empty()) {
                let mut pool = self.pool();
                pool.out -= 1;
                pool.again.push(task);
                return false;
            }
            {
                let mut state = life.lock();
                if state.flying.is_empty() {
                    state.heard = Instant::now();
                }
                state.flying.insert(task.job.item.index, task);
            }
            if stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush()).is_err() {
                return false;
            }
            if alone && !life.wait(|s| s.flying.is_empty()) {
                return false;
            }
        }
    }

    /// Reads what the worker answers, to its end.
    fn collect(&self, life: &Life, stdout: impl Read) {
        let mut stdout = BufReader::new(stdout);
        let (mut records, mut device_s) = (Vec::new(), 0.0);
        loop {
            let start = records.len();
            let read = (&mut stdout).take(MAX_LINE).read_until(b'\n', &mut records);
            let line = &records[start..];
            if !read.is_ok_and(|n| n > 0) || !line.ends_with(b"\n") {
                return; // a torn line is that of an item that is not done
            }
            life.lock().heard = Instant::now();
            if line.starts_with(b"{\"index\":") {
                continue;
            }
            let done = serde_json::from_slice::<Done>(line);
            if serde_json::from_slice::<Ready>(line).is_ok() {
                life.lock().ready = true;
                life.changed.notify_all();
            }
            records.truncate(start);
            let Ok(done) = done else { continue };
            let Some(status) = Status::parse(&done.status) else { return };
            self.shared.stats.stages[2]
                .add(Duration::from_secs_f64((done.device_s - device_s).clamp(0.0, 1e6)));
            device_s = done.device_s;
            let mut state = life.lock();
            if let Some(task) = state.flying.remove(&done.done) {
                state.answered += 1;
                let records = std::mem::take(&mut records);
                let expressions = task.job.item.texts.len() as u64;
                let ended = Ended { index: done.done, status, records, expressions };
                self.end(task.job, ended);
            }
            records.clear();
            drop(state);
            life.changed.notify_all();
        }
    }
}

/// Tells the user something; where stderr cannot be written, nobody.
fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "note: {text}");
}

/// Waits for a process to end; how it did. It can be ended meanwhile.
fn wait(child: &Mutex<Child>) -> String {
    loop {
        match child.lock().unwrap_or_else(PoisonError::into_inner).try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return status.to_string(),
            Err(e) => return e.to_string(),
        }
        std::thread::sleep(TICK);
    }
}

/// An item as a worker reads it.
fn request(item: &Item) -> Result<String, Failure> {
    let Item { index, id, picture, texts, ask } = item;
    let mut line = json!({"index": index, "id": id, "name": picture.name()});
    match ask {
        Ask::Questions => line["questions"] = json!(texts),
        Ask::Expressions => line["exprs"] = json!(texts),
        Ask::As(_) | Ask::Published(_) => (line["exprs"], line["ask"]) = (json!(texts), json!(ask)),
    }
    match picture {
        Picture::Path { path, name } => {
            let path = path.to_str().ok_or_else(|| {
                Failure::permanent(format!("{name}: expected a path in UTF-8 (for a worker), found another"))
            })?;
            line["image"] = path.into();
        }
        Picture::Bytes { bytes, .. } => line["image_b64"] = Value::String(BASE64.encode(bytes)),
        Picture::Bad(failure) => return Err(failure.clone()),
    }
    Ok(format!("{line}\n"))
}
