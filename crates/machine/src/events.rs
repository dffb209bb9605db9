//! What happens to a running VM, on its way to the VM's owner.
//!
//! A guest can cause trouble as fast as it likes (move a BAR that cannot be mapped, for ever), so troubles that
//! wait are bounded, and told at a bounded rate; what is not told is counted, and the count is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use devices::PowerRequest;

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
    /// Somebody presses the power button.
    PressPowerButton,
    /// Somebody wants the VM to stand still.
    Pause(String),
    /// Somebody wants it to run on.
    Resume,
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
}

/// The owner's end.
pub struct Inbox {
    receiver: Receiver<Event>,
    tally: Arc<Tally>,
}

/// Both ends.
pub fn events() -> (Events, Inbox) {
    let (sender, receiver) = channel();
    let tally = Arc::new(Tally::default());
    (Events { sender, tally: tally.clone() }, Inbox { receiver, tally })
}

impl Events {
    /// Sends what happens once, or as often as people wish it. An owner that is gone needs no news.
    pub fn send(&self, event: Event) {
        drop(self.sender.send(event));
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
    /// The next event. `None` when nobody can send any more.
    pub fn next(&self) -> Option<Event> {
        self.receiver.recv().ok().inspect(|event| self.taken(event))
    }

    /// The events that wait now.
    pub fn waiting(&self) -> impl Iterator<Item = Event> {
        self.receiver.try_iter().inspect(|event| self.taken(event))
    }

    /// Troubles that found no room since last asked.
    pub fn lost(&self) -> u64 {
        self.tally.lost.swap(0, Ordering::Relaxed)
    }

    fn taken(&self, event: &Event) {
        if let Event::Trouble(_) = event {
            self.tally.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Tells what happens; troubles at a bounded rate.
pub struct Teller {
    report: Reporter,
    since: Instant,
    told: u32,
    untold: u64,
}

impl Teller {
    /// Nothing told yet.
    pub fn new(report: Reporter) -> Teller {
        Teller { report, since: Instant::now(), told: 0, untold: 0 }
    }

    /// Tells of DMA that failed. It comes at a bounded rate already, and every count matters.
    pub fn fault(&self, event: dma::fault::Event) {
        (self.report)(&Notice::Fault(event));
    }

    /// Tells a step in the VM's life.
    pub fn life(&self, life: Life) {
        (self.report)(&Notice::Life(life));
    }

    /// Tells a trouble, or counts it; `lost` found no room on the way.
    pub fn tell(&mut self, what: &str, lost: u64) {
        self.untold += lost;
        if self.since.elapsed() >= PERIOD {
            (self.since, self.told) = (Instant::now(), 0);
            self.tell_count();
        }
        if self.told < TOLD {
            self.told += 1;
            (self.report)(&Notice::Trouble(what.to_owned()));
        } else {
            self.untold += 1;
        }
    }

    /// Says how many were not told.
    pub fn tell_count(&mut self) {
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

    #[test]
    fn troubles_without_end_neither_fill_memory_nor_the_log_but_their_number_is_told() {
        let (events, inbox) = events();
        for _ in 0..1000 {
            events.trouble("again".to_owned());
        }
        events.send(Event::Stop);
        let lines = Arc::new(Mutex::new(Vec::new()));
        let to = lines.clone();
        let mut teller = Teller::new(Box::new(move |line| to.lock().unwrap().push(line.to_string())));
        let mut stopped = false;
        for event in inbox.waiting() {
            match event {
                Event::Trouble(what) => teller.tell(&what, inbox.lost()),
                Event::Stop => stopped = true,
                other => panic!("{other:?}"),
            }
        }
        teller.tell_count();
        let lines = lines.lock().unwrap();
        assert!(stopped);
        assert_eq!(lines.len(), 21);
        assert_eq!(lines[20], "980 more troubles of this VM were not told");
    }
}
