//! What a domain can map, and whether RAM fits.

use std::fmt;

use memory::GpaRange;

use crate::iova::{Iova, IovaRange};

/// What a domain's back end and the IOMMU behind it can map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// IOVAs that can be mapped, by rising address, never touching; empty when the kernel did not say.
    pub ranges: Vec<IovaRange>,
    /// One bit for each page size: bit 12 for 4 KiB.
    pub page_sizes: u64,
    /// How many more mappings the kernel takes, where it says.
    pub mappings_left: Option<u64>,
}

/// A piece of RAM that cannot be mapped at its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfit {
    /// It lies above the last IOVA that the IOMMU translates.
    TooHigh {
        /// The piece.
        ram: IovaRange,
        /// The last IOVA there is.
        last: Iova,
    },
    /// It lies over a window that is reserved: for MSIs, or by firmware for a device.
    Reserved {
        /// The piece, which is the overlap.
        ram: IovaRange,
    },
    /// It does not begin and end on the IOMMU's smallest page.
    Unaligned {
        /// The piece.
        ram: IovaRange,
        /// That page size in bytes.
        page: u64,
    },
}

/// All pieces of RAM that do not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfits(pub Vec<Misfit>);

impl std::error::Error for Misfits {}

impl fmt::Display for Misfits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentences: Vec<String> = self.0.iter().map(Misfit::to_string).collect();
        write!(f, "guest RAM does not fit the host's IOMMU: {}", sentences.join("; "))?;
        if self.0.iter().any(|misfit| matches!(misfit, Misfit::TooHigh { .. })) {
            write!(f, ". Give the VM less memory (--memory)")?;
        } else {
            write!(f, ". /sys/kernel/iommu_groups/*/reserved_regions names what these addresses are for")?;
        }
        Ok(())
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfit::TooHigh { ram, last } => {
                let bits = u64::BITS - last.0.leading_zeros();
                write!(f, "RAM at {ram} is above {last}, the IOMMU's last address ({bits} bits)")
            }
            Misfit::Reserved { ram } => write!(f, "RAM at {ram} is over a reserved window"),
            Misfit::Unaligned { ram, page } => {
                write!(f, "RAM at {ram} does not fill pages of {page:#x} bytes")
            }
        }
    }
}

impl Limits {
    /// Whether RAM in these ranges can be mapped at IOVA = GPA; all that does not fit, if not.
    pub fn check(&self, ram: impl IntoIterator<Item = GpaRange>) -> Result<(), Misfits> {
        let misfits: Vec<Misfit> =
            ram.into_iter().flat_map(|range| self.misfits(IovaRange::identity(range))).collect();
        if misfits.is_empty() { Ok(()) } else { Err(Misfits(misfits)) }
    }

    /// The smallest page, in bytes.
    pub(crate) fn page(&self) -> u64 {
        1 << self.page_sizes.trailing_zeros().min(30)
    }

    fn misfits(&self, ram: IovaRange) -> Vec<Misfit> {
        let page = self.page();
        if !ram.first().0.is_multiple_of(page) || !ram.len().is_multiple_of(page) {
            return vec![Misfit::Unaligned { ram, page }];
        }
        let Some(last) = self.ranges.last().map(|range| range.last()) else { return Vec::new() };
        let split = |piece: IovaRange| {
            let high = IovaRange::inclusive(piece.first().max(Iova(last.0.saturating_add(1))), piece.last());
            let low = IovaRange::inclusive(piece.first(), piece.last().min(last));
            let low = low.map(|ram| Misfit::Reserved { ram });
            low.into_iter()
                .chain(high.filter(|ram| ram.first() > last).map(|ram| Misfit::TooHigh { ram, last }))
        };
        ram.without(&self.ranges).into_iter().flat_map(split).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use memory::{Gpa, ram_ranges};

    /// A client IOMMU of 39 bits with the usual MSI window.
    pub(crate) fn client() -> Limits {
        let range = |first, last| IovaRange::inclusive(Iova(first), Iova(last)).unwrap();
        Limits {
            ranges: vec![range(0, 0xfedf_ffff), range(0xfef0_0000, (1 << 39) - 1)],
            page_sizes: !0xfff,
            mappings_left: Some(65535),
        }
    }

    #[test]
    fn ordinary_ram_fits_an_ordinary_iommu() {
        client().check(ram_ranges(64 << 30)).unwrap();
    }

    #[test]
    fn everything_that_does_not_fit_is_reported_at_once() {
        let ram = [(0xfee0_0000, 0x1000), (0x1_0000_0000, 1 << 40)];
        let ram = ram.map(|(start, len)| GpaRange::new(Gpa(start), len).unwrap());
        let text = client().check(ram).unwrap_err().to_string();
        assert!(text.contains("0xfee00000-0xfee00fff is over a reserved window"), "{text}");
        assert!(
            text.contains("0x8000000000-0x100ffffffff is above 0x7fffffffff") && text.contains("39 bits"),
            "{text}"
        );
        assert!(text.contains("--memory"), "{text}");
    }

    #[test]
    fn a_range_that_reaches_the_last_address_leaves_nothing_too_high() {
        let all = IovaRange::inclusive(Iova(0), Iova(u64::MAX)).unwrap();
        Limits { ranges: vec![all], ..client() }.check(ram_ranges(1 << 50)).unwrap();
    }

    #[test]
    fn pages_larger_than_ram_is_aligned_to_are_a_misfit() {
        let limits = Limits { page_sizes: 1 << 21, ..client() };
        let error = limits.check([GpaRange::new(Gpa(0x1000), 1 << 21).unwrap()]).unwrap_err();
        assert!(matches!(error.0[..], [Misfit::Unaligned { page: 0x20_0000, .. }]));
    }
}
