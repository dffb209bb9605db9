//! Discarding on block devices under kernels whose rings have no word for it.
//!
//! Rings got a command for it with Linux 6.12. Before, there is only an ioctl, which waits until the device is done,
//! so threads call it; everything else still goes to the ring.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, types};
use memory::Buffers;

use super::facts::Kind;
use super::handle::Handle;
use super::slot::{Way, change_range};
use crate::contract::{DiskError, Geometry, Operation, SectorRange, Sectors};
use crate::threads::{Direct, Moved, Work};

/// A block device on which threads discard, and the ring does the rest.
pub(crate) struct DiscardsByThreads(Arc<Handle>);

impl DiscardsByThreads {
    /// `None` where the ring can do it all.
    pub(crate) fn where_needed(
        handle: &Arc<Handle>,
        geometry: &Geometry,
    ) -> io::Result<Option<DiscardsByThreads>> {
        let possible = handle.kind == Kind::BlockDevice && geometry.discard.is_some();
        let needed = possible && !ring_discards(handle)?;
        Ok(needed.then(|| DiscardsByThreads(handle.clone())))
    }
}

impl Work for DiscardsByThreads {
    fn execute(&self, operation: Operation, buffers: &Buffers, tally: &mut Moved) -> Result<(), DiskError> {
        self.0.execute(operation, buffers, tally)
    }

    fn direct(&self, operation: Operation, _bytes: u64) -> Option<Direct> {
        let at = match operation {
            Operation::Discard(_) => return None,
            Operation::Read { at } | Operation::Write { at, .. } => at,
            // These carry their place, if any, in themselves.
            Operation::Flush | Operation::WriteZeroes(..) => Sectors(0),
        };
        Some(Direct { file: 0, at, ticket: 0 })
    }
}

/// Whether the kernel knows the command: it refuses to discard nothing at all, but in other words.
fn ring_discards(handle: &Handle) -> io::Result<bool> {
    let mut ring = IoUring::new(2)?;
    ring.submitter().register_files(&[handle.file.as_raw_fd()])?;
    let nothing = SectorRange { start: Sectors(0), count: Sectors(0) };
    let entry = change_range(types::Fixed(0), Way::DiscardCommand, nothing);
    // SAFETY: the entry points to no memory.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let answer = ring.completion().next().ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(answer.result() != -libc::EOPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Durability;

    #[test]
    fn what_is_no_block_device_has_no_command_to_discard() {
        let (handle, geometry) = super::super::open::in_memory(Sectors(8)).unwrap();
        assert!(!ring_discards(&handle).unwrap());
        // Files are punched, which rings of all kernels do.
        assert!(DiscardsByThreads::where_needed(&handle, &geometry).unwrap().is_none());
    }

    #[test]
    fn threads_get_discards_and_nothing_else() {
        let (handle, _) = super::super::open::in_memory(Sectors(8)).unwrap();
        let work = DiscardsByThreads(handle);
        let at = Sectors(5);
        for (operation, to) in [
            (Operation::Read { at }, Some(at)),
            (Operation::Write { at, durability: Durability::Cached }, Some(at)),
            (Operation::Flush, Some(Sectors(0))),
            (Operation::Discard(SectorRange { start: at, count: at }), None),
        ] {
            assert_eq!(work.direct(operation, 512).map(|direct| direct.at), to, "{operation:?}");
        }
    }
}
