//! A request that a server has, or is about to get.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use memory::Buffers;
use parking_lot::{Mutex, MutexGuard};

use super::socket::in_time;
use crate::contract::{Bounced, DiskError, Durability, Operation, Request};
use crate::threads::{Done, Mailbox, Moved};

/// What completed writes and flushes say about what a server may lose, over all connections of a disk.
#[derive(Default)]
pub(super) struct Promises {
    /// Writes that completed.
    written: AtomicU64,
    /// As many of them were brought to stable storage.
    flushed: AtomicU64,
    /// A connection ended while some were not.
    broken: AtomicBool,
}

impl Promises {
    /// A connection has ended.
    pub(super) fn note_the_end(&self) {
        if self.written.load(Ordering::Acquire) > self.flushed.load(Ordering::Acquire) {
            self.broken.store(true, Ordering::Release);
        }
    }

    /// Whether writes may be lost that nobody has learned of yet.
    pub(super) fn take_broken(&self) -> bool {
        self.broken.swap(false, Ordering::AcqRel)
    }

    fn note(&self, operation: Operation, covers: u64) {
        match operation {
            Operation::Write { durability: Durability::Stable, .. } => {}
            Operation::Flush => {
                self.flushed.fetch_max(covers, Ordering::AcqRel);
            }
            changing if changing.changes_the_disk() => {
                self.written.fetch_add(1, Ordering::AcqRel);
            }
            _ => {}
        }
    }
}

/// A request under way. Whoever uses its memory has a share in it: the thread that sends it, and each of its parts that
/// the server has not answered, or whose answer just arrives. The last share to go brings the request back to its queue,
/// so no byte moves into or out of its memory afterwards. It went well if the server answered each part, once.
pub(super) struct UnderWay {
    /// Gone only while it is dropped.
    request: Option<Request>,
    mailbox: Arc<Mailbox>,
    promises: Arc<Promises>,
    /// The server has until then.
    deadline: Instant,
    /// Writes that had completed when a flush was sent.
    covers: u64,
    outcome: Mutex<Outcome>,
}

struct Outcome {
    /// Parts that the server has not answered.
    missing: u64,
    failure: Option<DiskError>,
    tally: Moved,
}

impl UnderWay {
    /// A request that goes to the server in so many parts.
    pub(super) fn new(
        request: Request,
        mailbox: Arc<Mailbox>,
        promises: Arc<Promises>,
        parts: u64,
        deadline: Instant,
    ) -> Arc<UnderWay> {
        let covers = promises.written.load(Ordering::Acquire);
        let outcome = Mutex::new(Outcome { missing: parts, failure: None, tally: Moved::default() });
        Arc::new(UnderWay { request: Some(request), mailbox, promises, deadline, covers, outcome })
    }

    fn request(&self) -> &Request {
        self.request.as_ref().expect("only its end takes it out")
    }

    pub(super) fn operation(&self) -> Operation {
        self.request().operation
    }

    /// Its memory, which stays as long as this share.
    pub(super) fn buffers(&self) -> &Buffers {
        &self.request().buffers
    }

    /// Fails once the server has had its time.
    pub(super) fn in_time(&self) -> io::Result<()> {
        in_time(self.deadline)
    }

    /// The server has answered a part of so many bytes, which have arrived.
    pub(super) fn answered(&self, bytes: u64, answer: Result<(), DiskError>) {
        let mut outcome = self.outcome();
        outcome.missing = outcome.missing.saturating_sub(1);
        match (answer, self.operation()) {
            (Ok(()), Operation::Read { .. } | Operation::Write { .. }) => {
                outcome.tally.moved(bytes, Some(Bounced::Transport));
            }
            (Ok(()), _) => {}
            (Err(error), _) => outcome.failure = Some(error),
        }
        if outcome.missing == 0 && outcome.failure.is_none() {
            // At once, on the thread that sees the connection end later on.
            self.promises.note(self.operation(), self.covers);
        }
    }

    /// Something else has gone wrong with a part of it.
    pub(super) fn fail(&self, why: DiskError) {
        self.outcome().failure.get_or_insert(why);
    }

    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Outcome { missing, failure, tally } = self.outcome.get_mut();
        let result = match failure {
            Some(why) => Err(*why),
            None if *missing > 0 => Err(DiskError::Gone),
            None => Ok(()),
        };
        let tally = std::mem::take(tally);
        if let Some(request) = self.request.take() {
            self.mailbox.put(Done { request, result, tally });
        }
    }
}
