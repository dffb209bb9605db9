use std::fmt;
use std::str::FromStr;

use super::SpecError;

/// A size in bytes, written `512`, `64K`, `128M`, `6G` or `1T` (powers of 1024).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl Size {
    /// So many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Size(bytes)
    }

    /// So many MiB.
    pub const fn mib(mib: u64) -> Self {
        Size(mib << 20)
    }

    /// The size in bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let error = |why: &str| SpecError::new("size", text, why, "Write it like 512, 64K, 128M or 6G");
        let last = text.chars().last().map(|c| c.to_ascii_uppercase());
        let shift = UNITS.iter().find(|(unit, _)| Some(*unit) == last).map_or(0, |(_, shift)| *shift);
        let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error("it is not a number with K, M, G or T"));
        }
        let number: u64 = digits.parse().map_err(|_| error("it is not a number that fits"))?;
        number
            .checked_mul(1 << shift)
            .filter(|n| *n > 0)
            .map(Size)
            .ok_or_else(|| error("it is zero or too large"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift)) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024_in_either_case() {
        for (text, bytes) in
            [("512", 512), ("64K", 65536), ("128m", 128 << 20), ("6G", 6 << 30), ("1T", 1 << 40)]
        {
            assert_eq!(text.parse::<Size>().unwrap().as_bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_an_error() {
        for text in ["", "M", "-1", "1.5G", "0", "99999999T", "10MB", "µ"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_is_shown_as_it_is_written() {
        for text in ["512", "64K", "128M", "6G", "1T", "1025"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }
}
