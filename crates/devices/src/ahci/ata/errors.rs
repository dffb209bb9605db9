//! Failures of a disk in ATA's words.

use disk::DiskError;

use crate::ahci::fis::{CommandFis, Taskfile};
use crate::ahci::registers::{error, port, status};

/// What the guest learns of a failure: the device's registers, and bits of SError.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::ahci) struct Fault {
    pub taskfile: Taskfile,
    pub serror: u32,
}

impl Fault {
    /// ATA knows fewer kinds than there are. Those for which it has no word are a device fault, which drivers
    /// take for broken hardware; a disk that no longer answers looks as a dead link does.
    pub fn of(why: DiskError, fis: &CommandFis) -> Fault {
        let (status, error, serror) = match why {
            DiskError::Media => (status::FAILED, error::UNCORRECTABLE, 0),
            DiskError::OutOfRange => (status::FAILED, error::NOT_FOUND, 0),
            DiskError::Unaligned
            | DiskError::TooLong
            | DiskError::ReadOnly
            | DiskError::Unsupported
            | DiskError::Cancelled
            | DiskError::QueueFull => (status::FAILED, error::ABORTED, 0),
            DiskError::NoSpace | DiskError::DmaBlocked | DiskError::Other(_) => {
                (status::FAILED | status::FAULT, error::ABORTED, 0)
            }
            DiskError::Gone | DiskError::TimedOut => {
                (status::FAILED | status::FAULT, error::ABORTED, port::SERR_PERSISTENT)
            }
        };
        Fault { taskfile: fis.echo(status, error), serror }
    }
}
