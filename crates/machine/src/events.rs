//! What happens to a running VM, on its way to the VM's owner.
//!
//! A guest can cause trouble as fast as it likes (move a BAR that cannot be mapped, for ever), so troubles that
//! wait are bounded, and told at a bounded rate; what is not told is counted, and the count is told. It can also ask
//! for power off and reset as fast as it likes, so one such request waits at most.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use config::OnRequest;
use devices::PowerRequest;
use memory::Loss;

use crate::cpus::End;
use crate::notice::{Life, Notice, Reporter};

/// Troubles that wait at most.
const WAITING: u64 = 64;
/// Troubles told in one [`PERIOD`].
const TOLD: u32 = 20;
const PERIOD: Duration = Duration::from_secs(10);

/// What happens to a running VM.
#[derive(Debug)]
pub enum Event {
    /// The guest asks for power off or reset.
    Power(PowerRequest),
    /// A vCPU can go no further.
    Ended(End),
    /// Something failed that the guest was not told of.
    Trouble(String),
    /// DMA failed.
    Fault(dma::fault::Event),
    /// This host cannot give guest RAM any more, or has lost some.
    MemoryLost(Loss),
    /// This host wants the assigned device of this name back.
    Requested(String),
    /// This host failed a request of a disk.
    Disk(disk::Failure),
    /// Somebody presses the power button.
    PressPowerButton,
    /// Somebody wants the VM to stand still.
    Pause(String),
    /// Somebody wants it to run on.
    Resume,
    /// Somebody changed the disc in a drive, plugged a disk in or unplugged one, in a sentence.
    DisksChanged(String),
    /// Somebody wants the VM to end now.
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
    waiting: AtomicU64,
    lost: AtomicU64,
    /// A request for power off or reset waits.
    power: AtomicBool,
}

/// The owner's end, and its way to tell on what came.
///
/// Dropping it tells the troubles and faults that wait still, so let it outlive whoever may have something to say:
/// nothing is lost then, whether a VM ended or never came to be.
pub struct Inbox {
    receiver: Receiver<Event>,
    tally: Arc<Tally>,
    teller: Teller,
}

/// Both ends; what happens is told to `report`.
pub fn events(report: Reporter) -> (Events, Inbox) {
    let (sender, receiver) = channel();
    let tally = Arc::new(Tally::default());
    let teller = Teller::new(report);
    (Events { sender, tally: tally.clone() }, Inbox { receiver, tally, teller })
}

impl Events {
    /// Sends what happens once, or as often as people wish it. An owner that is gone needs no news.
    pub fn send(&self, event: Event) {
        drop(self.sender.send(event));
    }

    /// Sends what the guest asks for. While a request waits, more of them change nothing.
    pub fn power(&self, request: PowerRequest) {
        if !self.tally.power.swap(true, Ordering::SeqCst) {
            self.send(Event::Power(request));
        }
    }

    /// Sends something that failed without the guest being told.
    pub fn trouble(&self, what: String) {
        if self.tally.waiting.fetch_add(1, Ordering::Relaxed) < WAITING {
            self.send(Event::Trouble(what));
        } else {
            self.tally.waiting.fetch_sub(1, Ordering::Relaxed);
            self.tally.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Inbox {
    /// The next event, if it comes by `deadline`. An error says whether it was too late, or nobody can send any more.
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

    /// Before the guest starts afresh: forgets what it asked for, and keeps for later what others want. Returns
    /// whether somebody wants the VM to end.
    pub fn forget_guest(&mut self, events: &Events) -> bool {
        let mut stop = false;
        for event in self.waiting() {
            match event {
                Event::Power(_) | Event::Ended(_) => {}
                Event::Stop => stop = true,
                Event::Trouble(what) => self.tell(&what),
                later @ (Event::Fault(_)
                | Event::MemoryLost(_)
                | Event::Requested(_)
                | Event::Disk(_)
                | Event::PressPowerButton
                | Event::Pause(_)
                | Event::DisksChanged(_)
                | Event::Resume) => events.send(later),
            }
        }
        stop
    }

    /// Whom everything is told.
    pub fn reporter(&self) -> &Reporter {
        &self.teller.report
    }

    /// Tells of DMA that failed. It comes at a bounded rate already, and every count matters.
    pub fn fault(&self, event: dma::fault::Event) {
        (self.reporter())(&Notice::Fault(event));
    }

    /// Tells of a disk that failed. It comes at a bounded rate already.
    pub fn disk(&self, failure: disk::Failure) {
        (self.reporter())(&Notice::Disk(failure));
    }

    /// Tells of guest RAM that is lost. That is once in a VM's life.
    pub fn memory_lost(&self, what: &str) {
        (self.reporter())(&Notice::Trouble(what.to_owned()));
    }

    /// Tells a step in the VM's life.
    pub fn life(&self, life: Life) {
        (self.reporter())(&Notice::Life(life));
    }

    /// Tells a trouble, or counts it.
    pub fn tell(&mut self, what: &str) {
        self.teller.tell(what, self.tally.lost.swap(0, Ordering::Relaxed));
    }

    /// Tells the troubles and faults that wait now, and how many troubles were not told.
    pub fn tell_rest(&mut self) {
        for event in self.waiting() {
            match event {
                Event::Trouble(what) => self.tell(&what),
                Event::Fault(fault) => self.fault(fault),
                // One that asks for a pause has ended without it, of which its disk has told.
                Event::Disk(failure) if failure.answer != disk::Answer::Held => self.disk(failure),
                Event::DisksChanged(what) => self.life(Life::DisksChanged(what)),
                Event::MemoryLost(loss) => self.memory_lost(&loss.to_string()),
                Event::Requested(device) => {
                    self.life(Life::DeviceRequested(device, OnRequest::Report));
                }
                _ => {}
            }
        }
        self.teller.tell_count(self.tally.lost.swap(0, Ordering::Relaxed));
    }

    /// Takes the events that wait now.
    pub fn waiting(&self) -> Vec<Event> {
        self.receiver.try_iter().inspect(|event| self.taken(event)).collect()
    }

    fn taken(&self, event: &Event) {
        match event {
            Event::Trouble(_) => drop(self.tally.waiting.fetch_sub(1, Ordering::Relaxed)),
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

/// Tells troubles at a bounded rate.
struct Teller {
    report: Reporter,
    since: Instant,
    told: u32,
    untold: u64,
}

impl Teller {
    fn new(report: Reporter) -> Teller {
        Teller { report, since: Instant::now(), told: 0, untold: 0 }
    }

    /// Tells a trouble, or counts it; `lost` found no room on the way.
    fn tell(&mut self, what: &str, lost: u64) {
        self.untold += lost;
        if self.since.elapsed() >= PERIOD {
            (self.since, self.told) = (Instant::now(), 0);
            self.tell_count(0);
        }
        if self.told < TOLD {
            self.told += 1;
            (self.report)(&Notice::Trouble(what.to_owned()));
        } else {
            self.untold += 1;
        }
    }

    /// Says how many were not told.
    fn tell_count(&mut self, lost: u64) {
        self.untold += lost;
        if self.untold > 0 {
            let count = format!("{} more troubles of this VM were not told", self.untold);
            (self.report)(&Notice::Trouble(count));
            self.untold = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::SystemTime;

    type Lines = Arc<Mutex<Vec<String>>>;

    fn recorded() -> (Events, Inbox, Lines) {
        let lines = Lines::default();
        let to = lines.clone();
        let (events, inbox) = events(Box::new(move |line| to.lock().unwrap().push(line.to_string())));
        (events, inbox, lines)
    }

    fn fault(reason: &str) -> Event {
        let (time, source) = (SystemTime::UNIX_EPOCH, dma::fault::Source::Ledger);
        let reason = reason.to_owned();
        let fault = dma::fault::Fault {
            time,
            device: None,
            direction: None,
            iova: None,
            pasid: None,
            reason,
            source,
        };
        Event::Fault(dma::fault::Event::single(fault, None, None))
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
        let lines = lines.lock().unwrap();
        assert_eq!((waited, lines.len()), (WAITING, 21));
        assert_eq!(lines[20], "980 more troubles of this VM were not told");
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
            answer,
            more: 0,
        };
        events.send(Event::Disk(failure(disk::Answer::Held)));
        events.send(Event::Disk(failure(disk::Answer::Reported)));
        inbox.tell_rest();
        let lines = lines.lock().unwrap();
        assert!(lines.len() == 1 && lines[0].contains("The guest sees the error"), "{lines:?}");
    }

    #[test]
    fn what_waits_when_a_start_fails_is_told_once_everything_else_is_gone() {
        let (events, inbox, lines) = recorded();
        events.trouble("its flush failed".to_owned());
        events.send(fault("it cannot be unmapped"));
        assert!(lines.lock().unwrap().is_empty());
        drop(inbox);
        let lines = lines.lock().unwrap();
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
        let lines = lines.lock().unwrap().join("\n");
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
