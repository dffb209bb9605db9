//! Where other threads leave what they have done for a queue.

use std::io;

use parking_lot::{Condvar, Mutex, MutexGuard};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::work::Moved;
use crate::contract::{DiskError, Request};

/// A request that is done.
pub(crate) struct Done {
    pub(crate) request: Request,
    pub(crate) result: Result<(), DiskError>,
    pub(crate) tally: Moved,
}

/// A queue's mailbox. Its bell is written for everything that is put in and never has to be read.
pub(crate) struct Mailbox {
    done: Mutex<Vec<Done>>,
    arrived: Condvar,
    bell: EventFd,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Mailbox> {
        let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Mailbox { done: Mutex::default(), arrived: Condvar::new(), bell })
    }

    pub(crate) fn bell(&self) -> &EventFd {
        &self.bell
    }

    pub(crate) fn put(&self, done: Done) {
        self.lock().push(done);
        self.arrived.notify_one();
        // A counter that is full has rung already.
        self.bell.write(1).unwrap_or_default();
    }

    /// Everything that is there now.
    pub(crate) fn take(&self) -> Vec<Done> {
        std::mem::take(&mut self.lock())
    }

    /// Everything that is there, of which there is something when this returns.
    pub(crate) fn wait(&self) -> Vec<Done> {
        let mut done = self.lock();
        self.arrived.wait_while(&mut done, |done| done.is_empty());
        std::mem::take(&mut *done)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Done>> {
        self.done.lock()
    }
}
