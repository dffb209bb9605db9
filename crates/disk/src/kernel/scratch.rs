//! Blocks of a disk in memory of our own.

use super::blocking::kind_of;
use super::bounce::BounceBuffer;
use super::handle::Handle;
use crate::contract::{DiskError, Durability, SectorRange, Sectors};

/// Memory that whole blocks of a disk are read into and written from.
pub(crate) struct Scratch(BounceBuffer);

impl Scratch {
    /// `size` is a number of pages.
    pub(crate) fn new(size: usize) -> Scratch {
        Scratch(BounceBuffer::new(size))
    }

    /// Fills it from the disk, from its start on.
    pub(crate) fn read(&mut self, from: &Handle, range: SectorRange) -> Result<&[u8], DiskError> {
        self.move_all(range, |piece, at| from.step(at, &[piece], None))?;
        Ok(self.0.bytes())
    }

    /// Writes its start to the disk.
    pub(crate) fn write(
        &mut self,
        to: &Handle,
        range: SectorRange,
        durability: Durability,
    ) -> Result<(), DiskError> {
        self.move_all(range, |piece, at| to.step(at, &[piece], Some(durability)))
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }

    fn move_all(
        &mut self,
        range: SectorRange,
        step: impl Fn(libc::iovec, u64) -> std::io::Result<u64>,
    ) -> Result<(), DiskError> {
        let (at, len) = (range.start.0 * Sectors::SIZE, (range.count.0 * Sectors::SIZE) as usize);
        assert!(len <= self.0.len(), "the callers ask for no more than there is room for");
        let mut done = 0;
        while done < len {
            let start = self.0.bytes_mut()[done..].as_mut_ptr();
            let piece = libc::iovec { iov_base: start.cast(), iov_len: len - done };
            match step(piece, at + done as u64) {
                Ok(0) => return Err(DiskError::OutOfRange),
                Ok(moved) => done += moved as usize,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(kind_of(&error)),
            }
        }
        Ok(())
    }
}
