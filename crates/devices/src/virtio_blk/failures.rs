//! Failures of a disk, told to people without flooding them.

use std::time::{Duration, Instant};

use disk::{DiskError, Failure, Operation};
use virtio::Interrupt;

/// One failure is told at once; those that follow within this time are counted.
const INTERVAL: Duration = Duration::from_secs(1);

/// The failures of one queue.
pub(super) struct Failures {
    disk: String,
    told: Option<Instant>,
    untold: u64,
}

impl Failures {
    pub(super) fn of(disk: &str) -> Failures {
        Failures { disk: disk.to_owned(), told: None, untold: 0 }
    }

    /// A request failed.
    pub(super) fn note(&mut self, operation: Operation, error: DiskError, to: &Interrupt) {
        if self.told.is_some_and(|told| told.elapsed() < INTERVAL) {
            self.untold += 1;
            return;
        }
        self.say_the_rest(to);
        self.told = Some(Instant::now());
        to.report(&Failure { disk: &self.disk, operation, error });
    }

    /// Says how many failures were not told one by one.
    pub(super) fn say_the_rest(&mut self, to: &Interrupt) {
        if self.untold > 0 {
            to.report(&format_args!("disk {}: {} more requests failed", self.disk, self.untold));
            self.untold = 0;
        }
    }
}
