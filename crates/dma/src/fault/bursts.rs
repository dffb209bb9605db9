//! Faults that follow each other closely, reported as one event.

use std::time::{Duration, Instant};

use super::event::{Count, Event, Fault, Sort};
use super::place::Place;

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
}

#[derive(Debug)]
struct Burst {
    key: Key,
    event: Event,
    grown: Instant,
    told: Option<(Count, Instant)>,
    again: Duration,
}

/// None is for faults without a device.
type Key = Option<(Sort, Option<Place>)>;

impl Bursts {
    /// A fault of a known device.
    pub fn add(&mut self, now: Instant, fault: Fault, domain: Option<String>, place: Option<Place>) {
        self.add_several(now, fault, 1, domain, place);
    }

    /// Faults of a known device that are alike.
    pub fn add_several(
        &mut self,
        now: Instant,
        fault: Fault,
        count: u64,
        domain: Option<String>,
        place: Option<Place>,
    ) {
        let (fault, domain, place) = match self.has_room_for(now, &fault, place) {
            true => (fault, domain, place),
            false => (fault.without_details(), None, None),
        };
        let key = Some((Sort::of(&fault), place));
        let burst = match self.going_on(now, &key) {
            Some(at) => &mut self.open[at],
            None => self.begin(now, key, fault, domain, place),
        };
        burst.event.count.known = burst.event.count.known.saturating_add(count);
        burst.grown = now;
    }

    /// Faults without a name: they count for the burst that grew last, because nothing better is known, or are a burst of their
    /// own.
    pub fn add_nameless(&mut self, now: Instant, count: u64, otherwise: impl FnOnce() -> Fault) {
        let open = self.open.iter_mut().filter(|burst| !burst.is_over(now)).max_by_key(|burst| burst.grown);
        let burst = match open {
            Some(burst) => burst,
            None => self.begin(now, None, otherwise(), None, None),
        };
        burst.event.count.unattributed += count;
        burst.grown = now;
    }

    /// The events that must be reported now.
    pub fn due(&mut self, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        self.open.retain_mut(|burst| {
            let over = burst.is_over(now);
            if burst.is_due(now, over) {
                // The second report comes soon after the first one, each later one after a longer time.
                burst.again = if burst.told.is_some() { (burst.again * 2).min(SELDOM) } else { SOON };
                burst.told = Some((burst.event.count, now));
                events.push(burst.event.clone());
            }
            !over
        });
        events
    }

    /// Whether any burst is going on, so that [`Bursts::due`] must be asked soon.
    pub fn are_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// All events that were not reported yet, at the end.
    pub fn rest(&mut self, now: Instant) -> Vec<Event> {
        let bursts = std::mem::take(&mut self.open).into_iter();
        bursts.filter(|burst| burst.is_due(now, true)).map(|burst| burst.event).collect()
    }

    fn has_room_for(&self, now: Instant, fault: &Fault, place: Option<Place>) -> bool {
        let sort = Sort::of(fault);
        !sort.has_words()
            || self.going_on(now, &Some((sort, place))).is_some()
            || self.open.iter().filter(|burst| burst.has_words() && !burst.is_over(now)).count() < WORDS
    }

    fn going_on(&self, now: Instant, key: &Key) -> Option<usize> {
        self.open.iter().position(|burst| burst.key == *key && !burst.is_over(now))
    }

    fn begin(
        &mut self,
        now: Instant,
        key: Key,
        fault: Fault,
        domain: Option<String>,
        place: Option<Place>,
    ) -> &mut Burst {
        self.begun += 1;
        let count = Count { known: 0, unattributed: 0, complete: fault.source.counts_all() };
        let event = Event { burst: self.begun, fault, domain, place, count };
        self.open.push(Burst { key, event, grown: now, told: None, again: SOON });
        self.open.last_mut().expect("it was just put there")
    }
}

impl Burst {
    fn has_words(&self) -> bool {
        self.key.as_ref().is_some_and(|(sort, _)| sort.has_words())
    }

    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.grown) >= QUIET
    }

    fn is_due(&self, now: Instant, over: bool) -> bool {
        let Some((count, at)) = self.told else { return true };
        count != self.event.count && (over || now.duration_since(at) >= self.again)
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::{Direction, Source};
    use super::*;
    use std::time::SystemTime;

    fn fault(device: &str, direction: Direction) -> Fault {
        Fault {
            time: SystemTime::UNIX_EPOCH,
            device: device.parse().ok(),
            direction: Some(direction),
            iova: None,
            pasid: None,
            reason: String::new(),
            source: Source::Log,
        }
    }

    #[test]
    fn the_first_fault_is_told_at_once_and_a_thousand_more_in_few_events_with_the_whole_count() {
        let (mut bursts, start) = (Bursts::default(), Instant::now());
        let mut told = Vec::new();
        for index in 0..1000 {
            let now = start + Duration::from_millis(index * 2);
            bursts.add(now, fault("02:00.0", Direction::Write), None, None);
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
            bursts.add(now, fault("02:00.0", Direction::Write), None, None);
            told.extend(bursts.due(now));
        }
        assert_eq!(told.iter().map(|event| event.burst).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        let now = start + Duration::from_secs(9);
        bursts.add(now, fault("02:00.0", Direction::Read), None, None);
        bursts.add(now, fault("02:00.0", Direction::Write), None, None);
        bursts.add(now, fault("03:00.0", Direction::Write), None, None);
        assert_eq!(bursts.due(now).iter().filter(|event| event.burst > 5).count(), 3);
    }

    fn change(reason: &str) -> Fault {
        Fault {
            device: None,
            direction: None,
            reason: reason.into(),
            source: Source::Ledger,
            ..fault("02:00.0", Direction::Read)
        }
    }

    #[test]
    fn changes_that_failed_for_two_reasons_are_two_events() {
        let (mut bursts, now) = (Bursts::default(), Instant::now());
        for reason in ["cannot map A", "cannot unmap B", "cannot map A"] {
            bursts.add(now, change(reason), None, None);
        }
        let told: Vec<_> = bursts.due(now).into_iter().map(|it| (it.fault.reason, it.count.known)).collect();
        assert_eq!(told, [("cannot map A".into(), 2), ("cannot unmap B".into(), 1)]);
    }

    #[test]
    fn ever_other_reasons_make_no_more_than_some_bursts_and_every_change_counts() {
        let (mut bursts, now) = (Bursts::default(), Instant::now());
        for at in 0..1000 {
            bursts.add(now, change(&format!("cannot map {at}")), None, None);
        }
        bursts.add(now, fault("02:00.0", Direction::Write), None, None);
        let told = bursts.due(now);
        assert_eq!(told.len(), WORDS + 2);
        assert_eq!(told[WORDS].count, Count { known: 1000 - WORDS as u64, unattributed: 0, complete: true });
        assert_eq!(told[WORDS + 1].fault.device, "02:00.0".parse().ok(), "devices are not crowded out");
    }

    #[test]
    fn nameless_faults_join_the_burst_that_goes_on_or_are_told_alone() {
        let (mut bursts, now) = (Bursts::default(), Instant::now());
        let nobody = || Fault { device: None, ..fault("", Direction::Read) };
        bursts.add_nameless(now, 3, nobody);
        assert_eq!(bursts.rest(now)[0].count, Count { known: 0, unattributed: 3, complete: false });
        bursts.add(now, fault("02:00.0", Direction::Write), None, None);
        bursts.add_nameless(now, 900, nobody);
        let told = bursts.due(now);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].count, Count { known: 1, unattributed: 900, complete: false });
    }
}
