//! The controller's thread: it does what the registers order, serves the admin queue, and owns all I/O queues.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pci::Pass;

use super::abort::Fulfilled;
use super::admin::Features;
use super::completion::{Answer, CompletionQueue, Context};
use super::io::IoQueue;
use super::registers::{AdminQueues, Order};
use super::ring::SubmissionQueue;
use super::shared::Shared;
use super::spec::Status;
use crate::durability::flush;

/// Asynchronous event requests that may wait at once (AERL, 0's based: 3).
pub(super) const MAX_EVENT_REQUESTS: usize = 4;
/// Abort commands that may wait for queues at once (ACL, 0's based: 3).
pub(super) const MAX_ABORTS: usize = 4;

/// Serves the controller until the device goes.
pub(super) fn run(shared: &Arc<Shared>, pass: &Arc<Pass>) {
    let mut live: Option<Live> = None;
    let mut stopped = None;
    loop {
        let order = shared.registers.order();
        if live.as_ref().is_some_and(|live| live.epoch != order.epoch) {
            // Waits for everything under way, and writes nothing itself.
            pass.outside(|| live = None);
        }
        if live.is_none() && stopped != Some(order.epoch) {
            reset(shared);
            shared.registers.stopped(order.epoch);
            stopped = Some(order.epoch);
        }
        if order.quit {
            return;
        }
        let sleep = match &mut live {
            None => {
                if start(shared, pass, order, &mut live) {
                    continue;
                }
                None
            }
            Some(live) => {
                if order.shutdown {
                    pass.outside(|| live.shut_down());
                    shared.registers.shut_down(order.epoch);
                    continue;
                }
                // While bus mastering is off there is nothing to do but what the registers order.
                if !pass.renew() {
                    None
                } else {
                    match live.serve() {
                        Round::More => continue,
                        Round::Empty(at_most) => at_most,
                    }
                }
            }
        };
        shared.waker.sleep(sleep);
    }
}

/// Begins to serve if the registers say so; returns whether something changed.
fn start(shared: &Arc<Shared>, pass: &Arc<Pass>, order: Order, live: &mut Option<Live>) -> bool {
    if order.shutdown {
        shared.registers.shut_down(order.epoch);
        return true;
    }
    if !order.enabled {
        return false;
    }
    match Live::new(shared, pass, order.epoch) {
        Ok(new) => {
            *live = Some(new);
            shared.registers.ready(order.epoch);
        }
        Err(why) => {
            shared.registers.failed(order.epoch);
            shared.report(&format_args!(
                "the driver cannot enable the controller: {why}. The controller waits for its driver to reset it."
            ));
        }
    }
    true
}

/// Back to the state before any driver.
fn reset(shared: &Shared) {
    if let Err(why) = shared.ioeventfds.clear() {
        shared.report(&why);
    }
    shared.doorbells.set_shadow(None);
    for id in 0..shared.doorbells.count() {
        shared.doorbells.close_sq(id);
        shared.doorbells.close_cq(id);
    }
    shared.completion_queues.lock().clear();
    // No queue is left that could answer.
    shared.fulfilled.lock().clear();
    shared.events.reset();
    shared.interrupts.controller_reset();
    shared.write_cache.store(true, std::sync::atomic::Ordering::Relaxed);
}

/// What a round of serving came to.
enum Round {
    /// There is more to do.
    More,
    /// There is not, for so long at most.
    Empty(Option<Duration>),
}

/// An enabled controller.
pub(super) struct Live {
    pub(super) shared: Arc<Shared>,
    /// Of the controller's thread.
    pub(super) pass: Arc<Pass>,
    epoch: u64,
    queue: SubmissionQueue,
    completions: Arc<CompletionQueue>,
    answers: VecDeque<Answer>,
    /// I/O submission queues.
    pub(super) queues: BTreeMap<u16, IoQueue>,
    pub(super) features: Features,
    /// Asynchronous event requests that wait for an event.
    pub(super) event_requests: Vec<u16>,
    /// Abort commands that wait for queues.
    pub(super) aborts: usize,
    /// The driver has ended its work; no command is taken any more.
    shut: bool,
}

impl Live {
    fn new(shared: &Arc<Shared>, pass: &Arc<Pass>, epoch: u64) -> Result<Live, Box<dyn std::error::Error>> {
        let at: AdminQueues = shared.registers.admin_queues()?;
        shared.doorbells.open_sq(0, at.submission_entries);
        shared.doorbells.open_cq(0, at.completion_entries);
        let gate = shared.gate.clone();
        let queue = SubmissionQueue::new(
            0,
            &shared.ram,
            at.submission,
            at.submission_entries,
            shared.doorbells.clone(),
            gate,
        )?;
        let completions = CompletionQueue::new(
            0,
            &shared.ram,
            at.completion,
            at.completion_entries,
            Some(0),
            Self::context(shared)?,
        )?;
        let completions = Arc::new(completions);
        shared.completion_queues.lock().insert(0, completions.clone());
        Ok(Live {
            shared: shared.clone(),
            pass: pass.clone(),
            epoch,
            queue,
            completions,
            answers: VecDeque::new(),
            queues: BTreeMap::new(),
            features: Features::default(),
            event_requests: Vec::new(),
            aborts: 0,
            shut: false,
        })
    }

    /// What a completion queue works with.
    pub(super) fn context(shared: &Shared) -> std::io::Result<Context> {
        Ok(Context {
            doorbells: shared.doorbells.clone(),
            interrupts: shared.interrupts.clone(),
            gate: shared.gate.clone(),
            waker: shared.waker.another()?,
        })
    }

    fn serve(&mut self) -> Round {
        self.answer_aborts();
        self.post();
        if self.shut {
            return Round::Empty(None);
        }
        for _ in 0..self.queue.entries() {
            if !self.answers.is_empty() {
                // The driver takes completions first: its doorbell wakes this thread.
                return Round::Empty(self.send_due());
            }
            self.queue.disarm();
            let Some(command) = self.queue.next() else {
                self.tell_events();
                self.post();
                return if self.queue.arm() { Round::More } else { Round::Empty(self.send_due()) };
            };
            if let Some(answer) = self.execute(&command) {
                self.answers.push_back(answer);
            }
            if !self.pass.renew() {
                return Round::More;
            }
            self.tell_events();
            self.post();
        }
        Round::More
    }

    /// Answers a command before the one that is being executed.
    pub(super) fn answer_first(&mut self, answer: Answer) {
        self.answers.push_back(answer);
    }

    /// Answers the abort commands that queues are done with: dword 0 says whether the command was not aborted.
    fn answer_aborts(&mut self) {
        for Fulfilled { abort, aborted } in std::mem::take(&mut *self.shared.fulfilled.lock()) {
            self.aborts -= 1;
            let result = u32::from(!aborted);
            self.answers.push_back(Answer { cid: abort, status: Status::SUCCESS, result });
        }
    }

    fn post(&mut self) {
        self.completions.post(&mut self.answers, 0, self.queue.head());
    }

    fn tell_events(&mut self) {
        while let Some(cid) = self.event_requests.first().copied() {
            let Some(event) = self.shared.events.next(self.features.events) else { return };
            self.event_requests.remove(0);
            self.answers.push_back(Answer { cid, status: Status::SUCCESS, result: event.result() });
        }
    }

    /// Sends interrupts that were held back long enough; returns when the next one is due.
    pub(super) fn send_due(&self) -> Option<Duration> {
        let now = Instant::now();
        let queues = self.shared.completion_queues.lock();
        queues.values().filter_map(|queue| queue.send_due(now)).min()
    }

    /// Ends all I/O, and brings everything written to stable storage (7.6.2).
    fn shut_down(&mut self) {
        self.shut = true;
        // All queues end at once, rather than one after the other.
        self.queues.values().for_each(IoQueue::stop_taking);
        std::mem::take(&mut self.queues).into_values().for_each(IoQueue::finish);
        for namespace in self.shared.namespaces.iter().filter(|namespace| namespace.caches()) {
            if let Err(why) = flush(&namespace.disk) {
                self.shared.host_failed(&format_args!(
                    "disk {}: the flush at the guest's shutdown failed: {why}. What was written last may be lost when the host's power goes.",
                    namespace.disk.name()
                ));
            }
        }
    }
}

impl Drop for Live {
    /// All queues end at once, rather than one after the other.
    fn drop(&mut self) {
        self.queues.values().for_each(IoQueue::abandon);
        self.queues.clear();
    }
}
