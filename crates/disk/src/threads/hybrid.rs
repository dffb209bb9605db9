//! The engine that passes each request to the ring or to the crew.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{Crew, Done, Job, Mailbox, Sleeper};
use crate::backend::{Engine, Patience};
use crate::counters::QueueCounters;
use crate::geometry::Sectors;
use crate::kernel::Ring;
use crate::queue::Event;
use crate::request::{Operation, Request};

/// Where the ring takes a request on its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Direct {
    /// The file's number in the ring.
    pub(crate) file: u16,
    /// The first sector there.
    pub(crate) at: Sectors,
    /// The back end's own affair.
    pub(crate) ticket: u64,
}

/// A request that the ring has.
struct Passed {
    tag: u64,
    operation: Operation,
    direct: Direct,
}

/// Where the engine sleeps, and what it can ask of the kernel on its own.
enum Lane {
    Ring(Box<Ring>),
    Sleeper(Sleeper),
}

/// A queue of a disk that has a crew.
pub(crate) struct Hybrid {
    lane: Lane,
    crew: Arc<Crew>,
    mailbox: Arc<Mailbox>,
    counters: Arc<QueueCounters>,
    /// Requests that the ring has, by the tag that they have there.
    passed: Vec<Option<Passed>>,
    free: Vec<u16>,
    noted: Vec<Request>,
    /// Requests that the crew has.
    with_crew: usize,
    /// Numbers of the kernel for failures that were brought last, by tag.
    errnos: Vec<(u64, i32)>,
}

impl Hybrid {
    /// With a ring for what it can do.
    pub(crate) fn with_ring(
        mut ring: Ring,
        depth: u16,
        crew: Arc<Crew>,
        counters: Arc<QueueCounters>,
    ) -> io::Result<Hybrid> {
        let mailbox = Mailbox::new()?;
        ring.answer_to(mailbox.bell())?;
        Ok(Hybrid::new(Lane::Ring(Box::new(ring)), mailbox, depth, crew, counters))
    }

    /// Where the crew does it all.
    pub(crate) fn without_ring(crew: Arc<Crew>, counters: Arc<QueueCounters>) -> io::Result<Hybrid> {
        let mailbox = Mailbox::new()?;
        let lane = Lane::Sleeper(Sleeper::new(mailbox.bell())?);
        Ok(Hybrid::new(lane, mailbox, 0, crew, counters))
    }

    fn new(
        lane: Lane,
        mailbox: Mailbox,
        depth: u16,
        crew: Arc<Crew>,
        counters: Arc<QueueCounters>,
    ) -> Hybrid {
        Hybrid {
            lane,
            crew,
            mailbox: Arc::new(mailbox),
            counters,
            passed: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            noted: Vec::new(),
            with_crew: 0,
            errnos: Vec::new(),
        }
    }

    fn hand_over(&mut self) {
        for request in self.noted.drain(..) {
            self.with_crew += 1;
            self.crew.add(Job { request, mailbox: self.mailbox.clone() });
        }
    }

    /// What the crew has done.
    fn collect(&mut self, events: &mut Vec<Event>) {
        if self.with_crew == 0 {
            return;
        }
        for Done { request: Request { tag, operation, buffers }, result, tally } in self.mailbox.take() {
            self.with_crew -= 1;
            tally.count_in(&self.counters);
            events.push(Event::Done { tag, operation, result, buffers });
        }
    }

    /// Sleeps as it may, and brings what the ring has done.
    fn rest(&mut self, patience: Patience, events: &mut Vec<Event>) -> io::Result<()> {
        match &mut self.lane {
            Lane::Ring(ring) => {
                let before = events.len();
                ring.advance(patience, events)?;
                for event in &mut events[before..] {
                    let Event::Done { tag, operation, .. } = event else { continue };
                    let index = *tag as u16;
                    if let Some(passed) = self.passed[usize::from(index)].take() {
                        self.free.push(index);
                        self.crew.work().ended(&passed.direct);
                        self.errnos.extend(ring.errno(*tag).map(|errno| (passed.tag, errno)));
                        (*tag, *operation) = (passed.tag, passed.operation);
                    }
                }
            }
            Lane::Sleeper(sleeper) => {
                if sleeper.sleep(patience)? {
                    events.push(Event::Wake);
                }
            }
        }
        Ok(())
    }
}

impl Engine for Hybrid {
    fn start(&mut self) -> io::Result<()> {
        match &mut self.lane {
            Lane::Ring(ring) => ring.start(),
            Lane::Sleeper(_) => Ok(()),
        }
    }

    fn watch(&mut self, eventfd: &EventFd) -> io::Result<()> {
        match &mut self.lane {
            Lane::Ring(ring) => ring.watch(eventfd),
            Lane::Sleeper(sleeper) => sleeper.watch(eventfd),
        }
    }

    fn submit(&mut self, request: Request) {
        if let Lane::Ring(ring) = &mut self.lane
            && let Some(direct) = self.crew.work().direct(request.operation, request.buffers.bytes())
        {
            let index = self.free.pop().expect("never more requests than the depth");
            let Request { tag, operation, buffers } = request;
            self.passed[usize::from(index)] = Some(Passed { tag, operation, direct });
            let operation = match operation {
                Operation::Read { .. } => Operation::Read { at: direct.at },
                Operation::Write { durability, .. } => Operation::Write { at: direct.at, durability },
                other => other,
            };
            ring.submit_to(direct.file, Request { tag: u64::from(index), operation, buffers });
        } else {
            self.noted.push(request);
        }
    }

    fn cancel(&mut self) -> io::Result<()> {
        self.hand_over();
        self.crew.cancel(&self.mailbox);
        match &mut self.lane {
            Lane::Ring(ring) => ring.cancel(),
            Lane::Sleeper(_) => Ok(()),
        }
    }

    fn errno(&self, tag: u64) -> Option<i32> {
        self.errnos.iter().find(|(other, _)| *other == tag).map(|(_, errno)| *errno)
    }

    fn advance(&mut self, patience: Patience, events: &mut Vec<Event>) -> io::Result<()> {
        let before = events.len();
        self.errnos.clear();
        self.hand_over();
        self.collect(events);
        // What is there already is no reason to sleep, but neither may it hide what the ring has to say. The bell
        // rings after something is put in, so what comes now ends the sleep.
        let patience = if events.len() > before { Patience::Poll } else { patience };
        self.rest(patience, events)?;
        self.collect(events);
        Ok(())
    }
}

impl Drop for Hybrid {
    fn drop(&mut self) {
        self.noted.clear();
        self.crew.cancel(&self.mailbox);
        // A thread of the crew may wait for the ring's requests to end before it does something to what they are
        // for; so these go first.
        if let Lane::Ring(ring) = &mut self.lane {
            ring.end();
            for passed in self.passed.iter_mut().filter_map(Option::take) {
                self.crew.work().ended(&passed.direct);
            }
        }
        while self.with_crew > 0 {
            for done in self.mailbox.wait() {
                self.with_crew -= 1;
                done.tally.count_in(&self.counters);
            }
        }
    }
}
