//! What a VM does now, for whoever asks from outside.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// What a VM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is built, and its guest does not run yet.
    Starting,
    /// Its guest runs.
    Running,
    /// Its vCPUs stand still.
    Paused,
    /// It has ended, and is being taken apart.
    Ending,
}

/// The phase of a VM, set by its owner and watched by anybody.
pub(crate) struct Phases {
    now: Mutex<Phase>,
    changed: Condvar,
}

impl Default for Phases {
    fn default() -> Phases {
        Phases { now: Mutex::new(Phase::Starting), changed: Condvar::new() }
    }
}

impl Phases {
    pub fn now(&self) -> Phase {
        *self.lock()
    }

    pub fn set(&self, phase: Phase) {
        *self.lock() = phase;
        self.changed.notify_all();
    }

    /// Waits until the phase is `wanted` or the end has come, but no longer than `patience`; the phase then.
    pub fn wait_for(&self, wanted: Phase, patience: Duration) -> Phase {
        let other = |now: &mut Phase| *now != wanted && *now != Phase::Ending;
        let waited = self.changed.wait_timeout_while(self.lock(), patience, other);
        *waited.expect("no code panics with this lock held").0
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.now.lock().expect("no code panics with this lock held")
    }
}
