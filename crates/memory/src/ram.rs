//! All RAM of one VM.

use std::fs::File;
use std::io;
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::address::{Gpa, GpaRange};
use crate::placement::Placement;
use crate::segment::{RamError, Segment};
use crate::slice::GuestSlice;

/// An access that is not wholly inside guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {gpa} are not wholly inside guest RAM")]
pub struct OutsideRam {
    /// First address of the access.
    pub gpa: Gpa,
    /// Its length in bytes.
    pub len: u64,
}

/// All RAM of one VM: segments in order of their guest addresses, never overlapping.
///
/// Shared as `Arc<Ram>` by everything that touches it; a segment goes when the last holder does. It is the RAM of one
/// moment: RAM that comes or goes ([`crate::MemoryMap`]) is another `Ram`, of mostly the same segments.
#[derive(Debug)]
pub struct Ram {
    segments: Vec<Arc<Segment>>,
}

impl Ram {
    /// Allocates RAM for the ranges (see [`crate::ram_ranges`]). Pages read as zero.
    pub fn new(ranges: &[GpaRange]) -> Result<Ram, RamError> {
        Ram::placed(ranges, &Placement::default())
    }

    /// Allocates RAM for the ranges where the placement says. Pages read as zero.
    ///
    /// [`Placement::check`] finds all that prevents it before anything is allocated.
    pub fn placed(ranges: &[GpaRange], placement: &Placement) -> Result<Ram, RamError> {
        let mut ranges = ranges.to_vec();
        ranges.sort_by_key(|range| range.start());
        if let Some(pair) = ranges.windows(2).find(|pair| pair[0].overlaps(pair[1])) {
            return Err(RamError::Overlap { one: pair[0], other: pair[1] });
        }
        if let Some(error) = placement.check(&ranges).into_iter().next() {
            return Err(error);
        }
        let placed = |range| Segment::placed(range, placement).map(Arc::new);
        let segments = ranges.into_iter().map(placed).collect::<Result<_, _>>()?;
        Ok(Ram { segments })
    }

    /// The segments, by rising guest address.
    pub fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// The same RAM and one segment more, which overlaps none of it.
    pub(crate) fn with(&self, segment: Arc<Segment>) -> Ram {
        let mut segments = self.segments.clone();
        let at = segments.partition_point(|other| other.range().start() < segment.range().start());
        segments.insert(at, segment);
        Ram { segments }
    }

    /// The same RAM without this very segment; `None` when it is not in it.
    pub(crate) fn without(&self, segment: &Arc<Segment>) -> Option<Ram> {
        let at = self.segments.iter().position(|other| Arc::ptr_eq(other, segment))?;
        let mut segments = self.segments.clone();
        segments.remove(at);
        Some(Ram { segments })
    }

    /// Bytes of RAM in all.
    pub fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.range().len()).sum()
    }

    /// Makes every page present and locks it. Needed before devices may reach it by DMA.
    pub fn wire(&self) -> Result<(), RamError> {
        self.wire_with(|_| {})
    }

    /// Makes the first `len` bytes come in large pages, where the kernel has them. Where it does not
    /// give them by itself on the first touch, this makes all of the bytes present.
    pub fn enlarge_pages(&self, len: u64) -> Result<(), RamError> {
        let mut left = len;
        for segment in &self.segments {
            segment.enlarge_pages(left)?;
            left = left.saturating_sub(segment.range().len());
        }
        Ok(())
    }

    /// `len` bytes from `gpa`, which must lie in one segment.
    pub fn slice(&self, gpa: Gpa, len: u64) -> Result<GuestSlice<'_>, OutsideRam> {
        let outside = OutsideRam { gpa, len };
        let end = gpa.checked_add(len).ok_or(outside)?;
        for segment in &self.segments {
            let range = segment.range();
            if gpa >= range.start() && end <= range.end() {
                let offset = (gpa.0 - range.start().0) as usize;
                // SAFETY: offset + len <= the segment's length, so the pointer stays inside its mapping,
                // which outlives the returned slice because the slice borrows from `self`.
                return Ok(unsafe { GuestSlice::new(segment.host_address().add(offset), len as usize) });
            }
        }
        Err(outside)
    }

    /// How many bytes from `gpa` on lie in the same segment; 0 outside RAM.
    pub fn contiguous(&self, gpa: Gpa) -> u64 {
        let segment = self.segments.iter().find(|segment| segment.range().contains(gpa));
        segment.map_or(0, |segment| segment.range().end().0 - gpa.0)
    }

    /// Copies a structure out of the guest, once.
    pub fn read_obj<T: FromBytes + IntoBytes>(&self, gpa: Gpa) -> Result<T, OutsideRam> {
        let mut object = T::new_zeroed();
        self.slice(gpa, size_of::<T>() as u64)?.read(object.as_mut_bytes());
        Ok(object)
    }

    /// Copies a structure into the guest.
    pub fn write_obj<T: IntoBytes + Immutable>(&self, gpa: Gpa, object: &T) -> Result<(), OutsideRam> {
        self.write(gpa, object.as_bytes())
    }

    /// Copies bytes out of the guest.
    pub fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), OutsideRam> {
        self.slice(gpa, bytes.len() as u64)?.read(bytes);
        Ok(())
    }

    /// Copies bytes into the guest.
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), OutsideRam> {
        self.slice(gpa, bytes.len() as u64)?.write(bytes);
        Ok(())
    }

    /// Reads `len` bytes of a file, from `offset` on, straight into guest RAM. A file that ends sooner is
    /// [`io::ErrorKind::UnexpectedEof`]; a place outside RAM is [`io::ErrorKind::InvalidInput`].
    pub fn read_file(&self, gpa: Gpa, file: &File, offset: u64, len: u64) -> io::Result<()> {
        let slice =
            self.slice(gpa, len).map_err(|outside| io::Error::new(io::ErrorKind::InvalidInput, outside))?;
        slice.read_file(file, offset)
    }

    /// Fills the range with zeroes. Pages that are not there yet are zero already, and stay away.
    pub fn zero(&self, gpa: Gpa, len: u64) -> Result<(), OutsideRam> {
        let slice = self.slice(gpa, len)?;
        let Some(segment) = self.segments.iter().find(|segment| segment.range().contains(gpa)) else {
            return Ok(()); // an empty range at the end of RAM
        };
        let start = gpa.0 - segment.range().start().0;
        let mut at = start;
        while let Some(there) = segment.present(at, start + len) {
            let piece = slice.sub((there.start - start) as usize, (there.end - there.start) as usize);
            piece.expect("what is present lies in the range that was asked for").zero();
            at = there.end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;
    use crate::address::ram_ranges;

    fn ram() -> Ram {
        let range = |start, len| GpaRange::new(Gpa(start), len).unwrap();
        Ram::new(&[range(0x10000, 0x2000), range(0, 0x1000)]).unwrap()
    }

    #[test]
    fn an_access_is_refused_unless_every_byte_of_it_is_ram() {
        let ram = ram();
        assert!(ram.slice(Gpa(0), 0x1000).is_ok());
        assert_eq!(ram.slice(Gpa(0xfff), 2).err(), Some(OutsideRam { gpa: Gpa(0xfff), len: 2 }));
        assert!(ram.slice(Gpa(0x11fff), 1).is_ok());
        assert!(ram.slice(Gpa(0x12000), 1).is_err());
        assert!(ram.slice(Gpa(u64::MAX), 2).is_err());
        assert!(ram.slice(Gpa(0x8000), 1).is_err());
        assert_eq!(ram.contiguous(Gpa(0x10ff0)), 0x1010);
        assert_eq!(ram.contiguous(Gpa(0x1000)), 0);
    }

    #[test]
    fn what_is_written_is_read_back_and_lies_in_the_file() {
        let ram = ram();
        ram.write_obj(Gpa(0x10ffe), &0x1122_3344u32).unwrap();
        assert_eq!(ram.read_obj::<u32>(Gpa(0x10ffe)).unwrap(), 0x1122_3344);
        let mut bytes = [0; 4];
        ram.segments()[1].file().read_exact_at(&mut bytes, 0xffe).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), 0x1122_3344);
    }

    #[test]
    fn a_file_is_read_into_ram_and_a_short_one_is_an_error() {
        let ram = ram();
        let file = ram.segments()[0].file().try_clone().unwrap();
        file.write_all_at(&[7; 100], 0).unwrap();
        ram.read_file(Gpa(0x10000), &file, 0, 0x1000).unwrap();
        assert_eq!(ram.read_obj::<[u8; 2]>(Gpa(0x10000 + 99)).unwrap(), [7, 0]);
        let error = ram.read_file(Gpa(0x10000), &file, 0xfff, 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(ram.read_file(Gpa(0x5000), &file, 0, 1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn zeroing_clears_what_is_there_and_makes_no_page_present() {
        let ram = Ram::new(&[GpaRange::new(Gpa(0x10000), 64 << 20).unwrap()]).unwrap();
        let blocks = || ram.segments()[0].file().metadata().unwrap().blocks();
        assert_eq!(blocks(), 0);
        let places: [u64; 4] = [0x10000, 0x13ffd, 0x100_0008, 0x10000 + (64 << 20) - 4];
        for place in places {
            ram.write_obj(Gpa(place), &0x1122_3344u32).unwrap();
        }
        let before = blocks();
        ram.zero(Gpa(0x10002), (64 << 20) - 4).unwrap();
        assert_eq!(blocks(), before);
        let read = places.map(|place| ram.read_obj::<u32>(Gpa(place)).unwrap());
        assert_eq!(read, [0x3344, 0, 0, 0x1122_0000]);
    }

    #[test]
    fn overlapping_or_unaligned_ram_is_refused_by_name() {
        let range = |start, len| GpaRange::new(Gpa(start), len).unwrap();
        let error = Ram::new(&[range(0x1000, 0x2000), range(0, 0x2000)]).unwrap_err();
        assert_eq!(error.to_string(), "guest RAM 0x0-0x1fff overlaps guest RAM 0x1000-0x2fff");
        assert!(matches!(Ram::new(&[range(0x10, 0x1000)]), Err(RamError::Unaligned { .. })));
    }

    #[test]
    fn enlarging_pages_keeps_what_is_there_and_takes_a_length_beyond_the_end() {
        let ram = Ram::new(&[GpaRange::new(Gpa(0), 5 << 20).unwrap()]).unwrap();
        ram.write_obj(Gpa(0x1234), &0x55u8).unwrap();
        ram.write_obj(Gpa((5 << 20) - 1), &0x66u8).unwrap();
        ram.enlarge_pages(u64::MAX).unwrap();
        assert_eq!(ram.read_obj::<u8>(Gpa(0x1234)).unwrap(), 0x55);
        assert_eq!(ram.read_obj::<u8>(Gpa((5 << 20) - 1)).unwrap(), 0x66);
        assert_eq!(ram.read_obj::<u8>(Gpa(0x20_0000)).unwrap(), 0);
    }

    #[test]
    fn large_ram_costs_nothing_until_it_is_touched() {
        let ram = Ram::new(&ram_ranges(64 << 30)).unwrap();
        assert_eq!(ram.size(), 64 << 30);
        ram.write_obj(Gpa((64 << 30) + 0x1000), &1u8).unwrap();
    }
}
