//! Guest addresses, and where RAM lies among them.

use std::fmt;

/// An address in the guest's physical address space (GPA), in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gpa(pub u64);

impl Gpa {
    /// The address `bytes` further up, or `None` past the end of the address space.
    pub fn checked_add(self, bytes: u64) -> Option<Gpa> {
        self.0.checked_add(bytes).map(Gpa)
    }

    /// The next address that is a multiple of `alignment` (a power of two), or `None` past the end.
    pub fn align_up(self, alignment: u64) -> Option<Gpa> {
        self.0.checked_next_multiple_of(alignment).map(Gpa)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpa({:#x})", self.0)
    }
}

/// A range of guest addresses: not empty, and its last byte is addressable.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GpaRange {
    start: Gpa,
    len: u64,
}

impl GpaRange {
    /// `None` when `len` is 0 or the range runs past the end of the address space.
    pub fn new(start: Gpa, len: u64) -> Option<GpaRange> {
        let last = start.0.checked_add(len.checked_sub(1)?)?;
        (last < u64::MAX).then_some(GpaRange { start, len })
    }

    /// First address.
    pub fn start(self) -> Gpa {
        self.start
    }

    /// Length in bytes, never 0.
    pub fn len(self) -> u64 {
        self.len
    }

    /// Always false; a range holds at least one byte.
    pub fn is_empty(self) -> bool {
        false
    }

    /// First address behind the range.
    pub fn end(self) -> Gpa {
        Gpa(self.start.0 + self.len)
    }

    /// Whether the address lies in the range.
    pub fn contains(self, gpa: Gpa) -> bool {
        gpa >= self.start && gpa < self.end()
    }

    /// Whether every byte of `other` lies in the range.
    pub fn covers(self, other: GpaRange) -> bool {
        other.start >= self.start && other.end() <= self.end()
    }

    /// Whether the two share a byte.
    pub fn overlaps(self, other: GpaRange) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

impl fmt::Display for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start.0, self.end().0 - 1)
    }
}

impl fmt::Debug for GpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GpaRange({self})")
    }
}

/// Low RAM ends here at the latest; devices' 32-bit windows follow up to 4 GiB.
pub const LOW_RAM_END: Gpa = Gpa(3 << 30);

/// RAM that does not fit below [`LOW_RAM_END`] goes on from here.
pub const HIGH_RAM_START: Gpa = Gpa(4 << 30);

/// The 12 GiB below 1 TiB that no device of an AMD host reaches by DMA: the IOMMU takes them for messages of
/// HyperTransport, not for memory (AMD I/O Virtualization Technology Specification, section 2.1.2).
pub const AMD_HOLE: GpaRange = GpaRange { start: Gpa(0xfd_0000_0000), len: 0x3_0000_0000 };

/// What RAM above 4 GiB that is cut around a hole begins and ends on: the largest page there is.
const CUT: u64 = 1 << 30;

/// Where `size` bytes of RAM lie: below 3 GiB, and the rest from 4 GiB. Empty when `size` is 0 or too large
/// for any address space.
pub fn ram_ranges(size: u64) -> Vec<GpaRange> {
    ram_ranges_around(size, &[])
}

/// The same around `holes`, in any order, where no RAM can lie: RAM that would run into one goes on behind it, at
/// the next multiple of 1 GiB. RAM below 3 GiB is left as it is, since guests need it in one piece; a hole there
/// needs another answer.
pub fn ram_ranges_around(size: u64, holes: &[GpaRange]) -> Vec<GpaRange> {
    let low = size.min(LOW_RAM_END.0);
    let mut ranges: Vec<GpaRange> = GpaRange::new(Gpa(0), low).into_iter().collect();
    let (mut at, mut left) = (HIGH_RAM_START.0, size - low);
    let mut holes = holes.to_vec();
    holes.sort_by_key(|hole| hole.start());
    for hole in holes {
        let room = (hole.start().0 / CUT * CUT).saturating_sub(at);
        if left <= room {
            break;
        }
        ranges.extend(GpaRange::new(Gpa(at), room));
        left -= room;
        let Some(behind) = hole.end().align_up(CUT) else { return Vec::new() };
        at = at.max(behind.0);
    }
    match GpaRange::new(Gpa(at), left) {
        None if left > 0 => Vec::new(),
        last => ranges.into_iter().chain(last).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_range_is_never_empty_and_never_wraps() {
        assert!(GpaRange::new(Gpa(0), 0).is_none());
        assert!(GpaRange::new(Gpa(u64::MAX), 1).is_none());
        assert!(GpaRange::new(Gpa(u64::MAX), 2).is_none());
        assert_eq!(GpaRange::new(Gpa(0x1000), 0x1000).unwrap().end(), Gpa(0x2000));
    }

    #[test]
    fn six_gibibytes_of_ram_lie_in_two_ranges_around_the_device_window() {
        let ranges = ram_ranges(6 << 30);
        assert_eq!(
            ranges,
            [GpaRange::new(Gpa(0), 3 << 30).unwrap(), GpaRange::new(Gpa(4 << 30), 3 << 30).unwrap()]
        );
        assert_eq!(ram_ranges(256 << 20), [GpaRange::new(Gpa(0), 256 << 20).unwrap()]);
        assert!(ram_ranges(0).is_empty());
    }

    #[test]
    fn ram_goes_on_above_1_tib_where_it_would_run_into_amd_s_hole() {
        let range = |start, len| GpaRange::new(Gpa(start), len).unwrap();
        // 3 GiB, and 1008 GiB up to the hole.
        let fits = 1011 << 30;
        assert_eq!(ram_ranges_around(fits, &[AMD_HOLE]), ram_ranges(fits));
        assert_eq!(
            ram_ranges_around(fits + (2 << 20), &[AMD_HOLE]),
            [range(0, 3 << 30), range(4 << 30, 1008 << 30), range(1 << 40, 2 << 20)]
        );
        assert_eq!(AMD_HOLE.to_string(), "0xfd00000000-0xffffffffff");
    }

    #[test]
    fn ram_too_large_for_any_address_space_lies_nowhere() {
        assert!(ram_ranges(u64::MAX - 4096).is_empty());
        let rest = GpaRange::new(HIGH_RAM_START, u64::MAX - HIGH_RAM_START.0).unwrap();
        assert!(ram_ranges_around(4 << 30, &[rest]).is_empty());
        assert_eq!(ram_ranges_around(3 << 30, &[rest]).len(), 1);
    }

    #[test]
    fn ram_around_every_few_small_holes_is_whole_and_touches_none() {
        // All pairs of holes among small ones in steps of half a GiB, from below 4 GiB to above the RAM.
        let half = 1u64 << 29;
        let holes: Vec<GpaRange> = (6..16)
            .flat_map(|start| (1..4).map(move |len| GpaRange::new(Gpa(start * half), len * half).unwrap()))
            .collect();
        for one in &holes {
            for other in &holes {
                for size in (5..12).map(|n| n * half) {
                    let ranges = ram_ranges_around(size, &[*one, *other]);
                    assert_eq!(ranges.iter().map(|range| range.len()).sum::<u64>(), size, "{one} {other}");
                    let high = ranges.iter().filter(|range| range.start() >= HIGH_RAM_START);
                    for range in high {
                        assert!(!range.overlaps(*one) && !range.overlaps(*other), "{range}: {one} {other}");
                        assert!(range.start().0.is_multiple_of(CUT), "{range}");
                    }
                    for pair in ranges.windows(2) {
                        assert!(pair[0].end() <= pair[1].start(), "{pair:?}");
                    }
                }
            }
        }
    }

    /// Addresses at both ends of the address space, where arithmetic goes wrong if it does.
    fn edges() -> impl Iterator<Item = u64> + Clone {
        (0..8).chain(u64::MAX - 7..=u64::MAX)
    }

    /// All ranges that begin at an edge and are short or as long as can be.
    fn ranges() -> impl Iterator<Item = (u64, u64, Option<GpaRange>)> + Clone {
        let lens = (0..9).chain(u64::MAX - 8..=u64::MAX);
        edges()
            .flat_map(move |start| lens.clone().map(move |len| (start, len, GpaRange::new(Gpa(start), len))))
    }

    #[test]
    fn every_range_at_an_edge_is_what_numbers_without_bounds_say() {
        for (start, len, range) in ranges() {
            let end = u128::from(start) + u128::from(len);
            // The end is an address itself, so that it can be said.
            let exists = len > 0 && end <= u128::from(u64::MAX);
            assert_eq!(range.is_some(), exists, "{start:#x} {len:#x}");
            let Some(range) = range else { continue };
            assert_eq!((range.start().0, range.len(), u128::from(range.end().0)), (start, len, end));
            for address in edges() {
                let inside = u128::from(address) >= u128::from(start) && u128::from(address) < end;
                assert_eq!(range.contains(Gpa(address)), inside, "{range} {address:#x}");
            }
        }
    }

    #[test]
    fn every_two_ranges_at_edges_overlap_and_cover_as_numbers_without_bounds_say() {
        let all: Vec<GpaRange> = ranges().filter_map(|(_, _, range)| range).collect();
        let bounds = |range: &GpaRange| {
            let start = u128::from(range.start().0);
            (start, start + u128::from(range.len()))
        };
        for one in &all {
            for other in &all {
                let ((a, b), (c, d)) = (bounds(one), bounds(other));
                assert_eq!(one.overlaps(*other), a.max(c) < b.min(d), "{one} {other}");
                assert_eq!(one.covers(*other), a <= c && d <= b, "{one} {other}");
            }
        }
    }

    #[test]
    fn every_address_at_an_edge_adds_and_aligns_as_numbers_without_bounds_do() {
        let fits = |sum: u128| u64::try_from(sum).ok().map(Gpa);
        for (address, bytes, _) in ranges() {
            let sum = u128::from(address) + u128::from(bytes);
            assert_eq!(Gpa(address).checked_add(bytes), fits(sum));
            for alignment in (0..64).map(|bit| 1u64 << bit) {
                let aligned = u128::from(address).next_multiple_of(u128::from(alignment));
                assert_eq!(Gpa(address).align_up(alignment), fits(aligned), "{address:#x} {alignment:#x}");
            }
        }
    }

    proptest! {
        #[test]
        fn overlap_and_cover_agree_with_looking_at_every_byte(a in 0u64..40, n in 1u64..20, b in 0u64..40, m in 1u64..20) {
            let (one, two) = (GpaRange::new(Gpa(a), n).unwrap(), GpaRange::new(Gpa(b), m).unwrap());
            let shared = (a..a + n).filter(|x| two.contains(Gpa(*x))).count() as u64;
            prop_assert_eq!(one.overlaps(two), shared > 0);
            prop_assert_eq!(one.covers(two), shared == m);
        }
    }
}
