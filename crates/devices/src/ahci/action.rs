//! What a command comes to, before anything is moved.

use disk::{Operation, SectorRange};

use super::fis::Taskfile;

/// How data passes and how the end is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    /// A PIO setup frame announces data for the host.
    Pio,
    /// Registers at the end.
    Dma,
    /// NCQ: set device bits at the end.
    Queued,
    /// PACKET: registers at the end, with the interrupt reason.
    Packet,
}

/// What a command comes to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// It has ended, well or not.
    Done(Taskfile),
    /// The device has reset itself and reports.
    Signature(Taskfile),
    /// The control register was written; the device is busy or not.
    Control {
        /// Held in reset.
        busy: bool,
    },
    /// Data from the device itself.
    Send(Vec<u8>, Protocol),
    /// Data between disk and guest.
    Transfer { operation: Operation, bytes: u64, protocol: Protocol },
    /// Data from the guest that says which ranges to discard.
    Trim { bytes: u64, protocol: Protocol },
    /// Operations without data for the guest, one after the other; the last comes first.
    Series(Vec<Change>),
}

/// An operation without data for the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    Flush,
    Discard(SectorRange),
    /// A read whose data goes nowhere.
    Verify(SectorRange),
}

impl From<Change> for Operation {
    fn from(change: Change) -> Operation {
        match change {
            Change::Flush => Operation::Flush,
            Change::Discard(range) => Operation::Discard(range),
            Change::Verify(range) => Operation::Read { at: range.start },
        }
    }
}
