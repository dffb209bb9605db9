//! Entries of submission and completion queues (Base 1.4, 4.2 and 4.6).

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::status::Status;
use crate::request::Unmap;

/// Opcodes of admin commands.
pub mod admin {
    /// Delete I/O submission queue.
    pub const DELETE_SQ: u8 = 0x00;
    /// Create I/O submission queue.
    pub const CREATE_SQ: u8 = 0x01;
    /// Delete I/O completion queue.
    pub const DELETE_CQ: u8 = 0x04;
    /// Create I/O completion queue.
    pub const CREATE_CQ: u8 = 0x05;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get features.
    pub const GET_FEATURES: u8 = 0x0a;
}

/// Opcodes of I/O commands.
pub mod io {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Write zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset management; used for deallocation.
    pub const DATASET: u8 = 0x09;
}

/// Feature: volatile write cache.
const WRITE_CACHE: u32 = 0x06;
/// Feature: number of queues.
const QUEUES: u32 = 0x07;

/// Force unit access (CDW12).
const FUA: u32 = 1 << 30;
/// The zeroed range may be deallocated (CDW12, DEAC).
const DEALLOCATE_ZEROED: u32 = 1 << 25;
/// The ranges are to be deallocated (CDW11 of dataset management, AD).
const DEALLOCATE: u32 = 1 << 2;

/// An entry of a submission queue.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Command {
    /// What to do.
    pub opcode: u8,
    /// 0: PRPs, not fused.
    pub flags: u8,
    /// Comes back with the completion.
    pub id: u16,
    /// The namespace.
    pub namespace: u32,
    /// Command dwords 2 and 3.
    pub reserved: [u32; 2],
    /// Where metadata is; unused.
    pub metadata: u64,
    /// First PRP entry: where the data begins.
    pub prp1: u64,
    /// Second page of the data, or a list of its pages.
    pub prp2: u64,
    /// Command dwords 10 to 15.
    pub words: [u32; 6],
}

impl Command {
    fn admin(opcode: u8, words: [u32; 6]) -> Command {
        Command { opcode, words, ..Command::default() }
    }

    /// Identify: data structure `which` (CNS), about a namespace or 0, into a page at `page`.
    pub fn identify(which: u8, namespace: u32, page: u64) -> Command {
        let command = Command::admin(admin::IDENTIFY, [u32::from(which), 0, 0, 0, 0, 0]);
        Command { namespace, prp1: page, ..command }
    }

    /// Set features: so many I/O queue pairs.
    pub fn set_queues(pairs: u16) -> Command {
        let count = u32::from(pairs.saturating_sub(1));
        Command::admin(admin::SET_FEATURES, [QUEUES, count << 16 | count, 0, 0, 0, 0])
    }

    /// Get features: whether the volatile write cache is on.
    pub fn get_write_cache() -> Command {
        Command::admin(admin::GET_FEATURES, [WRITE_CACHE, 0, 0, 0, 0, 0])
    }

    /// Create a completion queue of so many entries; without a vector it raises no interrupts.
    pub fn create_cq(queue: u16, entries: u16, at: u64, vector: Option<u16>) -> Command {
        let words = [sized(queue, entries), vector.map_or(1, |vector| u32::from(vector) << 16 | 3)];
        Command { prp1: at, ..Command::admin(admin::CREATE_CQ, [words[0], words[1], 0, 0, 0, 0]) }
    }

    /// Create a submission queue that completes to the completion queue of the same number.
    pub fn create_sq(queue: u16, entries: u16, at: u64) -> Command {
        let words = [sized(queue, entries), u32::from(queue) << 16 | 1, 0, 0, 0, 0];
        Command { prp1: at, ..Command::admin(admin::CREATE_SQ, words) }
    }

    /// Delete a completion queue.
    pub fn delete_cq(queue: u16) -> Command {
        Command::admin(admin::DELETE_CQ, [u32::from(queue), 0, 0, 0, 0, 0])
    }

    /// Delete a submission queue.
    pub fn delete_sq(queue: u16) -> Command {
        Command::admin(admin::DELETE_SQ, [u32::from(queue), 0, 0, 0, 0, 0])
    }

    /// Abort command `id` of a submission queue.
    pub fn abort(queue: u16, id: u16) -> Command {
        Command::admin(admin::ABORT, [u32::from(id) << 16 | u32::from(queue), 0, 0, 0, 0, 0])
    }

    /// Read `blocks` (at least one) logical blocks from block `at`.
    pub fn read(namespace: u32, at: u64, blocks: u32) -> Command {
        Command::blocks(io::READ, namespace, at, blocks, 0)
    }

    /// Write `blocks` (at least one) logical blocks from block `at`.
    pub fn write(namespace: u32, at: u64, blocks: u32, stable: bool) -> Command {
        Command::blocks(io::WRITE, namespace, at, blocks, if stable { FUA } else { 0 })
    }

    /// Write zeroes to `blocks` (1 to 65536) logical blocks from block `at`.
    pub fn write_zeroes(namespace: u32, at: u64, blocks: u32, unmap: Unmap) -> Command {
        let flags = if unmap == Unmap::Allowed { DEALLOCATE_ZEROED } else { 0 };
        Command::blocks(io::WRITE_ZEROES, namespace, at, blocks, flags)
    }

    /// Flush.
    pub fn flush(namespace: u32) -> Command {
        Command { opcode: io::FLUSH, namespace, ..Command::default() }
    }

    /// Deallocate the one [`DeallocateRange`] at `list`.
    pub fn deallocate(namespace: u32, list: u64) -> Command {
        let words = [0, DEALLOCATE, 0, 0, 0, 0];
        Command { opcode: io::DATASET, namespace, prp1: list, words, ..Command::default() }
    }

    fn blocks(opcode: u8, namespace: u32, at: u64, blocks: u32, flags: u32) -> Command {
        let count = blocks.saturating_sub(1) & 0xffff;
        let words = [at as u32, (at >> 32) as u32, flags | count, 0, 0, 0];
        Command { opcode, namespace, words, ..Command::default() }
    }
}

/// CDW10 of commands that create queues: a size that counts from 0, and the number.
fn sized(queue: u16, entries: u16) -> u32 {
    u32::from(entries.saturating_sub(1)) << 16 | u32::from(queue)
}

/// A range of a dataset management command (NVM Command Set 1.0, 3.2.3).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DeallocateRange {
    /// Hints; none.
    pub attributes: u32,
    /// Logical blocks.
    pub blocks: u32,
    /// The first.
    pub at: u64,
}

/// An entry of a completion queue.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Completion {
    /// Specific to the command.
    pub result: u32,
    /// Reserved.
    pub reserved: u32,
    /// How far the submission queue was read.
    pub sq_head: u16,
    /// Which submission queue.
    pub sq_id: u16,
    /// The command's own.
    pub id: u16,
    /// Phase tag (bit 0) and status.
    pub status: u16,
}

impl Completion {
    /// What became of the command.
    pub fn status(&self) -> Status {
        Status(self.status >> 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_sizes_and_places_of_the_specification() {
        assert_eq!(
            (size_of::<Command>(), size_of::<Completion>(), size_of::<DeallocateRange>()),
            (64, 16, 16)
        );
        assert_eq!(std::mem::offset_of!(Command, prp1), 24);
        assert_eq!(std::mem::offset_of!(Command, words), 40);
        let write = Command::write(1, 0x1_0000_0002, 8, true);
        assert_eq!(write.words[..3], [2, 1, 1 << 30 | 7]);
        assert_eq!(Command::create_cq(3, 256, 0x1000, Some(2)).words[..2], [255 << 16 | 3, 2 << 16 | 3]);
        assert_eq!(Command::create_sq(3, 256, 0x1000).words[..2], [255 << 16 | 3, 3 << 16 | 1]);
        assert_eq!(Command::set_queues(4).words[..2], [7, 0x0003_0003]);
    }
}
