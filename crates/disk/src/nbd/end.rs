//! Why a connection ended.

use std::fmt;
use std::io;

use crate::contract::DiskError;

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// The server closed it, or it broke.
    Lost(io::Error),
    /// The server did not answer in its time.
    Late,
    /// The server sent what the protocol does not allow: what that is.
    Broken(String),
}

impl End {
    /// What it means for requests.
    pub(super) fn error(&self) -> DiskError {
        match self {
            End::Late => DiskError::TimedOut,
            End::Lost(_) | End::Broken(_) => DiskError::Gone,
        }
    }
}

impl From<io::Error> for End {
    fn from(cause: io::Error) -> End {
        if cause.kind() == io::ErrorKind::TimedOut { End::Late } else { End::Lost(cause) }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Lost(cause) if cause.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the server closed the connection")
            }
            End::Lost(cause) => write!(f, "the connection failed: {cause}"),
            End::Late => f.write_str("the server did not answer in its time (timeout=)"),
            End::Broken(what) => write!(f, "the server broke the NBD protocol: {what}"),
        }
    }
}
