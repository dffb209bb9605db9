//! Paths of the host.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::Invalid;

/// The path of a file or device of the host: not empty, without NUL, and UTF-8 (as TOML is).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPath(String);

impl HostPath {
    /// A path in the place of one of these words; `not` says what another word is not. A path has a slash or a dot there, which
    /// no word has: anything else is rather a mistake than a file in the working directory.
    pub(crate) fn unless_word(
        text: &str,
        not: &'static str,
        words: &'static [&'static str],
    ) -> Result<HostPath, Invalid> {
        match text.is_empty() || text.contains(['/', '.']) {
            true => text.parse(),
            false => Err(Invalid::WordOrPath { text: text.into(), not, words }),
        }
    }

    /// The path as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path, for opening.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl FromStr for HostPath {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<HostPath, Invalid> {
        if text.is_empty() {
            Err(Invalid::EmptyPath)
        } else if text.contains('\0') {
            Err(Invalid::NulInPath { text: text.into() })
        } else {
            Ok(HostPath(text.into()))
        }
    }
}

impl fmt::Display for HostPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The path of a Unix socket: a [`HostPath`] that fits into the kernel's socket address (unix(7)).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SocketPath(HostPath);

impl SocketPath {
    /// The longest path in bytes: `sun_path` has 108, one of them for the NUL.
    pub const MAX: usize = 107;

    /// The path as written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The path, for binding.
    pub fn as_path(&self) -> &Path {
        self.0.as_path()
    }
}

impl FromStr for SocketPath {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<SocketPath, Invalid> {
        let path: HostPath = text.parse()?;
        if text.len() > SocketPath::MAX {
            return Err(Invalid::SocketPathTooLong { text: text.into() });
        }
        Ok(SocketPath(path))
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_something_a_system_call_takes() {
        assert_eq!("/dev/sda".parse::<HostPath>().unwrap().as_path(), Path::new("/dev/sda"));
        assert_eq!("".parse::<HostPath>(), Err(Invalid::EmptyPath));
        assert!("a\0b".parse::<HostPath>().is_err());
    }

    #[test]
    fn a_socket_path_fits_into_a_socket_address() {
        assert!("x".repeat(107).parse::<SocketPath>().is_ok());
        assert!("x".repeat(108).parse::<SocketPath>().is_err());
    }
}
