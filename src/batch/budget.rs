//! What may be in flight at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// So many things and bytes; more wait. A thing that is too big for the budget passes when it is alone.
pub(super) struct Budget {
    used: Mutex<(usize, u64)>,
    freed: Condvar,
    most: (usize, u64),
}

impl Budget {
    pub fn new(things: usize, bytes: u64) -> Arc<Self> {
        Arc::new(Self { used: Mutex::new((0, 0)), freed: Condvar::new(), most: (things, bytes) })
    }

    fn used(&self) -> MutexGuard<'_, (usize, u64)> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room; `None` once `abort` is set.
    pub fn acquire(self: &Arc<Self>, bytes: u64, abort: &AtomicBool) -> Option<Hold> {
        let mut used = self.used();
        while used.0 > 0 && (used.0 >= self.most.0 || used.1.saturating_add(bytes) > self.most.1) {
            if abort.load(Ordering::Relaxed) {
                return None;
            }
            let waited = self.freed.wait_timeout(used, Duration::from_millis(50));
            used = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *used = (used.0 + 1, used.1.saturating_add(bytes));
        Some(Hold { budget: Arc::clone(self), bytes })
    }
}

/// A part of a budget, until it is dropped.
pub(super) struct Hold {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut used = self.budget.used();
        *used = (used.0 - 1, used.1.saturating_sub(self.bytes));
        drop(used);
        self.budget.freed.notify_all();
    }
}
