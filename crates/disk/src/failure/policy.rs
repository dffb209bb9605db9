//! What to do about which failure.

use crate::contract::{DiskError, Operation};

/// What is done when the host fails a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnError {
    /// The guest sees an error of its kind.
    Report,
    /// The request is held and the disk's owner told, who pauses the VM and has all held requests tried again
    /// later.
    Pause,
    /// The guest is told that it went well, unless it reads: what it writes, discards or flushes is lost without its
    /// knowledge, and a later read brings what the disk still has. That is QEMU's `werror=ignore`. Reads fail, for there
    /// is nothing that could be given to the guest; QEMU's `rerror=ignore`, which leaves it whatever its memory held, has
    /// no counterpart.
    Ignore,
}

/// What is done about each kind of failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorPolicy {
    /// When there is no space left behind the disk.
    pub no_space: OnError,
    /// When anything else fails.
    pub other: OnError,
}

/// A lack of space, which somebody can mend, pauses; anything else is reported.
impl Default for ErrorPolicy {
    fn default() -> ErrorPolicy {
        ErrorPolicy { no_space: OnError::Pause, other: OnError::Report }
    }
}

/// The same for every failure.
impl From<OnError> for ErrorPolicy {
    fn from(on_error: OnError) -> ErrorPolicy {
        ErrorPolicy { no_space: on_error, other: on_error }
    }
}

/// What became of a request that the host failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The guest saw the error.
    Reported,
    /// It waits to be tried again.
    Held,
    /// The guest was told that it went well.
    Ignored,
}

impl ErrorPolicy {
    /// What becomes of a request that a back end has failed.
    pub fn answer(self, operation: Operation, error: DiskError) -> Answer {
        let on_error = match error {
            // Another try would end the same way, and drivers know what to do.
            DiskError::Unsupported
            | DiskError::Unaligned
            | DiskError::TooLong
            | DiskError::QueueFull
            // Somebody wanted that.
            | DiskError::Cancelled => OnError::Report,
            DiskError::NoSpace => self.no_space,
            DiskError::OutOfRange
            | DiskError::ReadOnly
            | DiskError::Media
            | DiskError::Gone
            | DiskError::TimedOut
            | DiskError::DmaBlocked
            | DiskError::Other(_) => self.other,
        };
        match (on_error, operation) {
            (OnError::Report, _) | (OnError::Ignore, Operation::Read { .. }) => Answer::Reported,
            (OnError::Pause, _) => Answer::Held,
            (OnError::Ignore, _) => Answer::Ignored,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Durability, Sectors};

    const READ: Operation = Operation::Read { at: Sectors(0) };
    const WRITE: Operation = Operation::Write { at: Sectors(0), durability: Durability::Cached };

    #[test]
    fn without_a_word_a_lack_of_space_waits_and_the_rest_is_reported() {
        let policy = ErrorPolicy::default();
        assert_eq!(policy.answer(WRITE, DiskError::NoSpace), Answer::Held);
        assert_eq!(policy.answer(WRITE, DiskError::Media), Answer::Reported);
        assert_eq!(policy.answer(READ, DiskError::Gone), Answer::Reported);
    }

    #[test]
    fn a_word_holds_for_every_kind_but_a_read_is_never_passed_off_as_done() {
        for error in [DiskError::NoSpace, DiskError::Media, DiskError::Gone, DiskError::Other(5)] {
            assert_eq!(ErrorPolicy::from(OnError::Report).answer(WRITE, error), Answer::Reported);
            assert_eq!(ErrorPolicy::from(OnError::Pause).answer(READ, error), Answer::Held);
            assert_eq!(ErrorPolicy::from(OnError::Ignore).answer(WRITE, error), Answer::Ignored);
            assert_eq!(ErrorPolicy::from(OnError::Ignore).answer(Operation::Flush, error), Answer::Ignored);
            assert_eq!(ErrorPolicy::from(OnError::Ignore).answer(READ, error), Answer::Reported);
        }
    }

    #[test]
    fn what_another_try_cannot_mend_is_the_guests_to_know_whatever_the_policy() {
        for error in [DiskError::Unsupported, DiskError::Cancelled, DiskError::TooLong] {
            for on_error in [OnError::Pause, OnError::Ignore] {
                assert_eq!(ErrorPolicy::from(on_error).answer(WRITE, error), Answer::Reported);
            }
        }
    }
}
