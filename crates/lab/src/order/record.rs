//! Records: where they lie, how long they are, and what is in them.

/// Bytes of a sector: as much as a disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// Bytes of a place; records fill all or a part of it.
pub const SLOT: usize = 16 << 10;

/// Most places: then the writer goes round often.
const MOST_SLOTS: u64 = 1024;

/// Fewer places would be under way at once more than once.
const LEAST_SLOTS: u64 = 64;

/// Records that are written before a flush, at most.
const LONGEST_BATCH: u64 = 16;

const MAGIC: &[u8; 8] = b"in order";
const HEADER: usize = 40;

/// splitmix64: a well mixed number from a number.
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Where the records of a run go. Records are numbered from 1 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    run: u64,
    slots: u64,
}

/// What a sector is found to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing of this run.
    Other,
    /// A mixture, which no disk leaves.
    Torn,
    /// A sector of a record.
    Record {
        /// The record's number.
        number: u64,
        /// How far the disk was known to be flushed when it was written.
        flushed: u64,
        /// Which of its sectors.
        index: usize,
    },
}

impl Plan {
    /// A plan for a disk of so many bytes; `None` if it has less than 1 MiB. Records of other runs are not mistaken for
    /// those of this one.
    pub fn new(run: u64, disk: u64) -> Option<Plan> {
        let slots = (disk / SLOT as u64).min(MOST_SLOTS);
        (slots >= LEAST_SLOTS).then(|| Plan { run, slots: 1 << slots.ilog2() })
    }

    /// How many places there are, a power of two.
    pub fn slots(&self) -> u64 {
        self.slots
    }

    /// The place of a record. Records that follow each other do not lie beside each other.
    pub fn slot(&self, number: u64) -> u64 {
        // With an odd factor, all places are used before one is used again.
        number.wrapping_mul(37) & (self.slots - 1)
    }

    /// Where a record begins, in bytes.
    pub fn offset(&self, number: u64) -> u64 {
        self.slot(number) * SLOT as u64
    }

    /// Bytes of a record: 4, 8 or 16 KiB.
    pub fn length(&self, number: u64) -> usize {
        4096 << (mix(self.run ^ mix(number)) % 3)
    }

    /// How many records the writer flushes together, the first of which is `first`.
    pub fn batch(&self, first: u64) -> u64 {
        1 + mix(self.run.wrapping_add(first)) % LONGEST_BATCH
    }

    /// Writes a record into `room`, which has its length. `flushed` is the last record known to be flushed.
    pub fn fill(&self, number: u64, flushed: u64, room: &mut [u8]) {
        for (index, sector) in room.chunks_exact_mut(SECTOR).enumerate() {
            self.fill_sector(number, flushed, index, sector);
        }
    }

    fn fill_sector(&self, number: u64, flushed: u64, index: usize, sector: &mut [u8]) {
        let (header, rest) = sector.split_at_mut(HEADER);
        header[..8].copy_from_slice(MAGIC);
        for (field, value) in header[8..].chunks_exact_mut(8).zip([self.run, number, flushed, index as u64]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        let mut word = mix(self.run ^ mix(number ^ mix(flushed ^ mix(index as u64))));
        for bytes in rest.chunks_mut(8) {
            word = mix(word);
            bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        }
    }

    /// What a sector holds.
    pub(super) fn read(&self, sector: &[u8]) -> Found {
        let field = |n: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&sector[8 * n..8 * n + 8]);
            u64::from_le_bytes(bytes)
        };
        if &sector[..8] != MAGIC || field(1) != self.run {
            return Found::Other;
        }
        let (number, flushed, index) = (field(2), field(3), field(4));
        let Ok(index) = usize::try_from(index) else { return Found::Torn };
        // All of it follows from the header.
        let mut expected = [0; SECTOR];
        self.fill_sector(number, flushed, index, &mut expected);
        if sector == expected { Found::Record { number, flushed, index } } else { Found::Torn }
    }

    /// The newest record up to `last` that had to be written to this sector of this place.
    pub(super) fn newest(&self, slot: u64, index: usize, last: u64) -> Option<u64> {
        let behind = (last.wrapping_sub(self.first(slot))) & (self.slots - 1);
        let mut number = last.checked_sub(behind)?;
        while number > 0 {
            if self.length(number) > index * SECTOR {
                return Some(number);
            }
            number = number.checked_sub(self.slots)?;
        }
        None
    }

    /// The number modulo the places whose place this is.
    fn first(&self, slot: u64) -> u64 {
        // The factor's inverse modulo 2^64, by Newton's method: each step doubles the bits that are right.
        let inverse = (0..6).fold(37u64, |x, _| x.wrapping_mul(2u64.wrapping_sub(37u64.wrapping_mul(x))));
        slot.wrapping_mul(inverse) & (self.slots - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_used_before_one_is_used_again() {
        let plan = Plan::new(7, 4 << 20).unwrap();
        let mut used: Vec<u64> = (1..=plan.slots()).map(|number| plan.slot(number)).collect();
        used.sort_unstable();
        assert!(used.into_iter().eq(0..256));
        assert_eq!(Plan::new(7, 1 << 19), None);
    }

    #[test]
    fn the_newest_record_of_a_sector_is_the_last_that_was_long_enough() {
        let plan = Plan::new(3, 1 << 20).unwrap();
        for last in [0, 1, 63, 64, 65, 1000, 5000] {
            for slot in 0..plan.slots() {
                for index in [0, 8, 16, 31] {
                    let by_search = (1..=last)
                        .rev()
                        .find(|number| plan.slot(*number) == slot && plan.length(*number) > index * SECTOR);
                    assert_eq!(plan.newest(slot, index, last), by_search, "{slot} {index} {last}");
                }
            }
        }
    }

    #[test]
    fn a_sector_with_one_other_byte_is_torn() {
        let plan = Plan::new(3, 1 << 20).unwrap();
        let mut record = vec![0; plan.length(9)];
        plan.fill(9, 4, &mut record);
        let second = &mut record[SECTOR..][..SECTOR];
        assert_eq!(plan.read(second), Found::Record { number: 9, flushed: 4, index: 1 });
        second[511] ^= 1;
        assert_eq!(plan.read(second), Found::Torn);
        second[0] ^= 1;
        assert_eq!(plan.read(second), Found::Other);
    }
}
