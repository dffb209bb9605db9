//! How often people are told of failures: of the first at once, then, as long as it goes on, of one with the number of
//! those between, at growing intervals.

use std::time::{Duration, Instant};

use super::failed::Failure;

/// Until the second message; every further one takes twice as long, ...
const FIRST: Duration = Duration::from_secs(1);
/// ... but no longer than this.
const LONGEST: Duration = Duration::from_secs(64);

/// What of a disk's failures was told.
#[derive(Default)]
pub(super) enum Rate {
    /// None failed lately.
    #[default]
    Quiet,
    /// One was told; the next is due at `due`.
    Told { due: Instant, interval: Duration, untold: Option<Failure>, count: u64 },
}

impl Rate {
    /// A request failed. Returns what people are told of it now.
    pub(super) fn note(&mut self, failure: Failure, now: Instant) -> Option<Failure> {
        match self {
            Rate::Quiet => {
                *self = Rate::Told { due: now + FIRST, interval: FIRST, untold: None, count: 0 };
                Some(failure)
            }
            Rate::Told { untold, count, .. } => {
                *untold = Some(failure);
                *count += 1;
                self.at(now)
            }
        }
    }

    /// When there may be something to tell without another failure.
    pub(super) fn due(&self) -> Option<Instant> {
        if let Rate::Told { due, .. } = self { Some(*due) } else { None }
    }

    /// What is to be told by now.
    pub(super) fn at(&mut self, now: Instant) -> Option<Failure> {
        let Rate::Told { due, interval, untold, count } = self else { return None };
        if now < *due {
            return None;
        }
        let Some(failure) = untold.take() else {
            *self = Rate::Quiet;
            return None;
        };
        *interval = (*interval * 2).min(LONGEST);
        *due = now + *interval;
        Some(Failure { more: std::mem::take(count) - 1, ..failure })
    }

    /// What was not told.
    pub(super) fn rest(&mut self) -> Option<Failure> {
        match std::mem::take(self) {
            Rate::Told { untold: Some(failure), count, .. } => Some(Failure { more: count - 1, ..failure }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::Answer;
    use super::*;
    use crate::contract::{DiskError, Operation, Sectors};

    fn failure(at: u64) -> Failure {
        let operation = Operation::Read { at: Sectors(at) };
        let (error, answer) = (DiskError::Media, Answer::Reported);
        Failure { disk: "d".into(), operation, bytes: 512, error, errno: None, cause: None, answer, more: 0 }
    }

    #[test]
    fn the_first_is_told_at_once_and_the_others_are_counted_at_growing_intervals() {
        let (mut rate, begin) = (Rate::default(), Instant::now());
        let mut told = Vec::new();
        for second in 0..10 {
            for tenth in 0..10 {
                let now = begin + Duration::from_secs(second) + Duration::from_millis(100 * tenth);
                told.extend(
                    rate.note(failure(second * 10 + tenth), now).map(|told| (told.operation, told.more)),
                );
            }
        }
        let at = |at| Operation::Read { at: Sectors(at) };
        assert_eq!(told, [(at(0), 0), (at(10), 9), (at(30), 19), (at(70), 39)]);
        let rest = rate.rest().unwrap();
        assert_eq!((rest.operation, rest.more), (at(99), 28));
        assert!(rate.rest().is_none());
    }

    #[test]
    fn the_count_comes_when_it_is_due_without_another_failure_and_then_all_is_quiet() {
        let (mut rate, begin) = (Rate::default(), Instant::now());
        assert_eq!(rate.due(), None);
        rate.note(failure(0), begin);
        rate.note(failure(1), begin);
        rate.note(failure(2), begin);
        let due = rate.due().unwrap();
        assert!(rate.at(begin).is_none());
        assert_eq!(rate.at(due).map(|told| told.more), Some(1));
        assert!(rate.at(rate.due().unwrap()).is_none(), "there was nothing more");
        assert_eq!(rate.due(), None);
        assert!(rate.note(failure(3), due).is_some(), "which is news again");
    }
}
