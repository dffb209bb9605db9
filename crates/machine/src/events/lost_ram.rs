//! Listens for guest RAM that this host can no longer provide, or has lost.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use memory::{Losses, Ram};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::events::{Event, Events};

/// A thread that turns the first access to lost RAM into an event, until it is dropped. Threads that access it never
/// run again ([`memory::is_stopped`]).
pub struct LossWatch {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl LossWatch {
    /// Starts to listen.
    pub fn new(ram: &Arc<Ram>, events: Events) -> std::io::Result<LossWatch> {
        let losses = Losses::watch()?;
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let (end, ram) = (stop.clone(), ram.clone());
        let thread = std::thread::Builder::new().name("lost-ram".into()).spawn(move || {
            // SAFETY: this thread holds the eventfd as long as it is borrowed.
            let end = unsafe { BorrowedFd::borrow_raw(end.as_raw_fd()) };
            let touch = losses.wait(end);
            if let Some(loss) = touch.and_then(|touch| ram.loss_of(touch)) {
                events.send(Event::MemoryLost(loss));
            }
        })?;
        Ok(LossWatch { stop, thread: Some(thread) })
    }
}

impl Drop for LossWatch {
    fn drop(&mut self) {
        let told = self.stop.write(1);
        debug_assert!(told.is_ok(), "an eventfd that nobody wrote to takes a 1");
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
