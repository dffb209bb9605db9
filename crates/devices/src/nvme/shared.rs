//! What vCPUs, the controller's thread and the threads of queues have in common.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use disk::DiskError;
use memory::Ram;
use parking_lot::Mutex;
use pci::Gate;
use virtio::Reports;

use super::abort::Fulfilled;
use super::completion::CompletionQueue;
use super::doorbells::Doorbells;
use super::events::{Event, Events};
use super::interrupts::Interrupts;
use super::ioeventfds::IoEventFds;
use super::log::{Failed, Log};
use super::namespace::Attached;
use super::registers::Registers;
use super::spec::IdentifyController;
use super::waker::Waker;

pub(crate) struct Shared {
    /// What people are told.
    pub(super) reports: Reports,
    /// "disk0", for threads.
    pub(super) short: String,
    pub(super) ram: Arc<Ram>,
    /// Threads that execute commands at most: one for each queue and namespace.
    pub(super) executors: usize,
    /// Bus mastering.
    pub(super) gate: Gate,
    /// The controller's thread.
    pub(super) waker: Waker,
    pub(super) registers: Registers,
    pub(super) doorbells: Arc<Doorbells>,
    pub(super) ioeventfds: IoEventFds,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) events: Arc<Events>,
    pub(super) identity: IdentifyController,
    /// At least one, by their numbers from 1 on.
    pub(super) namespaces: Vec<Arc<Attached>>,
    /// Feature 06h: completed writes may wait in a cache.
    pub(super) write_cache: AtomicBool,
    /// All completion queues, the admin queue among them.
    pub(super) completion_queues: Mutex<BTreeMap<u16, Arc<CompletionQueue>>>,
    /// Answers to abort commands, which the controller's thread gives.
    pub(super) fulfilled: Mutex<Vec<Fulfilled>>,
    pub(super) log: Mutex<Log>,
    /// Bytes that went through scratch memory.
    pub(super) copied: AtomicU64,
}

impl Shared {
    pub(super) fn namespace(&self, nsid: u32) -> Option<&Arc<Attached>> {
        self.namespaces.get(usize::try_from(nsid.checked_sub(1)?).ok()?)
    }

    /// Tells people something that the driver can cause as often as it likes.
    pub(super) fn report(&self, what: &dyn fmt::Display) {
        self.reports.driver(what);
    }

    /// Tells people that this host failed at something.
    pub(super) fn host_failed(&self, what: &dyn fmt::Display) {
        self.reports.host(what);
    }

    /// A queue's thread has done what an abort command asked for, or could not.
    pub(super) fn fulfilled(&self, abort: u16, aborted: bool) {
        self.fulfilled.lock().push(Fulfilled { abort, aborted });
        self.waker.wake();
    }

    /// The controller cannot go on: the driver is told, and so are people.
    pub(super) fn fatal(&self, why: &dyn fmt::Display) {
        self.registers.failed(self.registers.order().epoch);
        self.host_failed(&format_args!("{why}. The controller waits for its driver to reset it."));
    }

    /// A command failed at the disk.
    pub(super) fn failed(&self, failed: Failed, error: DiskError) {
        let degraded = self.log.lock().failed(failed, error);
        if degraded {
            self.events.raise(Event::Reliability);
        }
    }
}
