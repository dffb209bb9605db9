//! Addresses of disks on servers.

use std::fmt;
use std::str::FromStr;

use super::Invalid;

/// The address of a disk that a server offers by the NBD protocol: `nbd://HOST:PORT/EXPORT` or
/// `nbd+unix:///EXPORT?socket=PATH`, in printable ASCII (RFC 3986, section 2). The start says what else may be wrong
/// with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NbdAddress(String);

impl NbdAddress {
    /// The address as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NbdAddress {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<NbdAddress, Invalid> {
        let known = ["nbd://", "nbd+unix://"].iter().any(|scheme| text.starts_with(scheme));
        if known && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(NbdAddress(text.into()))
        } else {
            Err(Invalid::NbdAddress { text: text.into() })
        }
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_scheme_of_nbd_and_no_spaces() {
        for good in ["nbd://host", "nbd://[::1]:10809/disk?timeout=5", "nbd+unix:///a?socket=/run/s"] {
            assert_eq!(good.parse::<NbdAddress>().unwrap().to_string(), good);
        }
        for bad in ["", "host:10809", "http://host", "nbds://host", "nbd://a b", "nbd://\u{e4}"] {
            assert!(bad.parse::<NbdAddress>().is_err(), "{bad:?}");
        }
    }
}
