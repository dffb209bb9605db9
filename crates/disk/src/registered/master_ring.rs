//! The ring that RAM is registered with.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::IoUring;

use super::error::BufferTableError;
use super::table::{Entry, PLACES};
use crate::uring::hint_after;

/// A ring that never carries a request out. Any thread may change its table.
pub(super) struct MasterRing(IoUring);

impl MasterRing {
    pub(super) fn new() -> Result<MasterRing, BufferTableError> {
        let refused = |cause| BufferTableError::Ring { hint: hint_after(&cause), cause };
        let ring: IoUring = IoUring::builder().dontfork().build(1).map_err(refused)?;
        ring.submitter().register_buffers_sparse(u32::from(PLACES)).map_err(refused)?;
        let trial: IoUring = IoUring::builder().dontfork().build(1).map_err(refused)?;
        trial.submitter().register_buffers_clone(ring.as_raw_fd()).map_err(BufferTableError::NoClones)?;
        Ok(MasterRing(ring))
    }

    /// Registers a buffer, which pins it.
    pub(super) fn set(&self, entry: &Entry) -> io::Result<()> {
        let buffer = libc::iovec { iov_base: entry.start as *mut _, iov_len: entry.len };
        self.update(entry.place, buffer)
    }

    /// Gives a place up. The kernel takes that always; what is left of it goes with the ring.
    pub(super) fn clear(&self, entry: &Entry) {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        self.update(entry.place, nothing).unwrap_or_default();
    }

    fn update(&self, place: u16, buffer: libc::iovec) -> io::Result<()> {
        // SAFETY: the buffer is a part of a segment, which the table's entry keeps mapped as long as it is registered,
        // or nothing.
        unsafe { self.0.submitter().register_buffers_update(u32::from(place), &[buffer], None) }
    }
}

impl AsRawFd for MasterRing {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Drop for MasterRing {
    fn drop(&mut self) {
        // The kernel tears rings down in its own time; the pages are to be free now. What fails here goes then.
        self.0.submitter().unregister_buffers().unwrap_or_default();
    }
}
