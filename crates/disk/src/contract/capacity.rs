//! How large a disk is now, and who wants to know when that changes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::geometry::Sectors;

/// The size of a disk, shared by all its queues.
pub(crate) struct Capacity {
    sectors: AtomicU64,
    subscribers: Mutex<Vec<EventFd>>,
}

impl Capacity {
    pub(crate) fn new(now: Sectors) -> Capacity {
        Capacity { sectors: AtomicU64::new(now.0), subscribers: Mutex::default() }
    }

    pub(crate) fn get(&self) -> Sectors {
        Sectors(self.sectors.load(Ordering::Relaxed))
    }

    /// Takes note of the present size; returns it if it is a new one.
    pub(crate) fn set(&self, now: Sectors) -> Option<Sectors> {
        let before = self.sectors.swap(now.0, Ordering::Relaxed);
        if before == now.0 {
            return None;
        }
        let subscribers = self.subscribers.lock();
        // A counter that is full is readable already, which is all that a notice is for.
        subscribers.iter().for_each(|eventfd| eventfd.write(1).unwrap_or_default());
        Some(now)
    }

    pub(crate) fn subscribe(&self) -> io::Result<EventFd> {
        let eventfd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let ours = eventfd.try_clone()?;
        self.subscribers.lock().push(ours);
        Ok(eventfd)
    }
}

/// A disk's size as it is now.
#[derive(Clone)]
pub struct Size(Arc<Capacity>);

impl Size {
    pub(crate) fn of(capacity: Arc<Capacity>) -> Size {
        Size(capacity)
    }

    /// As it was last learned.
    pub fn now(&self) -> Sectors {
        self.0.get()
    }
}

impl std::fmt::Debug for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Size").field(&self.now()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subscriber_is_told_of_a_change_and_of_nothing_else() {
        let capacity = Capacity::new(Sectors(8));
        let subscribers = [capacity.subscribe().unwrap(), capacity.subscribe().unwrap()];
        assert_eq!(capacity.set(Sectors(8)), None);
        assert!(subscribers.iter().all(|eventfd| eventfd.read().is_err()));
        assert_eq!(capacity.set(Sectors(16)), Some(Sectors(16)));
        assert_eq!(capacity.get(), Sectors(16));
        assert!(subscribers.iter().all(|eventfd| eventfd.read().is_ok()));
    }
}
