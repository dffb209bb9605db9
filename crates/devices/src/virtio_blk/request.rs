//! Requests as the driver writes them (5.2.6), read once into what the disk understands.

use disk::{DiskError, Durability, Operation, SectorRange, Sectors, Unmap};
use memory::{Buffers, Gpa, Ram};
use virtio::Chain;
use zerocopy::{FromBytes, IntoBytes, little_endian as le};

/// Bytes of the answer to "get id".
pub(super) use crate::serial_number::LENGTH as SERIAL_LENGTH;

/// Most bytes of data in one request, so that whoever waits for it, as a reset does, waits for something bounded. It is
/// what firmware (OVMF) sends at most; configuration space asks other drivers for less.
pub(super) const MOST_BYTES: u64 = 1 << 30;

/// Request types.
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Flag of a range: it may be deallocated.
const UNMAP: u32 = 1;

/// `struct virtio_blk_req`, the part in front of the data.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Header {
    kind: le::U32,
    reserved: le::U32,
    sector: le::U64,
}

/// `struct virtio_blk_discard_write_zeroes`.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Range {
    sector: le::U64,
    count: le::U32,
    flags: le::U32,
}

/// What the driver learns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

impl From<DiskError> for Status {
    fn from(error: DiskError) -> Status {
        match error {
            DiskError::Unsupported => Status::Unsupported,
            _ => Status::IoError,
        }
    }
}

/// What a chain asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Command {
    /// Something for the disk.
    Disk(Operation),
    /// The serial number.
    Identify,
    /// An answer that is clear already.
    Refused(Status),
}

/// A chain understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) command: Command,
    /// Where the status byte goes.
    pub(super) status: Gpa,
}

/// A chain that is no request: nobody can be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum NoRequest {
    #[error("a chain without the 16 bytes of a request's header")]
    Header,
    #[error("a request without room for its status")]
    Status,
    #[error(transparent)]
    OutsideRam(#[from] memory::OutsideRam),
}

impl Request {
    /// Reads a chain, and puts its data into `buffers` (which are empty): what the disk is to fill or to write,
    /// or the room for the serial number.
    pub(super) fn read(chain: &Chain, ram: &Ram, buffers: &mut Buffers) -> Result<Request, NoRequest> {
        let (mut readable, mut writable) = (chain.readable(), chain.writable());
        let header: Header = readable.read(ram).ok_or(NoRequest::Header)?;
        let status = writable.split_end(1).and_then(|end| end.start()).ok_or(NoRequest::Status)?;
        let at = Sectors(header.sector.get());
        let command = match header.kind.get() {
            kind::IN | kind::OUT if readable.bytes().max(writable.bytes()) > MOST_BYTES => {
                Command::Refused(Status::IoError)
            }
            kind::IN => {
                writable.append_to(buffers)?;
                Command::Disk(Operation::Read { at })
            }
            kind::OUT => {
                readable.append_to(buffers)?;
                Command::Disk(Operation::Write { at, durability: Durability::Cached })
            }
            kind::FLUSH => Command::Disk(Operation::Flush),
            kind::GET_ID => {
                writable.append_to(buffers)?;
                Command::Identify
            }
            // Configuration space says one range for each request.
            which @ (kind::DISCARD | kind::WRITE_ZEROES) => match readable.read::<Range>(ram) {
                Some(range) if readable.bytes() == 0 => change(which, &range),
                _ => Command::Refused(Status::IoError),
            },
            _ => Command::Refused(Status::Unsupported),
        };
        Ok(Request { command, status })
    }
}

fn change(which: u32, range: &Range) -> Command {
    let flags = range.flags.get();
    let sectors =
        SectorRange { start: Sectors(range.sector.get()), count: Sectors(u64::from(range.count.get())) };
    match (which, flags) {
        (kind::DISCARD, 0) => Command::Disk(Operation::Discard(sectors)),
        (kind::WRITE_ZEROES, 0) => Command::Disk(Operation::WriteZeroes(sectors, Unmap::Forbidden)),
        (kind::WRITE_ZEROES, UNMAP) => Command::Disk(Operation::WriteZeroes(sectors, Unmap::Allowed)),
        // 5.2.6.2: unknown flags, and unmap with a discard, are not supported.
        _ => Command::Refused(Status::Unsupported),
    }
}
