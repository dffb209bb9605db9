//! Why a packet command failed (SPC-4, 4.5).

use disk::DiskError;

use crate::ahci::fis::Taskfile;
use crate::ahci::registers::{error, status};

/// Sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(in crate::ahci) struct Sense {
    pub key: u8,
    pub code: u8,
    pub qualifier: u8,
}

impl Sense {
    pub const NONE: Sense = Sense::new(0, 0, 0);
    pub const NO_MEDIUM: Sense = Sense::new(2, 0x3a, 0);
    pub const UNKNOWN_COMMAND: Sense = Sense::new(5, 0x20, 0);
    pub const OUT_OF_RANGE: Sense = Sense::new(5, 0x21, 0);
    pub const INVALID_FIELD: Sense = Sense::new(5, 0x24, 0);
    pub const LOCKED: Sense = Sense::new(5, 0x53, 2);
    pub const MEDIUM_CHANGED: Sense = Sense::new(6, 0x28, 0);

    const fn new(key: u8, code: u8, qualifier: u8) -> Sense {
        Sense { key, code, qualifier }
    }

    /// What a failure of the disk behind the disc is called.
    pub fn of(why: DiskError) -> Sense {
        match why {
            DiskError::Media => Sense::new(3, 0x11, 0),
            DiskError::OutOfRange | DiskError::Unaligned | DiskError::TooLong => Sense::OUT_OF_RANGE,
            DiskError::ReadOnly => Sense::new(7, 0x27, 0),
            DiskError::Gone => Sense::NO_MEDIUM,
            DiskError::TimedOut => Sense::new(4, 0x08, 1),
            DiskError::Cancelled => Sense::new(0xb, 0, 0),
            DiskError::Unsupported
            | DiskError::QueueFull
            | DiskError::NoSpace
            | DiskError::DmaBlocked
            | DiskError::Other(_) => Sense::new(4, 0x44, 0),
        }
    }

    /// Fixed format (SPC-4, 4.5.3).
    pub fn data(self) -> Vec<u8> {
        let mut data = vec![0; 18];
        data[0] = 0x70;
        data[2] = self.key;
        data[7] = 10;
        data[12] = self.code;
        data[13] = self.qualifier;
        data
    }

    /// The device's registers: the sense key is above the error's own bits.
    pub fn taskfile(self) -> Taskfile {
        let aborted = if self.key == 5 || self.key == 0xb { error::ABORTED } else { 0 };
        Taskfile {
            status: status::FAILED,
            error: self.key << 4 | aborted,
            count: super::STATUS_PHASE,
            ..Taskfile::default()
        }
    }
}
