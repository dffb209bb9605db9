//! Small sectors on a disk of large ones.
//!
//! What is made of whole blocks of the disk goes there as it is. The rest is copied: a read takes the blocks around
//! it, a write reads its first and last block, changes them and writes all back. While that happens no other write
//! may come to these blocks, whichever queue it is from; so writes claim the blocks they touch.

use std::sync::Arc;

use memory::Buffers;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::contract::{Bounced, Discard, DiskError, Durability, Geometry, Operation, SectorRange, Sectors};
use crate::kernel::{Handle, Scratch};
use crate::threads::{Direct, Moved, Work};

/// A copied request goes through memory of this size, however long it is; a multiple of any block.
const STEP: u64 = 256 << 10;

/// A disk whose guest sees smaller blocks.
pub(crate) struct Emulation {
    handle: Arc<Handle>,
    /// Sectors in a block of the disk.
    block: u64,
    claims: Mutex<Claims>,
    given_back: Condvar,
}

/// Who writes where. There are as many as requests that write, so few.
#[derive(Default)]
struct Claims {
    blocks: Vec<(u64, SectorRange)>,
    next: u64,
}

impl Claims {
    fn add(&mut self, range: SectorRange) -> Option<u64> {
        let overlaps = |other: &SectorRange| {
            other.start.0 < range.start.0 + range.count.0 && range.start.0 < other.start.0 + other.count.0
        };
        if self.blocks.iter().any(|(_, other)| overlaps(other)) {
            return None;
        }
        self.next += 1;
        self.blocks.push((self.next, range));
        Some(self.next)
    }
}

/// Claimed blocks, given back when dropped.
struct Claimed<'a> {
    emulation: &'a Emulation,
    ticket: u64,
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.emulation.give_back(self.ticket);
    }
}

impl Emulation {
    /// The disk with blocks of `logical` bytes, and what it is then.
    pub(crate) fn over(handle: Arc<Handle>, geometry: Geometry, logical: u32) -> (Emulation, Geometry) {
        let block = u64::from(geometry.logical_block) / Sectors::SIZE;
        let emulation = Emulation { handle, block, claims: Mutex::default(), given_back: Condvar::new() };
        let discard = geometry.discard.map(|discard| Discard {
            granularity: discard.granularity.max(geometry.logical_block),
            ..discard
        });
        (emulation, Geometry { logical_block: logical, discard, ..geometry })
    }

    fn lock(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock()
    }

    fn give_back(&self, ticket: u64) {
        self.lock().blocks.retain(|(other, _)| *other != ticket);
        self.given_back.notify_all();
    }

    /// Waits until nobody else writes to the blocks around a range.
    fn claim(&self, range: SectorRange) -> Claimed<'_> {
        let range = self.around(range);
        let mut claims = self.lock();
        loop {
            if let Some(ticket) = claims.add(range) {
                return Claimed { emulation: self, ticket };
            }
            self.given_back.wait(&mut claims);
        }
    }

    /// The blocks that a range touches.
    fn around(&self, range: SectorRange) -> SectorRange {
        let start = range.start.0 - range.start.0 % self.block;
        let end = (range.start.0 + range.count.0).next_multiple_of(self.block);
        SectorRange { start: Sectors(start), count: Sectors(end - start) }
    }

    /// The whole blocks inside a range, if there are any.
    fn inside(&self, range: SectorRange) -> Option<SectorRange> {
        let start = range.start.0.next_multiple_of(self.block);
        let end = range.start.0 + range.count.0;
        let end = end - end % self.block;
        (start < end).then(|| SectorRange { start: Sectors(start), count: Sectors(end - start) })
    }

    fn is_whole(&self, range: SectorRange) -> bool {
        self.around(range) == range
    }

    fn read(&self, range: SectorRange, buffers: &Buffers, tally: &mut Moved) -> Result<(), DiskError> {
        self.in_steps(range, |part, from, scratch| {
            let blocks = self.around(part);
            let bytes = scratch.read(&self.handle, blocks)?;
            let skip = (part.start.0 - blocks.start.0) * Sectors::SIZE;
            let len = part.count.0 * Sectors::SIZE;
            buffers.write_at(from, &bytes[skip as usize..][..len as usize]);
            tally.moved(len, Some(Bounced::SectorEmulation));
            Ok(())
        })
    }

    /// `bytes` fills what lies `from` bytes behind the start of the range.
    fn write(
        &self,
        range: SectorRange,
        durability: Durability,
        mut bytes: impl FnMut(u64, &mut [u8]),
        tally: &mut Moved,
    ) -> Result<(), DiskError> {
        self.in_steps(range, |part, from, scratch| {
            let blocks = self.around(part);
            if blocks != part {
                scratch.read(&self.handle, blocks)?;
                tally.read_modify_write();
            }
            let skip = (part.start.0 - blocks.start.0) * Sectors::SIZE;
            let len = part.count.0 * Sectors::SIZE;
            bytes(from, &mut scratch.bytes_mut()[skip as usize..][..len as usize]);
            scratch.write(&self.handle, blocks, durability)?;
            tally.moved(len, Some(Bounced::SectorEmulation));
            Ok(())
        })
    }

    fn in_steps(
        &self,
        range: SectorRange,
        mut each: impl FnMut(SectorRange, u64, &mut Scratch) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        // What a step's blocks are more than its sectors fits, too.
        let mut scratch = Scratch::new(STEP as usize);
        let most = STEP / Sectors::SIZE - self.block;
        let (mut at, end) = (range.start.0, range.start.0 + range.count.0);
        while at < end {
            let next = if end - at <= most { end } else { (at + most) - (at + most) % self.block };
            let part = SectorRange { start: Sectors(at), count: Sectors(next - at) };
            each(part, (at - range.start.0) * Sectors::SIZE, &mut scratch)?;
            at = next;
        }
        Ok(())
    }

    fn touched(operation: Operation, bytes: u64) -> Option<SectorRange> {
        match operation {
            Operation::Read { at } | Operation::Write { at, .. } => {
                Some(SectorRange { start: at, count: Sectors::in_bytes(bytes) })
            }
            Operation::Discard(range) | Operation::WriteZeroes(range, _) => Some(range),
            Operation::Flush => None,
        }
    }
}

impl Work for Emulation {
    fn execute(&self, operation: Operation, buffers: &Buffers, tally: &mut Moved) -> Result<(), DiskError> {
        let Some(range) = Emulation::touched(operation, buffers.bytes()) else { return self.handle.flush() };
        match operation {
            Operation::Read { .. } => self.read(range, buffers, tally),
            Operation::Write { durability, .. } => {
                let _claimed = self.claim(range);
                let bytes = |from, to: &mut [u8]| {
                    buffers.read_at(from, to);
                };
                self.write(range, durability, bytes, tally)
            }
            Operation::Discard(range) => {
                let _claimed = self.claim(range);
                // Less than a block is nothing that the disk could forget.
                match self.inside(range) {
                    Some(whole) => self.handle.change_range(Operation::Discard(whole), whole),
                    None => Ok(()),
                }
            }
            Operation::WriteZeroes(range, unmap) => {
                let _claimed = self.claim(range);
                let zeroes = |_, to: &mut [u8]| to.fill(0);
                let part =
                    |from: Sectors, to: Sectors| SectorRange { start: from, count: Sectors(to.0 - from.0) };
                let end = Sectors(range.start.0 + range.count.0);
                let mut ignored = Moved::default();
                let Some(whole) = self.inside(range) else {
                    return self.write(range, Durability::Cached, zeroes, tally);
                };
                let whole_end = Sectors(whole.start.0 + whole.count.0);
                self.handle.change_range(Operation::WriteZeroes(whole, unmap), whole)?;
                for rest in [part(range.start, whole.start), part(whole_end, end)] {
                    if rest.count.0 > 0 {
                        self.write(rest, Durability::Cached, zeroes, &mut ignored)?;
                        tally.read_modify_write();
                    }
                }
                Ok(())
            }
            Operation::Flush => self.handle.flush(),
        }
    }

    fn direct(&self, operation: Operation, bytes: u64) -> Option<Direct> {
        let range = Emulation::touched(operation, bytes)?;
        if !self.is_whole(range) {
            return None;
        }
        match operation {
            Operation::Read { at } => Some(Direct { file: 0, at, ticket: 0 }),
            Operation::Write { at, .. } => {
                self.lock().add(range).map(|ticket| Direct { file: 0, at, ticket })
            }
            _ => None,
        }
    }

    fn ended(&self, direct: &Direct) {
        if direct.ticket != 0 {
            self.give_back(direct.ticket);
        }
    }
}
