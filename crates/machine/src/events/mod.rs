//! What happens to a running VM, on its way to the VM's owner.
//!
//! A guest can cause trouble as fast as it likes (move a BAR that cannot be mapped, again and again). So the number
//! of waiting troubles and the rate of reports are bounded. Troubles that are not reported are counted, and the count
//! is reported. What the guest provokes has a budget of its own, so that it displaces no failure of this host. It can
//! also ask for power off and reset as fast as it likes, so one such request waits at most.

pub mod lost_ram;
pub mod notice;
pub mod phase;
pub mod slow_step;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use config::{OnRequest, OnTpmError};
use devices::PowerRequest;
use faults::Fault;
use memory::Loss;

use crate::cpu::threads::End;
use crate::events::notice::{Life, Notice, Reporter};

/// Troubles of one kind that wait at most.
const WAITING: u64 = 64;
/// Troubles of one kind that are reported in one [`PERIOD`].
const TOLD: u32 = 20;
const PERIOD: Duration = Duration::from_secs(10);

/// What happens to a running VM.
#[derive(Debug)]
pub enum Event {
    /// The guest asks for power off or reset.
    Power(PowerRequest),
    /// A vCPU cannot continue.
    Ended(End),
    /// Something failed that the guest does not see.
    Trouble(String),
    /// The same, where the guest can cause as many as it likes.
    Provoked(String),
    /// DMA failed.
    Fault(Fault),
    /// This host can no longer provide guest RAM, or has lost some.
    MemoryLost(Loss),
    /// This host wants the assigned device of this name back.
    Requested(String),
    /// This host failed a request of a disk.
    Disk(disk::Failure),
    /// The power button is pressed.
    PressPowerButton,
    /// The guest gets a press of the power button that waited. There is one for each press at most.
    PowerButtonHeard,
    /// A request to pause the VM.
    Pause(String),
    /// A request to resume it.
    Resume,
    /// The disc in a drive was changed, or a disk was plugged in or unplugged, in a sentence.
    DisksChanged(String),
    /// The TPM has failed, in a sentence, and the answer to that. There is one for each time that it is switched on at most.
    TpmFailed(String, OnTpmError),
    /// A request to end the VM now.
    Stop,
}

/// The way to a VM's owner.
#[derive(Clone)]
pub struct Events {
    sender: Sender<Event>,
    tally: Arc<Tally>,
}

#[derive(Default)]
struct Tally {
    troubles: Queue,
    provoked: Queue,
    /// A request for power off or reset waits.
    power: AtomicBool,
}

/// Troubles of one kind on their way.
#[derive(Default)]
struct Queue {
    waiting: AtomicU64,
    lost: AtomicU64,
}

impl Queue {
    /// Whether there is room for one more; if not, it is counted.
    fn enters(&self) -> bool {
        let enters = self.waiting.fetch_add(1, Ordering::Relaxed) < WAITING;
        if !enters {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        enters
    }

    fn leaves(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

/// The owner's end, with the owner's function for reports.
///
/// Dropping it reports the troubles and faults that still wait, so let it outlive all senders:
/// then nothing is lost, even if the VM was never built.
pub struct Inbox {
    receiver: Receiver<Event>,
    tally: Arc<Tally>,
    report: Reporter,
    troubles: Teller,
    provoked: Teller,
}

/// Both ends; `report` gets what happens.
pub fn events(report: Reporter) -> (Events, Inbox) {
    let (sender, receiver) = channel();
    let tally = Arc::new(Tally::default());
    let troubles = Teller::new(Notice::Trouble, "more troubles of this VM were not reported");
    let provoked = Teller::new(Notice::Provoked, "more troubles that the guest caused were not reported");
    (Events { sender, tally: tally.clone() }, Inbox { receiver, tally, report, troubles, provoked })
}

impl Events {
    /// Sends what happens once, or at the request of people. If the owner is gone, the event is dropped.
    pub fn send(&self, event: Event) {
        drop(self.sender.send(event));
    }

    /// Sends what the guest asks for. While a request waits, more of them change nothing.
    pub fn power(&self, request: PowerRequest) {
        if !self.tally.power.swap(true, Ordering::SeqCst) {
            self.send(Event::Power(request));
        }
    }

    /// Sends a failure that the guest does not see.
    pub fn trouble(&self, what: String) {
        if self.tally.troubles.enters() {
            self.send(Event::Trouble(what));
        }
    }

    /// The same, for what the guest can cause as often as it likes.
    pub fn provoked(&self, what: String) {
        if self.tally.provoked.enters() {
            self.send(Event::Provoked(what));
        }
    }
}

impl Inbox {
    /// The next event, if it comes by `deadline`. An error says whether the time is over, or all senders are gone.
    pub fn next(&self, deadline: Option<Instant>) -> Result<Event, RecvTimeoutError> {
        let event = match deadline {
            None => self.receiver.recv()?,
            Some(deadline) => {
                self.receiver.recv_timeout(deadline.saturating_duration_since(Instant::now()))?
            }
        };
        self.taken(&event);
        Ok(event)
    }

    /// Before a reset of the guest: drops what the guest asked for, and keeps the other events for later. Returns
    /// whether there is a request to end the VM.
    pub fn forget_guest(&mut self, events: &Events) -> bool {
        let mut stop = false;
        for event in self.waiting() {
            match event {
                Event::Power(_) | Event::Ended(_) => {}
                Event::Stop => stop = true,
                Event::Trouble(what) => self.tell(&what),
                Event::Provoked(what) => self.tell_provoked(&what),
                later @ (Event::Fault(_)
                | Event::MemoryLost(_)
                | Event::Requested(_)
                | Event::Disk(_)
                | Event::PressPowerButton
                | Event::PowerButtonHeard
                | Event::Pause(_)
                | Event::DisksChanged(_)
                | Event::TpmFailed(..)
                | Event::Resume) => events.send(later),
            }
        }
        stop
    }

    /// Gets all notices.
    pub fn reporter(&self) -> &Reporter {
        &self.report
    }

    /// Reports DMA that failed. The rate is bounded already, and every count matters.
    pub fn fault(&self, fault: Fault) {
        (self.reporter())(&Notice::Fault(fault));
    }

    /// Reports a disk that failed. The rate is bounded already.
    pub fn disk(&self, failure: disk::Failure) {
        (self.reporter())(&Notice::Disk(failure));
    }

    /// Reports what happens so seldom that it needs no bound: guest RAM that is lost, a TPM that has failed.
    pub fn trouble(&self, what: &str) {
        (self.reporter())(&Notice::Trouble(what.to_owned()));
    }

    /// Reports a step in the VM's life.
    pub fn life(&self, life: Life) {
        (self.reporter())(&Notice::Life(life));
    }

    /// Reports a trouble, or counts it.
    pub fn tell(&mut self, what: &str) {
        self.troubles.tell(what, self.tally.troubles.take_lost(), &self.report);
    }

    /// Reports a trouble that the guest caused, or counts it.
    pub fn tell_provoked(&mut self, what: &str) {
        self.provoked.tell(what, self.tally.provoked.take_lost(), &self.report);
    }

    /// Reports the troubles and faults that wait now, and how many troubles were not reported.
    pub fn tell_rest(&mut self) {
        for event in self.waiting() {
            match event {
                Event::Trouble(what) => self.tell(&what),
                Event::Provoked(what) => self.tell_provoked(&what),
                Event::Fault(fault) => self.fault(fault),
                // A request that needs a pause has ended without one, and its disk has reported that.
                Event::Disk(failure) if failure.answer != disk::Answer::Held => self.disk(failure),
                Event::DisksChanged(what) => self.life(Life::DisksChanged(what)),
                Event::TpmFailed(what, _) => self.trouble(&what),
                Event::MemoryLost(loss) => self.trouble(&loss.to_string()),
                Event::Requested(device) => {
                    self.life(Life::DeviceRequested(device, OnRequest::Report));
                }
                Event::PowerButtonHeard => self.life(Life::PowerButtonHeard),
                _ => {}
            }
        }
        self.troubles.tell_count(self.tally.troubles.take_lost(), &self.report);
        self.provoked.tell_count(self.tally.provoked.take_lost(), &self.report);
    }

    /// Takes the events that wait now.
    pub fn waiting(&self) -> Vec<Event> {
        self.receiver.try_iter().inspect(|event| self.taken(event)).collect()
    }

    fn taken(&self, event: &Event) {
        match event {
            Event::Trouble(_) => self.tally.troubles.leaves(),
            Event::Provoked(_) => self.tally.provoked.leaves(),
            Event::Power(_) => self.tally.power.store(false, Ordering::SeqCst),
            _ => {}
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.tell_rest();
    }
}

/// Reports troubles of one kind at a bounded rate.
struct Teller {
    kind: fn(String) -> Notice,
    /// Words for the count of troubles that were not reported.
    not_told: &'static str,
    since: Instant,
    told: u32,
    untold: u64,
}

impl Teller {
    fn new(kind: fn(String) -> Notice, not_told: &'static str) -> Teller {
        Teller { kind, not_told, since: Instant::now(), told: 0, untold: 0 }
    }

    /// Reports a trouble, or counts it; `lost` troubles found no room in the channel.
    fn tell(&mut self, what: &str, lost: u64, report: &Reporter) {
        self.untold += lost;
        if self.since.elapsed() >= PERIOD {
            (self.since, self.told) = (Instant::now(), 0);
            self.tell_count(0, report);
        }
        if self.told < TOLD {
            self.told += 1;
            report(&(self.kind)(what.to_owned()));
        } else {
            self.untold += 1;
        }
    }

    /// Reports how many were not reported.
    fn tell_count(&mut self, lost: u64, report: &Reporter) {
        self.untold += lost;
        if self.untold > 0 {
            report(&(self.kind)(format!("{} {}", self.untold, self.not_told)));
            self.untold = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    type Lines = Arc<Mutex<Vec<String>>>;

    fn recorded() -> (Events, Inbox, Lines) {
        let lines = Lines::default();
        let to = lines.clone();
        let (events, inbox) = events(Box::new(move |line| to.lock().push(line.to_string())));
        (events, inbox, lines)
    }

    fn fault(reason: &str) -> Event {
        Event::Fault(Fault::new(faults::Source::Ledger, reason))
    }

    #[test]
    fn troubles_without_end_neither_fill_memory_nor_the_log_but_their_number_is_told() {
        let (events, mut inbox, lines) = recorded();
        for _ in 0..1000 {
            events.trouble("again".to_owned());
        }
        events.send(Event::Stop);
        let mut waited = 0;
        loop {
            match inbox.next(None).unwrap() {
                Event::Trouble(what) => inbox.tell(&what),
                Event::Stop => break,
                other => panic!("{other:?}"),
            }
            waited += 1;
        }
        inbox.tell_rest();
        let lines = lines.lock();
        assert_eq!((waited, lines.len()), (WAITING, 21));
        assert_eq!(lines[20], "980 more troubles of this VM were not reported");
    }

    #[test]
    fn what_a_guest_provokes_for_ever_takes_the_place_of_nothing_that_the_host_failed_at() {
        let (events, mut inbox, lines) = recorded();
        // Both on the way and where it is told: the guest was first, and goes on.
        for _ in 0..1000 {
            events.provoked("a bad descriptor".to_owned());
        }
        events.trouble("the flush at the guest's shutdown failed".to_owned());
        events.send(fault("beyond RAM"));
        for _ in 0..1000 {
            events.provoked("a bad descriptor".to_owned());
        }
        inbox.tell_rest();
        let count = |text: &str| lines.lock().iter().filter(|line| line.contains(text)).count();
        assert_eq!(count("the flush at the guest's shutdown failed"), 1);
        assert_eq!(count("beyond RAM"), 1);
        assert_eq!(count("a bad descriptor"), TOLD as usize);
        assert_eq!(count("1980 more troubles that the guest caused were not reported"), 1);
    }

    #[test]
    fn a_pause_that_was_asked_for_and_never_made_is_not_told_as_one_at_the_end() {
        let (events, mut inbox, lines) = recorded();
        let failure = |answer| disk::Failure {
            disk: "disk0".into(),
            operation: disk::Operation::Flush,
            bytes: 0,
            error: disk::DiskError::NoSpace,
            errno: None,
            cause: None,
            answer,
            more: 0,
        };
        events.send(Event::Disk(failure(disk::Answer::Held)));
        events.send(Event::Disk(failure(disk::Answer::Reported)));
        inbox.tell_rest();
        let lines = lines.lock();
        assert!(lines.len() == 1 && lines[0].contains("The guest sees the error"), "{lines:?}");
    }

    #[test]
    fn what_waits_when_a_start_fails_is_told_once_everything_else_is_gone() {
        let (events, inbox, lines) = recorded();
        events.trouble("its flush failed".to_owned());
        events.send(fault("it cannot be unmapped"));
        assert!(lines.lock().is_empty());
        drop(inbox);
        let lines = lines.lock();
        assert_eq!(lines[0], "its flush failed");
        assert!(lines[1].contains("it cannot be unmapped"), "{lines:?}");
    }

    #[test]
    fn a_guest_that_asks_for_power_off_for_ever_has_one_request_waiting() {
        let (events, inbox, _) = recorded();
        for _ in 0..1000 {
            events.power(PowerRequest::Off);
        }
        assert_eq!(inbox.waiting().len(), 1);
        events.power(PowerRequest::Reset);
        assert!(matches!(inbox.next(None), Ok(Event::Power(PowerRequest::Reset))));
    }

    #[test]
    fn a_stop_during_a_reset_loses_neither_faults_nor_troubles() {
        let (events, mut inbox, lines) = recorded();
        events.power(PowerRequest::Reset);
        events.send(fault("before"));
        events.send(Event::Stop);
        events.trouble("behind".to_owned());
        events.send(fault("after"));
        assert!(inbox.forget_guest(&events));
        drop(inbox);
        let lines = lines.lock().join("\n");
        for word in ["before", "behind", "after"] {
            assert!(lines.contains(word), "{word} is not in:\n{lines}");
        }
    }

    #[test]
    fn what_others_want_is_kept_when_the_guest_is_reset() {
        let (events, mut inbox, _) = recorded();
        events.power(PowerRequest::Off);
        events.send(Event::Pause("for a test".to_owned()));
        assert!(!inbox.forget_guest(&events));
        assert!(matches!(&inbox.waiting()[..], [Event::Pause(_)]));
    }
}
