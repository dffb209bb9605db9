//! Entries of submission and completion queues (4.2 to 4.6), and what commands are called.

use zerocopy::{FromBytes, Immutable, IntoBytes, little_endian as le};

use super::status::Status;

/// Admin commands (5).
pub mod admin {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const DELETE_SQ: u8 = 0x00;
    pub const CREATE_SQ: u8 = 0x01;
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const DELETE_CQ: u8 = 0x04;
    pub const CREATE_CQ: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0a;
    pub const ASYNC_EVENT: u8 = 0x0c;
    pub const KEEP_ALIVE: u8 = 0x18;
    pub const DOORBELL_BUFFER: u8 = 0x7c;
}

/// Commands of the NVM command set (NVM Command Set 1.0, 3).
pub mod io {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const COMPARE: u8 = 0x05;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// Features (5.21.1).
pub mod feature {
    #![allow(missing_docs, reason = "the names are the specification's")]
    pub const ARBITRATION: u8 = 0x01;
    pub const POWER_MANAGEMENT: u8 = 0x02;
    pub const TEMPERATURE: u8 = 0x04;
    pub const ERROR_RECOVERY: u8 = 0x05;
    pub const WRITE_CACHE: u8 = 0x06;
    pub const QUEUES: u8 = 0x07;
    pub const COALESCING: u8 = 0x08;
    pub const VECTOR: u8 = 0x09;
    pub const ATOMICITY: u8 = 0x0a;
    pub const ASYNC_EVENT: u8 = 0x0b;
}

/// A submission queue entry (4.2).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct Command {
    pub opcode: u8,
    /// Fused operation in bits 1:0, PRP or SGL in bits 7:6.
    pub flags: u8,
    pub cid: le::U16,
    pub nsid: le::U32,
    pub cdw2: le::U32,
    pub cdw3: le::U32,
    pub mptr: le::U64,
    pub dptr: [le::U64; 2],
    pub cdw10: le::U32,
    pub cdw11: le::U32,
    pub cdw12: le::U32,
    pub cdw13: le::U32,
    pub cdw14: le::U32,
    pub cdw15: le::U32,
}

impl Command {
    /// Write and write zeroes: done when it is on stable storage (CDW12).
    pub const FUA: u32 = 1 << 30;
    /// Write zeroes: the blocks may be deallocated (CDW12).
    pub const DEAC: u32 = 1 << 25;
    /// Dataset management: deallocate (CDW11).
    pub const AD: u32 = 1 << 2;

    /// Whether data is described by an SGL (PSDT); otherwise by PRPs.
    pub fn sgl(&self) -> bool {
        self.flags >> 6 != 0
    }

    /// The first logical block of a read, write, compare or write zeroes.
    pub fn lba(&self) -> u64 {
        u64::from(self.cdw11.get()) << 32 | u64::from(self.cdw10.get())
    }

    /// The number of logical blocks of such a command.
    pub fn blocks(&self) -> u64 {
        u64::from(self.cdw12.get() & 0xffff) + 1
    }

    fn with(opcode: u8, nsid: u32, [cdw10, cdw11, cdw12]: [u32; 3]) -> Command {
        Command {
            opcode,
            nsid: nsid.into(),
            cdw10: cdw10.into(),
            cdw11: cdw11.into(),
            cdw12: cdw12.into(),
            ..Command::default()
        }
    }

    /// The same, whose data is at `at`.
    fn at(self, at: u64) -> Command {
        Command { dptr: [at.into(), 0.into()], ..self }
    }

    /// Identify: a data structure of [`cns`](super::cns), about a namespace or 0, into a page at `page`.
    pub fn identify(cns: u8, nsid: u32, page: u64) -> Command {
        Command::with(admin::IDENTIFY, nsid, [cns.into(), 0, 0]).at(page)
    }

    /// Set features: so many I/O queue pairs.
    pub fn set_queues(pairs: u16) -> Command {
        let count = u32::from(pairs.saturating_sub(1));
        Command::with(admin::SET_FEATURES, 0, [feature::QUEUES.into(), count << 16 | count, 0])
    }

    /// Get features: whether the volatile write cache is on.
    pub fn get_write_cache() -> Command {
        Command::with(admin::GET_FEATURES, 0, [feature::WRITE_CACHE.into(), 0, 0])
    }

    /// Create a completion queue of so many entries; without a vector it raises no interrupts.
    pub fn create_cq(queue: u16, entries: u16, at: u64, vector: Option<u16>) -> Command {
        let how = vector.map_or(1, |vector| u32::from(vector) << 16 | 3);
        Command::with(admin::CREATE_CQ, 0, [sized(queue, entries), how, 0]).at(at)
    }

    /// Create a submission queue that completes to the completion queue of the same number.
    pub fn create_sq(queue: u16, entries: u16, at: u64) -> Command {
        Command::with(admin::CREATE_SQ, 0, [sized(queue, entries), u32::from(queue) << 16 | 1, 0]).at(at)
    }

    /// Delete a completion queue.
    pub fn delete_cq(queue: u16) -> Command {
        Command::with(admin::DELETE_CQ, 0, [queue.into(), 0, 0])
    }

    /// Delete a submission queue.
    pub fn delete_sq(queue: u16) -> Command {
        Command::with(admin::DELETE_SQ, 0, [queue.into(), 0, 0])
    }

    /// Abort command `cid` of a submission queue.
    pub fn abort(queue: u16, cid: u16) -> Command {
        Command::with(admin::ABORT, 0, [u32::from(cid) << 16 | u32::from(queue), 0, 0])
    }

    /// Read `blocks` (at least one) logical blocks from block `lba`.
    pub fn read(nsid: u32, lba: u64, blocks: u32) -> Command {
        Command::transfer(io::READ, nsid, lba, blocks, 0)
    }

    /// Write `blocks` (at least one) logical blocks from block `lba`.
    pub fn write(nsid: u32, lba: u64, blocks: u32, stable: bool) -> Command {
        Command::transfer(io::WRITE, nsid, lba, blocks, if stable { Command::FUA } else { 0 })
    }

    /// Write zeroes to `blocks` (1 to 65536) logical blocks from block `lba`.
    pub fn write_zeroes(nsid: u32, lba: u64, blocks: u32, deallocate: bool) -> Command {
        let flags = if deallocate { Command::DEAC } else { 0 };
        Command::transfer(io::WRITE_ZEROES, nsid, lba, blocks, flags)
    }

    /// Flush.
    pub fn flush(nsid: u32) -> Command {
        Command::with(io::FLUSH, nsid, [0; 3])
    }

    /// Deallocate the one [`DatasetRange`] at `list`.
    pub fn deallocate(nsid: u32, list: u64) -> Command {
        Command::with(io::DATASET_MANAGEMENT, nsid, [0, Command::AD, 0]).at(list)
    }

    fn transfer(opcode: u8, nsid: u32, lba: u64, blocks: u32, flags: u32) -> Command {
        let count = blocks.saturating_sub(1) & 0xffff;
        Command::with(opcode, nsid, [lba as u32, (lba >> 32) as u32, flags | count])
    }
}

/// CDW10 of commands that create queues: a size that counts from 0, and the number.
fn sized(queue: u16, entries: u16) -> u32 {
    u32::from(entries.saturating_sub(1)) << 16 | u32::from(queue)
}

/// A completion queue entry (4.6).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct Completion {
    pub result: le::U32,
    pub reserved: le::U32,
    pub sq_head: le::U16,
    pub sq_id: le::U16,
    pub cid: le::U16,
    /// Phase in bit 0, status above.
    pub status: le::U16,
}

impl Completion {
    /// What became of the command.
    pub fn status(&self) -> Status {
        Status(self.status.get() >> 1)
    }
}

/// A scatter gather list descriptor (4.4).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct SglDescriptor {
    pub address: le::U64,
    pub length: le::U32,
    pub reserved: [u8; 3],
    /// Type in bits 7:4, subtype in bits 3:0.
    pub kind: u8,
}

impl SglDescriptor {
    /// Type: data.
    pub const DATA: u8 = 0x00;
    /// Type: more descriptors, among which another such may be the last.
    pub const SEGMENT: u8 = 0x20;
    /// Type: the last descriptors.
    pub const LAST_SEGMENT: u8 = 0x30;
}

/// A range of dataset management (NVM Command Set 1.0, 3.2.3).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct DatasetRange {
    pub attributes: le::U32,
    pub blocks: le::U32,
    pub lba: le::U64,
}

const _: () = {
    assert!(size_of::<Command>() == 64);
    assert!(size_of::<Completion>() == 16);
    assert!(size_of::<SglDescriptor>() == 16);
    assert!(size_of::<DatasetRange>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: Command) -> [u32; 3] {
        [command.cdw10, command.cdw11, command.cdw12].map(le::U32::get)
    }

    #[test]
    fn entries_have_the_sizes_and_places_of_the_specification() {
        assert_eq!((size_of::<Command>(), size_of::<Completion>(), size_of::<DatasetRange>()), (64, 16, 16));
        assert_eq!(std::mem::offset_of!(Command, dptr), 24);
        assert_eq!(std::mem::offset_of!(Command, cdw10), 40);
        assert_eq!(words(Command::write(1, 0x1_0000_0002, 8, true)), [2, 1, 1 << 30 | 7]);
        assert_eq!(words(Command::create_cq(3, 256, 0x1000, Some(2)))[..2], [255 << 16 | 3, 2 << 16 | 3]);
        assert_eq!(words(Command::create_sq(3, 256, 0x1000))[..2], [255 << 16 | 3, 3 << 16 | 1]);
        assert_eq!(words(Command::set_queues(4))[..2], [7, 0x0003_0003]);
    }
}
