//! DATA SET MANAGEMENT: TRIM (ACS-3, 7.5), by itself and queued (SEND FPDMA QUEUED, 7.47).

use disk::{Access, SectorRange, Sectors};

use super::identify::MOST_TRIM_BLOCKS;
use super::{Action, Change, CommandFis, HardDisk, Protocol, Taskfile, error};
use crate::scratch::SCRATCH;

/// The features register's bit for TRIM.
const TRIM: u16 = 1;
/// The same in the auxiliary field of a queued command, whose upper half of the count says that it is one of these.
const QUEUED_TRIM: u32 = 1;
const DATA_SET_MANAGEMENT: u16 = 0;
const BLOCK: u64 = 512;
const ENTRY: usize = 8;

impl HardDisk {
    /// Whether there is anything to trim, and how many bytes say what.
    pub(super) fn begin_trim(&self, fis: &CommandFis) -> Result<Action, Taskfile> {
        self.trim_of(fis.features & 0xff == TRIM, fis.count, Protocol::Dma)
    }

    /// The same of a queued command: the blocks of ranges are counted where others have features, and the tag is
    /// where they have the count.
    pub(super) fn begin_queued_trim(&self, fis: &CommandFis, slot: u8) -> Result<Action, Taskfile> {
        if fis.count >> 3 & 0x1f != u16::from(slot) {
            return Err(Taskfile::aborted());
        }
        let known = fis.count >> 8 & 0x1f == DATA_SET_MANAGEMENT && fis.auxiliary & QUEUED_TRIM != 0;
        self.trim_of(known, fis.features, Protocol::Queued)
    }

    fn trim_of(&self, known: bool, blocks: u16, protocol: Protocol) -> Result<Action, Taskfile> {
        if !self.trims() || !known || !(1..=MOST_TRIM_BLOCKS).contains(&blocks) {
            return Err(Taskfile::aborted());
        }
        Ok(Action::Trim { bytes: u64::from(blocks) * BLOCK, protocol })
    }

    /// Whether there can be anything to trim.
    pub(super) fn trims(&self) -> bool {
        self.geometry.discard.is_some() && self.geometry.access == Access::ReadWrite
    }

    /// The ranges in `data`, checked, the last first; or the bits of the error register. Ranges that follow each
    /// other become one, for drivers have only 16 bits for the length of each.
    pub fn trim(&self, data: &[u8]) -> Result<Vec<Change>, u8> {
        let end = self.blocks();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for entry in data.chunks_exact(ENTRY) {
            let entry = entry.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
            let (first, count) = (entry & 0xffff_ffff_ffff, entry >> 48);
            if count == 0 {
                continue;
            }
            if first + count > end {
                return Err(error::NOT_FOUND);
            }
            match ranges.last_mut() {
                Some((start, len)) if *start + *len == first => *len += count,
                _ => ranges.push((first, count)),
            }
        }
        let sectors = u64::from(self.geometry.logical_block) / Sectors::SIZE;
        let range = |(first, count)| {
            Change::Discard(SectorRange { start: Sectors(first * sectors), count: Sectors(count * sectors) })
        };
        Ok(ranges.into_iter().rev().map(range).collect())
    }

    /// The next thing to do of `rest`, whose last comes first, in pieces as long as the disk takes them.
    pub fn next_change(&self, rest: &mut Vec<Change>) -> Option<Change> {
        let change = rest.pop()?;
        let (part, range, max): (fn(SectorRange) -> Change, _, _) = match (change, self.geometry.discard) {
            (Change::Discard(range), Some(discard)) => (Change::Discard, range, discard.max),
            (Change::Verify(range), _) => (Change::Verify, range, Sectors::in_bytes(SCRATCH)),
            _ => return Some(change),
        };
        let block = u64::from(self.geometry.logical_block) / Sectors::SIZE;
        let most = (max.0 - max.0 % block).max(block);
        if range.count.0 <= most {
            return Some(change);
        }
        let (start, count) = (Sectors(range.start.0 + most), Sectors(range.count.0 - most));
        rest.push(part(SectorRange { start, count }));
        Some(part(SectorRange { start: range.start, count: Sectors(most) }))
    }
}
