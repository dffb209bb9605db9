//! Sizes in bytes.

use std::fmt;
use std::str::FromStr;

use super::Invalid;

/// A number of bytes, written as people write memory sizes.
///
/// `512M`, `512MiB` and `512m` are the same; the units are `B`, `K`, `M`, `G` and `T`, in steps of 1024. A bare
/// number counts MiB, as it does for bhyve and QEMU. `MB` and its like are refused: they mean 1000 to some and
/// 1024 to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteSize(u64);

/// Units from large to small, with their shifts.
const UNITS: [(char, u32); 5] = [('T', 40), ('G', 30), ('M', 20), ('K', 10), ('B', 0)];

impl ByteSize {
    /// This many bytes.
    pub const fn from_bytes(bytes: u64) -> ByteSize {
        ByteSize(bytes)
    }

    /// This many MiB, if 64 bits hold their bytes.
    pub fn from_mib(mib: u64) -> Option<ByteSize> {
        mib.checked_mul(1 << 20).map(ByteSize)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<ByteSize, Invalid> {
        let invalid = || Invalid::Size { text: text.into() };
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(invalid());
        }
        let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_uppercase();
        let letter = unit.chars().next().unwrap_or('M');
        let (_, shift) = UNITS.into_iter().find(|(unit, _)| *unit == letter).ok_or_else(invalid)?;
        match unit.get(1..).unwrap_or("") {
            "" => {}
            "IB" if letter != 'B' => {}
            "B" if letter != 'B' => {
                let suggestion = format!("{number}{letter}iB");
                return Err(Invalid::AmbiguousUnit { text: text.into(), suggestion });
            }
            _ => return Err(invalid()),
        }
        // Only digits are left, so a number that does not parse is too large.
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        bytes.map(ByteSize).ok_or(Invalid::SizeTooLarge { text: text.into() })
    }
}

/// The shortest exact form: `6G`, `1536M`, `100B`. It parses back to the same size.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |shift: u32| self.0 != 0 && self.0.is_multiple_of(1 << shift);
        let (unit, shift) = UNITS.into_iter().find(|(_, shift)| fits(*shift)).unwrap_or(('B', 0));
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

/// How much RAM a VM has: 16 MiB to 64 TiB, in steps of 2 MiB.
///
/// The step is the size of a large page, so that host, guest and IOMMU can use large pages for all of it. What
/// this host can give may be less; the start says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemorySize(ByteSize);

impl MemorySize {
    /// The least memory a VM can have.
    pub const MIN: ByteSize = ByteSize(16 << 20);
    /// The most memory that can be described.
    pub const MAX: ByteSize = ByteSize(64 << 40);
    /// Memory comes in multiples of this many bytes.
    pub const GRAIN: u64 = 2 << 20;

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0.0
    }
}

/// 256 MiB, as bhyve has it.
impl Default for MemorySize {
    fn default() -> MemorySize {
        MemorySize(ByteSize(256 << 20))
    }
}

impl TryFrom<ByteSize> for MemorySize {
    type Error = Invalid;

    fn try_from(size: ByteSize) -> Result<MemorySize, Invalid> {
        if size < MemorySize::MIN || size > MemorySize::MAX {
            Err(Invalid::MemoryOutOfRange { size })
        } else if !size.bytes().is_multiple_of(MemorySize::GRAIN) {
            Err(Invalid::MemoryMisaligned { size })
        } else {
            Ok(MemorySize(size))
        }
    }
}

impl FromStr for MemorySize {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<MemorySize, Invalid> {
        text.parse::<ByteSize>()?.try_into()
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The size of a disk in memory: 4 KiB to 64 TiB, in steps of 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskSize(ByteSize);

impl DiskSize {
    /// The largest disk in memory that can be described.
    pub const MAX: ByteSize = ByteSize(64 << 40);
    /// Sizes are multiples of this many bytes: whole blocks of any disk.
    pub const GRAIN: u64 = 4096;

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0.0
    }
}

impl TryFrom<ByteSize> for DiskSize {
    type Error = Invalid;

    fn try_from(size: ByteSize) -> Result<DiskSize, Invalid> {
        let whole = size.bytes().is_multiple_of(DiskSize::GRAIN);
        if size.bytes() == 0 || size > DiskSize::MAX || !whole {
            Err(Invalid::DiskSize { size })
        } else {
            Ok(DiskSize(size))
        }
    }
}

impl FromStr for DiskSize {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<DiskSize, Invalid> {
        text.parse::<ByteSize>()?.try_into()
    }
}

impl fmt::Display for DiskSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use proptest::prelude::*;

    use super::*;

    fn bytes(text: &str) -> u64 {
        text.parse::<ByteSize>().unwrap().bytes()
    }

    #[test]
    fn sizes_are_written_with_units_of_1024() {
        assert_eq!(bytes("256M"), 256 << 20);
        assert_eq!(bytes("6G"), 6 << 30);
        assert_eq!(bytes("1GiB"), 1 << 30);
        assert_eq!(bytes("512MiB"), 512 << 20);
        assert_eq!(bytes("512 MiB"), 512 << 20);
        assert_eq!(bytes("4k"), 4096);
        assert_eq!(bytes("1t"), 1 << 40);
        assert_eq!(bytes("12345B"), 12345);
    }

    #[test]
    fn a_bare_number_counts_mib() {
        assert_eq!(bytes("512"), 512 << 20);
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for bad in ["", "M", "-1M", "1.5G", "0x10", "1 2", "1X", "1Mi", "1MiBs", "1Bi", "1BB", "1  M", "1é"]
        {
            assert_eq!(bad.parse::<ByteSize>(), Err(Invalid::Size { text: bad.into() }));
        }
    }

    #[test]
    fn an_ambiguous_unit_is_refused_with_the_clear_one() {
        let error = "2GB".parse::<ByteSize>().unwrap_err();
        assert!(error.to_string().contains("2GiB"), "{error}");
    }

    #[test]
    fn a_size_beyond_64_bits_is_refused() {
        for bad in ["16777216T", "99999999999999999999B"] {
            assert_eq!(bad.parse::<ByteSize>(), Err(Invalid::SizeTooLarge { text: bad.into() }));
        }
    }

    #[test]
    fn memory_comes_in_large_pages_and_within_limits() {
        assert_eq!("16M".parse::<MemorySize>().unwrap().bytes(), 16 << 20);
        assert_eq!("64T".parse::<MemorySize>().unwrap().bytes(), 64 << 40);
        assert!("15M".parse::<MemorySize>().is_err());
        assert!("65T".parse::<MemorySize>().is_err());
        let odd = "17M".parse::<MemorySize>().unwrap_err().to_string();
        assert!(odd.contains("16M or 18M"), "{odd}");
    }

    proptest! {
        #[test]
        fn a_size_prints_as_it_parses(size: u64, shift in 0u32..64) {
            let size = ByteSize::from_bytes(size >> shift << (shift / 2));
            prop_assert_eq!(size.to_string().parse::<ByteSize>(), Ok(size));
        }

        #[test]
        fn no_text_makes_the_size_parser_panic(text in "\\PC*") {
            black_box(text.parse::<ByteSize>().is_ok());
        }
    }

    #[test]
    fn a_disk_in_memory_has_whole_blocks() {
        assert_eq!("4K".parse::<DiskSize>().unwrap().bytes(), 4096);
        assert_eq!("64T".parse::<DiskSize>().unwrap().to_string(), "64T");
        for bad in ["0", "512B", "5K", "65T"] {
            assert!(matches!(bad.parse::<DiskSize>(), Err(Invalid::DiskSize { .. })), "{bad}");
        }
    }
}
