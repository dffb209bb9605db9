//! What a back end must do.

use std::io;
use std::sync::Arc;

use memory::Buffers;
use vmm_sys_util::eventfd::EventFd;

use super::counters::QueueCounters;
use super::geometry::{Geometry, Sectors};
use super::request::{DiskError, Operation, Request};
use crate::registered::BufferTable;

/// Something behind a [`crate::Disk`].
pub trait Backend: Send + Sync {
    /// What the disk is.
    fn geometry(&self) -> &Geometry;

    /// Asks for the disk's present size, in whole blocks. This may take a system call, but does not wait for the disk.
    fn capacity(&self) -> io::Result<Sectors> {
        Ok(self.geometry().capacity)
    }

    /// Whether its queues look for completions before they sleep. It pays only where looking enters no kernel.
    fn poll(&self) -> Poll {
        Poll::Off
    }

    /// Whether a flush that failed may be tried again: not where the host may have dropped what it could not write, for
    /// then the second one succeeds without it.
    fn flush_can_be_repeated(&self) -> bool {
        true
    }

    /// Whether [`use_buffers`](Self::use_buffers) may be of use: only to a back end with rings of io_uring.
    fn has_rings(&self) -> bool {
        false
    }

    /// Has engines that are made from now on use registered buffers. Whether it does: a back end without rings of
    /// io_uring does not.
    fn use_buffers(&self, _table: &Arc<BufferTable>) -> bool {
        false
    }

    /// A new engine for up to `depth` requests under way at once. It counts the bytes it moves in `counters`.
    fn engine(&self, depth: u16, counters: Arc<QueueCounters>) -> Result<Box<dyn Engine + Send>, QueueError>;
}

/// Whether a queue's thread looks for what comes before it sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Poll {
    /// It sleeps at once.
    #[default]
    Off,
    /// It looks for as long as a sleep and a wake-up would cost, while that has paid lately and a CPU is idle.
    Adaptive,
    /// It never sleeps, and takes a CPU for itself.
    On,
}

/// Why a queue could not be made.
#[derive(Debug, thiserror::Error)]
#[error("disk {disk}: cannot make a queue for {depth} requests: {cause}. {hint}")]
pub struct QueueError {
    /// The disk's name.
    pub disk: Arc<str>,
    /// Requests asked for.
    pub depth: u16,
    /// The kernel's answer.
    #[source]
    pub cause: io::Error,
    /// What a person can do.
    pub hint: &'static str,
}

/// Whether to wait for something to happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// Come back at once. That an eventfd was written may be noticed a few calls later.
    Poll,
    /// Come back with at least one event; a signal, or a call from another thread of the back end, may end the wait
    /// without any.
    Wait,
}

/// Something a queue's thread has to deal with.
#[derive(Debug)]
pub enum Event {
    /// A request is done; its buffers are the caller's again.
    Done {
        /// The request's own tag.
        tag: u64,
        /// What was asked for.
        operation: Operation,
        /// Success means all of it.
        result: Result<(), DiskError>,
        /// The request's buffers.
        buffers: Buffers,
    },
    /// The watched eventfd was written, once or more.
    Wake,
}

/// One queue of a back end. It is made on any thread and then belongs to the one that calls
/// [`start`](Engine::start).
///
/// Requests have been checked: they lie inside the disk, in whole blocks, within the limits of the geometry, and
/// there are never more than the depth. An engine keeps a request's buffers until the device or the kernel has
/// let go of them; being dropped, it waits for that.
pub trait Engine {
    /// Makes the calling thread the engine's own.
    fn start(&mut self) -> io::Result<()>;

    /// Reports [`Event::Wake`] whenever the eventfd is written, once or more. The engine keeps a
    /// descriptor of its own and does not read it.
    fn watch(&mut self, eventfd: &EventFd) -> io::Result<()>;

    /// Notes a request down for the next [`advance`](Engine::advance).
    fn submit(&mut self, request: Request);

    /// Asks for an early end of everything under way. What can be cancelled ends with
    /// [`crate::DiskError::Cancelled`], the rest as it would have; each is reported as ever.
    fn cancel(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The kernel's error number behind the failure of the request with this tag, which the last call of
    /// [`advance`](Engine::advance) has brought; `None` where it was not the kernel that failed it.
    fn errno(&self, _tag: u64) -> Option<i32> {
        None
    }

    /// What is known of an error that the last call of [`advance`](Engine::advance) has brought, in words for people, where
    /// it was not the kernel that failed the request.
    fn cause(&self, _error: DiskError) -> Option<Arc<str>> {
        None
    }

    /// Hands what was noted to the device and appends what has happened to `events`.
    fn advance(&mut self, patience: Patience, events: &mut Vec<Event>) -> io::Result<()>;
}
