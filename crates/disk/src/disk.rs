//! A disk: opened once, claimed, described.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use crate::contract::{Backend, Capacity, Counters, Geometry, QueueCounters, QueueError, Sectors, Size};
use crate::failure::{ErrorPolicy, FailureLayer, Failures, FlushAgain, Owner, TellFailure, Waiting};
use crate::opening;
use crate::options::{DiskOptions, OpenError};
use crate::queue::PreparedQueue;
use crate::registered::BufferTable;

/// A disk of the host that belongs to this process until it is dropped.
pub struct Disk {
    backend: Box<dyn Backend>,
    capacity: Arc<Capacity>,
    remarks: Vec<String>,
    tally: Tally,
    failures: Arc<Failures>,
}

/// What goes through a disk, to be read at any time, also when the disk has been closed.
#[derive(Clone, Debug)]
pub struct Tally {
    name: Arc<str>,
    queues: Arc<Mutex<Vec<Arc<QueueCounters>>>>,
}

/// A disk as it is at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reading {
    /// What the disk is called in messages.
    pub name: String,
    /// What went through it since it was opened.
    pub counters: Counters,
    /// Requests that failed and wait to be tried again.
    pub waiting: Option<Waiting>,
}

impl Tally {
    /// What the disk is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What went through all its queues since it was opened.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        let all = self.queues.lock();
        all.iter().for_each(|queue| queue.add_to(&mut sum));
        sum
    }

    /// Whether a queue of the disk still counts: one that was prepared and has not been dropped.
    pub fn in_use(&self) -> bool {
        let all = self.queues.lock();
        all.iter().any(|counters| Arc::strong_count(counters) > 1)
    }

    /// The disk once it has been closed: nothing waits.
    pub fn read(&self) -> Reading {
        Reading { name: self.name.to_string(), counters: self.counters(), waiting: None }
    }

    /// Counters that no queue uses any more go on counting for the next one, so that a guest that resets its
    /// queues for ever does not make the list grow.
    fn unused(&self) -> Arc<QueueCounters> {
        let mut all = self.queues.lock();
        if let Some(unused) = all.iter().find(|counters| Arc::strong_count(counters) == 1) {
            return unused.clone();
        }
        let new = Arc::new(QueueCounters::default());
        all.push(new.clone());
        new
    }
}

impl Disk {
    /// Opens and claims a disk.
    pub fn open(options: &DiskOptions) -> Result<Disk, OpenError> {
        let opening::Found { backend, remarks } = opening::open(options)?;
        let mut disk = Disk::new(options.source.to_string(), backend);
        disk.remarks = remarks;
        Ok(disk)
    }

    /// A disk over a back end of the caller's.
    pub fn new(name: impl Into<Arc<str>>, backend: Box<dyn Backend>) -> Disk {
        let capacity = Arc::new(Capacity::new(backend.geometry().capacity));
        let tally = Tally { name: name.into(), queues: Arc::default() };
        Disk { backend, capacity, remarks: Vec::new(), tally, failures: Arc::default() }
    }

    /// What the disk is called in messages: its path.
    pub fn name(&self) -> &str {
        self.tally.name()
    }

    /// What a person should be told about how the disk was opened, a sentence each: whose claim was overridden,
    /// which slower way had to be taken.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// The disk's size as it was last learned; all queues check requests against it.
    pub fn capacity(&self) -> Sectors {
        self.capacity.get()
    }

    /// The disk's size, to be looked at at any time. It does not keep the disk open.
    pub fn size(&self) -> Size {
        Size::of(self.capacity.clone())
    }

    /// Asks for the disk's size, as after a notice of the host that it has changed. A new one holds for all queues
    /// at once, wakes everybody who asked for that ([`Disk::resized`]), and is returned.
    pub fn look_again(&self) -> io::Result<Option<Sectors>> {
        Ok(self.capacity.set(self.backend.capacity()?))
    }

    /// An eventfd that is written whenever the disk's size has changed.
    pub fn resized(&self) -> io::Result<EventFd> {
        self.capacity.subscribe()
    }

    /// What the disk is.
    pub fn geometry(&self) -> &Geometry {
        self.backend.geometry()
    }

    /// Whether io_uring drives the disk, so that [`Disk::use_buffers`] can be of use.
    pub fn has_rings(&self) -> bool {
        self.backend.has_rings()
    }

    /// Has queues that are prepared from now on pass guest RAM to the kernel as registered buffers, as far as it is in
    /// the table. Returns whether they do: only disks behind io_uring can, and once.
    pub fn use_buffers(&self, table: &Arc<BufferTable>) -> bool {
        self.backend.use_buffers(table)
    }

    /// A queue for up to `depth` requests at once, to be started on the thread that will use it.
    pub fn prepare_queue(&self, depth: u16) -> Result<PreparedQueue, QueueError> {
        let counters = self.tally.unused();
        let mut engine = self.backend.engine(depth, counters.clone())?;
        if self.failures.have_an_owner() {
            let (disk, failures) = (self.tally.name.clone(), self.failures.clone());
            let flush =
                if self.backend.flush_can_be_repeated() { FlushAgain::Honest } else { FlushAgain::Deceptive };
            engine = Box::new(FailureLayer::new(engine, disk, failures, counters.clone(), flush));
        }
        Ok(PreparedQueue {
            disk: self.tally.name.clone(),
            geometry: self.geometry().clone(),
            capacity: self.capacity.clone(),
            depth,
            poll: self.backend.poll(),
            counters,
            engine,
        })
    }

    /// Says what is done when the host fails a request of queues that are prepared from now on, and who is told of it.
    /// Before, an error is its guest's alone. Only the first call counts.
    pub fn answer_failures(&self, policy: ErrorPolicy, tell: TellFailure) {
        self.failures.set_owner(Owner { policy, tell });
    }

    /// The failures of its requests, and those requests that wait to be tried again.
    pub fn failures(&self) -> &Arc<Failures> {
        &self.failures
    }

    /// What went through all queues of this disk since it was opened.
    pub fn counters(&self) -> Counters {
        self.tally.counters()
    }

    /// The disk as it is now.
    pub fn read(&self) -> Reading {
        let waiting = self.failures.waiting();
        Reading { waiting, ..self.tally.read() }
    }

    /// Its counters, for whoever wants to read them after it has been closed.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("name", &self.name()).field("geometry", self.geometry()).finish()
    }
}
