//! Whom the IOMMU blames.

use std::fmt;
use std::str::FromStr;

/// The PCI function in whose name a request was made: its bus, device and function, and its PCI segment (domain)
/// where the source says it. Intel's fault reports do not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requester {
    segment: Option<u16>,
    /// Bus in bits 15:8, device in 7:3, function in 2:0, as in a PCIe requester ID.
    id: u16,
}

/// A text that names no PCI function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a PCI address. Write it like 0000:01:00.0 or 01:00.0 (`lspci -D` lists them)")]
pub struct BadRequester {
    /// What was given.
    pub text: String,
}

impl Requester {
    /// The function with this requester ID (bus in bits 15:8, device in 7:3, function in 2:0).
    pub fn new(segment: Option<u16>, id: u16) -> Requester {
        Requester { segment, id }
    }

    /// Its PCI segment, if the source named it.
    pub fn segment(self) -> Option<u16> {
        self.segment
    }

    /// Whether both may be the same function: a segment that was not named can be any.
    pub fn may_be(self, other: Requester) -> bool {
        let differ = |one: Option<u16>, two: Option<u16>| one.zip(two).is_some_and(|(one, two)| one != two);
        self.id == other.id && !differ(self.segment, other.segment)
    }
}

impl FromStr for Requester {
    type Err = BadRequester;

    /// Reads `0000:01:00.0` or `01:00.0`; each part may begin with `0x`, as some kernels print it.
    fn from_str(text: &str) -> Result<Requester, BadRequester> {
        let parse = || {
            let hex = |part: &str, largest: u16| {
                let digits = part.strip_prefix("0x").unwrap_or(part);
                let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
                let number = u16::from_str_radix(digits, 16).ok()?;
                (plain && number <= largest).then_some(number)
            };
            let (front, function) = text.rsplit_once('.')?;
            let parts: Vec<&str> = front.split(':').collect();
            let (segment, bus, device) = match parts[..] {
                [bus, device] => (None, bus, device),
                [segment, bus, device] => (Some(hex(segment, u16::MAX)?), bus, device),
                _ => return None,
            };
            let id = hex(bus, 0xff)? << 8 | hex(device, 31)? << 3 | hex(function, 7)?;
            Some(Requester { segment, id })
        };
        parse().ok_or_else(|| BadRequester { text: text.chars().take(80).collect() })
    }
}

impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(segment) = self.segment {
            write!(f, "{segment:04x}:")?;
        }
        write!(f, "{:02x}:{:02x}.{:x}", self.id >> 8, self.id >> 3 & 31, self.id & 7)
    }
}

impl fmt::Debug for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Requester({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_segment_that_is_not_named_can_be_any_but_two_that_are_must_agree() {
        let read = |text: &str| text.parse::<Requester>().unwrap();
        assert!(read("02:00.0").may_be(read("0000:02:00.0")));
        assert!(read("0001:02:00.0").may_be(read("02:00.0")));
        assert!(!read("0001:02:00.0").may_be(read("0000:02:00.0")));
        assert!(!read("02:00.1").may_be(read("02:00.0")));
        assert_eq!(read("0x02:0x1f.7"), read("02:1f.7"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "02:00", "02:20.0", "02:00.8", "x:00.0", "0:0:0:0.0", "02:+1.0", "100:00.0"] {
            assert!(text.parse::<Requester>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(segment: Option<u16>, id: u16) {
            let one = Requester::new(segment, id);
            prop_assert_eq!(one.to_string().parse(), Ok(one));
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _read = text.parse::<Requester>();
        }
    }
}
