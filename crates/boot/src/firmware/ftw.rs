//! A clean-up of variables that was interrupted. EDK II, MdeModulePkg: Universal/FaultTolerantWriteDxe and
//! Include/Guid/FaultTolerantWrite.h.
//!
//! The volume of variables has two halves of the same length. In the first are the variables, and at its end the working block,
//! a log of writes. What is to be in the first half is written to the second, the spare, and then from there to the first. Bits
//! of the log are cleared as that goes on.
//!
//! OVMF without SMM finishes that only after it has read the variables: at that start it finds some of them torn. So it must be
//! finished before.

use std::borrow::Cow;
use std::ops::Range;

use super::volume::BLOCK;

/// EFI_FAULT_TOLERANT_WORKING_BLOCK_HEADER: EDKII_WORKING_BLOCK_SIGNATURE_GUID, the sum of the header, WorkingBlockValid (that bit
/// is clear), and how many bytes of writes follow. All that are so long have the same one.
const HEADER: [u8; 32] = [
    0x2b, 0x29, 0x58, 0x9e, 0x68, 0x7c, 0x7d, 0x49, 0xa0, 0xce, 0x65, 0x00, 0xfd, 0x9f, 0x1b, 0x95, //
    0x2c, 0xaf, 0x2c, 0x64, 0xfe, 0xff, 0xff, 0xff, 0xe0, 0x0f, 0, 0, 0, 0, 0, 0,
];
/// The lengths of EFI_FAULT_TOLERANT_WRITE_HEADER, which a write begins with, and of each EFI_FAULT_TOLERANT_WRITE_RECORD in it.
const WRITE: usize = 40;
const RECORD: usize = 40;
/// Where a write's header has the number of records, and how much of its writer's own follows each of them.
const RECORDS_AT: usize = 24;
const PRIVATE_AT: usize = 32;
/// Where a record has its first block, where in that the write begins, and how long it is.
const LBA_AT: usize = 8;
const OFFSET_AT: usize = 16;
const LEN_AT: usize = 24;
/// Bits of a write's first byte, and of a record's. They hold once they are clear.
const ALLOCATED: u8 = 1 << 0;
const COMPLETE: u8 = 1 << 2;
const SPARE_COMPLETE: u8 = 1 << 1;
const DESTINATION_COMPLETE: u8 = 1 << 2;

/// A write whose spare is whole, and whose destination perhaps is not.
#[derive(Debug, PartialEq, Eq)]
struct Interrupted {
    /// Where the spare begins in the file.
    spare: usize,
    /// What it is copied to, from its beginning on.
    destination: Range<usize>,
    /// Where the log has the first bytes of the record, and of the write if that is its last one.
    record: usize,
    write: Option<usize>,
}

/// The write that was interrupted in a store with this file's bytes. The working block has one place, for what a guest writes into
/// a variable may look like one. The volume's header may be what is torn, so the length is the file's.
fn interrupted(file: &[u8]) -> Option<Interrupted> {
    let half = file.len() / 2;
    let first = file.get(..half)?;
    let working = half.checked_sub(BLOCK)?;
    if !first[working..].starts_with(&HEADER) {
        return None;
    }
    let mut write = working + HEADER.len();
    while holds(first.get(write..)?, ALLOCATED) {
        let [records, private] = [RECORDS_AT, PRIVATE_AT].map(|at| number(first, write, at));
        let (records, len) = (records?, RECORD.checked_add(private?)?);
        if !holds(&first[write..], COMPLETE) {
            let mut all = (write + WRITE..half).step_by(len).take(records).enumerate();
            let (index, record) = all.find(|(_, at)| {
                holds(&first[*at..], SPARE_COMPLETE) && !holds(&first[*at..], DESTINATION_COMPLETE)
            })?;
            let [lba, offset, len] = [LBA_AT, OFFSET_AT, LEN_AT].map(|at| number(first, record, at));
            let start = lba?.checked_mul(BLOCK)?;
            let len = offset?.checked_add(len?)?.checked_next_multiple_of(BLOCK)?;
            let destination = start..start.checked_add(len)?;
            let fits = destination.end <= working && half.checked_add(len)? <= file.len();
            let write = (index + 1 == records).then_some(write);
            return fits.then_some(Interrupted { spare: half, destination, record, write });
        }
        write = records.checked_mul(len)?.checked_add(WRITE)?.checked_add(write)?;
    }
    None
}

/// The file's bytes once what was interrupted is finished.
pub(super) fn finished(file: &[u8]) -> Cow<'_, [u8]> {
    let mut bytes = Cow::Borrowed(file);
    for (at, part) in unfinished(file) {
        bytes.to_mut()[at as usize..][..part.len()].copy_from_slice(&part);
    }
    bytes
}

/// The writes that finish what the firmware was interrupted in, as it would: where in the file, and what. Each must last before
/// the next. None if it was not interrupted.
pub fn unfinished(file: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let Some(Interrupted { spare, destination, record, write }) = interrupted(file) else {
        return Vec::new();
    };
    let copy = file[spare..spare + destination.len()].to_vec();
    let marks = [Some((record, DESTINATION_COMPLETE)), write.map(|write| (write, COMPLETE))];
    let marks = marks.into_iter().flatten().map(|(at, bit)| (at as u64, vec![file[at] & !bit]));
    [(destination.start as u64, copy)].into_iter().chain(marks).collect()
}

fn holds(bytes: &[u8], bit: u8) -> bool {
    bytes.first().is_some_and(|byte| byte & bit == 0)
}

fn number(bytes: &[u8], base: usize, at: usize) -> Option<usize> {
    let field = bytes.get(base.checked_add(at)?..)?.first_chunk()?;
    usize::try_from(u64::from_le_bytes(*field)).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::volume::tests::head;
    use super::*;

    const HALF: usize = 4 * BLOCK;

    /// A volume with a log of these writes: their first bytes, and those of their records.
    fn volume(writes: &[(u8, &[u8])]) -> Vec<u8> {
        let mut file = head(true, 2 * HALF as u64);
        file.resize(2 * HALF, 0xff);
        let mut log = HEADER.to_vec();
        for (state, records) in writes {
            log.push(*state);
            log.extend([0xff; RECORDS_AT - 1]);
            log.extend((records.len() as u64).to_le_bytes());
            log.extend(8u64.to_le_bytes());
            for record in *records {
                log.push(*record);
                log.extend([0xff; LBA_AT - 1]);
                // All but the beginning of its first two blocks.
                log.extend([0, 72, 2 * BLOCK as u64 - 72, u64::MAX].map(u64::to_le_bytes).as_flattened());
                log.extend([0xff; 8]);
            }
        }
        file[HALF - BLOCK..][..log.len()].copy_from_slice(&log);
        file
    }

    /// A file of two such halves, the clean-up of which was interrupted.
    pub fn torn(first: &[u8], spare: &[u8]) -> Vec<u8> {
        let mut file = volume(&[(0xfc, &[0xfd])]);
        let store = 2 * BLOCK;
        file[72..store].copy_from_slice(&first[72..store]);
        file[HALF..HALF + store].copy_from_slice(&spare[..store]);
        file
    }

    #[test]
    fn the_firmware_goes_on_from_the_spare_when_that_is_whole_and_the_destination_is_not() {
        // The bytes are those that OVMF leaves at each of these moments.
        for (writes, goes_on) in [
            (&[][..], false),
            (&[(0xff, &[][..])], false),
            (&[(0xfc, &[0xff])], false),
            (&[(0xfc, &[0xfd])], true),
            (&[(0xfc, &[0xf9])], false),
            (&[(0xf8, &[0xf9])], false),
            (&[(0xf8, &[0xf9]), (0xfc, &[0xfd])], true),
            (&[(0xf8, &[0xf9]), (0xfc, &[0xff])], false),
            (&[(0xfc, &[0xf9, 0xfd])], true),
        ] {
            let spare = interrupted(&volume(writes)).map(|found| found.spare);
            assert_eq!(spare, goes_on.then_some(HALF), "{writes:x?}");
        }
    }

    #[test]
    fn what_was_interrupted_is_finished_by_the_copy_and_the_marks_and_then_nothing_is_left() {
        let (old, new) = (volume(&[]), volume(&[]));
        let [mut old, mut new] = [old, new].map(|file| file[..2 * BLOCK].to_vec());
        old[100..200].fill(1);
        new[100..2 * BLOCK].fill(2);
        let mut file = torn(&old, &new);
        let writes = unfinished(&file);
        assert_eq!(writes.len(), 3);
        for (at, bytes) in writes {
            file[at as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        assert_eq!(file[..2 * BLOCK], new);
        let log = &file[HALF - BLOCK + HEADER.len()..];
        assert_eq!((log[0], log[WRITE]), (0xf8, 0xf9));
        assert_eq!(unfinished(&file), []);
    }

    #[test]
    fn it_is_finished_also_where_the_first_block_is_still_erased() {
        let mut file = volume(&[(0xfc, &[0xfd])]);
        let whole = file.clone();
        file[HALF..][..2 * BLOCK].copy_from_slice(&whole[..2 * BLOCK]);
        file[..BLOCK].fill(0xff);
        assert_eq!(finished(&file)[..2 * BLOCK], whole[..2 * BLOCK]);
    }

    #[test]
    fn a_log_that_a_guest_wrote_into_a_variable_is_none_nor_is_one_whose_header_is_no_longer_valid() {
        let torn = volume(&[(0xfc, &[0xfd])]);
        let log = torn[HALF - BLOCK..HALF].to_vec();
        for at in [BLOCK, HALF - 2 * BLOCK] {
            let mut file = volume(&[]);
            file[at..at + BLOCK].copy_from_slice(&log);
            assert_eq!(unfinished(&file), [], "at {at}");
        }
        let mut invalid = torn;
        invalid[HALF - BLOCK + 20] = 0xfc;
        assert_eq!(unfinished(&invalid), []);
    }

    proptest! {
        #[test]
        fn no_log_makes_it_panic(log: Vec<u8>, numbers: [u64; 2]) {
            let mut file = volume(&[(0xf8, &[0xf9]), (0xfc, &[0xfd])]);
            let at = HALF - BLOCK + HEADER.len();
            file[at + RECORDS_AT..][..8].copy_from_slice(&numbers[0].to_le_bytes());
            file[at + PRIVATE_AT..][..8].copy_from_slice(&numbers[1].to_le_bytes());
            unfinished(&file);
            let len = log.len().min(BLOCK - HEADER.len());
            file[at..at + len].copy_from_slice(&log[..len]);
            unfinished(&file);
            unfinished(&log);
        }
    }
}
