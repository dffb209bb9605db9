//! The layer between a queue and its engine.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::failed::Failure;
use super::failures::{At, Failures, Order};
use super::policy::Answer;
use crate::contract::{DiskError, Durability, Engine, Event, Operation, Patience, QueueCounters, Request};

/// A queue's engine, whose failed requests are answered as the disk's policy says. It holds no more than the queue is
/// deep, for what is held is under way for the queue's user.
pub(crate) struct FailureLayer {
    engine: Box<dyn Engine + Send>,
    disk: Arc<str>,
    failures: Arc<Failures>,
    counters: Arc<QueueCounters>,
    flush: FlushAgain,
    /// Its number among the failures. Without one nobody could wake it, so it holds nothing.
    number: Option<u64>,
    held: Vec<Held>,
    /// What was held and is told of as cancelled.
    ended: Vec<Event>,
    /// Tags of requests that were held and are under way again.
    again: Vec<u64>,
    /// The last call that it has followed.
    answered: u64,
}

/// Whether a flush that failed, or a write that is to be on stable storage, tells the truth when it is tried again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FlushAgain {
    /// What it is for is where it was.
    Honest,
    /// The host's page cache may have dropped what it could not write: the second flush would succeed without it. So
    /// would a write that is flushed, whose error may be that of an earlier one and is told once.
    Deceptive,
}

impl FlushAgain {
    fn allows(self, operation: Operation) -> bool {
        let flushes =
            matches!(operation, Operation::Flush | Operation::Write { durability: Durability::Stable, .. });
        self == FlushAgain::Honest || !flushes
    }
}

/// A failed request that waits.
struct Held {
    request: Request,
    error: DiskError,
}

impl Held {
    fn ended(self, error: DiskError) -> Event {
        let Request { tag, operation, buffers } = self.request;
        Event::Done { tag, operation, result: Err(error), buffers }
    }
}

impl FailureLayer {
    pub(crate) fn new(
        engine: Box<dyn Engine + Send>,
        disk: Arc<str>,
        failures: Arc<Failures>,
        counters: Arc<QueueCounters>,
        flush: FlushAgain,
    ) -> FailureLayer {
        let (held, ended, again) = (Vec::new(), Vec::new(), Vec::new());
        FailureLayer {
            engine,
            disk,
            failures,
            counters,
            flush,
            number: None,
            held,
            ended,
            again,
            answered: 0,
        }
    }

    /// Follows a call: what is held is tried again or ends.
    fn follow(&mut self, events: &mut Vec<Event>) {
        if self.failures.calls() == self.answered {
            return;
        }
        let (calls, order) = self.failures.order();
        self.answered = calls;
        let held = std::mem::take(&mut self.held);
        match order {
            Order::Hold => {
                for Held { request, .. } in held {
                    self.again.push(request.tag);
                    self.engine.submit(request);
                }
            }
            Order::GiveUp => {
                self.failures.have_left(held.len() as u64);
                events.extend(held.into_iter().map(|held| {
                    let error = held.error;
                    held.ended(error)
                }));
            }
        }
    }

    /// Looks at what has ended from event `from` on: what is to be held is taken out.
    fn look(&mut self, from: usize, events: &mut Vec<Event>) {
        let mut at = from;
        while let Some(event) = events.get_mut(at) {
            at += 1;
            let Event::Done { tag, operation, result, buffers } = event else { continue };
            let again = self.again.iter().position(|other| other == tag);
            let again = again.map(|index| self.again.swap_remove(index)).is_some();
            let error = match *result {
                Err(error) if error != DiskError::Cancelled => error,
                _ => {
                    if again {
                        self.failures.have_left(1);
                    }
                    continue;
                }
            };
            let failure = Failure {
                disk: self.disk.clone(),
                operation: *operation,
                bytes: buffers.bytes(),
                error,
                errno: self.engine.errno(*tag),
                cause: self.engine.cause(error),
                answer: Answer::Reported,
                more: 0,
            };
            let answered = (!self.held.is_empty()).then_some(self.answered);
            let honest = self.flush.allows(*operation);
            let (answer, calls) = self
                .failures
                .failed(failure, At { answered, again, can_wait: self.number.is_some() && honest });
            match answer {
                Answer::Reported => {}
                Answer::Ignored => {
                    self.counters.ignored();
                    *result = Ok(());
                }
                Answer::Held => {
                    if answered.is_none() {
                        self.answered = calls;
                    }
                    at -= 1;
                    if let Event::Done { tag, operation, buffers, .. } = events.remove(at) {
                        self.held.push(Held { request: Request { tag, operation, buffers }, error });
                    }
                }
            }
        }
    }
}

impl Engine for FailureLayer {
    fn start(&mut self) -> io::Result<()> {
        self.engine.start()
    }

    fn watch(&mut self, eventfd: &EventFd) -> io::Result<()> {
        self.engine.watch(eventfd)?;
        if self.number.is_none() {
            self.number = Some(self.failures.register(eventfd.try_clone()?));
        }
        Ok(())
    }

    fn submit(&mut self, request: Request) {
        self.engine.submit(request);
    }

    fn cancel(&mut self) -> io::Result<()> {
        self.failures.withdraw(self.held.len() as u64, 0, self.answered);
        self.ended.extend(self.held.drain(..).map(|held| held.ended(DiskError::Cancelled)));
        self.engine.cancel()
    }

    fn advance(&mut self, patience: Patience, events: &mut Vec<Event>) -> io::Result<()> {
        let before = events.len();
        if !self.held.is_empty() || !self.ended.is_empty() {
            events.append(&mut self.ended);
            self.follow(events);
        }
        let from = events.len();
        // What there is to tell already is no reason to sleep.
        let patience = if from > before { Patience::Poll } else { patience };
        let outcome = self.engine.advance(patience, events);
        if !self.again.is_empty() || events[from..].iter().any(has_failed) {
            self.look(from, events);
        }
        outcome
    }
}

fn has_failed(event: &Event) -> bool {
    matches!(event, Event::Done { result: Err(_), .. })
}

impl Drop for FailureLayer {
    fn drop(&mut self) {
        // What the engine still has ends with it, unheard.
        if let Some(number) = self.number {
            self.failures.withdraw(self.held.len() as u64, self.again.len() as u64, self.answered);
            self.failures.unregister(number);
        }
    }
}
