//! What a controller tells people: what its driver does wrong can happen as often as the driver likes.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use virtio::Report;

/// Sentences told in one [`PERIOD`].
const TOLD: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

/// The way to people, with a bounded rate.
pub(super) struct Reports {
    name: String,
    report: Report,
    period: Mutex<Period>,
}

struct Period {
    since: Instant,
    told: u32,
    untold: u64,
}

impl Reports {
    /// For the controller of this name ("nvme disk0").
    pub(super) fn new(name: &str, report: Report) -> Reports {
        let period = Mutex::new(Period { since: Instant::now(), told: 0, untold: 0 });
        Reports { name: name.to_owned(), report, period }
    }

    /// The controller's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Tells a sentence, or counts it.
    pub(super) fn tell(&self, what: &dyn fmt::Display) {
        let untold = {
            let mut period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
            if period.since.elapsed() >= PERIOD {
                (period.since, period.told) = (Instant::now(), 0);
            }
            if period.told == TOLD {
                period.untold += 1;
                return;
            }
            period.told += 1;
            std::mem::take(&mut period.untold)
        };
        self.tell_count(untold);
        (self.report)(format!("{}: {what}", self.name));
    }

    fn tell_count(&self, untold: u64) {
        if untold > 0 {
            (self.report)(format!("{}: {untold} more sentences were not told", self.name));
        }
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        let untold = self.period.get_mut().unwrap_or_else(PoisonError::into_inner).untold;
        self.tell_count(untold);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_driver_that_does_wrong_for_ever_fills_no_log_and_the_rest_is_counted() {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let sink = lines.clone();
        let reports = Reports::new("nvme d", Arc::new(move |line| sink.lock().unwrap().push(line)));
        (0..1000).for_each(|n| reports.tell(&format_args!("wrong {n}")));
        assert_eq!(lines.lock().unwrap().len(), 10);
        drop(reports);
        let lines = lines.lock().unwrap();
        assert_eq!(
            (&*lines[0], &*lines[10]),
            ("nvme d: wrong 0", "nvme d: 990 more sentences were not told")
        );
    }
}
