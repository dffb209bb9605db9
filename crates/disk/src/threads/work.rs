//! What threads do for a disk, and what they say that they moved.

use memory::Buffers;

use crate::contract::{Bounced, DiskError, Operation, QueueCounters, Sectors};

/// What a pool does for a disk. The calling thread waits until it is done.
pub(crate) trait Work: Send + Sync {
    /// Carries out an operation that has been checked against the disk's geometry.
    fn execute(&self, operation: Operation, buffers: &Buffers, tally: &mut Moved) -> Result<(), DiskError>;

    /// Where the ring can take the request to on its own, if it can. What is returned is given to
    /// [`Work::ended`] once the request is done.
    fn direct(&self, _operation: Operation, _bytes: u64) -> Option<Direct> {
        None
    }

    /// A request that went to the ring is done.
    fn ended(&self, _direct: &Direct) {}
}

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

/// What a thread moved for one request, to be counted by the queue that it belongs to.
#[derive(Default, Debug)]
pub(crate) struct Moved {
    moved: Vec<(Option<Bounced>, u64)>,
    read_modify_writes: u64,
}

impl Moved {
    /// `bytes` went without a copy, or with one for the given reason.
    pub(crate) fn moved(&mut self, bytes: u64, bounced: Option<Bounced>) {
        match self.moved.iter_mut().find(|(reason, _)| *reason == bounced) {
            Some((_, sum)) => *sum += bytes,
            None => self.moved.push((bounced, bytes)),
        }
    }

    /// A write of less than a block read it first.
    pub(crate) fn read_modify_write(&mut self) {
        self.read_modify_writes += 1;
    }

    pub(crate) fn count_in(&self, counters: &QueueCounters) {
        self.moved.iter().for_each(|(reason, bytes)| counters.moved(*bytes, *reason));
        counters.read_modify_write(self.read_modify_writes);
    }
}
