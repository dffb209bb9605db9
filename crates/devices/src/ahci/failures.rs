//! Failures of a disk, told to people without flooding them.

use std::time::{Duration, Instant};

use disk::{DiskError, Failure, Operation};

use super::hba::Hba;

/// One failure is told at once; those that follow within this time are counted.
const INTERVAL: Duration = Duration::from_secs(1);

/// The failures of one port.
pub(super) struct Failures {
    disk: String,
    told: Option<Instant>,
    untold: u64,
}

impl Failures {
    pub fn of(disk: &str) -> Failures {
        Failures { disk: disk.to_owned(), told: None, untold: 0 }
    }

    /// The disk's name.
    pub fn disk(&self) -> &str {
        &self.disk
    }

    /// A request failed.
    pub fn note(&mut self, operation: Operation, error: DiskError, hba: &Hba) {
        if self.told.is_some_and(|told| told.elapsed() < INTERVAL) {
            self.untold += 1;
            return;
        }
        self.say_the_rest(hba);
        self.told = Some(Instant::now());
        hba.report(&Failure { disk: &self.disk, operation, error });
    }

    /// Says how many failures were not told one by one.
    pub fn say_the_rest(&mut self, hba: &Hba) {
        if self.untold > 0 {
            hba.report(&format_args!("disk {}: {} more requests failed", self.disk, self.untold));
            self.untold = 0;
        }
    }
}
