//! The events of a VM: a ring of the latest, each with a number, that many may read and wait for.

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use crate::api::{DiskError, Event, EventKind, Events, Fault};
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
/// The latest events of a VM.
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
    closed: bool,
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

    /// Records DMA that failed, or that a burst of it has grown.
    pub fn record_fault(&self, text: &str, fault: Fault) -> u64 {
        self.add(EventKind::Fault, text, Some(fault), None)
    }

    /// Records that this host failed a request of a disk.
    pub fn record_disk(&self, text: &str, error: DiskError) -> u64 {
        self.add(EventKind::Disk, text, None, Some(error))
    }

    fn add(&self, kind: EventKind, text: &str, fault: Option<Fault>, disk: Option<DiskError>) -> u64 {
        let mut state = self.state();
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
        let mut state = self.state();
        self.news.wait_while_for(&mut state, nothing_new, wait);
        let events = state.after(after);
        let next_after = events.last().map_or(after, |event| event.number);
        let ended = state.closed && next_after >= state.latest;
        // Numbers have no gaps, so what is missing is no longer kept.
        let lost = next_after - after - events.len() as u64;
        Events { events, next_after, lost, ended }
    }

    /// The VM has ended: nothing more will come, and nobody needs to wait.
    pub fn close(&self) {
        self.state().closed = true;
        self.news.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
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
        let (sender, first) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn(move || {
            sender.send(reader.after(0, patience)).unwrap();
            reader.after(1, patience).ended
        });
        // Most likely it waits by then.
        std::thread::sleep(Duration::from_millis(20));
        journal.record(EventKind::Life, "The guest runs.");
        let first = first.recv().unwrap();
        assert_eq!((first.events.len(), first.ended), (1, false));
        std::thread::sleep(Duration::from_millis(20));
        journal.close();
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn a_long_sentence_is_cut_between_characters() {
        let text = shortened(&"ä".repeat(LONGEST));
        assert!(text.len() <= LONGEST + 3 && text.ends_with("ä…"));
    }
}
