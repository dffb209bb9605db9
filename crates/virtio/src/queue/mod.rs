//! Virtqueues (VIRTIO 1.2, 2.6) as the device sees them, split and packed: which of the two a driver chose makes no
//! difference to the device.

mod chain;
mod cursor;
mod packed;
mod split;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use chain::{Chain, DESCRIPTOR_SIZE, Malformed, Piece};
pub use cursor::Cursor;
use memory::{Gpa, GuestSlice, Ram};

use crate::features::Features;
use packed::Packed;
use split::Split;

/// The longest queue there can be (2.7, 2.8.10.1).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Where a driver put the three parts of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct QueueAddresses {
    /// Number of descriptors.
    pub size: u16,
    /// The descriptor table, or the ring of a packed queue: 16 bytes for each descriptor, on a multiple of 16.
    pub descriptors: Gpa,
    /// What the driver writes: the available ring, on a multiple of 2; of a packed queue its event suppression, on a
    /// multiple of 4.
    pub driver: Gpa,
    /// What the device writes, on a multiple of 4: the used ring; of a packed queue its event suppression.
    pub device: Gpa,
}

/// Why a queue cannot be used as the driver described it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueueRefused {
    /// Sizes of split queues are powers of two up to 32768.
    #[error("a queue of {0} descriptors: the size must be a power of two, at most 32768")]
    Size(u16),
    /// Packed queues have any size up to 32768.
    #[error("a packed queue of {0} descriptors: the size must be 1 to 32768")]
    PackedSize(u16),
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
pub struct Head {
    id: u16,
    /// How many places of a packed ring the chain takes.
    descriptors: u16,
}

impl Head {
    /// By which number the driver knows the chain: the index of its first descriptor, or the number that the driver
    /// of a packed queue has given it.
    pub fn id(&self) -> u16 {
        self.id
    }
}

/// A virtqueue in use.
pub struct Queue {
    /// Keeps the memory under all pointers of the ring.
    ram: Arc<Ram>,
    features: Features,
    ring: Ring,
}

/// How driver and device pass chains.
enum Ring {
    Split(Split),
    Packed(Packed),
}

impl Queue {
    /// Checks a queue as a driver set it up, and takes it into use from its beginning on. Of the features,
    /// [`Features::RING_PACKED`], [`Features::EVENT_IDX`] and [`Features::INDIRECT_DESC`] concern the queue.
    pub fn new(ram: Arc<Ram>, at: &QueueAddresses, features: Features) -> Result<Queue, QueueRefused> {
        let events = features.contains(Features::EVENT_IDX);
        let ring = if features.contains(Features::RING_PACKED) {
            Ring::Packed(Packed::new(&ram, at, events)?)
        } else {
            Ring::Split(Split::new(&ram, at, events)?)
        };
        Ok(Queue { ram, features, ring })
    }

    /// Number of descriptors; never more than this many chains are taken and not given back.
    pub fn size(&self) -> u16 {
        match &self.ring {
            Ring::Split(ring) => ring.size(),
            Ring::Packed(ring) => ring.size(),
        }
    }

    /// The RAM that chains lie in.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// Takes the next chain that the driver has made available, if there is one, and reads its descriptors into
    /// `chain`. After an error the queue's contents mean nothing any more: the device needs a reset.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Option<Head>, Malformed> {
        match &mut self.ring {
            Ring::Split(ring) => ring.pop(chain, &self.ram, self.features),
            Ring::Packed(ring) => ring.pop(chain, &self.ram, self.features),
        }
    }

    /// Whether the driver has made chains available that were not taken: for whoever looks instead of waiting for
    /// kicks. It costs one look at memory. The driver sends no kicks before [`Queue::arm`].
    pub fn has_more(&self) -> bool {
        match &self.ring {
            Ring::Split(ring) => ring.has_more(),
            Ring::Packed(ring) => ring.has_more(),
        }
    }

    /// Notes that a chain is done and that `written` bytes were written to its start. The driver sees it after
    /// [`Queue::publish`].
    #[expect(clippy::needless_pass_by_value, reason = "a head is given back once")]
    pub fn push_used(&mut self, head: Head, written: u32) {
        match &mut self.ring {
            Ring::Split(ring) => ring.push_used(&head, written),
            Ring::Packed(ring) => ring.push_used(&head, written),
        }
    }

    /// Shows the driver everything noted since the last time; returns whether it wants an interrupt for that.
    #[must_use = "the driver may be waiting for the interrupt"]
    pub fn publish(&mut self) -> bool {
        match &mut self.ring {
            Ring::Split(ring) => ring.publish(),
            Ring::Packed(ring) => ring.publish(),
        }
    }

    /// Tells the driver that the device looks by itself and wants no kicks.
    pub fn disarm(&mut self) {
        match &mut self.ring {
            Ring::Split(ring) => ring.disarm(),
            Ring::Packed(ring) => ring.disarm(),
        }
    }

    /// Asks the driver for a kick with the next chain, before going to sleep. Returns whether chains came
    /// meanwhile: then take them instead of sleeping.
    #[must_use = "sleeping now would miss chains whose kick was suppressed"]
    pub fn arm(&mut self) -> Result<bool, Malformed> {
        match &mut self.ring {
            Ring::Split(ring) => ring.arm(),
            Ring::Packed(ring) => Ok(ring.arm()),
        }
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
        let kind = match &self.ring {
            Ring::Split(_) => "split",
            Ring::Packed(_) => "packed",
        };
        f.debug_struct("Queue").field("ring", &kind).field("size", &self.size()).finish_non_exhaustive()
    }
}
