//! Faults that parts of skep itself met: a host driver, VFIO's alarms, a change of a domain.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::event::Fault;

/// Sorts of faults that wait for the watch at most; one more sort than that counts with the last.
const SORTS: usize = 64;

/// A way to tell a [`Watch`](super::Watch) of faults, from any thread and at any rate: those that are alike are only
/// counted until the watch has taken them.
#[derive(Clone, Debug)]
pub struct Witness(Arc<Heard>);

#[derive(Debug)]
pub(super) struct Heard {
    waiting: Mutex<Vec<(Fault, u64)>>,
    wake: EventFd,
}

impl Heard {
    pub fn new() -> io::Result<Heard> {
        Ok(Heard { waiting: Mutex::default(), wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// Readable when there is something to take.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// What was told since last asked, with how often.
    pub fn take(&self) -> Vec<(Fault, u64)> {
        // Nothing to read means that nobody wrote.
        drop(self.wake.read());
        std::mem::take(&mut *self.waiting())
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(Fault, u64)>> {
        self.waiting.lock().expect("no code panics with this lock held")
    }
}

impl Witness {
    pub(super) fn new(heard: Arc<Heard>) -> Witness {
        Witness(heard)
    }

    /// Tells of one fault.
    pub fn tell(&self, fault: Fault) {
        let mut waiting = self.0.waiting();
        let alike = |other: &(Fault, u64)| {
            (other.0.device, other.0.direction, other.0.source)
                == (fault.device, fault.direction, fault.source)
        };
        let full = waiting.len() >= SORTS;
        match waiting.iter_mut().find(|other| alike(other)) {
            Some((_, count)) => *count = count.saturating_add(1),
            None if full => {
                if let Some((_, count)) = waiting.last_mut() {
                    *count = count.saturating_add(1);
                }
            }
            None => waiting.push((fault, 1)),
        }
        drop(waiting);
        // A counter that is full wakes as well.
        drop(self.0.wake.write(1));
    }
}
