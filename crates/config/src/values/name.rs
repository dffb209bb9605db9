//! A VM's name.

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
        let fits = (1..=VmName::MAX).contains(&text.len());
        let known = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if fits && known && !text.starts_with(['.', '-']) {
            Ok(VmName(text.into()))
        } else {
            Err(Invalid::Name { text: text.into() })
        }
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
