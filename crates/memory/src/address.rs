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

/// RAM that lies low ends here at the latest; devices' 32-bit windows follow up to 4 GiB.
pub const LOW_RAM_END: Gpa = Gpa(3 << 30);

/// RAM that does not fit below [`LOW_RAM_END`] goes on from here.
pub const HIGH_RAM_START: Gpa = Gpa(4 << 30);

/// Where `size` bytes of RAM lie: below 3 GiB, and the rest from 4 GiB. Empty when `size` is 0 or too large
/// for any address space.
pub fn ram_ranges(size: u64) -> Vec<GpaRange> {
    let low = size.min(LOW_RAM_END.0);
    [GpaRange::new(Gpa(0), low), GpaRange::new(HIGH_RAM_START, size - low)].into_iter().flatten().collect()
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
