//! The worker: one thread that does the work of all devices in the order in which the program gave it.
//!
//! Submission order is one of the orders that streams and events allow, so every cross-stream dependency holds without
//! being looked at: what an event or a barrier of the legacy stream waits for was submitted earlier, hence is done
//! earlier. The program runs on meanwhile, as with a GPU: it must synchronise before it reads results.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};

use crate::abi::{lock, panic_text};
use crate::config::complain;
use crate::errors::*;
use crate::state::Context;

/// Operations that may wait; a program that submits more is held up, as by a GPU's launch queue.
const CAPACITY: usize = 1024;

type Run = Box<dyn FnOnce(&Context) -> Result<()> + Send>;

struct Op {
    context: Arc<Context>,
    /// Runs even if an earlier fault has ended the context.
    always: bool,
    run: Run,
}

struct State {
    waiting: VecDeque<Op>,
    submitted: u64,
    done: u64,
    started: bool,
}

static STATE: Mutex<State> =
    Mutex::new(State { waiting: VecDeque::new(), submitted: 0, done: 0, started: false });
static CHANGED: Condvar = Condvar::new();

thread_local! {
    static WORKER: Cell<bool> = const { Cell::new(false) };
    static NUMBER: Cell<u64> = const { Cell::new(0) };
}

/// Whether this is the worker, that is, whether a callback of the program is calling.
pub fn is_worker() -> bool {
    WORKER.get()
}

/// On the worker: the number of the operation that runs.
pub fn running() -> u64 {
    NUMBER.get()
}

/// Appends an operation; its number serves [`wait`] and [`is_done`]. An error that it returns ends its context.
pub fn submit(context: &Arc<Context>, run: impl FnOnce(&Context) -> Result<()> + Send + 'static) -> u64 {
    push(Op { context: context.clone(), always: false, run: Box::new(run) })
}

/// As [`submit`], for an operation that also runs after a fault of its context.
pub fn submit_always(context: &Arc<Context>, run: impl FnOnce(&Context) + Send + 'static) -> u64 {
    push(Op {
        context: context.clone(),
        always: true,
        run: Box::new(|context| {
            run(context);
            Ok(())
        }),
    })
}

fn push(op: Op) -> u64 {
    let mut state = lock(&STATE);
    if !state.started {
        state.started = true;
        std::thread::Builder::new()
            .name("ptxsim".into())
            .spawn(work)
            .expect("the system can start the driver's one thread");
    }
    while state.waiting.len() >= CAPACITY && !is_worker() {
        state = CHANGED.wait(state).unwrap_or_else(|p| p.into_inner());
    }
    state.waiting.push_back(op);
    state.submitted += 1;
    CHANGED.notify_all();
    state.submitted
}

/// The number of the operation submitted last.
pub fn last() -> u64 {
    lock(&STATE).submitted
}

/// Whether that operation is done.
pub fn is_done(number: u64) -> bool {
    lock(&STATE).done >= number
}

/// Waits until that operation is done.
pub fn wait(number: u64) {
    let mut state = lock(&STATE);
    while state.done < number && !is_worker() {
        state = CHANGED.wait(state).unwrap_or_else(|p| p.into_inner());
    }
}

fn work() {
    WORKER.set(true);
    let mut state = lock(&STATE);
    loop {
        let Some(op) = state.waiting.pop_front() else {
            state = CHANGED.wait(state).unwrap_or_else(|p| p.into_inner());
            continue;
        };
        NUMBER.set(state.done + 1);
        drop(state);
        if op.always || op.context.fault().is_none() {
            let Op { context, run, .. } = op;
            let code = match catch_unwind(AssertUnwindSafe(|| run(&context))) {
                Ok(Ok(())) => None,
                Ok(Err(code)) => Some(code),
                Err(panic) => {
                    complain(&format!("internal error: {}", panic_text(&*panic)));
                    Some(CUDA_ERROR_UNKNOWN)
                }
            };
            if let Some(code) = code {
                context.end(code);
            }
        }
        state = lock(&STATE);
        state.done += 1;
        CHANGED.notify_all();
    }
}
