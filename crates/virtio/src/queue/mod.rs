//! The split virtqueue (VIRTIO 1.2, 2.7), as the device sees it.

mod chain;
mod gate;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

pub use chain::{Chain, Cursor, DESCRIPTOR_SIZE, Malformed, Piece};
pub use gate::Gate;
use memory::{Gpa, GuestSlice, Ram};

use crate::features::Features;

/// The longest queue there can be (2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Available ring flag: the driver wants no interrupt.
const NO_INTERRUPT: u16 = 1;
/// Used ring flag: the device wants no kick.
const NO_NOTIFY: u16 = 1;

/// Where a driver put the three parts of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct QueueAddresses {
    /// Number of descriptors.
    pub size: u16,
    /// The descriptor table: 16 bytes for each descriptor, on a multiple of 16.
    pub descriptors: Gpa,
    /// The available ring, written by the driver, on a multiple of 2.
    pub driver: Gpa,
    /// The used ring, written by the device, on a multiple of 4.
    pub device: Gpa,
}

/// Why a queue cannot be used as the driver described it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueueRefused {
    /// Sizes are powers of two up to 32768.
    #[error("a queue of {0} descriptors: the size must be a power of two, at most 32768")]
    Size(u16),
    /// A part does not start where it must.
    #[error("the {part} at {at} is not on a multiple of {alignment} bytes")]
    Alignment {
        /// Which of the three.
        part: &'static str,
        /// Where the driver put it.
        at: Gpa,
        /// What its address must be a multiple of.
        alignment: u64,
    },
    /// A part is not wholly in one piece of guest RAM.
    #[error("the {part}, {len} bytes at {at}, is not wholly inside guest RAM")]
    OutsideRam {
        /// Which of the three.
        part: &'static str,
        /// Where the driver put it.
        at: Gpa,
        /// How long it is in bytes.
        len: u64,
    },
}

/// A chain that the device has taken and must give back once, by [`Queue::push_used`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a chain that is not given back is lost to the driver"]
pub struct Head(u16);

impl Head {
    /// Index of the chain's first descriptor.
    pub fn index(&self) -> u16 {
        self.0
    }
}

/// A split virtqueue in use.
pub struct Queue {
    /// Keeps the memory under all pointers below.
    ram: Arc<Ram>,
    size: u16,
    features: Features,
    descriptors: GuestSlice<'static>,
    avail: Avail,
    used: Used,
    /// Position in the available ring of the next chain to take.
    next_avail: u16,
    /// The available index as last read: chains up to here are there without looking again.
    seen_avail: u16,
    /// Position in the used ring of the next element.
    next_used: u16,
    /// The used index as the driver sees it.
    published: u16,
    /// Chains taken and not given back.
    taken: u16,
    /// Whether the driver lets the device reach its memory.
    gate: Gate,
}

struct Avail {
    flags: &'static AtomicU16,
    index: &'static AtomicU16,
    ring: GuestSlice<'static>,
    /// Where the driver says which used index it wants an interrupt for; with EVENT_IDX.
    used_event: Option<&'static AtomicU16>,
}

struct Used {
    flags: &'static AtomicU16,
    index: &'static AtomicU16,
    ring: GuestSlice<'static>,
    /// Where the device says which available index it wants a kick for; with EVENT_IDX.
    avail_event: Option<&'static AtomicU16>,
}

impl Queue {
    /// Checks a queue as a driver set it up, and takes it into use from index 0 on. Of the features,
    /// [`Features::EVENT_IDX`] and [`Features::INDIRECT_DESC`] concern the queue.
    pub fn new(ram: Arc<Ram>, at: &QueueAddresses, features: Features) -> Result<Queue, QueueRefused> {
        let size = at.size;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(QueueRefused::Size(size));
        }
        let events = features.contains(Features::EVENT_IDX);
        let entries = u64::from(size);
        let ring = |entry: u64| 4 + entry * entries + 2 * u64::from(events);
        let descriptors = part(&ram, "descriptor table", at.descriptors, DESCRIPTOR_SIZE * entries, 16)?;
        let avail = part(&ram, "available ring", at.driver, ring(2), 2)?;
        let used = part(&ram, "used ring", at.device, ring(8), 4)?;
        let word = |slice: GuestSlice<'static>, offset| {
            slice.atomic_u16(offset).expect("the part was made large enough and aligned")
        };
        let entries = usize::from(size);
        let avail = Avail {
            flags: word(avail, 0),
            index: word(avail, 2),
            ring: avail.sub(4, 2 * entries).expect("the part was made large enough"),
            used_event: events.then(|| word(avail, 4 + 2 * entries)),
        };
        let used = Used {
            flags: word(used, 0),
            index: word(used, 2),
            ring: used.sub(4, 8 * entries).expect("the part was made large enough"),
            avail_event: events.then(|| word(used, 4 + 8 * entries)),
        };
        Ok(Queue {
            ram,
            size,
            features,
            descriptors,
            avail,
            used,
            next_avail: 0,
            seen_avail: 0,
            next_used: 0,
            published: 0,
            taken: 0,
            gate: Gate::open(),
        })
    }

    /// Puts the queue behind a gate. While it is shut the rings are neither read nor written, except for the
    /// used elements of chains that were under way; [`Queue::publish`] shows them once the gate is open.
    #[must_use]
    pub fn behind(self, gate: Gate) -> Queue {
        Queue { gate, ..self }
    }

    /// Number of descriptors; never more than this many chains are taken and not given back.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The RAM that chains lie in.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// Takes the next chain that the driver has made available, if there is one, and reads its descriptors into
    /// `chain`. After an error the queue's contents mean nothing any more: the device needs a reset.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Option<Head>, Malformed> {
        if !self.gate.is_open() {
            return Ok(None);
        }
        if self.next_avail == self.seen_avail && !self.look()? {
            return Ok(None);
        }
        if self.taken == self.size {
            return Err(Malformed::TooManyChains { size: self.size });
        }
        let place = usize::from(self.next_avail % self.size);
        let head = self.avail.ring.atomic_u16(2 * place).expect("the place is inside the ring");
        let head = u16::from_le(head.load(Ordering::Relaxed));
        chain.read(head, &self.ram, self.descriptors, self.size, self.features)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        self.taken += 1;
        Ok(Some(Head(head)))
    }

    /// Whether the driver has made chains available that were not taken: for whoever looks instead of waiting for
    /// kicks. It costs one look at memory. The driver sends no kicks before [`Queue::arm`].
    pub fn has_more(&self) -> bool {
        let index = u16::from_le(self.avail.index.load(Ordering::Relaxed));
        index != self.next_avail && self.gate.is_open()
    }

    /// Reads the available index; returns whether there are new chains.
    fn look(&mut self) -> Result<bool, Malformed> {
        // Acquire: whatever the driver wrote before the index is visible from here on.
        let index = u16::from_le(self.avail.index.load(Ordering::Acquire));
        let new = index.wrapping_sub(self.next_avail);
        if new > self.size {
            return Err(Malformed::IndexJump { index, next: self.next_avail, size: self.size });
        }
        self.seen_avail = index;
        Ok(new > 0)
    }

    /// Notes that a chain is done and that `written` bytes were written to its start. The driver sees it after
    /// [`Queue::publish`].
    #[expect(clippy::needless_pass_by_value, reason = "a head is given back once")]
    pub fn push_used(&mut self, head: Head, written: u32) {
        let place = usize::from(self.next_used % self.size);
        let word =
            |offset| self.used.ring.atomic_u32(8 * place + offset).expect("the place is inside the ring");
        word(0).store(u32::from(head.0).to_le(), Ordering::Relaxed);
        word(4).store(written.to_le(), Ordering::Relaxed);
        self.next_used = self.next_used.wrapping_add(1);
        self.taken = self.taken.saturating_sub(1);
    }

    /// Shows the driver everything noted since the last time; returns whether it wants an interrupt for that
    /// (2.7.7.2).
    #[must_use = "the driver may be waiting for the interrupt"]
    pub fn publish(&mut self) -> bool {
        if self.published == self.next_used || !self.gate.is_open() {
            return false;
        }
        let before = std::mem::replace(&mut self.published, self.next_used);
        // Release: the elements are visible before the index is.
        self.used.index.store(self.next_used.to_le(), Ordering::Release);
        // The index must be visible before the driver's wish is read, or both sides could wait for each other.
        fence(Ordering::SeqCst);
        match self.avail.used_event {
            Some(event) => passes(u16::from_le(event.load(Ordering::Relaxed)), before, self.next_used),
            None => u16::from_le(self.avail.flags.load(Ordering::Relaxed)) & NO_INTERRUPT == 0,
        }
    }

    /// Tells the driver that the device looks by itself and wants no kicks (2.7.10).
    pub fn disarm(&mut self) {
        if !self.gate.is_open() {
            return;
        }
        match self.used.avail_event {
            // The index that was asked for may be the next one still: then one that has passed takes its place.
            // Otherwise it has passed by itself, and is left alone, for the driver reads it all the time.
            Some(event) if u16::from_le(event.load(Ordering::Relaxed)) == self.next_avail => {
                event.store(self.next_avail.wrapping_sub(1).to_le(), Ordering::Relaxed);
            }
            Some(_) => {}
            None => self.used.flags.store(NO_NOTIFY.to_le(), Ordering::Relaxed),
        }
    }

    /// Asks the driver for a kick with the next chain, before going to sleep. Returns whether chains came
    /// meanwhile: then take them instead of sleeping.
    #[must_use = "sleeping now would miss chains whose kick was suppressed"]
    pub fn arm(&mut self) -> Result<bool, Malformed> {
        if !self.gate.is_open() {
            // Whoever opens the gate kicks.
            return Ok(false);
        }
        match self.used.avail_event {
            Some(event) => event.store(self.next_avail.to_le(), Ordering::Relaxed),
            None => self.used.flags.store(0, Ordering::Relaxed),
        }
        // The wish must be visible before the index is read once more, or a chain could slip in between.
        fence(Ordering::SeqCst);
        self.look()
    }
}

/// Whether an index moving from `before` to `now` passes `event` (2.7.10.1, vring_need_event).
fn passes(event: u16, before: u16, now: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}

/// One part of a queue, checked. The caller keeps `ram` as long as the slice.
fn part(
    ram: &Arc<Ram>,
    part: &'static str,
    at: Gpa,
    len: u64,
    alignment: u64,
) -> Result<GuestSlice<'static>, QueueRefused> {
    if !at.0.is_multiple_of(alignment) {
        return Err(QueueRefused::Alignment { part, at, alignment });
    }
    let slice = ram.slice(at, len).map_err(|_| QueueRefused::OutsideRam { part, at, len })?;
    // SAFETY: only the lifetime changes. The queue holds an `Arc` of the RAM as long as the slice and never
    // lets the slice or a reference made from it out; RAM stays where it is mapped.
    Ok(unsafe { std::mem::transmute::<GuestSlice<'_>, GuestSlice<'static>>(slice) })
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("size", &self.size)
            .field("next_avail", &self.next_avail)
            .field("next_used", &self.next_used)
            .field("taken", &self.taken)
            .finish_non_exhaustive()
    }
}
