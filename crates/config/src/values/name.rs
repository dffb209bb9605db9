//! Names of VMs, of domains and of disk controllers.

use std::fmt;
use std::str::FromStr;

use super::Invalid;

/// A VM's name: 1 to 64 of `A-Z a-z 0-9 . _ -`, beginning with neither `.` nor `-`.
///
/// It names the VM's sockets and threads, so it can be part of a file name and of a command line anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmName(String);

impl VmName {
    const MAX: usize = 64;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a VM that was given none: `vm`.
impl Default for VmName {
    fn default() -> VmName {
        VmName("vm".into())
    }
}

impl FromStr for VmName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<VmName, Invalid> {
        match is_plain(text, VmName::MAX) {
            true => Ok(VmName(text.into())),
            false => Err(Invalid::Name { text: text.into() }),
        }
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a guest domain: 1 to 32 of `A-Z a-z 0-9 . _ -`, beginning with neither `.` nor `-`, and not `host`,
/// which is the domain of the devices that skep itself drives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainName(String);

impl DomainName {
    /// The longest name in characters.
    pub const MAX: usize = 32;
    /// The name that no guest domain has.
    pub const HOST: &str = "host";

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The domain that assigned devices share when nothing else is said: `guest`.
impl Default for DomainName {
    fn default() -> DomainName {
        DomainName("guest".into())
    }
}

impl FromStr for DomainName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<DomainName, Invalid> {
        if text == DomainName::HOST {
            return Err(Invalid::HostDomain);
        }
        match is_plain(text, DomainName::MAX) {
            true => Ok(DomainName(text.into())),
            false => Err(Invalid::Domain { text: text.into() }),
        }
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a disk controller that several disks share: 1 to 15 of `A-Z a-z 0-9 . _ -`, beginning with neither `.`
/// nor `-`.
///
/// An NVMe controller's serial number is `skep-` and this name unless somebody chooses one, and it has 20 characters for
/// that: with longer names two controllers could look like one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ControllerName(String);

impl ControllerName {
    /// The longest name in characters.
    pub const MAX: usize = 15;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ControllerName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<ControllerName, Invalid> {
        match is_plain(text, ControllerName::MAX) {
            true => Ok(ControllerName(text.into())),
            false => Err(Invalid::Controller { text: text.into() }),
        }
    }
}

impl fmt::Display for ControllerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether the text can be part of a file name and of a command line anywhere, and is 1 to `max` long.
fn is_plain(text: &str, max: usize) -> bool {
    let known = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    (1..=max).contains(&text.len()) && known && !text.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_domain_has_a_plain_name_that_is_not_the_host_domain_s() {
        for good in ["guest", "nic", "host2", "a.b_c-d", &"x".repeat(32)] {
            assert_eq!(good.parse::<DomainName>().unwrap().as_str(), good);
        }
        assert_eq!("host".parse::<DomainName>(), Err(Invalid::HostDomain));
        for bad in ["", "-a", ".a", "a b", "a/b", "ä", &"x".repeat(33)] {
            assert!(bad.parse::<DomainName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_controller_has_a_plain_name_that_fits_a_serial_number() {
        assert_eq!("fast-0".parse::<ControllerName>().unwrap().as_str(), "fast-0");
        for bad in ["", "-a", "a b", &"x".repeat(16)] {
            assert_eq!(bad.parse::<ControllerName>(), Err(Invalid::Controller { text: bad.into() }));
        }
    }

    #[test]
    fn a_name_can_be_a_file_name_and_an_argument() {
        for good in ["a", "web-1", "db_2.test", "0", &"x".repeat(64)] {
            assert_eq!(good.parse::<VmName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", ".a", "-a", "a b", "a/b", "ä", "a\0", "a\n", &"x".repeat(65)] {
            assert!(bad.parse::<VmName>().is_err(), "{bad:?}");
        }
    }
}
