//! The engine that passes each request to the ring or to the pool.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::contract::{Engine, Event, Operation, Patience, QueueCounters, Request};
use crate::kernel::Ring;
use crate::threads::{Direct, Done, Job, Mailbox, Pool, Waiter};

/// A request that the ring has.
struct Passed {
    tag: u64,
    operation: Operation,
    direct: Direct,
}

/// Where the engine sleeps, and what it can ask of the kernel on its own.
enum Route {
    Ring(Box<Ring>),
    Waiter(Waiter),
}

/// A queue of a disk that has a pool.
pub(crate) struct Hybrid {
    route: Route,
    pool: Arc<Pool>,
    mailbox: Arc<Mailbox>,
    counters: Arc<QueueCounters>,
    /// Requests that the ring has, by the tag that they have there.
    passed: Vec<Option<Passed>>,
    free: Vec<u16>,
    noted: Vec<Request>,
    /// Requests that the pool has.
    with_crew: usize,
    /// Numbers of the kernel for failures that were brought last, by tag.
    errnos: Vec<(u64, i32)>,
}

impl Hybrid {
    /// With a ring for what it can do.
    pub(crate) fn with_ring(
        mut ring: Ring,
        depth: u16,
        pool: Arc<Pool>,
        counters: Arc<QueueCounters>,
    ) -> io::Result<Hybrid> {
        let mailbox = Mailbox::new()?;
        ring.answer_to(mailbox.bell())?;
        Ok(Hybrid::new(Route::Ring(Box::new(ring)), mailbox, depth, pool, counters))
    }

    /// Where the pool does it all.
    pub(crate) fn without_ring(pool: Arc<Pool>, counters: Arc<QueueCounters>) -> io::Result<Hybrid> {
        let mailbox = Mailbox::new()?;
        let route = Route::Waiter(Waiter::new(mailbox.bell())?);
        Ok(Hybrid::new(route, mailbox, 0, pool, counters))
    }

    fn new(
        route: Route,
        mailbox: Mailbox,
        depth: u16,
        pool: Arc<Pool>,
        counters: Arc<QueueCounters>,
    ) -> Hybrid {
        Hybrid {
            route,
            pool,
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
            self.pool.add(Job { request, mailbox: self.mailbox.clone() });
        }
    }

    /// What the pool has done.
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
        match &mut self.route {
            Route::Ring(ring) => {
                let before = events.len();
                ring.advance(patience, events)?;
                for event in &mut events[before..] {
                    let Event::Done { tag, operation, .. } = event else { continue };
                    let index = *tag as u16;
                    if let Some(passed) = self.passed[usize::from(index)].take() {
                        self.free.push(index);
                        self.pool.work().ended(&passed.direct);
                        self.errnos.extend(ring.errno(*tag).map(|errno| (passed.tag, errno)));
                        (*tag, *operation) = (passed.tag, passed.operation);
                    }
                }
            }
            Route::Waiter(waiter) => {
                if waiter.sleep(patience)? {
                    events.push(Event::Wake);
                }
            }
        }
        Ok(())
    }
}

impl Engine for Hybrid {
    fn start(&mut self) -> io::Result<()> {
        match &mut self.route {
            Route::Ring(ring) => ring.start(),
            Route::Waiter(_) => Ok(()),
        }
    }

    fn watch(&mut self, eventfd: &EventFd) -> io::Result<()> {
        match &mut self.route {
            Route::Ring(ring) => ring.watch(eventfd),
            Route::Waiter(waiter) => waiter.watch(eventfd),
        }
    }

    fn submit(&mut self, request: Request) {
        if let Route::Ring(ring) = &mut self.route
            && let Some(direct) = self.pool.work().direct(request.operation, request.buffers.bytes())
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
        self.pool.cancel(&self.mailbox);
        match &mut self.route {
            Route::Ring(ring) => ring.cancel(),
            Route::Waiter(_) => Ok(()),
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
        self.pool.cancel(&self.mailbox);
        // A thread of the pool may wait for the ring's requests to end before it does something to what they are
        // for; so these go first.
        if let Route::Ring(ring) = &mut self.route {
            ring.end();
            for passed in self.passed.iter_mut().filter_map(Option::take) {
                self.pool.work().ended(&passed.direct);
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
