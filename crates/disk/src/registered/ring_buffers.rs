//! A ring's clone of the table.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use io_uring::{IoUring, Probe, opcode};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::BufferTable;
use super::table::Table;

/// What the table knows of a ring.
pub(super) struct RingState {
    /// Wakes the ring's thread, to follow.
    eventfd: EventFd,
    /// What the ring has.
    version: AtomicU64,
    /// The error number with which the kernel refused the ring its clone, or 0.
    refused: AtomicI32,
}

impl RingState {
    pub(super) fn wake(&self) {
        // A counter that is full wakes as well.
        self.eventfd.write(1).unwrap_or_default();
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(super) fn refusal(&self) -> Option<String> {
        let errno = self.refused.load(Ordering::Relaxed);
        let cause = io::Error::from_raw_os_error(errno);
        (errno != 0).then(|| format!("the kernel refused a queue of a disk its clone ({cause})"))
    }
}

/// The buffers that a ring has. All methods but [`RingBuffers::eventfd`] are for the ring's thread.
pub(crate) struct RingBuffers {
    table: Arc<BufferTable>,
    shared: Arc<RingState>,
    /// What the kernel has for this ring.
    held: Arc<Table>,
    /// The ring has a clone, be there anything in it or not.
    cloned: bool,
    /// The kernel takes several pieces of one buffer (Linux 6.15).
    vectors: bool,
}

impl RingBuffers {
    /// Gives a ring a clone of the table, now and after every change.
    pub(crate) fn of(table: &Arc<BufferTable>, ring: &IoUring) -> io::Result<RingBuffers> {
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let shared = Arc::new(RingState {
            eventfd: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            version: AtomicU64::new(0),
            refused: AtomicI32::new(0),
        });
        let mut buffers = RingBuffers {
            table: table.clone(),
            shared: shared.clone(),
            held: Arc::default(),
            cloned: false,
            vectors: probe.is_supported(opcode::ReadvFixed::CODE)
                && probe.is_supported(opcode::WritevFixed::CODE),
        };
        table.state().rings.push(Arc::downgrade(&shared));
        buffers.follow(ring);
        Ok(buffers)
    }

    /// What is written when the ring is to [`follow`](Self::follow).
    pub(crate) fn eventfd(&self) -> &EventFd {
        &self.shared.eventfd
    }

    /// Whether the table has changed.
    pub(crate) fn is_behind(&self) -> bool {
        self.table.version.load(Ordering::Relaxed) != self.held.version
    }

    /// Takes the table as it is now. Where the kernel refuses, the ring goes on with ordinary memory, which an audit of
    /// the table shows.
    pub(crate) fn follow(&mut self, ring: &IoUring) {
        let state = self.table.state();
        if self.cloned && ring.submitter().unregister_buffers().is_err() {
            // Interrupted while requests were under way: what it has is good as long as it is held. It tries again,
            // and does not sleep before it has.
            self.wake_again();
            return;
        }
        let cloned = ring.submitter().register_buffers_clone(self.table.master.as_raw_fd());
        self.cloned = cloned.is_ok();
        let errno = cloned.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        self.held = match errno {
            0 => state.table.clone(),
            _ => Arc::new(Table::empty(state.table.version)),
        };
        self.shared.refused.store(errno, Ordering::Relaxed);
        self.shared.version.store(state.table.version, Ordering::Release);
        drop(state);
        self.table.followed.notify_all();
    }

    /// Wakes the ring's thread once more, to [`follow`](Self::follow) what it could not.
    pub(crate) fn wake_again(&self) {
        self.shared.wake();
    }

    /// The buffer that holds all of these pieces, if one does and the kernel takes them like that.
    pub(crate) fn find(&self, pieces: &[libc::iovec]) -> Option<u16> {
        let (first, more) = pieces.split_first()?;
        let of = |piece: &libc::iovec| self.held.find(piece.iov_base as usize, piece.iov_len);
        let place = of(first)?;
        (more.is_empty() || self.vectors && more.iter().all(|piece| of(piece) == Some(place)))
            .then_some(place)
    }

    /// Gives everything up, when the ring ends.
    pub(crate) fn leave(self, ring: &IoUring) {
        // What fails here goes with the ring, which the kernel tears down in its own time.
        ring.submitter().unregister_buffers().unwrap_or_default();
    }
}
