//! Status codes (4.6.1).

use std::fmt;

/// The status field of a completion without its phase tag: code (SC, bits 7:0), code type (SCT, bits 10:8), more (M,
/// bit 13), do not retry (DNR, bit 14).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status(pub u16);

#[allow(missing_docs, reason = "the names are the specification's")]
impl Status {
    pub const SUCCESS: Status = Status(0);
    pub const INVALID_OPCODE: Status = Status(0x01);
    pub const INVALID_FIELD: Status = Status(0x02);
    pub const DATA_TRANSFER_ERROR: Status = Status(0x04);
    pub const POWER_LOSS: Status = Status(0x05);
    pub const INTERNAL_ERROR: Status = Status(0x06);
    pub const ABORT_REQUESTED: Status = Status(0x07);
    pub const SQ_DELETED: Status = Status(0x08);
    pub const INVALID_NAMESPACE: Status = Status(0x0b);
    pub const SEQUENCE_ERROR: Status = Status(0x0c);
    pub const SGL_SEGMENT: Status = Status(0x0d);
    pub const SGL_COUNT: Status = Status(0x0e);
    pub const SGL_LENGTH: Status = Status(0x0f);
    pub const SGL_TYPE: Status = Status(0x11);
    pub const PRP_OFFSET: Status = Status(0x13);
    pub const NAMESPACE_WRITE_PROTECTED: Status = Status(0x20);
    pub const LBA_RANGE: Status = Status(0x80);
    pub const CAPACITY_EXCEEDED: Status = Status(0x81);
    pub const NAMESPACE_NOT_READY: Status = Status(0x82);
    pub const CQ_INVALID: Status = Status(0x100);
    pub const QUEUE_ID: Status = Status(0x101);
    pub const QUEUE_SIZE: Status = Status(0x102);
    pub const ABORT_LIMIT: Status = Status(0x103);
    pub const ASYNC_EVENT_LIMIT: Status = Status(0x105);
    pub const INTERRUPT_VECTOR: Status = Status(0x108);
    pub const LOG_PAGE: Status = Status(0x109);
    pub const QUEUE_DELETION: Status = Status(0x10c);
    pub const NOT_SAVEABLE: Status = Status(0x10d);
    pub const NOT_CHANGEABLE: Status = Status(0x10e);
    pub const READ_ONLY: Status = Status(0x182);
    pub const SIZE_LIMIT: Status = Status(0x183);
    pub const WRITE_FAULT: Status = Status(0x280);
    pub const READ_ERROR: Status = Status(0x281);
    pub const COMPARE_FAILURE: Status = Status(0x285);
    pub const ACCESS_DENIED: Status = Status(0x286);
}

impl Status {
    /// Do not retry (DNR).
    const DNR: u16 = 1 << 14;

    /// The same, and trying again is of no use.
    pub const fn do_not_retry(self) -> Status {
        Status(self.0 | Status::DNR)
    }

    /// Whether the controller says that trying again is of no use.
    pub const fn is_final(self) -> bool {
        self.0 & Status::DNR != 0
    }

    /// Code and code type alone, to be compared with the constants.
    pub const fn code(self) -> Status {
        Status(self.0 & 0x7ff)
    }

    /// Whether it is an error of the medium or of the data's integrity (SCT 2h).
    pub const fn is_of_the_media(self) -> bool {
        self.code().0 >> 8 == 2
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.code() {
            Status::INVALID_OPCODE => "invalid opcode",
            Status::INVALID_FIELD => "invalid field",
            Status::DATA_TRANSFER_ERROR => "data transfer error",
            Status::INTERNAL_ERROR => "internal error",
            Status::ABORT_REQUESTED => "aborted",
            Status::INVALID_NAMESPACE => "invalid namespace",
            Status::PRP_OFFSET => "invalid PRP offset",
            Status::LBA_RANGE => "beyond the end",
            Status::NAMESPACE_NOT_READY => "namespace not ready",
            Status::QUEUE_ID => "invalid queue identifier",
            Status::QUEUE_SIZE => "invalid queue size",
            Status::INTERRUPT_VECTOR => "invalid interrupt vector",
            Status::WRITE_FAULT => "write fault",
            Status::READ_ERROR => "unrecovered read error",
            Status::ACCESS_DENIED => "access denied",
            _ => "",
        };
        let Status(code) = self.code();
        write!(f, "status {:x}h/{:02x}h", code >> 8, code & 0xff)?;
        if name.is_empty() { Ok(()) } else { write!(f, " ({name})") }
    }
}
