//! What a domain holds, by its own books.

use std::fmt;

use memory::{GpaRange, Ram};

use crate::iova::IovaRange;

/// What devices may do with a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Read only.
    Read,
    /// Read and write.
    ReadWrite,
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Permission::Read => "read",
            Permission::ReadWrite => "read, write",
        })
    }
}

/// One mapping: a row of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// What devices say.
    pub iova: IovaRange,
    /// The segment of guest RAM that they reach, named by its guest addresses.
    pub segment: GpaRange,
    /// Where in the segment's memfd the mapping begins, in bytes.
    pub offset: u64,
    /// What they may do there.
    pub permission: Permission,
}

impl Mapping {
    /// A whole segment at IOVA = GPA.
    pub(crate) fn of(segment: GpaRange) -> Mapping {
        Mapping { iova: IovaRange::identity(segment), segment, offset: 0, permission: Permission::ReadWrite }
    }

    /// Whether the mapping is a piece of `segment` at IOVA = GPA, read and write.
    fn is_piece_of(&self, segment: GpaRange) -> bool {
        self.segment == segment
            && Some(self.iova.first().0) == segment.start().0.checked_add(self.offset)
            && IovaRange::identity(segment).covers(self.iova)
            && self.permission == Permission::ReadWrite
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mapping { iova, segment, offset, permission } = self;
        write!(f, "IOVA {iova} to RAM {segment} + {offset:#x} ({permission})")
    }
}

/// How a ledger differs from the RAM map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The domain.
    pub domain: String,
    /// RAM that devices in the domain do not reach.
    pub missing: Vec<IovaRange>,
    /// Mappings that are not what the RAM map says.
    pub wrong: Vec<Mapping>,
}

impl std::error::Error for Difference {}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DMA domain {} does not hold the VM's RAM map", self.domain)?;
        for range in &self.missing {
            write!(f, "; RAM at {range} is missing")?;
        }
        for mapping in &self.wrong {
            write!(f, "; it maps {mapping}")?;
        }
        write!(f, ". This is a fault in skep; the devices were not started")
    }
}

/// Compares what is mapped with the RAM that should be.
pub(crate) fn audit(domain: &str, mappings: &[Mapping], ram: &Ram) -> Result<(), Difference> {
    let segments = || ram.segments().iter().map(memory::Segment::range);
    let right = |mapping: &&Mapping| segments().any(|segment| mapping.is_piece_of(segment));
    let (good, wrong): (Vec<&Mapping>, Vec<&Mapping>) = mappings.iter().partition(right);
    let good: Vec<IovaRange> = good.into_iter().map(|mapping| mapping.iova).collect();
    let missing: Vec<IovaRange> =
        segments().flat_map(|segment| IovaRange::identity(segment).without(&good)).collect();
    if missing.is_empty() && wrong.is_empty() {
        return Ok(());
    }
    Err(Difference { domain: domain.to_owned(), missing, wrong: wrong.into_iter().copied().collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Iova;
    use memory::Gpa;

    fn ram() -> Ram {
        let range = |start, len| GpaRange::new(Gpa(start), len).unwrap();
        Ram::new(&[range(0, 0x4000), range(0x10000, 0x2000)]).unwrap()
    }

    #[test]
    fn pieces_that_make_up_the_ram_are_as_good_as_whole_segments() {
        let ram = ram();
        let whole: Vec<Mapping> = ram.segments().iter().map(|segment| Mapping::of(segment.range())).collect();
        audit("guest", &whole, &ram).unwrap();
        let piece = |first, last, offset| Mapping {
            iova: IovaRange::inclusive(Iova(first), Iova(last)).unwrap(),
            offset,
            ..whole[0]
        };
        audit("guest", &[piece(0, 0xfff, 0), piece(0x1000, 0x3fff, 0x1000), whole[1]], &ram).unwrap();
    }

    #[test]
    fn a_hole_a_stranger_and_a_wrong_offset_are_all_named() {
        let ram = ram();
        let rows: Vec<Mapping> = ram.segments().iter().map(|segment| Mapping::of(segment.range())).collect();
        let difference = audit("guest", &rows[..1], &ram).unwrap_err();
        assert!(difference.to_string().contains("RAM at 0x10000-0x11fff is missing"), "{difference}");
        let shifted = Mapping { offset: 0x1000, ..rows[0] };
        let difference = audit("guest", &[shifted, rows[1]], &ram).unwrap_err();
        assert_eq!((difference.wrong.len(), difference.missing.len()), (1, 1));
        let read_only = Mapping { permission: Permission::Read, ..rows[0] };
        assert!(audit("guest", &[read_only, rows[1]], &ram).is_err());
        let stranger = Mapping { segment: GpaRange::new(Gpa(0x50000), 0x1000).unwrap(), ..rows[0] };
        assert_eq!(audit("guest", &[rows[0], rows[1], stranger], &ram).unwrap_err().wrong, [stranger]);
    }
}
