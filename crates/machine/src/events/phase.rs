//! What a VM does now, for requests from outside.

use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
/// What a VM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is built, and its guest does not run yet.
    Starting,
    /// Its guest runs.
    Running,
    /// Its vCPUs are stopped.
    Paused,
    /// Its guest has ended, and its parts are dropped.
    Ending,
}

/// The phase of a VM, set by its owner. Any thread can wait for a change.
pub(crate) struct Phases {
    now: Mutex<Now>,
    changed: Condvar,
}

/// The phase, and how it came to it.
struct Now {
    phase: Phase,
    /// Why it is paused.
    why: Option<String>,
    /// How often it was set.
    turn: u64,
}

impl Default for Phases {
    fn default() -> Phases {
        let now = Now { phase: Phase::Starting, why: None, turn: 0 };
        Phases { now: Mutex::new(now), changed: Condvar::new() }
    }
}

impl Phases {
    pub fn now(&self) -> Phase {
        self.lock().phase
    }

    /// Why the VM is paused, if it is.
    pub fn why(&self) -> Option<String> {
        self.lock().why.clone()
    }

    pub fn set(&self, phase: Phase) {
        self.turn(phase, None);
    }

    /// The VM is paused, for this reason.
    pub fn stand_still(&self, why: String) {
        self.turn(Phase::Paused, Some(why));
    }

    fn turn(&self, phase: Phase, why: Option<String>) {
        let mut now = self.lock();
        *now = Now { phase, why, turn: now.turn + 1 };
        self.changed.notify_all();
    }

    /// Does `ask`, and waits until the phase is `wanted`, or was set to another, but no longer than `patience`; the phase
    /// then.
    pub fn after(&self, ask: impl FnOnce(), wanted: Phase, patience: Duration) -> Phase {
        let before = self.lock().turn;
        ask();
        let other = |now: &mut Now| now.phase != wanted && now.turn == before && now.phase != Phase::Ending;
        let mut now = self.lock();
        self.changed.wait_while_for(&mut now, other, patience);
        now.phase
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_learns_at_once_that_the_vm_stands_still_again_and_why() {
        let phases = Phases::default();
        phases.stand_still("no space".to_owned());
        let long = Duration::from_secs(60);
        let phase = phases.after(|| phases.stand_still("still no space".to_owned()), Phase::Running, long);
        assert_eq!((phase, phases.why().as_deref()), (Phase::Paused, Some("still no space")));
        assert_eq!(phases.after(|| phases.set(Phase::Running), Phase::Running, long), Phase::Running);
        assert_eq!(phases.why(), None);
        assert_eq!(phases.after(|| {}, Phase::Paused, Duration::from_millis(1)), Phase::Running);
    }
}
