//! What a device tells people, in two budgets: what its driver does wrong can happen as often as the driver likes, and
//! must not push out what this host fails at.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
/// Sentences told in one [`PERIOD`], of each kind.
const TOLD: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

/// A sentence for people, with the name of the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The driver can cause as many of these as it likes.
    Driver(String),
    /// This host failed at something.
    Host(String),
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Message::Driver(text) | Message::Host(text) => f.write_str(text),
        }
    }
}

/// Where messages for people go.
pub type Report = Arc<dyn Fn(Message) + Send + Sync>;

/// The way of one device to people, with a bounded rate for each kind of message.
pub struct Reports {
    name: String,
    report: Report,
    driver: Budget,
    host: Budget,
}

impl Reports {
    /// For the device of this name ("nvme disk0").
    pub fn new(name: String, report: Report) -> Reports {
        Reports { name, report, driver: Budget::default(), host: Budget::default() }
    }

    /// The device's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells something that the driver can cause as often as it likes, or counts it.
    pub fn driver(&self, what: &dyn fmt::Display) {
        self.tell(&self.driver, Message::Driver, what);
    }

    /// Tells that this host failed at something, or counts it.
    pub fn host(&self, what: &dyn fmt::Display) {
        self.tell(&self.host, Message::Host, what);
    }

    fn tell(&self, budget: &Budget, kind: fn(String) -> Message, what: &dyn fmt::Display) {
        let Some(untold) = budget.spend() else { return };
        self.tell_count(kind, untold);
        (self.report)(kind(format!("{}: {what}", self.name)));
    }

    fn tell_count(&self, kind: fn(String) -> Message, untold: u64) {
        if untold > 0 {
            (self.report)(kind(format!("{}: {untold} more sentences were not told", self.name)));
        }
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        let (driver, host) = (self.driver.untold(), self.host.untold());
        self.tell_count(Message::Driver, driver);
        self.tell_count(Message::Host, host);
    }
}

/// So many sentences in so much time.
#[derive(Default)]
struct Budget(Mutex<Period>);

#[derive(Default)]
struct Period {
    /// `None` before the first.
    since: Option<Instant>,
    told: u32,
    untold: u64,
}

impl Budget {
    /// Takes one sentence, and gives how many were not told before it; `None` when there is none to take now.
    fn spend(&self) -> Option<u64> {
        let mut period = self.0.lock();
        if period.since.is_none_or(|since| since.elapsed() >= PERIOD) {
            (period.since, period.told) = (Some(Instant::now()), 0);
        }
        if period.told == TOLD {
            period.untold += 1;
            return None;
        }
        period.told += 1;
        Some(std::mem::take(&mut period.untold))
    }

    fn untold(&mut self) -> u64 {
        self.0.get_mut().untold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> (Reports, Arc<Mutex<Vec<Message>>>) {
        let messages: Arc<Mutex<Vec<Message>>> = Arc::default();
        let sink = messages.clone();
        (Reports::new("nvme d".into(), Arc::new(move |message| sink.lock().push(message))), messages)
    }

    #[test]
    fn a_driver_that_does_wrong_for_ever_fills_no_log_and_the_rest_is_counted() {
        let (reports, messages) = recorded();
        (0..1000).for_each(|n| reports.driver(&format_args!("wrong {n}")));
        assert_eq!(messages.lock().len(), 10);
        drop(reports);
        let messages = messages.lock();
        assert_eq!(messages[0].to_string(), "nvme d: wrong 0");
        assert_eq!(messages[10], Message::Driver("nvme d: 990 more sentences were not told".to_owned()));
    }

    #[test]
    fn a_driver_that_does_wrong_for_ever_pushes_out_nothing_that_the_host_fails_at() {
        let (reports, messages) = recorded();
        (0..1000).for_each(|n| reports.driver(&format_args!("wrong {n}")));
        reports.host(&"the flush failed");
        let last = messages.lock().last().cloned();
        assert_eq!(last, Some(Message::Host("nvme d: the flush failed".to_owned())));
    }
}
