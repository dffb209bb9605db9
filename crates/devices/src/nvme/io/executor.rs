//! Executes commands on one namespace's disk and posts their completions. It belongs to one thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use disk::{DiskError, DiskQueue, Durability, Event, Operation, PreparedQueue, Request, WaitError};
use memory::{Buffers, GpaRange};
use vmm_sys_util::eventfd::EventFd;

use super::job::{Job, Next, Plan, Planner, Scratches};
use crate::aside;
use crate::nvme::completion::{Answer, CompletionQueue};
use crate::nvme::log::{self, Failed};
use crate::nvme::namespace::Attached;
use crate::nvme::shared::Shared;
use crate::nvme::spec::{Command, Status};
use crate::stock::{Lent, Stock};

/// Where the answers to commands of one submission queue go.
#[derive(Clone)]
pub(super) struct Answers {
    pub(super) sq: u16,
    /// The submission queue's head, which completions report.
    pub(super) head: Arc<AtomicU16>,
    pub(super) queue: Arc<CompletionQueue>,
}

/// A command under way.
struct Slot {
    cid: u16,
    lba: u64,
    job: Job,
    /// The abort command that wants it back.
    wanted: Option<u16>,
    /// Where the disk may write.
    written: Option<GpaRange>,
    lent: Lent,
}

/// Nothing on the way of reads and writes allocates or locks a lock that others hold: commands under way have
/// numbered slots, and buffers go round.
pub(super) struct Executor {
    shared: Arc<Shared>,
    namespace: Arc<Attached>,
    disk: DiskQueue,
    to: Answers,
    slots: Vec<Option<Slot>>,
    free: Vec<u16>,
    stock: Stock,
    events: Vec<Event>,
    /// Answers that are not posted yet.
    answers: VecDeque<Answer>,
    scratches: Scratches,
    /// Slots that want to compare, the one that does first.
    comparing: VecDeque<u16>,
    copied: u64,
}

impl Executor {
    /// Starts a disk's queue on this thread; `wake` wakes it from [`Executor::wait`].
    pub(super) fn start(
        shared: Arc<Shared>,
        namespace: Arc<Attached>,
        prepared: PreparedQueue,
        depth: u16,
        to: Answers,
        wake: &EventFd,
    ) -> Result<Executor, WaitError> {
        let mut disk = prepared.start()?;
        disk.watch(wake)?;
        Ok(Executor {
            stock: Stock::new(shared.ram.clone(), shared.executors),
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            events: Vec::new(),
            answers: VecDeque::with_capacity(depth.into()),
            scratches: Scratches::default(),
            comparing: VecDeque::new(),
            copied: 0,
            shared,
            namespace,
            disk,
            to,
        })
    }

    /// Whether a command can be begun: a slot is free, there is room for its lists, and the driver keeps up with
    /// completions.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() && self.stock.has_room() && self.answers.len() < self.slots.len()
    }

    /// Whether answers wait for room in the completion queue.
    pub(super) fn is_stuck(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Commands begun whose completion is not posted.
    pub(super) fn unanswered(&self) -> usize {
        self.slots.len() - self.free.len() + self.answers.len()
    }

    /// Commands begun and not done.
    pub(super) fn under_way(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Sleeps until the disk has done something or the thread is woken.
    pub(super) fn wait(&mut self) -> Result<(), WaitError> {
        self.disk.wait(&mut self.events)
    }

    /// Looks what the disk has done, and for `other` things, as long as that pays; returns whether there is something.
    pub(super) fn look(&mut self, other: impl FnMut() -> bool) -> Result<bool, WaitError> {
        self.disk.look(&mut self.events, other)
    }

    /// As [`Executor::wait`], but sleeps at once.
    pub(super) fn sleep(&mut self) -> Result<(), WaitError> {
        self.disk.sleep(&mut self.events)
    }

    /// Hands requests to the disk without waiting.
    pub(super) fn poll(&mut self) -> Result<(), WaitError> {
        self.disk.poll(&mut self.events)
    }

    /// The disk's queue and what it has brought.
    pub(super) fn disk(&mut self) -> (&mut DiskQueue, &mut Vec<Event>) {
        (&mut self.disk, &mut self.events)
    }

    /// Where in guest memory the disk may write.
    pub(super) fn reads(&self) -> impl Iterator<Item = GpaRange> {
        self.slots.iter().flatten().filter_map(|slot| slot.written)
    }

    /// Tells people about the disk.
    pub(super) fn report(&self, what: &dyn std::fmt::Display) {
        self.shared.report(&format_args!("disk {}: {what}", self.namespace.disk.name()));
    }

    /// Posts what is answered.
    pub(super) fn post(&mut self) {
        self.to.queue.post(&mut self.answers, self.to.sq, self.to.head.load(Ordering::Relaxed));
    }

    /// Answers a command that is not begun.
    pub(super) fn answer(&mut self, cid: u16, status: Status) {
        self.answers.push_back(Answer { cid, status, result: 0 });
    }

    /// Begins a command; there is room.
    pub(super) fn begin(&mut self, command: &Command) {
        let cid = command.cid.get();
        let buffers = self.stock.take();
        let planner = Planner {
            namespace: &self.namespace,
            ram: self.stock.ram(),
            durability: if self.writes_through() { Durability::Stable } else { Durability::Cached },
        };
        let slot = |job, written, lent| Slot { cid, lba: command.lba(), job, wanted: None, written, lent };
        match planner.plan(command, buffers) {
            Ok(Plan::Request(operation, buffers)) => {
                let lent = self.stock.lend(buffers.room());
                let index = self.take_slot(slot(Job::Once, aside::written(operation, &buffers), lent));
                self.ask(index, operation, buffers);
            }
            Ok(Plan::Steps(job)) => {
                let (compare, lent) = (job.is_compare(), self.stock.lend(job.room()));
                let index = self.take_slot(slot(job, None, lent));
                if compare {
                    self.comparing.push_back(index);
                }
                if !compare || self.comparing.len() == 1 {
                    self.step(index);
                }
            }
            Ok(Plan::Done) => self.answer(cid, Status::SUCCESS),
            Err((status, buffers)) => {
                self.stock.put_back(buffers);
                self.answer(cid, status);
            }
        }
    }

    /// Ends a command early if it can be done, and answers the abort command: at once if there is nothing to be done,
    /// else when the command has ended.
    pub(super) fn abort(&mut self, cid: u16, abort: u16) {
        let of =
            |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.cid == cid && slot.wanted.is_none());
        let Some(index) = self.slots.iter().position(of) else { return self.shared.fulfilled(abort, false) };
        let alone = self.disk.under_way() == 1;
        let waits = self.comparing.iter().skip(1).any(|waiting| usize::from(*waiting) == index);
        let Some(slot) = &mut self.slots[index] else { return };
        if !waits && matches!(slot.job, Job::Once) && (!alone || self.disk.cancel().is_err()) {
            return self.shared.fulfilled(abort, false);
        }
        slot.wanted = Some(abort);
        if waits {
            self.finish(index as u16, Status::ABORT_REQUESTED);
        }
    }

    /// Whether the driver has switched off a cache that the disk has.
    fn writes_through(&self) -> bool {
        !self.shared.write_cache.load(Ordering::Relaxed) && self.namespace.caches()
    }

    fn take_slot(&mut self, slot: Slot) -> u16 {
        let index = self.free.pop().expect("the caller saw that there is room");
        self.slots[usize::from(index)] = Some(slot);
        index
    }

    /// Asks the disk for the next step of a job.
    fn step(&mut self, index: u16) {
        let (empty, through) = (self.stock.take(), self.writes_through());
        let slot = self.slots[usize::from(index)].as_mut().expect("a job has its slot until it is done");
        match slot.job.next(&self.namespace, &mut self.scratches, empty, through) {
            Next::Ask(operation, buffers) => self.ask(index, operation, buffers),
            Next::Done(status) => self.finish(index, status),
        }
    }

    fn ask(&mut self, index: u16, operation: Operation, buffers: Buffers) {
        if let Err(refused) = self.disk.submit(Request { tag: u64::from(index), operation, buffers }) {
            self.answered(index, refused.operation, Err(refused.error), refused.buffers);
        }
    }

    /// Deals with what the disk has done.
    pub(super) fn reap(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            if let Event::Done { tag, operation, result, buffers } = event {
                self.answered(tag as u16, operation, result, buffers);
            }
        }
        self.events = events;
        if self.copied > 0 {
            self.shared.copied.fetch_add(std::mem::take(&mut self.copied), Ordering::Relaxed);
        }
    }

    fn answered(
        &mut self,
        index: u16,
        operation: Operation,
        result: Result<(), DiskError>,
        buffers: Buffers,
    ) {
        let slot = self.slots[usize::from(index)].as_mut().expect("the disk returns each tag once");
        let (once, wanted) = (matches!(slot.job, Job::Once), slot.wanted.is_some());
        let outcome = slot.job.answered(operation, result, &buffers, &mut self.copied);
        if once {
            self.stock.put_back(buffers);
        }
        let cached = matches!(operation, Operation::Write { durability: Durability::Cached, .. });
        if once && cached && outcome.is_ok() && self.writes_through() {
            // The driver has switched the cache off since this began.
            let empty = self.stock.take();
            return self.ask(index, Operation::Flush, empty);
        }
        match outcome {
            Ok(None) | Err(DiskError::Cancelled) if wanted => self.finish(index, Status::ABORT_REQUESTED),
            Ok(None) => self.step(index),
            Ok(Some(status)) => self.finish(index, status),
            Err(error) => {
                let status = self.note(index, operation, error);
                self.finish(index, status);
            }
        }
    }

    /// A failure goes into the log.
    fn note(&self, index: u16, operation: Operation, error: DiskError) -> Status {
        let status = log::status_of(error, operation);
        let slot = self.slots[usize::from(index)].as_ref();
        let (cid, lba) = slot.map_or((0, 0), |slot| (slot.cid, slot.lba));
        let failed = Failed { sq: self.to.sq, cid, status, lba, nsid: self.namespace.nsid };
        self.shared.failed(failed, error);
        status
    }

    fn finish(&mut self, index: u16, status: Status) {
        let Some(slot) = self.slots[usize::from(index)].take() else { return };
        self.free.push(index);
        self.stock.end(slot.lent);
        self.answer(slot.cid, status);
        if let Some(abort) = slot.wanted {
            // The command's own completion comes first, if there is room for it.
            self.post();
            self.shared.fulfilled(abort, status == Status::ABORT_REQUESTED);
        }
        if let Job::Compare { guest, .. } = slot.job {
            self.stock.put_back(guest);
            let first = self.comparing.front() == Some(&index);
            self.comparing.retain(|waiting| *waiting != index);
            if first && let Some(next) = self.comparing.front().copied() {
                self.step(next);
            }
        }
    }
}
