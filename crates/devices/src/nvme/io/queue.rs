//! A submission queue and its thread.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::thread::{self, JoinHandle};

use disk::{PreparedQueue, QueueError, WaitError};
use pci::Pass;

use super::executor::{Answers, Executor};
use super::namespace_worker::NamespaceWorker;
use crate::aside::Then;
use crate::nvme::abort::{Wish, Wishes};
use crate::nvme::completion::CompletionQueue;
use crate::nvme::ring::SubmissionQueue;
use crate::nvme::shared::Shared;
use crate::nvme::spec::{Command, Status};
use crate::nvme::waker::Waker;

/// How a queue's threads are to end.
#[derive(Default)]
pub(super) struct Stop(AtomicU8);

impl Stop {
    const FINISH: u8 = 1;
    const ABANDON: u8 = 2;

    /// No new commands; those under way are finished and answered.
    pub(super) fn finishes(&self) -> bool {
        self.0.load(Ordering::SeqCst) == Self::FINISH
    }

    /// At once; what is under way is waited for and not answered.
    pub(super) fn abandons(&self) -> bool {
        self.0.load(Ordering::SeqCst) == Self::ABANDON
    }
}

/// Why a queue could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotStarted {
    #[error(transparent)]
    Disk(#[from] QueueError),
    #[error("cannot start a thread: {0}. Raise the limits of threads and open files (ulimit -u, ulimit -n).")]
    Thread(#[from] io::Error),
}

/// What a queue is started with.
pub(crate) struct Setup {
    pub(crate) id: u16,
    pub(crate) queue: SubmissionQueue,
    pub(crate) completions: Arc<CompletionQueue>,
}

/// A submission queue in use. Dropped, it is abandoned.
pub(crate) struct IoQueue {
    completions: u16,
    stop: Arc<Stop>,
    wishes: Arc<Wishes>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl IoQueue {
    pub(crate) fn start(shared: &Arc<Shared>, setup: Setup) -> Result<IoQueue, NotStarted> {
        let Setup { id, queue, completions } = setup;
        let first = &shared.namespaces[0];
        // Never longer than 1024.
        let depth = queue.entries() as u16;
        let prepared = first.disk.prepare_queue(depth)?;
        let (stop, waker) = (Arc::<Stop>::default(), shared.doorbells.waker(id).another()?);
        let pass = shared.gate.pass(waker.eventfd())?;
        let served = completions.id();
        let to = Answers { sq: id, head: Arc::new(AtomicU16::new(0)), queue: completions };
        let wishes = Arc::<Wishes>::default();
        let (theirs, asked, shared) = (stop.clone(), wishes.clone(), shared.clone());
        let thread = thread::Builder::new().name(format!("nvme-{}-{id}", shared.short)).spawn(move || {
            let parts = Parts { queue, prepared, depth, pass: &pass };
            if let Err(why) = Served::run(&shared, parts, &to, &theirs, &asked) {
                shared.fatal(&why);
            }
        })?;
        Ok(IoQueue { completions: served, stop, wishes, waker, thread: Some(thread) })
    }

    /// The completion queue that it reports to.
    pub(crate) fn completions(&self) -> u16 {
        self.completions
    }

    /// Asks for a command's early end. The queue's thread answers the controller's.
    pub(crate) fn abort(&self, wish: Wish) {
        self.wishes.leave(wish);
        self.waker.wake();
    }

    /// Asks the threads to end without waiting; what is under way is not answered.
    pub(crate) fn abandon(&self) {
        self.stop.0.store(Stop::ABANDON, Ordering::SeqCst);
        self.waker.wake();
    }

    /// Asks the threads to end when what is under way is done and answered, without waiting.
    pub(crate) fn stop_taking(&self) {
        self.stop.0.store(Stop::FINISH, Ordering::SeqCst);
        self.waker.wake();
    }

    /// Waits until everything under way is done and answered, as far as the driver leaves room for answers.
    pub(crate) fn finish(mut self) {
        self.stop_taking();
        self.join();
    }

    fn join(&mut self) {
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has ended, and said so.
            thread.join().ok();
        }
    }
}

impl Drop for IoQueue {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.abandon();
            self.join();
        }
    }
}

/// How a round of taking commands ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    /// There was no further command.
    Empty,
    /// As many as the queue is long were taken; there may be more.
    Full,
    /// There may be more, but no room for them.
    NoRoom,
}

/// What a queue is made of on its thread.
struct Parts<'a> {
    queue: SubmissionQueue,
    prepared: PreparedQueue,
    depth: u16,
    pass: &'a Pass,
}

/// The queue on its thread.
struct Served<'a> {
    shared: &'a Arc<Shared>,
    queue: SubmissionQueue,
    depth: u16,
    pass: &'a Pass,
    to: &'a Answers,
    stop: &'a Arc<Stop>,
    wishes: &'a Wishes,
    /// For the first namespace.
    executor: Executor,
    /// For others, by their number.
    workers: BTreeMap<u32, NamespaceWorker>,
    /// Taken from the queue, for a worker that has no room.
    held: Option<Command>,
}

impl Served<'_> {
    fn run(
        shared: &Arc<Shared>,
        Parts { queue, prepared, depth, pass }: Parts<'_>,
        to: &Answers,
        stop: &Arc<Stop>,
        wishes: &Wishes,
    ) -> Result<(), WaitError> {
        let first = shared.namespaces[0].clone();
        let wake = shared.doorbells.waker(to.sq).eventfd();
        let executor = Executor::start(shared.clone(), first, prepared, depth, to.clone(), wake)?;
        let workers = BTreeMap::new();
        let mut served =
            Served { shared, queue, depth, pass, to, stop, wishes, executor, workers, held: None };
        let outcome = served.serve();
        if outcome.is_err() {
            stop.0.store(Stop::ABANDON, Ordering::SeqCst);
        }
        served.grant();
        // Workers end with `served`, each as `stop` says, and none after the other.
        served.workers.values().for_each(NamespaceWorker::wake);
        outcome
    }

    fn serve(&mut self) -> Result<(), WaitError> {
        if self.steps_aside()? == Then::End {
            return Ok(());
        }
        loop {
            self.grant();
            let stopping = self.stop.finishes();
            let round = if stopping { Round::NoRoom } else { self.take_a_round() };
            self.executor.post();
            if self.stop.abandons() || stopping && self.executor.under_way() == 0 {
                return Ok(());
            }
            self.pause(round)?;
            if self.steps_aside()? == Then::End {
                return Ok(());
            }
            self.queue.disarm();
            self.executor.reap();
            self.executor.post();
            self.workers.values().for_each(NamespaceWorker::pass_on);
        }
    }

    /// Obeys bus mastering: looks whether it is on, and waits until it is.
    fn steps_aside(&mut self) -> Result<Then, WaitError> {
        if self.pass.is_valid() { Ok(Then::GoOn) } else { self.executor.step_aside(self.stop, self.pass) }
    }

    /// Ends the commands that are wanted back, as far as that can be done. Those that wait here end at once; for the
    /// others it depends on their next step.
    fn grant(&mut self) {
        for Wish { cid, abort } in self.wishes.take() {
            let held = self.held.take_if(|held| held.cid.get() == cid).is_some();
            if held || self.workers.values().any(|worker| worker.take_back(cid)) {
                self.executor.answer(cid, Status::ABORT_REQUESTED);
                self.executor.post();
                self.shared.fulfilled(abort, true);
            } else {
                self.executor.abort(cid, abort);
            }
        }
    }

    /// Hands requests to the disk, and sleeps if there is nothing else to do. Commands that are left, or came
    /// meanwhile, are no reason to sleep, but none either not to look at what the disk has completed. While it pays to
    /// look at disk and queue, the driver need not ring: it is asked to only before sleeping.
    fn pause(&mut self, round: Round) -> Result<(), WaitError> {
        let Served { executor, queue, .. } = self;
        match round {
            Round::Full => executor.poll(),
            Round::NoRoom => executor.wait(),
            Round::Empty if executor.look(|| queue.has_more())? => Ok(()),
            Round::Empty if queue.arm() => executor.poll(),
            Round::Empty => executor.sleep(),
        }
    }

    /// Begins what the driver has submitted, but no more than the queue is long: a driver may refill it as fast as
    /// it is emptied.
    fn take_a_round(&mut self) -> Round {
        for _ in 0..self.queue.entries() {
            if !self.executor.has_room() {
                return Round::NoRoom;
            }
            let command = match self.held.take() {
                Some(command) => command,
                None => match self.queue.next() {
                    Some(command) => command,
                    None => return Round::Empty,
                },
            };
            self.to.head.store(self.queue.head(), Ordering::Relaxed);
            if !self.dispatch(&command) {
                self.held = Some(command);
                return Round::NoRoom;
            }
        }
        Round::Full
    }

    /// Gives a command to whoever drives its namespace's disk. False when there is no room.
    fn dispatch(&mut self, command: &Command) -> bool {
        let nsid = command.nsid.get();
        if nsid == self.shared.namespaces[0].nsid {
            self.executor.begin(command);
            return true;
        }
        if let Some(worker) = self.workers.get(&nsid) {
            return worker.send(command);
        }
        match self.start_worker(nsid) {
            Ok(Some(worker)) => {
                let sent = worker.send(command);
                self.workers.insert(nsid, worker);
                return sent;
            }
            Ok(None) => self.executor.answer(command.cid.get(), Status::INVALID_NAMESPACE),
            Err(why) => {
                self.shared.report(&format_args!("namespace {nsid} cannot be used: {why}"));
                self.executor.answer(command.cid.get(), Status::INTERNAL_ERROR);
            }
        }
        true
    }

    fn start_worker(&self, nsid: u32) -> Result<Option<NamespaceWorker>, NotStarted> {
        let Some(namespace) = self.shared.namespace(nsid) else { return Ok(None) };
        let prepared = namespace.disk.prepare_queue(self.depth)?;
        let (shared, to, stop) = (self.shared.clone(), self.to.clone(), self.stop.clone());
        Ok(Some(NamespaceWorker::start(shared, namespace.clone(), prepared, self.depth, to, stop)?))
    }
}
