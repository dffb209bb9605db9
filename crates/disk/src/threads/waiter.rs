//! Waiting for eventfds that nobody reads.

use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::contract::Patience;

const BELL: u64 = 0;
const WATCHED: u64 = 1;

/// An engine's sleep where there is no ring to sleep in. Edges are waited for, so every write to an eventfd is
/// seen once though its counter never goes down.
pub(crate) struct Waiter {
    epoll: Epoll,
    watched: Option<EventFd>,
}

impl Waiter {
    /// Wakes for `bell`.
    pub(crate) fn new(bell: &EventFd) -> io::Result<Waiter> {
        let waiter = Waiter { epoll: Epoll::new()?, watched: None };
        waiter.add(bell, BELL)?;
        Ok(waiter)
    }

    /// Wakes for this eventfd as well.
    pub(crate) fn watch(&mut self, eventfd: &EventFd) -> io::Result<()> {
        let ours = eventfd.try_clone()?;
        self.add(&ours, WATCHED)?;
        self.watched = Some(ours);
        Ok(())
    }

    fn add(&self, eventfd: &EventFd, mark: u64) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, mark);
        self.epoll.ctl(ControlOperation::Add, eventfd.as_raw_fd(), event)
    }

    /// Waits for either eventfd; whether the watched one was written.
    pub(crate) fn sleep(&self, patience: Patience) -> io::Result<bool> {
        let timeout = if patience == Patience::Wait { -1 } else { 0 };
        let mut events = [EpollEvent::default(); 2];
        match self.epoll.wait(timeout, &mut events) {
            Ok(count) => Ok(events[..count].iter().any(|event| event.data() == WATCHED)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error),
        }
    }
}
