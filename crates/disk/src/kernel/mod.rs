//! Block devices and raw files, through the host's kernel: direct I/O by io_uring on guest memory itself.

mod blocking;
mod bounce;
mod discards;
mod facts;
mod file_options;
mod handle;
mod lock;
mod open;
#[cfg(test)]
pub(crate) mod recorder;
mod ring;
mod route;
mod scratch;
mod slot;

use std::io;
use std::sync::{Arc, OnceLock};

pub(crate) use blocking::{PastEnd, Transfer, fill_with_zeroes, kind_of};
pub(crate) use bounce::BounceRoom;
pub(crate) use discards::DiscardsByThreads;
pub(crate) use file_options::{FileOptions, Named};
pub(crate) use handle::Handle;
pub use lock::lock_file;
pub(crate) use open::{Opened, first_bytes, in_memory, open, temporary};
pub(crate) use ring::Ring;
pub(crate) use scratch::Scratch;

use crate::contract::{Backend, Engine, Geometry, Poll, QueueCounters, QueueError, Sectors};
use crate::registered::BufferTable;
use crate::uring::hint_after;

/// A block device or raw file as it is, by io_uring.
pub(crate) struct KernelDisk {
    name: Arc<str>,
    handle: Arc<Handle>,
    geometry: Geometry,
    poll: Poll,
    buffers: OnceLock<Arc<BufferTable>>,
    bounces: Arc<BounceRoom>,
}

impl KernelDisk {
    pub(crate) fn new(name: Arc<str>, handle: Arc<Handle>, geometry: Geometry, poll: Poll) -> KernelDisk {
        KernelDisk { name, handle, geometry, poll, buffers: OnceLock::new(), bounces: Arc::default() }
    }
}

impl Backend for KernelDisk {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn capacity(&self) -> io::Result<Sectors> {
        self.handle.capacity(self.geometry.logical_block)
    }

    fn poll(&self) -> Poll {
        self.poll
    }

    fn flush_can_be_repeated(&self) -> bool {
        self.handle.flush_can_be_repeated()
    }

    fn has_rings(&self) -> bool {
        true
    }

    fn use_buffers(&self, table: &Arc<BufferTable>) -> bool {
        self.buffers.set(table.clone()).is_ok()
    }

    fn engine(&self, depth: u16, counters: Arc<QueueCounters>) -> Result<Box<dyn Engine + Send>, QueueError> {
        let (buffers, bounces) = (self.buffers.get().cloned(), self.bounces.clone());
        match Ring::new(vec![self.handle.clone()], depth, counters, buffers, bounces) {
            Ok(ring) => Ok(Box::new(ring)),
            Err(cause) => Err(QueueError { disk: self.name.clone(), depth, hint: hint_after(&cause), cause }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_io_uring_is_forbidden_or_absent_the_error_says_so_and_how_to_allow_it() {
        let message = |errno| {
            let cause = io::Error::from_raw_os_error(errno);
            let hint = hint_after(&cause);
            QueueError { disk: "/dev/sdb".into(), depth: 256, cause, hint }.to_string()
        };
        let forbidden = message(libc::EPERM);
        assert!(forbidden.starts_with("disk /dev/sdb: cannot make a queue for 256 requests: Operation not"));
        assert!(forbidden.contains("io_uring, which is forbidden"), "{forbidden}");
        assert!(forbidden.contains("sysctl kernel.io_uring_disabled to 0"), "{forbidden}");
        let absent = message(libc::ENOSYS);
        assert!(absent.contains("io_uring") && absent.contains("Linux 6.1"), "{absent}");
        assert!(absent.contains("seccomp"), "{absent}");
    }
}
