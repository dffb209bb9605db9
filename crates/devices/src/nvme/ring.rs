//! Submission queues in guest memory (4.1), by pointers that were checked once.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use memory::{Gpa, GuestSlice, OutsideRam, Ram};
use pci::Gate;
use zerocopy::{FromZeros, IntoBytes};

use super::doorbells::{Doorbells, Shadow};
use super::spec::Command;

/// A piece of guest RAM together with the RAM, which it keeps mapped.
pub(super) struct Held {
    slice: GuestSlice<'static>,
    /// Keeps the memory under `slice`.
    _ram: Arc<Ram>,
}

impl Held {
    pub(super) fn new(ram: &Arc<Ram>, at: Gpa, len: u64) -> Result<Held, OutsideRam> {
        let slice = ram.slice(at, len)?;
        // SAFETY: only the lifetime changes. `Held` keeps an `Arc` of the RAM as long as the slice, and lets it out
        // only for as long as it is itself borrowed; RAM stays where it is mapped.
        let slice = unsafe { std::mem::transmute::<GuestSlice<'_>, GuestSlice<'static>>(slice) };
        Ok(Held { slice, _ram: ram.clone() })
    }

    pub(super) fn slice(&self) -> GuestSlice<'_> {
        self.slice
    }
}

/// Bytes of a submission queue entry.
const ENTRY: u64 = size_of::<Command>() as u64;

/// A submission queue, on the thread that takes commands from it.
pub(super) struct SubmissionQueue {
    id: u16,
    entries: u32,
    memory: Held,
    doorbells: Arc<Doorbells>,
    gate: Gate,
    /// The next entry to take.
    head: u32,
    /// The tail as last seen: entries up to here are there without looking again.
    seen: u32,
    epoch: u32,
    shadow: Option<Arc<Shadow>>,
    /// The tail behind which the driver was last asked for a doorbell.
    asked: u32,
}

impl SubmissionQueue {
    /// A queue of `entries` (at least 2) at a page, at its beginning; the doorbells know it already.
    pub(super) fn new(
        id: u16,
        ram: &Arc<Ram>,
        at: Gpa,
        entries: u32,
        doorbells: Arc<Doorbells>,
        gate: Gate,
    ) -> Result<SubmissionQueue, OutsideRam> {
        let memory = Held::new(ram, at, u64::from(entries) * ENTRY)?;
        let (epoch, shadow) = doorbells.shadow();
        let shadow = shadow.filter(|_| id != 0);
        Ok(SubmissionQueue {
            id,
            entries,
            memory,
            doorbells,
            gate,
            head: 0,
            seen: 0,
            epoch,
            shadow,
            asked: 0,
        })
    }

    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// The next entry that will be taken, as completions report it.
    pub(super) fn head(&self) -> u16 {
        self.head as u16
    }

    /// Takes the next command, if there is one: a copy, which the driver can change no more.
    pub(super) fn next(&mut self) -> Option<Command> {
        if !self.has_more() {
            return None;
        }
        let mut command = Command::new_zeroed();
        let at = (u64::from(self.head) * ENTRY) as usize;
        let entry = self.memory.slice().sub(at, size_of::<Command>()).expect("the head is inside the queue");
        entry.read(command.as_mut_bytes());
        self.head = (self.head + 1) % self.entries;
        Some(command)
    }

    /// Whether there are commands to take.
    pub(super) fn has_more(&mut self) -> bool {
        self.gate.is_open() && (self.head != self.seen || self.look())
    }

    /// Reads the tail; returns whether there are commands.
    fn look(&mut self) -> bool {
        if self.epoch != self.doorbells.epoch() {
            let (epoch, shadow) = self.doorbells.shadow();
            (self.epoch, self.shadow, self.asked) = (epoch, shadow.filter(|_| self.id != 0), 0);
        }
        let tail = match &self.shadow {
            // Acquire: what the driver wrote before the tail is visible from here on.
            Some(shadow) => u32::from_le(shadow.tail(self.id).0.load(Ordering::Acquire)),
            None => self.doorbells.tail(self.id),
        };
        if tail >= self.entries {
            self.doorbells.nonsense();
            return false;
        }
        self.seen = tail;
        self.seen != self.head
    }

    /// Asks the driver for a doorbell with the next command, before going to sleep. Returns whether commands came
    /// meanwhile: then take them instead of sleeping.
    #[must_use = "sleeping now would miss commands whose doorbell was suppressed"]
    pub(super) fn arm(&mut self) -> bool {
        if !self.gate.is_open() {
            // The thread wakes when it opens.
            return false;
        }
        self.doorbells.set_asleep(self.id, true);
        if let Some(shadow) = &self.shadow {
            shadow.tail(self.id).1.store(self.head.to_le(), Ordering::Relaxed);
            self.asked = self.head;
        }
        // The wish must be visible before the tail is read once more, or a command could slip in between.
        fence(Ordering::SeqCst);
        self.look()
    }

    /// While the thread is awake no doorbell is needed: the place where one was asked for is kept out of the
    /// tail's way, or it would be passed again with every round of the queue.
    pub(super) fn disarm(&mut self) {
        self.doorbells.set_asleep(self.id, false);
        let Some(shadow) = &self.shadow else { return };
        if (self.head + self.entries - self.asked) % self.entries >= self.entries / 2 {
            self.asked = (self.head + self.entries - 1) % self.entries;
            shadow.tail(self.id).1.store(self.asked.to_le(), Ordering::Relaxed);
        }
    }
}
