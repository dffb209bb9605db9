//! What carries out a domain's mappings.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use crate::iova::IovaRange;
use crate::ledger::Permission;
use crate::limits::Limits;
use crate::memlock::MemlockError;

/// Host memory to map, named both ways: back ends take the one or the other.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// First byte in this process.
    pub host: NonNull<u8>,
    /// The memfd behind it, and where in that it begins. The type1 container does not need these; iommufd maps
    /// by them, with no regard to this process's address space.
    #[cfg_attr(not(test), expect(dead_code, reason = "for iommufd's IOAS_MAP_FILE"))]
    pub file: (BorrowedFd<'a>, u64),
}

/// A VFIO container, or whatever else holds mappings for devices.
pub(crate) trait Backend: Send {
    /// What can be mapped, as of the devices that are attached now.
    fn limits(&self) -> io::Result<Limits>;

    /// Makes sure that so many bytes may be pinned.
    fn reserve(&self, bytes: u64) -> Result<(), MemlockError>;

    /// Maps host memory. A failure maps nothing.
    ///
    /// # Safety
    /// The host memory must stay mapped in this process until it is unmapped here, and be of the sort that
    /// devices may change at any time.
    unsafe fn map(&mut self, iova: IovaRange, source: Source<'_>, permission: Permission) -> io::Result<()>;

    /// Unmaps a range that was mapped by one call of `map`; returns how many bytes went.
    fn unmap(&mut self, iova: IovaRange) -> io::Result<u64>;
}
