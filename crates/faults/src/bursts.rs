//! Faults that follow each other closely, reported as one event.

use std::time::{Duration, Instant};

use crate::fault::{Count, Fault, Sort};
use crate::place::Place;
use crate::tally::Tally;

/// A burst ends when nothing was added to it for this time.
const QUIET: Duration = Duration::from_millis(400);
/// Time until a burst that grows is reported again. It doubles with each report, up to [`SELDOM`].
const SOON: Duration = Duration::from_millis(100);
const SELDOM: Duration = Duration::from_secs(1);

/// The most bursts at a time that differ only in their words: a guest can cause any number of them.
const WORDS: usize = 16;

/// The bursts of now: one at most of each sort and place.
#[derive(Debug, Default)]
pub struct Bursts {
    open: Vec<Burst>,
    begun: u64,
    tally: Tally,
}

#[derive(Debug)]
struct Burst {
    key: Key,
    /// The first fault, with the count of all.
    fault: Fault,
    grown: Instant,
    told: Option<(Count, Instant)>,
    again: Duration,
}

/// None is for faults without a device.
type Key = Option<(Sort, Option<Place>)>;

impl Bursts {
    /// Bursts whose faults are counted there as they are reported.
    pub fn counted_by(tally: Tally) -> Bursts {
        Bursts { tally, ..Bursts::default() }
    }

    /// Faults of a known device that are alike.
    pub fn add(&mut self, now: Instant, fault: Fault) {
        let fault = if self.has_room_for(now, &fault) { fault } else { fault.without_details() };
        let key = Some((Sort::of(&fault), fault.place));
        match self.going_on(now, &key) {
            Some(at) => self.open[at].grow(now, fault.count),
            None => self.begin(now, key, fault),
        }
    }

    /// Faults without a name: they count for the burst that grew last, because nothing better is known, or are a burst of their
    /// own.
    pub fn add_nameless(&mut self, now: Instant, fault: Fault) {
        let open = self.open.iter_mut().filter(|burst| !burst.is_over(now)).max_by_key(|burst| burst.grown);
        match open {
            Some(burst) => burst.grow(now, fault.count),
            None => self.begin(now, None, fault),
        }
    }

    /// The bursts that must be reported now.
    pub fn due(&mut self, now: Instant) -> Vec<Fault> {
        let mut due = Vec::new();
        self.open.retain_mut(|burst| {
            let over = burst.is_over(now);
            due.extend(burst.report(now, over, &self.tally));
            !over
        });
        due
    }

    /// Whether any burst is going on, so that [`Bursts::due`] must be asked soon.
    pub fn are_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// All that was not reported yet, at the end.
    pub fn rest(&mut self, now: Instant) -> Vec<Fault> {
        let bursts = std::mem::take(&mut self.open).into_iter();
        bursts.filter_map(|mut burst| burst.report(now, true, &self.tally)).collect()
    }

    fn has_room_for(&self, now: Instant, fault: &Fault) -> bool {
        let sort = Sort::of(fault);
        !sort.has_words()
            || self.going_on(now, &Some((sort, fault.place))).is_some()
            || self.open.iter().filter(|burst| burst.has_words() && !burst.is_over(now)).count() < WORDS
    }

    fn going_on(&self, now: Instant, key: &Key) -> Option<usize> {
        self.open.iter().position(|burst| burst.key == *key && !burst.is_over(now))
    }

    fn begin(&mut self, now: Instant, key: Key, fault: Fault) {
        self.begun += 1;
        let fault = Fault { burst: self.begun, ..fault };
        self.open.push(Burst { key, fault, grown: now, told: None, again: SOON });
    }
}

impl Burst {
    fn grow(&mut self, now: Instant, more: Count) {
        let count = &mut self.fault.count;
        // Whether the known ones are all depends on the source of the first fault; of the others more may have been withheld.
        let complete = count.complete && (more.unattributed == 0 || more.complete);
        *count = Count { complete, ..count.plus(more) };
        self.grown = now;
    }

    /// What must be reported now; that is counted.
    fn report(&mut self, now: Instant, over: bool, tally: &Tally) -> Option<Fault> {
        if !self.is_due(now, over) {
            return None;
        }
        let count = self.fault.count;
        let before = self.told.replace((count, now)).map(|(before, _)| before);
        // The second report comes soon after the first one, each later one after a longer time.
        self.again = if before.is_some() { (self.again * 2).min(SELDOM) } else { SOON };
        tally.add(self.fault.domain.as_deref(), count.since(before.unwrap_or_default()));
        Some(self.fault.clone())
    }

    fn has_words(&self) -> bool {
        self.key.as_ref().is_some_and(|(sort, _)| sort.has_words())
    }

    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.grown) >= QUIET
    }

    fn is_due(&self, now: Instant, over: bool) -> bool {
        let Some((count, at)) = self.told else { return true };
        count != self.fault.count && (over || now.duration_since(at) >= self.again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Direction, Source};

    fn fault(device: &str, direction: Direction) -> Fault {
        Fault { device: device.parse().ok(), direction: Some(direction), ..Fault::new(Source::Log, "") }
    }

    #[test]
    fn the_first_fault_is_told_at_once_and_a_thousand_more_in_few_events_with_the_whole_count() {
        let (mut bursts, start) = (Bursts::default(), Instant::now());
        let mut told = Vec::new();
        for index in 0..1000 {
            let now = start + Duration::from_millis(index * 2);
            bursts.add(now, fault("02:00.0", Direction::Write));
            told.extend(bursts.due(now));
        }
        assert_eq!((told[0].count.known, told[0].burst), (1, 1));
        told.extend(bursts.due(start + Duration::from_secs(3)));
        assert!(told.len() < 8 && !bursts.are_open(), "{}", told.len());
        assert!(told.iter().all(|event| event.burst == 1));
        assert_eq!(told.last().unwrap().count.known, 1000);
    }

    #[test]
    fn faults_a_second_apart_and_of_other_devices_or_directions_are_events_of_their_own() {
        let (mut bursts, start) = (Bursts::default(), Instant::now());
        let mut told = Vec::new();
        for second in 0..5 {
            let now = start + Duration::from_secs(second);
            told.extend(bursts.due(now));
            bursts.add(now, fault("02:00.0", Direction::Write));
            told.extend(bursts.due(now));
        }
        assert_eq!(told.iter().map(|event| event.burst).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        let now = start + Duration::from_secs(9);
        bursts.add(now, fault("02:00.0", Direction::Read));
        bursts.add(now, fault("02:00.0", Direction::Write));
        bursts.add(now, fault("03:00.0", Direction::Write));
        assert_eq!(bursts.due(now).iter().filter(|event| event.burst > 5).count(), 3);
    }

    fn change(reason: &str) -> Fault {
        Fault::new(Source::Ledger, reason)
    }

    #[test]
    fn changes_that_failed_for_two_reasons_are_two_events() {
        let (mut bursts, now) = (Bursts::default(), Instant::now());
        for reason in ["cannot map A", "cannot unmap B", "cannot map A"] {
            bursts.add(now, change(reason));
        }
        let told: Vec<_> = bursts.due(now).into_iter().map(|it| (it.reason, it.count.known)).collect();
        assert_eq!(told, [("cannot map A".into(), 2), ("cannot unmap B".into(), 1)]);
    }

    #[test]
    fn ever_other_reasons_make_no_more_than_some_bursts_and_every_change_counts() {
        let (mut bursts, now) = (Bursts::default(), Instant::now());
        for at in 0..1000 {
            bursts.add(now, change(&format!("cannot map {at}")));
        }
        bursts.add(now, fault("02:00.0", Direction::Write));
        let told = bursts.due(now);
        assert_eq!(told.len(), WORDS + 2);
        assert_eq!(told[WORDS].count, Count { known: 1000 - WORDS as u64, unattributed: 0, complete: true });
        assert_eq!(told[WORDS + 1].device, "02:00.0".parse().ok(), "devices are not crowded out");
    }

    #[test]
    fn nameless_faults_join_the_burst_that_goes_on_or_are_told_alone() {
        let (mut bursts, now) = (Bursts::default(), Instant::now());
        let nobody = |unattributed| Fault {
            count: Count { known: 0, unattributed, complete: false },
            ..Fault::new(Source::Interrupts, "")
        };
        bursts.add_nameless(now, nobody(3));
        assert_eq!(bursts.rest(now)[0].count, Count { known: 0, unattributed: 3, complete: false });
        bursts.add(now, fault("02:00.0", Direction::Write));
        bursts.add_nameless(now, nobody(900));
        let told = bursts.due(now);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].count, Count { known: 1, unattributed: 900, complete: false });
    }

    #[test]
    fn a_count_that_others_were_withheld_from_is_complete_no_longer() {
        let (mut bursts, now) = (Bursts::default(), Instant::now());
        bursts.add(now, Fault::new(Source::Ledger, "a map failed"));
        bursts.add_nameless(
            now,
            Fault {
                count: Count { known: 0, unattributed: 900, complete: false },
                ..Fault::new(Source::Interrupts, "")
            },
        );
        assert_eq!(bursts.rest(now)[0].count, Count { known: 1, unattributed: 900, complete: false });
    }

    #[test]
    fn a_burst_that_is_told_as_it_grows_counts_once() {
        let (tally, mut now) = (Tally::default(), Instant::now());
        let mut bursts = Bursts::counted_by(tally.clone());
        let faults = |device, known| {
            let count = Count { known, unattributed: 0, complete: false };
            Fault { domain: Some("guest".into()), count, ..fault(device, Direction::Write) }
        };
        for (device, known) in [("02:00.0", 1), ("03:00.0", 1), ("02:00.0", 399), ("03:00.0", 6)] {
            now += SOON;
            bursts.add(now, faults(device, known));
            assert_eq!(bursts.due(now).len(), 1);
        }
        bursts.add(now, faults("02:00.0", 600));
        assert_eq!(bursts.rest(now).len(), 1);
        let counted = tally.read().of("guest");
        assert_eq!(counted, Count { known: 1007, unattributed: 0, complete: false });
    }
}
