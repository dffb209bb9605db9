//! The events of a VM: a ring of the latest, each with a number, that many may read and wait for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use crate::api::{Count, Event, EventKind, Events, Fault};
use crate::time::rfc3339;
use crate::view;

/// Events that are kept at most.
pub const KEPT: usize = 4096;
/// Events in one answer at most.
const TOLD: usize = 512;
/// Bytes of an event's sentence at most; a guest may have a part in what it says.
const LONGEST: usize = 2048;
/// Bursts of faults that may still grow at most.
const BURSTS: usize = 64;
/// Domains whose faults are counted each by itself; those of more count as of none.
const DOMAINS: usize = 256;

/// The latest events of a VM, and the count of all its faults.
#[derive(Default)]
pub struct Journal {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    ring: VecDeque<Event>,
    /// The number of the latest event, 0 before the first.
    latest: u64,
    faults: Faults,
    bursts: Bursts,
    closed: bool,
}

/// How many faults of each of the latest bursts were counted.
#[derive(Default)]
struct Bursts(BTreeMap<u64, Count>);

impl Bursts {
    fn grown(&mut self, event: &dma::fault::Event) -> Count {
        let now = Count { known: event.count.known, unattributed: event.count.unattributed };
        if event.burst == 0 {
            return now;
        }
        let before = self.0.insert(event.burst, now).unwrap_or_default();
        if self.0.len() > BURSTS {
            self.0.pop_first();
        }
        Count {
            known: now.known.saturating_sub(before.known),
            unattributed: now.unattributed.saturating_sub(before.unattributed),
        }
    }
}

/// Faults by domain since the VM began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    by_domain: BTreeMap<String, Count>,
    /// Those that cannot be said to be of one domain.
    pub other: Count,
}

impl Faults {
    /// Those of a domain.
    pub fn of(&self, domain: &str) -> Count {
        self.by_domain.get(domain).copied().unwrap_or_default()
    }

    /// All but those of the domains that `is_shown` names.
    pub(crate) fn except(&self, is_shown: impl Fn(&str) -> bool) -> Count {
        let gone = self.by_domain.iter().filter(|(name, _)| !is_shown(name)).map(|(_, count)| *count);
        gone.fold(self.other, plus)
    }

    fn add(&mut self, fault: &Fault) {
        let room = self.by_domain.len() < DOMAINS;
        let count = match &fault.domain {
            Some(domain) if room || self.by_domain.contains_key(domain) => {
                self.by_domain.entry(domain.clone()).or_default()
            }
            _ => &mut self.other,
        };
        *count = plus(*count, fault.count);
    }
}

fn plus(one: Count, other: Count) -> Count {
    Count {
        known: one.known.saturating_add(other.known),
        unattributed: one.unattributed.saturating_add(other.unattributed),
    }
}

impl Journal {
    /// Nothing happened yet.
    pub fn new() -> Journal {
        Journal::default()
    }

    /// Records that something happened just now; returns its number.
    pub fn record(&self, kind: EventKind, text: &str) -> u64 {
        self.add(kind, text, None)
    }

    /// Records a fault. Its count is what happened since the last record of the same faults.
    pub fn record_fault(&self, text: &str, fault: Fault) -> u64 {
        self.add(EventKind::Fault, text, Some(fault))
    }

    /// Records DMA that failed. A burst that is told again counts only what it has grown by.
    pub fn record_dma(&self, event: &dma::fault::Event) -> u64 {
        let grown = self.state().bursts.grown(event);
        self.add(EventKind::Fault, &event.to_string(), Some(view::fault(event, grown)))
    }

    fn add(&self, kind: EventKind, text: &str, fault: Option<Fault>) -> u64 {
        let mut state = self.state();
        state.latest += 1;
        if let Some(fault) = &fault {
            state.faults.add(fault);
        }
        let (number, time) = (state.latest, rfc3339(SystemTime::now()));
        if state.ring.len() == KEPT {
            state.ring.pop_front();
        }
        state.ring.push_back(Event { number, time, kind, text: shortened(text), fault });
        self.news.notify_all();
        number
    }

    /// The events after number `after`; if there are none yet, the first to come within `wait`. What waits is
    /// woken when the journal is closed.
    pub fn after(&self, after: u64, wait: Duration) -> Events {
        let nothing_new = |state: &mut State| state.latest <= after && !state.closed;
        let (state, _) = self
            .news
            .wait_timeout_while(self.state(), wait, nothing_new)
            .expect("no code panics with it held");
        let first = state.ring.front().map_or(state.latest + 1, |event| event.number);
        let events: Vec<Event> =
            state.ring.iter().filter(|event| event.number > after).take(TOLD).cloned().collect();
        let next_after = events.last().map_or(after, |event| event.number);
        let ended = state.closed && next_after >= state.latest;
        Events { events, next_after, lost: first.saturating_sub(after.saturating_add(1)), ended }
    }

    /// All faults so far.
    pub fn faults(&self) -> Faults {
        self.state().faults.clone()
    }

    /// The VM has ended: nothing more will come, and nobody needs to wait.
    pub fn close(&self) {
        self.state().closed = true;
        self.news.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics with this lock held")
    }
}

fn shortened(text: &str) -> String {
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(LONGEST)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const AT_ONCE: Duration = Duration::ZERO;

    #[test]
    fn events_have_numbers_and_what_is_no_longer_kept_is_counted() {
        let journal = Journal::new();
        for number in 1..=KEPT as u64 + 10 {
            assert_eq!(journal.record(EventKind::Trouble, "again"), number);
        }
        let events = journal.after(3, AT_ONCE);
        assert_eq!((events.lost, events.events[0].number, events.events.len()), (7, 11, TOLD));
        let rest = journal.after(events.next_after, AT_ONCE);
        assert_eq!((rest.lost, rest.events[0].number), (0, 11 + TOLD as u64));
        let none = journal.after(KEPT as u64 + 10, AT_ONCE);
        assert_eq!((none.lost, none.events.len(), none.next_after), (0, 0, KEPT as u64 + 10));
        assert_eq!(journal.after(u64::MAX, AT_ONCE).lost, 0);
    }

    #[test]
    fn whoever_waits_is_woken_by_an_event_and_by_the_end() {
        let journal = Arc::new(Journal::new());
        let (reader, patience) = (journal.clone(), Duration::from_secs(60));
        let waiting = std::thread::spawn(move || {
            let first = reader.after(0, patience);
            (first.events.len(), first.ended, reader.after(1, patience).ended)
        });
        std::thread::sleep(Duration::from_millis(20));
        journal.record(EventKind::Life, "The guest runs.");
        std::thread::sleep(Duration::from_millis(20));
        journal.close();
        assert_eq!(waiting.join().unwrap(), (1, false, true));
    }

    #[test]
    fn faults_add_up_by_domain_even_when_their_events_are_gone() {
        let journal = Journal::new();
        let count = Count { known: 2, unattributed: 1 };
        for _ in 0..KEPT * 2 {
            journal.record_fault("f", Fault { domain: Some("guest".into()), count, ..Fault::default() });
        }
        journal.record_fault("f", Fault { count, ..Fault::default() });
        let faults = journal.faults();
        assert_eq!(faults.of("guest"), Count { known: 4 * KEPT as u64, unattributed: 2 * KEPT as u64 });
        assert_eq!((faults.other, faults.of("host")), (count, Count::default()));
    }

    #[test]
    fn a_burst_that_is_told_again_counts_what_it_has_grown_by() {
        let fault = dma::fault::Fault {
            time: SystemTime::UNIX_EPOCH,
            device: Some("0000:00:09.0".parse().unwrap()),
            direction: Some(dma::fault::Direction::Write),
            iova: Some(dma::Iova(0xf00_0000)),
            pasid: None,
            reason: "no".into(),
            source: dma::fault::Source::Log,
        };
        let place = Some(dma::fault::Place::Beyond);
        let mut event = dma::fault::Event::single(fault, Some("guest".into()), place);
        event.burst = 3;
        let journal = Journal::new();
        for known in [1, 7, 7] {
            event.count.known = known;
            journal.record_dma(&event);
        }
        assert_eq!(journal.faults().of("guest").known, 7);
        let told = journal.after(0, AT_ONCE).events;
        let counts: Vec<u64> = told.iter().map(|event| event.fault.as_ref().unwrap().count.known).collect();
        assert_eq!(counts, [1, 6, 0]);
        let fault = told[0].fault.as_ref().unwrap();
        assert_eq!(fault.device.as_deref(), Some("0000:00:09.0"));
        assert_eq!(fault.iova, Some(crate::api::Address(0xf00_0000)));
    }

    #[test]
    fn a_long_sentence_is_cut_between_characters() {
        let text = shortened(&"ä".repeat(LONGEST));
        assert!(text.len() <= LONGEST + 3 && text.ends_with("ä…"));
    }
}
