//! Where a command's data lies: PRPs (4.3) and scatter gather lists (4.4), read once and made into buffers.

use memory::{Buffers, Gpa, OutsideRam, Ram};
use zerocopy::{FromZeros, IntoBytes, little_endian as le};

use super::spec::{Command, PAGE, SglDescriptor, Status};

/// Longest transfer of one command in bytes (MDTS), and as a power of two of pages.
pub(super) const MAX_TRANSFER: u64 = 2 << 20;
pub(super) const MDTS: u8 = (MAX_TRANSFER / PAGE).ilog2() as u8;

/// Entries in a page of a PRP list.
const LIST: usize = PAGE as usize / 8;
/// Descriptors that a command may have in all; a driver gets by with one for each page, of which there are 513 at most.
const MAX_DESCRIPTORS: usize = 1024;
/// Segments that a command may have.
const MAX_SEGMENTS: usize = 256;
/// Descriptors read from a segment at once.
const BATCH: usize = 64;

/// Adds the `bytes` bytes of guest memory that the command describes to `buffers`, which are empty.
pub(super) fn gather(command: &Command, bytes: u64, ram: &Ram, buffers: &mut Buffers) -> Result<(), Status> {
    match command.flags >> 6 {
        0 => gather_prps(command.dptr[0].get(), command.dptr[1].get(), bytes, ram, buffers),
        // The two differ in where metadata is, of which there is none.
        1 | 2 => gather_sgl(command, bytes, ram, buffers),
        _ => Err(Status::INVALID_FIELD),
    }
}

fn outside(_: OutsideRam) -> Status {
    Status::DATA_TRANSFER_ERROR
}

/// Data by PRPs: a first entry that may start anywhere in its page, and either a second one or a list.
pub(super) fn gather_prps(
    first: u64,
    second: u64,
    bytes: u64,
    ram: &Ram,
    buffers: &mut Buffers,
) -> Result<(), Status> {
    if !first.is_multiple_of(4) {
        return Err(Status::PRP_OFFSET);
    }
    let len = bytes.min(PAGE - first % PAGE);
    buffers.push(Gpa(first), len).map_err(outside)?;
    match bytes - len {
        0 => Ok(()),
        left @ 1..=PAGE => gather_page(second, left, buffers),
        left => gather_list(second, left, ram, buffers),
    }
}

fn gather_page(entry: u64, len: u64, buffers: &mut Buffers) -> Result<(), Status> {
    if !entry.is_multiple_of(PAGE) {
        return Err(Status::PRP_OFFSET);
    }
    buffers.push(Gpa(entry), len).map_err(outside)
}

/// A list fills its page from where it starts; when that is too little, the last entry leads to the next page,
/// whose start it must be. So every page but the first holds 511 entries, and the walk ends.
fn gather_list(list: u64, mut left: u64, ram: &Ram, buffers: &mut Buffers) -> Result<(), Status> {
    if !list.is_multiple_of(8) {
        return Err(Status::PRP_OFFSET);
    }
    let mut at = list;
    loop {
        let room = ((PAGE - at % PAGE) / 8) as usize;
        let needed = left.div_ceil(PAGE) as usize;
        let goes_on = needed > room;
        let mut entries = [le::U64::ZERO; LIST];
        let entries = &mut entries[..needed.min(room)];
        ram.read(Gpa(at), entries.as_mut_bytes()).map_err(outside)?;
        let (pages, next) = match entries.split_last() {
            Some((next, pages)) if goes_on => (pages, Some(next.get())),
            _ => (&*entries, None),
        };
        for entry in pages {
            let len = left.min(PAGE);
            gather_page(entry.get(), len, buffers)?;
            left -= len;
        }
        match next {
            None => return Ok(()),
            Some(next) if next.is_multiple_of(PAGE) => at = next,
            Some(_) => return Err(Status::PRP_OFFSET),
        }
    }
}

/// Data by a scatter gather list, whose first descriptor is in the command.
fn gather_sgl(command: &Command, bytes: u64, ram: &Ram, buffers: &mut Buffers) -> Result<(), Status> {
    let mut first = SglDescriptor::new_zeroed();
    first.as_mut_bytes().copy_from_slice(command.dptr.as_bytes());
    let mut left = bytes;
    let mut segment = match first.kind {
        SglDescriptor::DATA => {
            take(&first, &mut left, buffers)?;
            return ended(left);
        }
        SglDescriptor::SEGMENT | SglDescriptor::LAST_SEGMENT => first,
        _ => return Err(Status::SGL_TYPE),
    };
    let mut count = 0;
    for _ in 0..MAX_SEGMENTS {
        let len = u64::from(segment.length.get());
        if len == 0 || !len.is_multiple_of(16) {
            return Err(Status::SGL_SEGMENT);
        }
        let descriptors = (len / 16) as usize;
        count += descriptors;
        if count > MAX_DESCRIPTORS {
            return Err(Status::SGL_COUNT);
        }
        let is_last = segment.kind == SglDescriptor::LAST_SEGMENT;
        let mut next = None;
        let mut batch = [SglDescriptor::default(); BATCH];
        for start in (0..descriptors).step_by(BATCH) {
            let batch = &mut batch[..BATCH.min(descriptors - start)];
            let at = Gpa(segment.address.get()).checked_add(start as u64 * 16);
            let at = at.ok_or(Status::DATA_TRANSFER_ERROR)?;
            ram.read(at, batch.as_mut_bytes()).map_err(outside)?;
            for (place, descriptor) in (start..).zip(batch.iter()) {
                match descriptor.kind {
                    SglDescriptor::DATA => take(descriptor, &mut left, buffers)?,
                    SglDescriptor::SEGMENT | SglDescriptor::LAST_SEGMENT
                        if !is_last && place + 1 == descriptors =>
                    {
                        next = Some(*descriptor);
                    }
                    SglDescriptor::SEGMENT | SglDescriptor::LAST_SEGMENT => return Err(Status::SGL_SEGMENT),
                    _ => return Err(Status::SGL_TYPE),
                }
            }
        }
        match next {
            Some(next) => segment = next,
            None if is_last => return ended(left),
            None => return Err(Status::SGL_SEGMENT),
        }
    }
    Err(Status::SGL_COUNT)
}

fn take(descriptor: &SglDescriptor, left: &mut u64, buffers: &mut Buffers) -> Result<(), Status> {
    let len = u64::from(descriptor.length.get());
    // Identify says that a list may not be longer than its data (SGLS, bit 18).
    *left = left.checked_sub(len).ok_or(Status::SGL_LENGTH)?;
    if len > 0 {
        buffers.push(Gpa(descriptor.address.get()), len).map_err(outside)?;
    }
    Ok(())
}

fn ended(left: u64) -> Result<(), Status> {
    if left == 0 { Ok(()) } else { Err(Status::SGL_LENGTH) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use memory::GpaRange;
    use proptest::prelude::*;

    use super::*;

    const RAM: u64 = 4 << 20;

    thread_local! {
        /// Made once for all cases of a test.
        static SHARED: Arc<Ram> = Arc::new(Ram::new(&[GpaRange::new(Gpa(0), RAM).unwrap()]).unwrap());
    }

    fn ram() -> Arc<Ram> {
        SHARED.with(Arc::clone)
    }

    /// The addresses of all pages that the buffers hold, as offsets in RAM.
    fn places(ram: &Ram, buffers: &Buffers) -> Vec<(u64, u64)> {
        let start = ram.slice(Gpa(0), 1).unwrap().as_ptr() as u64;
        buffers.iovecs().iter().map(|piece| (piece.iov_base as u64 - start, piece.iov_len as u64)).collect()
    }

    fn total(places: &[(u64, u64)]) -> u64 {
        places.iter().map(|(_, len)| len).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn prps_of_every_length_and_offset_give_just_the_bytes_named(
            offset in (0u64..1024).prop_map(|x| x * 4),
            list_offset in 0u64..512,
            bytes in 1u64..600 * 4096,
        ) {
            let ram = ram();
            // Every other page, so that nothing merges; lists lie in pages behind 1 MiB.
            let page = |n: u64| 0x1_0000 + 0x1000 * ((n * 7) % 701);
            let first = page(0) + offset;
            let left = bytes.saturating_sub(PAGE - offset);
            let pages = left.div_ceil(PAGE);
            let mut at = 0x30_0000 + list_offset * 8;
            let second = if pages == 1 { page(1) } else { at };
            let mut list_page = 0x30_0000;
            for n in 1..=pages {
                if at % PAGE == PAGE - 8 && n < pages {
                    list_page += PAGE;
                    ram.write_obj(Gpa(at), &list_page).unwrap();
                    at = list_page;
                }
                ram.write_obj(Gpa(at), &page(n)).unwrap();
                at += 8;
            }
            let mut buffers = Buffers::new(ram.clone());
            prop_assert_eq!(gather_prps(first, second, bytes, &ram, &mut buffers), Ok(()));
            let mut wanted = vec![(first, bytes.min(PAGE - offset))];
            for n in 1..=pages {
                wanted.push((page(n), (left - (n - 1) * PAGE).min(PAGE)));
            }
            let places = places(&ram, &buffers);
            prop_assert_eq!(total(&places), bytes);
            // Pages that touch have become one piece.
            let mut merged: Vec<(u64, u64)> = Vec::new();
            for (at, len) in wanted {
                match merged.last_mut() {
                    Some(last) if last.0 + last.1 == at => last.1 += len,
                    _ => merged.push((at, len)),
                }
            }
            prop_assert_eq!(places, merged);
        }

        #[test]
        fn whatever_a_list_says_the_walk_ends_and_gives_all_or_an_error(
            words in prop::collection::vec(prop_oneof![
                (0u64..RAM / 4096).prop_map(|page| page * 4096), any::<u64>(), 0u64..RAM
            ], 1024),
            first in 0u64..RAM, second in 0u64..0x3000, bytes in 1u64..MAX_TRANSFER, kind in 0u8..4,
        ) {
            let ram = ram();
            ram.write(Gpa(0x1000), words.as_slice().as_bytes()).unwrap();
            let mut buffers = Buffers::new(ram.clone());
            let command = Command {
                flags: kind << 6, dptr: [first.into(), second.into()], ..Command::default()
            };
            if gather(&command, bytes, &ram, &mut buffers).is_ok() {
                prop_assert_eq!(buffers.bytes(), bytes);
            }
        }
    }

    fn descriptor(address: u64, length: u32, kind: u8) -> SglDescriptor {
        SglDescriptor { address: address.into(), length: length.into(), kind, ..SglDescriptor::default() }
    }

    fn by_sgl(ram: &Arc<Ram>, first: SglDescriptor, bytes: u64) -> Result<Vec<(u64, u64)>, Status> {
        let mut command = Command { flags: 1 << 6, ..Command::default() };
        command.dptr.as_mut_bytes().copy_from_slice(first.as_bytes());
        let mut buffers = Buffers::new(ram.clone());
        gather(&command, bytes, ram, &mut buffers)?;
        Ok(places(ram, &buffers))
    }

    #[test]
    fn an_sgl_may_run_through_segments_and_must_be_as_long_as_the_data() {
        let ram = ram();
        let (data, segment, last) =
            (SglDescriptor::DATA, SglDescriptor::SEGMENT, SglDescriptor::LAST_SEGMENT);
        assert_eq!(by_sgl(&ram, descriptor(0x5003, 512, data), 512), Ok(vec![(0x5003, 512)]));
        assert_eq!(by_sgl(&ram, descriptor(0x5003, 511, data), 512), Err(Status::SGL_LENGTH));
        assert_eq!(by_sgl(&ram, descriptor(0x5003, 513, data), 512), Err(Status::SGL_LENGTH));
        assert_eq!(by_sgl(&ram, descriptor(RAM - 1, 512, data), 512), Err(Status::DATA_TRANSFER_ERROR));
        assert_eq!(by_sgl(&ram, descriptor(0, 512, 0x10), 512), Err(Status::SGL_TYPE));
        ram.write_obj(Gpa(0x1000), &descriptor(0x8000, 100, data)).unwrap();
        ram.write_obj(Gpa(0x1010), &descriptor(0, 0, data)).unwrap();
        ram.write_obj(Gpa(0x1020), &descriptor(0x2000, 16, last)).unwrap();
        ram.write_obj(Gpa(0x2000), &descriptor(0x9000, 412, data)).unwrap();
        assert_eq!(
            by_sgl(&ram, descriptor(0x1000, 48, segment), 512),
            Ok(vec![(0x8000, 100), (0x9000, 412)])
        );
        assert_eq!(by_sgl(&ram, descriptor(0x1000, 48, last), 512), Err(Status::SGL_SEGMENT));
        assert_eq!(by_sgl(&ram, descriptor(0x1000, 47, segment), 512), Err(Status::SGL_SEGMENT));
        assert_eq!(by_sgl(&ram, descriptor(0x1000, 32, segment), 512), Err(Status::SGL_SEGMENT));
        ram.write_obj(Gpa(0x1020), &descriptor(0x1020, 16, segment)).unwrap();
        assert_eq!(by_sgl(&ram, descriptor(0x1000, 48, segment), 512), Err(Status::SGL_COUNT));
        assert_eq!(by_sgl(&ram, descriptor(0x1000, 1 << 20, segment), 512), Err(Status::SGL_COUNT));
    }

    #[test]
    fn prps_that_do_not_start_where_they_must_are_refused() {
        let ram = ram();
        let prps =
            |first, second, bytes| gather_prps(first, second, bytes, &ram, &mut Buffers::new(ram.clone()));
        assert_eq!(prps(0x1002, 0, 512), Err(Status::PRP_OFFSET));
        assert_eq!(prps(0x1000, 0x2004, 8192), Err(Status::PRP_OFFSET));
        assert_eq!(prps(0x1000, 0x2004, 16384), Err(Status::PRP_OFFSET));
        assert_eq!(prps(RAM, 0, 512), Err(Status::DATA_TRANSFER_ERROR));
        assert_eq!(prps(0x1000, RAM, 8192), Err(Status::DATA_TRANSFER_ERROR));
        assert_eq!(prps(0x1000, u64::MAX - 7, 16384), Err(Status::DATA_TRANSFER_ERROR));
    }
}
