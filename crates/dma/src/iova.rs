//! Addresses that devices put on the bus.

use std::fmt;

use memory::GpaRange;

/// An address that a device puts on the bus (IOVA), in bytes; the IOMMU translates it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Iova(pub u64);

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Iova({:#x})", self.0)
    }
}

/// A range of IOVAs, never empty; it may reach the very last address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IovaRange {
    first: Iova,
    last: Iova,
}

impl IovaRange {
    /// From the first to the last address, both in it; `None` when they are the wrong way round.
    pub fn inclusive(first: Iova, last: Iova) -> Option<IovaRange> {
        (first <= last).then_some(IovaRange { first, last })
    }

    /// The IOVAs equal to these guest addresses.
    pub fn identity(range: GpaRange) -> IovaRange {
        IovaRange { first: Iova(range.start().0), last: Iova(range.end().0 - 1) }
    }

    /// First address.
    pub fn first(self) -> Iova {
        self.first
    }

    /// Last address.
    pub fn last(self) -> Iova {
        self.last
    }

    /// Length in bytes; all 2^64 addresses count as one less.
    pub fn len(self) -> u64 {
        (self.last.0 - self.first.0).saturating_add(1)
    }

    /// Always false; a range holds at least one address.
    pub fn is_empty(self) -> bool {
        false
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: IovaRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether every address of `other` is in the range.
    pub fn covers(self, other: IovaRange) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// The two as one range, when they touch or overlap.
    pub(crate) fn joined(self, other: IovaRange) -> Option<IovaRange> {
        let touch = |one: IovaRange, two: IovaRange| one.last.0.checked_add(1) == Some(two.first.0);
        let one = self.overlaps(other) || touch(self, other) || touch(other, self);
        one.then(|| IovaRange { first: self.first.min(other.first), last: self.last.max(other.last) })
    }

    /// What of the range is in none of `others`, by rising address.
    pub fn without(self, others: &[IovaRange]) -> Vec<IovaRange> {
        let mut others = others.to_vec();
        others.sort_unstable();
        let mut left = Vec::new();
        let mut from = Some(self.first);
        for other in others.into_iter().filter(|other| other.overlaps(self)) {
            let Some(first) = from else { break };
            if let Some(before) = other.first.0.checked_sub(1) {
                left.extend(IovaRange::inclusive(first, Iova(before)));
            }
            from = other.last.0.checked_add(1).map(|next| first.max(Iova(next)));
        }
        left.extend(from.and_then(|first| IovaRange::inclusive(first, self.last)));
        left
    }
}

impl fmt::Display for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.first.0, self.last.0)
    }
}

impl fmt::Debug for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IovaRange({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_address_of_all_can_be_in_a_range() {
        let all = IovaRange::inclusive(Iova(0), Iova(u64::MAX)).unwrap();
        let top = IovaRange::inclusive(Iova(u64::MAX), Iova(u64::MAX)).unwrap();
        assert!(all.covers(top) && all.len() == u64::MAX);
        assert_eq!(all.without(&[top]), [IovaRange::inclusive(Iova(0), Iova(u64::MAX - 1)).unwrap()]);
        assert_eq!(all.without(&[all]), []);
    }

    proptest! {
        #[test]
        fn what_is_left_is_just_the_addresses_in_no_other_range(
            one in (0u64..60, 0u64..20), others in prop::collection::vec((0u64..60, 0u64..20), 0..6)
        ) {
            let range = |(first, len)| IovaRange::inclusive(Iova(first), Iova(first + len)).unwrap();
            let (one, others) = (range(one), others.into_iter().map(range).collect::<Vec<_>>());
            let left = one.without(&others);
            for at in 0..90 {
                let here = range((at, 0));
                let wanted = one.covers(here) && others.iter().all(|other| !other.covers(here));
                prop_assert_eq!(left.iter().any(|range| range.covers(here)), wanted);
            }
        }
    }
}
