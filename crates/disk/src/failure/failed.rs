//! A failed request as people are told of it.

use std::fmt;
use std::sync::Arc;

use super::policy::Answer;
use crate::contract::{DiskError, Operation};

/// A failed request: which disk, what, where, why, and what became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// The disk's name ([`crate::Disk::name`]).
    pub disk: Arc<str>,
    /// What was asked for.
    pub operation: Operation,
    /// Bytes of data that it was for.
    pub bytes: u64,
    /// Why it failed.
    pub error: DiskError,
    /// The kernel's error number, where it was the kernel that failed it.
    pub errno: Option<i32>,
    /// What else is known of it: what a server of the disk did wrong, say.
    pub cause: Option<Arc<str>>,
    /// What became of it.
    pub answer: Answer,
    /// So many more requests of the disk have failed since the last of which people were told.
    pub more: u64,
}

impl Failure {
    /// What failed and why, without what became of it.
    pub fn what(&self) -> impl fmt::Display + '_ {
        What(self)
    }
}

struct What<'a>(&'a Failure);

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { disk, operation, bytes, error, errno, cause, .. } = self.0;
        write!(f, "disk {disk}: ")?;
        match operation {
            Operation::Read { at } | Operation::Write { at, .. } => {
                write!(f, "{} of {bytes} bytes at sector {at}", operation.name())?;
            }
            other => other.fmt(f)?,
        }
        write!(f, " failed: {error}")?;
        if let Some(cause) = cause {
            write!(f, " ({cause})")?;
        }
        match (errno, error) {
            // The error is these very words already.
            (None, _) | (_, DiskError::Other(_)) => Ok(()),
            (Some(errno), _) => write!(f, " ({})", std::io::Error::from_raw_os_error(*errno)),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let became = match self.answer {
            Answer::Reported => "The guest sees the error.",
            Answer::Held => "It is held, and tried again by `skep resume`.",
            Answer::Ignored => {
                "The guest is told that it went well, as on-error=ignore asks: its data is lost."
            }
        };
        write!(f, "{}. {became} {}", self.what(), self.error.hint())?;
        match self.more {
            0 => Ok(()),
            1 => f.write_str(" (Another request has failed since the last such message.)"),
            more => write!(f, " ({more} more requests have failed since the last such message.)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Sectors;

    #[test]
    fn a_failure_names_disk_place_length_cause_and_what_to_do() {
        let failure = Failure {
            disk: "/dev/sdb".into(),
            operation: Operation::Read { at: Sectors(2048) },
            bytes: 4096,
            error: DiskError::Media,
            errno: Some(libc::ENODATA),
            cause: None,
            answer: Answer::Reported,
            more: 0,
        };
        let text = failure.to_string();
        assert!(
            text.starts_with(
                "disk /dev/sdb: read of 4096 bytes at sector 2048 failed: the medium failed (No data available"
            ),
            "{text}"
        );
        assert!(text.contains("The guest sees the error. ") && text.contains("dmesg"), "{text}");
        let held =
            Failure { error: DiskError::NoSpace, errno: None, answer: Answer::Held, more: 3, ..failure };
        let text = held.to_string();
        assert!(text.contains("no space left behind the disk. It is held"), "{text}");
        assert!(
            text.contains("Make room")
                && text.ends_with("(3 more requests have failed since the last such message.)")
        );
        let gone = Failure {
            error: DiskError::Gone,
            cause: Some("the server closed the connection".into()),
            ..held
        };
        let text = gone.to_string();
        assert!(
            text.contains("failed: the disk is gone (the server closed the connection). It is held"),
            "{text}"
        );
    }
}
