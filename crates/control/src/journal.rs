//! The events of a VM: a ring of the latest, each with a number, that many may read and wait for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use crate::api::{Count, DiskError, Event, EventKind, Events, Fault};
use crate::time::rfc3339;

/// Events that are kept at most, without what the guest provokes.
pub const KEPT: usize = 4096;
/// Events that the guest provoked which are kept at most: it can cause as many as it likes, and they must not displace other
/// events.
pub const PROVOKED_KEPT: usize = 512;
/// Events in one answer at most.
const TOLD: usize = 512;
/// Bytes of an event's sentence at most; a guest may have a part in what it says.
const LONGEST: usize = 2048;
/// Domains whose faults are counted each by itself; those of more count as of none.
const DOMAINS: usize = 256;
/// Bursts of faults that may still grow; one that grows after so many others have begun counts as another.
const BURSTS: usize = 256;

/// The latest events of a VM, and the count of all its faults.
#[derive(Default)]
pub struct Journal {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    ring: VecDeque<Event>,
    /// What the guest provoked, in a ring of its own.
    provoked: VecDeque<Event>,
    /// The number of the latest event, 0 before the first.
    latest: u64,
    faults: Faults,
    closed: bool,
}

/// Faults by domain since the VM began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    by_domain: BTreeMap<String, Count>,
    /// Those that are not known to be of a domain.
    other: Count,
    /// The latest bursts, and what of them is counted already.
    bursts: VecDeque<(u64, Count)>,
}

impl Faults {
    /// Those known to be of a domain.
    pub fn of(&self, domain: &str) -> Count {
        self.by_domain.get(domain).copied().unwrap_or_default()
    }

    /// All but those of the domains that `is_shown` names.
    pub fn except(&self, is_shown: impl Fn(&str) -> bool) -> Count {
        let gone = self.by_domain.iter().filter(|(name, _)| !is_shown(name)).map(|(_, count)| *count);
        gone.fold(self.other, plus)
    }

    fn add(&mut self, fault: &Fault) {
        let new = self.new_in(fault);
        let known = Count { unattributed: 0, ..new };
        let room = self.by_domain.len() < DOMAINS;
        let count = match &fault.domain {
            Some(domain) if room || self.by_domain.contains_key(domain) => {
                self.by_domain.entry(domain.clone()).or_default()
            }
            _ => &mut self.other,
        };
        *count = plus(*count, known);
        if new.unattributed > 0 {
            self.other = plus(self.other, Count { known: 0, ..new });
        }
    }

    /// What of a fault's count is not counted yet.
    fn new_in(&mut self, fault: &Fault) -> Count {
        if fault.burst == 0 {
            return fault.count;
        }
        let Some((_, counted)) = self.bursts.iter_mut().find(|(burst, _)| *burst == fault.burst) else {
            if self.bursts.len() == BURSTS {
                self.bursts.pop_front();
            }
            self.bursts.push_back((fault.burst, fault.count));
            return fault.count;
        };
        let before = std::mem::replace(counted, fault.count);
        Count {
            known: fault.count.known.saturating_sub(before.known),
            unattributed: fault.count.unattributed.saturating_sub(before.unattributed),
            complete: fault.count.complete,
        }
    }
}

fn plus(one: Count, other: Count) -> Count {
    Count {
        known: one.known.saturating_add(other.known),
        unattributed: one.unattributed.saturating_add(other.unattributed),
        complete: one.complete && other.complete,
    }
}

impl Journal {
    /// Nothing happened yet.
    pub fn new() -> Journal {
        Journal::default()
    }

    /// Records that something happened just now; returns its number.
    pub fn record(&self, kind: EventKind, text: &str) -> u64 {
        self.add(kind, text, None, None)
    }

    /// Records a trouble that the guest can cause as often as it likes.
    pub fn record_provoked(&self, text: &str) -> u64 {
        let mut state = self.state();
        let event = state.event(EventKind::Trouble, text, None, None);
        let number = event.number;
        keep(&mut state.provoked, PROVOKED_KEPT, event);
        self.news.notify_all();
        number
    }

    /// Records DMA that failed, or that a burst of it has grown ([`crate::view::fault`]). What is reported again is counted
    /// as what it has grown by.
    pub fn record_fault(&self, text: &str, fault: Fault) -> u64 {
        self.add(EventKind::Fault, text, Some(fault), None)
    }

    /// Records that this host failed a request of a disk ([`crate::view::disk_error`]).
    pub fn record_disk(&self, text: &str, error: DiskError) -> u64 {
        self.add(EventKind::Disk, text, None, Some(error))
    }

    fn add(&self, kind: EventKind, text: &str, fault: Option<Fault>, disk: Option<DiskError>) -> u64 {
        let mut state = self.state();
        if let Some(fault) = &fault {
            state.faults.add(fault);
        }
        let event = state.event(kind, text, fault, disk);
        let number = event.number;
        keep(&mut state.ring, KEPT, event);
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
        let events = state.after(after);
        let next_after = events.last().map_or(after, |event| event.number);
        let ended = state.closed && next_after >= state.latest;
        // Numbers have no gaps, so what is missing is no longer kept.
        let lost = next_after - after - events.len() as u64;
        Events { events, next_after, lost, ended }
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

impl State {
    /// The next event.
    fn event(&mut self, kind: EventKind, text: &str, fault: Option<Fault>, disk: Option<DiskError>) -> Event {
        self.latest += 1;
        let (number, time) = (self.latest, rfc3339(SystemTime::now()));
        Event { number, time, kind, text: shortened(text), fault, disk }
    }

    /// The first events behind this number that are kept, in order; one answer's worth.
    fn after(&self, number: u64) -> Vec<Event> {
        let behind = |ring: &'_ VecDeque<Event>| ring.partition_point(|event| event.number <= number);
        let mut one = self.ring.range(behind(&self.ring)..).peekable();
        let mut other = self.provoked.range(behind(&self.provoked)..).peekable();
        let next = || match (one.peek(), other.peek()) {
            (Some(first), Some(second)) if first.number > second.number => other.next(),
            (Some(_), _) => one.next(),
            (None, _) => other.next(),
        };
        std::iter::from_fn(next).take(TOLD).cloned().collect()
    }
}

fn keep(ring: &mut VecDeque<Event>, most: usize, event: Event) {
    if ring.len() == most {
        ring.pop_front();
    }
    ring.push_back(event);
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
    fn what_a_guest_provokes_pushes_out_its_own_kind_alone_and_all_come_in_order() {
        let journal = Journal::new();
        let flush = journal.record(EventKind::Trouble, "the flush failed");
        for number in 0..10_000 {
            journal.record_provoked("a bad descriptor");
            if number == 9_900 {
                journal.record(EventKind::Life, "paused");
            }
        }
        let (mut after, mut seen, mut lost) = (0, Vec::new(), 0);
        loop {
            let answer = journal.after(after, AT_ONCE);
            if answer.events.is_empty() {
                break;
            }
            (after, lost) = (answer.next_after, lost + answer.lost);
            seen.extend(answer.events);
        }
        assert_eq!((seen[0].number, seen.len()), (flush, PROVOKED_KEPT + 2));
        assert!(
            seen.is_sorted_by_key(|event| event.number) && seen.iter().any(|event| event.text == "paused")
        );
        assert_eq!(lost as usize, 10_000 - PROVOKED_KEPT);
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

    fn fault(domain: Option<&str>, burst: u64, known: u64, unattributed: u64) -> Fault {
        let count = Count { known, unattributed, complete: burst == 0 };
        Fault { burst, domain: domain.map(str::to_owned), count, ..Fault::default() }
    }

    #[test]
    fn faults_add_up_by_domain_even_when_their_events_are_gone() {
        let journal = Journal::new();
        for _ in 0..KEPT * 2 {
            journal.record_fault("f", fault(Some("guest"), 0, 2, 1));
        }
        journal.record_fault("f", fault(None, 0, 0, 5));
        let (faults, all) = (journal.faults(), 2 * KEPT as u64);
        assert_eq!(faults.of("guest"), Count { known: 2 * all, unattributed: 0, complete: true });
        assert_eq!(faults.except(|_| true), Count { known: 0, unattributed: all + 5, complete: true });
        assert_eq!(faults.except(|_| false).known, 2 * all);
        assert_eq!(faults.of("host"), Count::default());
    }

    #[test]
    fn a_burst_that_is_told_as_it_grows_counts_once() {
        let journal = Journal::new();
        for (burst, known) in [(1, 1), (2, 1), (1, 400), (2, 7), (1, 1000)] {
            journal.record_fault("f", fault(Some("guest"), burst, known, 0));
        }
        assert_eq!(journal.faults().of("guest"), Count { known: 1007, unattributed: 0, complete: false });
    }

    #[test]
    fn dma_that_failed_is_told_in_its_own_words_and_with_its_parts() {
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
            journal.record_fault(&event.to_string(), crate::view::fault(&event));
        }
        assert_eq!(journal.faults().of("guest").known, 7);
        let told = journal.after(0, AT_ONCE).events;
        assert_eq!(told[2].text, event.to_string());
        let counts: Vec<u64> = told.iter().map(|event| event.fault.as_ref().unwrap().count.known).collect();
        assert_eq!(counts, [1, 7, 7]);
        assert_eq!(told[0].fault.as_ref().unwrap().device.as_deref(), Some("0000:00:09.0"));
    }

    #[test]
    fn neither_bursts_nor_domains_without_end_fill_memory_and_no_fault_is_forgotten() {
        let journal = Journal::new();
        for burst in 1..=1000 {
            journal.record_fault("f", fault(Some(&format!("d{burst}")), burst, 1, 0));
        }
        let faults = journal.faults();
        assert_eq!((faults.by_domain.len(), faults.bursts.len()), (DOMAINS, BURSTS));
        assert_eq!(faults.except(|_| false).known, 1000);
    }

    #[test]
    fn a_long_sentence_is_cut_between_characters() {
        let text = shortened(&"ä".repeat(LONGEST));
        assert!(text.len() <= LONGEST + 3 && text.ends_with("ä…"));
    }
}
