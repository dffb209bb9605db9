//! Where the serial console goes.

use std::fmt;
use std::str::FromStr;

use crate::values::Invalid;
use crate::values::path::{HostPath, SocketPath};

/// Where a VM's serial console goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Console {
    /// To this process's standard input and output: `stdio`.
    #[default]
    Stdio,
    /// Output to a file, no input: `file:PATH`.
    File(HostPath),
    /// To whoever connects to a Unix socket: `socket:PATH`.
    Socket(SocketPath),
}

impl FromStr for Console {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Console, Invalid> {
        match text.split_once(':') {
            None if text == "stdio" => Ok(Console::Stdio),
            Some(("file", path)) => Ok(Console::File(path.parse()?)),
            Some(("socket", path)) => Ok(Console::Socket(path.parse()?)),
            _ => Err(Invalid::Console { text: text.into() }),
        }
    }
}

/// As it is written in flags and TOML.
impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Console::Stdio => f.write_str("stdio"),
            Console::File(path) => write!(f, "file:{path}"),
            Console::Socket(path) => write!(f, "socket:{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_reads_as_it_prints() {
        for text in ["stdio", "file:/tmp/a", "socket:/run/vm,1:2"] {
            assert_eq!(text.parse::<Console>().unwrap().to_string(), text);
        }
        for bad in ["", "stdi", "stdio:", "file", "file:", "socket:", "pty"] {
            assert!(bad.parse::<Console>().is_err(), "{bad:?}");
        }
    }
}
