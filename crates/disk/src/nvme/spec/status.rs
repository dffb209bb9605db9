//! Status codes (Base 1.4, 4.6.1), and what they mean to a guest.

use std::fmt;

use crate::request::DiskError;

/// The status field of a completion without its phase tag: code (SC, bits 7:0), code type (SCT, bits 10:8),
/// do not retry (DNR, bit 14).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status(pub u16);

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

/// Status 00h/04h: data transfer error.
const DATA_TRANSFER: u16 = 0x004;

impl Status {
    /// It is done.
    pub const SUCCESS: Status = Status(0);

    fn code(self) -> u16 {
        self.0 & 0x7ff
    }

    /// The controller says that trying again is of no use.
    fn is_final(self) -> bool {
        self.0 & 1 << 14 != 0
    }

    /// What it means for a request to the disk.
    pub fn meaning(self) -> Meaning {
        let error = match self.code() {
            0 => return Meaning::Success,
            // An address that cannot be reached does not become reachable by asking again.
            DATA_TRANSFER => return Meaning::BlockedDma,
            // Unknown opcode; invalid field, which is how a missing option of a command is answered.
            0x001 | 0x002 => return Meaning::Failure(DiskError::Unsupported),
            // Write protected, by the namespace or by the medium's end.
            0x020 | 0x182 => return Meaning::Failure(DiskError::ReadOnly),
            // Access denied: this host may not have the place at all, be it to read it.
            0x286 => return Meaning::Failure(DiskError::Other(libc::EACCES)),
            // Beyond the end; size limit exceeded.
            0x080 => return Meaning::Failure(DiskError::OutOfRange),
            0x183 => return Meaning::Failure(DiskError::TooLong),
            // Capacity exceeded.
            0x081 => return Meaning::Failure(DiskError::NoSpace),
            // No such namespace: it was detached.
            0x00b => return Meaning::Failure(DiskError::Gone),
            // Errors of the medium and of the data's integrity.
            code if code >> 8 == 2 => DiskError::Media,
            // Aborted by request, queue deletion or power loss.
            0x005 | 0x007 | 0x008 => DiskError::TimedOut,
            _ => DiskError::Other(libc::EIO),
        };
        if self.is_final() { Meaning::Failure(error) } else { Meaning::Passing(error) }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.code() {
            0x001 => "invalid opcode",
            0x002 => "invalid field",
            DATA_TRANSFER => "data transfer error",
            0x006 => "internal error",
            0x007 => "aborted",
            0x00b => "invalid namespace",
            0x013 => "invalid PRP offset",
            0x080 => "beyond the end",
            0x082 => "namespace not ready",
            0x101 => "invalid queue identifier",
            0x102 => "invalid queue size",
            0x108 => "invalid interrupt vector",
            0x280 => "write fault",
            0x281 => "unrecovered read error",
            0x286 => "access denied",
            _ => "",
        };
        write!(f, "status {:x}h/{:02x}h", self.code() >> 8, self.code() & 0xff)?;
        if name.is_empty() { Ok(()) } else { write!(f, " ({name})") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_but_zero_is_a_failure_of_some_kind() {
        for status in 0..=u16::MAX >> 1 {
            let meaning = Status(status).meaning();
            assert_eq!(meaning == Meaning::Success, status & 0x7ff == 0, "{status:#x}");
        }
        assert_eq!(Status(0x281).meaning(), Meaning::Passing(DiskError::Media));
        assert_eq!(Status(0x4281).meaning(), Meaning::Failure(DiskError::Media));
        assert_eq!(Status(0x4004).meaning(), Meaning::BlockedDma);
        assert_eq!(Status(0x281).to_string(), "status 2h/81h (unrecovered read error)");
    }
}
