//! Where a PCI function sits.

use std::fmt;
use std::str::FromStr;

use super::Invalid;

/// The address of a PCI function of the host: segment, bus, device, function.
///
/// Written as `lspci -D` prints it, `0000:01:00.0`; the segment may be left out when it is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    segment: u16,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// The address of these numbers; `None` if a bus has no such device (at most 31) or a device no such
    /// function (at most 7).
    pub fn new(segment: u16, bus: u8, device: u8, function: u8) -> Option<PciAddress> {
        (device < 32 && function < 8).then_some(PciAddress { segment, bus, device, function })
    }

    /// The segment (Linux calls it domain).
    pub fn segment(self) -> u16 {
        self.segment
    }

    /// The bus within the segment.
    pub fn bus(self) -> u8 {
        self.bus
    }

    /// The device on the bus, 0 to 31.
    pub fn device(self) -> u8 {
        self.device
    }

    /// The function of the device, 0 to 7.
    pub fn function(self) -> u8 {
        self.function
    }
}

impl FromStr for PciAddress {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<PciAddress, Invalid> {
        parse(text).ok_or_else(|| Invalid::PciAddress { text: text.into() })
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (rest, function) = text.split_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (segment, bus) = rest.split_once(':').unwrap_or(("0", rest));
    let segment = u16::try_from(hex(segment, 4)?).ok()?;
    let [bus, device, function] = [hex(bus, 2)?, hex(device, 2)?, hex(function, 1)?];
    PciAddress::new(
        segment,
        u8::try_from(bus).ok()?,
        u8::try_from(device).ok()?,
        u8::try_from(function).ok()?,
    )
}

/// A hexadecimal number of 1 to `most` digits and nothing else: no sign, which the standard parser takes.
fn hex(text: &str, most: usize) -> Option<u32> {
    let fits = (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.segment, self.bus, self.device, self.function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_as_lspci_prints_it() {
        let address: PciAddress = "0001:3a:1f.7".parse().unwrap();
        let numbers = (address.segment(), address.bus(), address.device(), address.function());
        assert_eq!(numbers, (1, 0x3a, 0x1f, 7));
        assert_eq!(address.to_string(), "0001:3a:1f.7");
    }

    #[test]
    fn the_segment_may_be_left_out() {
        assert_eq!("01:00.0".parse::<PciAddress>().unwrap().to_string(), "0000:01:00.0");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let bad = [
            "",
            "0",
            "01:00",
            "01:00.",
            ":00.0",
            "01:.0",
            "01:20.0",
            "01:00.8",
            "100:00.0",
            "0:0:0:0.0",
            "+1:00.0",
            "01:00.+",
            "10000:01:00.0",
            "01:00.0 ",
            "01:00.0.0",
            "01/00/0",
            "zz:00.0",
        ];
        for bad in bad {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad:?}");
        }
    }
}
