//! Texts that the guest gets to see.

use std::fmt;
use std::str::FromStr;

use super::Invalid;

/// The guest kernel's command line: one line of at most 2047 bytes (Linux x86 `COMMAND_LINE_SIZE` is 2048 with
/// the NUL at its end).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cmdline(String);

impl Cmdline {
    /// The longest command line in bytes.
    pub const MAX: usize = 2047;

    /// The line.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `console=ttyS0`, so that the kernel's messages come out of the VM's console.
impl Default for Cmdline {
    fn default() -> Cmdline {
        Cmdline("console=ttyS0".into())
    }
}

impl FromStr for Cmdline {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Cmdline, Invalid> {
        if let Some(character) = text.chars().find(|c| c.is_control() && *c != '\t') {
            return Err(Invalid::CmdlineControl { character });
        }
        if text.len() > Cmdline::MAX {
            return Err(Invalid::CmdlineTooLong { len: text.len() });
        }
        Ok(Cmdline(text.into()))
    }
}

impl fmt::Display for Cmdline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A disk's serial number as the guest sees it: 1 to 20 printable ASCII characters (virtio 1.3 section 5.2.6
/// and the ATA and NVMe identify data all have 20 bytes for it).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Serial(String);

impl Serial {
    /// The longest serial number in characters.
    pub const MAX: usize = 20;

    /// The serial number.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Serial {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Serial, Invalid> {
        match is_shown(text, Serial::MAX) {
            true => Ok(Serial(text.into())),
            false => Err(Invalid::Serial { text: text.into() }),
        }
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A disk's model as the guest sees it: 1 to 40 printable ASCII characters (the ATA and NVMe identify data have 40
/// bytes for it).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Product(String);

impl Product {
    /// The longest one in characters.
    pub const MAX: usize = 40;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Product {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Product, Invalid> {
        match is_shown(text, Product::MAX) {
            true => Ok(Product(text.into())),
            false => Err(Invalid::Shown { key: "product", text: text.into(), max: Product::MAX }),
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A disk's firmware revision as the guest sees it: 1 to 8 printable ASCII characters (the ATA and NVMe identify data have 8
/// bytes for it).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Firmware(String);

impl Firmware {
    /// The longest one in characters.
    pub const MAX: usize = 8;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Firmware {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Firmware, Invalid> {
        match is_shown(text, Firmware::MAX) {
            true => Ok(Firmware(text.into())),
            false => Err(Invalid::Shown { key: "firmware", text: text.into(), max: Firmware::MAX }),
        }
    }
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a file in a firmware's configuration: `opt/` and up to 51 printable ASCII characters behind it without spaces
/// (QEMU, docs/specs/fw_cfg.rst: names that begin with something else are the machine's own).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FwCfgName(String);

impl FwCfgName {
    /// The longest one in characters.
    pub const MAX: usize = 55;
    const PREFIX: &str = "opt/";
    /// What skep itself tells OVMF.
    const OWN: &str = "opt/ovmf/X-PciMmio64Mb";

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FwCfgName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<FwCfgName, Invalid> {
        let fits = (FwCfgName::PREFIX.len() + 1..=FwCfgName::MAX).contains(&text.len())
            && text.starts_with(FwCfgName::PREFIX)
            && text != FwCfgName::OWN
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(FwCfgName(text.into())) } else { Err(Invalid::FwCfgName { text: text.into() }) }
    }
}

impl fmt::Display for FwCfgName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether identify data of disks can show the text, of which there is 1 to `max` bytes.
fn is_shown(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && text.bytes().all(|b| (b' '..=b'~').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_one_line_that_linux_reads_whole() {
        assert!("".parse::<Cmdline>().is_ok());
        assert!("x".repeat(2047).parse::<Cmdline>().is_ok());
        assert_eq!("x".repeat(2048).parse::<Cmdline>(), Err(Invalid::CmdlineTooLong { len: 2048 }));
        assert_eq!("a\nb".parse::<Cmdline>(), Err(Invalid::CmdlineControl { character: '\n' }));
        assert!("a\0".parse::<Cmdline>().is_err());
    }

    #[test]
    fn product_and_firmware_are_as_long_as_identify_data_has_room() {
        assert_eq!("WDC WD40".parse::<Product>().unwrap().as_str(), "WDC WD40");
        assert!("x".repeat(40).parse::<Product>().is_ok() && "x".repeat(41).parse::<Product>().is_err());
        assert!("1.0 beta".parse::<Firmware>().is_ok() && "1.0 gamma".parse::<Firmware>().is_err());
        let error = "\u{e9}".parse::<Firmware>().unwrap_err().to_string();
        assert!(error.contains("`firmware`") && error.contains("1 to 8 printable"), "{error}");
    }

    #[test]
    fn a_serial_number_has_20_printable_characters_at_most() {
        assert!("WD-1234 567".parse::<Serial>().is_ok());
        for bad in ["", "ä", "a\tb", &"x".repeat(21)] {
            assert!(bad.parse::<Serial>().is_err(), "{bad:?}");
        }
    }
}
