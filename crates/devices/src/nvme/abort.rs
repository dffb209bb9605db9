//! Commands that their driver wants back (5.1), on their way between the controller's thread and a queue's.
//!
//! A disk is asked for one thing at a time to give up, if at all. So a command comes back when it waits for its turn,
//! when it takes several steps of which some are left, or when nothing else of its queue is with the disk. The answer
//! says which: that the command was aborted, or that it was not.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};
/// A wish for a command's early end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wish {
    /// The command.
    pub(super) cid: u16,
    /// The admin command that is to be answered.
    pub(super) abort: u16,
}

/// Wishes that wait for a queue's thread.
#[derive(Default)]
pub(super) struct Wishes {
    any: AtomicBool,
    waiting: Mutex<Vec<Wish>>,
}

impl Wishes {
    /// Leaves one; whoever does this wakes the thread.
    pub(super) fn leave(&self, wish: Wish) {
        self.lock().push(wish);
        self.any.store(true, Ordering::SeqCst);
    }

    /// Takes all that wait.
    pub(super) fn take(&self) -> Vec<Wish> {
        if !self.any.swap(false, Ordering::SeqCst) {
            return Vec::new();
        }
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Wish>> {
        self.waiting.lock()
    }
}

/// What became of a wish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fulfilled {
    /// The admin command.
    pub(super) abort: u16,
    /// Whether the command was aborted.
    pub(super) aborted: bool,
}
