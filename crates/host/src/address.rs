//! The name of a PCI function.

use std::fmt;
use std::str::FromStr;

/// Segment, bus, device and function of a host PCI function, as in `0000:01:00.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// PCI segment (domain).
    pub segment: u16,
    /// Bus number.
    pub bus: u8,
    device: u8,
    function: u8,
}

/// A text that names no PCI function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a PCI address. Write it like 0000:01:00.0 or 01:00.0 (`lspci -D` lists them)")]
pub struct BadAddress {
    /// What was given.
    pub text: String,
}

impl PciAddress {
    /// `None` when the device is above 31 or the function above 7.
    pub fn new(segment: u16, bus: u8, device: u8, function: u8) -> Option<PciAddress> {
        (device < 32 && function < 8).then_some(PciAddress { segment, bus, device, function })
    }

    /// Device number on its bus, 0 to 31.
    pub fn device(self) -> u8 {
        self.device
    }

    /// Function number in its device, 0 to 7.
    pub fn function(self) -> u8 {
        self.function
    }
}

impl FromStr for PciAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<PciAddress, BadAddress> {
        let parse = || {
            let hex = |part: &str, digits: std::ops::RangeInclusive<usize>| {
                let plain = part.bytes().all(|byte| byte.is_ascii_hexdigit());
                let number = u16::from_str_radix(part, 16).ok()?;
                (plain && digits.contains(&part.len())).then_some(number)
            };
            let (front, function) = text.rsplit_once('.')?;
            let parts: Vec<&str> = front.split(':').collect();
            let (segment, bus, device) = match parts[..] {
                [bus, device] => (0, bus, device),
                [segment, bus, device] => (hex(segment, 4..=4)?, bus, device),
                _ => return None,
            };
            let (bus, device) = (hex(bus, 1..=2)? as u8, hex(device, 1..=2)? as u8);
            PciAddress::new(segment, bus, device, hex(function, 1..=1)? as u8)
        };
        parse().ok_or_else(|| BadAddress { text: text.to_owned() })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.segment, self.bus, self.device, self.function)
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PciAddress({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_segment_may_be_left_out() {
        assert_eq!("01:00.0".parse::<PciAddress>(), "0000:01:00.0".parse());
        assert_eq!("00:1f.3".parse::<PciAddress>().unwrap().device(), 31);
    }

    #[test]
    fn what_is_no_address_is_refused_with_an_example() {
        for text in
            ["", "01:00", "01:20.0", "01:00.8", "1:0.00", "00:01:00.0", "0000:+1:00.0", "x:00.0", "01:00.0 "]
        {
            let error = text.parse::<PciAddress>().unwrap_err();
            assert!(error.to_string().contains("0000:01:00.0"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(segment: u16, bus: u8, device in 0u8..32, function in 0u8..8) {
            let address = PciAddress::new(segment, bus, device, function).unwrap();
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _parsed = text.parse::<PciAddress>();
        }
    }
}
