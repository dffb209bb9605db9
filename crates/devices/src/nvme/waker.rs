//! What wakes a thread.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// An eventfd that a thread sleeps on.
#[derive(Debug)]
pub(super) struct Waker(EventFd);

impl Waker {
    pub(super) fn new() -> io::Result<Waker> {
        Ok(Waker(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?))
    }

    pub(super) fn another(&self) -> io::Result<Waker> {
        Ok(Waker(self.0.try_clone()?))
    }

    pub(super) fn eventfd(&self) -> &EventFd {
        &self.0
    }

    pub(super) fn wake(&self) {
        // The only failure is a counter at its limit, which wakes the thread as well.
        self.0.write(1).ok();
    }

    /// Sleeps until it was woken since the last time, or the time is over. A signal may end it sooner.
    pub(super) fn sleep(&self, at_most: Option<Duration>) {
        let mut fd = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // Rounded up, or a short rest of time would become a busy loop.
        let milliseconds = at_most.map_or(-1, |time| time.as_micros().div_ceil(1000).min(60_000) as i32);
        // SAFETY: one valid pollfd; its descriptor is open as long as `self`.
        unsafe { libc::poll(&raw mut fd, 1, milliseconds) };
        // Empty when the time was over.
        self.0.read().ok();
    }
}
