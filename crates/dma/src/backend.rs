//! What carries out a domain's mappings.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use crate::iova::IovaRange;
use crate::ledger::Permission;
use crate::limits::Limits;
use crate::memlock::{Locked, MemlockError};

/// The interface of the kernel that a domain is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackEnd {
    /// A VFIO container with a type1 IOMMU.
    Type1,
    /// An IOAS of iommufd.
    Iommufd,
    /// A model of an IOMMU, for tests.
    Fake,
}

impl BackEnd {
    /// What counts as locked when so many domains map `ram` bytes each, the same in all of them.
    pub(crate) fn locks(self, domains: u64, ram: u64) -> Locked {
        match self {
            BackEnd::Type1 => Locked { process: ram.saturating_mul(domains), user: 0 },
            BackEnd::Iommufd => Locked { process: 0, user: if domains > 0 { ram } else { 0 } },
            BackEnd::Fake => Locked::default(),
        }
    }
}

impl fmt::Display for BackEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackEnd::Type1 => "type1",
            BackEnd::Iommufd => "iommufd",
            BackEnd::Fake => "fake",
        })
    }
}

/// Host memory to map, named both ways: back ends take the one or the other.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// First byte in this process.
    pub host: NonNull<u8>,
    /// The file behind it, and where in that it begins; `None` for memory of a device.
    pub file: Option<(BorrowedFd<'a>, u64)>,
}

/// A VFIO container, or another holder of mappings for devices.
pub(crate) trait Backend: Send {
    /// Which one it is.
    fn kind(&self) -> BackEnd;

    /// What can be mapped, as of the devices that are attached now.
    fn limits(&self) -> io::Result<Limits>;

    /// Makes sure that so many bytes of this memory may be pinned.
    fn reserve(&self, source: &Source<'_>, bytes: u64) -> Result<(), MemlockError>;

    /// Maps host memory. A failure maps nothing.
    ///
    /// # Safety
    /// The host memory must stay mapped in this process until it is unmapped here, and be of the sort that
    /// devices may change at any time.
    unsafe fn map(&mut self, iova: IovaRange, source: Source<'_>, permission: Permission) -> io::Result<()>;

    /// Unmaps a range that was mapped by one call of `map`; returns how many bytes went.
    fn unmap(&mut self, iova: IovaRange) -> io::Result<u64>;
}
