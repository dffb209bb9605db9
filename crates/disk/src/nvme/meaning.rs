//! What status codes mean to a guest.

use nvme_spec::Status;

use crate::contract::DiskError;

/// What to do about a completed command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// It succeeded.
    Success,
    /// It failed in a way that may pass with time.
    Passing(DiskError),
    /// It failed.
    Failure(DiskError),
    /// The controller could not move the data: its DMA was blocked.
    BlockedDma,
}

impl Meaning {
    /// What a command's status means for a request to the disk.
    pub fn of(status: Status) -> Meaning {
        let error = match status.code() {
            Status::SUCCESS => return Meaning::Success,
            // An address that cannot be reached does not become reachable by asking again.
            Status::DATA_TRANSFER_ERROR => return Meaning::BlockedDma,
            // An invalid field is how a missing option of a command is answered.
            Status::INVALID_OPCODE | Status::INVALID_FIELD => {
                return Meaning::Failure(DiskError::Unsupported);
            }
            Status::NAMESPACE_WRITE_PROTECTED | Status::READ_ONLY => {
                return Meaning::Failure(DiskError::ReadOnly);
            }
            // This host may not have the place at all, be it to read it.
            Status::ACCESS_DENIED => return Meaning::Failure(DiskError::Other(libc::EACCES)),
            Status::LBA_RANGE => return Meaning::Failure(DiskError::OutOfRange),
            Status::SIZE_LIMIT => return Meaning::Failure(DiskError::TooLong),
            Status::CAPACITY_EXCEEDED => return Meaning::Failure(DiskError::NoSpace),
            // It was detached.
            Status::INVALID_NAMESPACE => return Meaning::Failure(DiskError::Gone),
            code if code.is_of_the_media() => DiskError::Media,
            Status::POWER_LOSS | Status::ABORT_REQUESTED | Status::SQ_DELETED => DiskError::TimedOut,
            _ => DiskError::Other(libc::EIO),
        };
        if status.is_final() { Meaning::Failure(error) } else { Meaning::Passing(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_but_zero_is_a_failure_of_some_kind() {
        for status in 0..=u16::MAX >> 1 {
            let meaning = Meaning::of(Status(status));
            assert_eq!(meaning == Meaning::Success, status & 0x7ff == 0, "{status:#x}");
        }
        assert_eq!(Meaning::of(Status(0x281)), Meaning::Passing(DiskError::Media));
        assert_eq!(Meaning::of(Status(0x4281)), Meaning::Failure(DiskError::Media));
        assert_eq!(Meaning::of(Status(0x4004)), Meaning::BlockedDma);
        assert_eq!(Status(0x281).to_string(), "status 2h/81h (unrecovered read error)");
    }
}
