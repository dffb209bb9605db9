//! The split virtqueue (VIRTIO 1.2, 2.7): a table of descriptors and two rings of chains.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use memory::{GuestSlice, Ram};

use super::chain::{Chain, DESCRIPTOR_SIZE, Malformed};
use super::{Head, MAX_QUEUE_SIZE, QueueAddresses, QueueRefused, part, passes};
use crate::features::Features;

/// Available ring flag: the driver wants no interrupt.
const NO_INTERRUPT: u16 = 1;
/// Used ring flag: the device wants no kick.
const NO_NOTIFY: u16 = 1;

/// The rings, and how far the device is.
pub(super) struct Split {
    size: u16,
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

impl Split {
    /// `ram` stays as long as this.
    pub(super) fn new(ram: &Arc<Ram>, at: &QueueAddresses, events: bool) -> Result<Split, QueueRefused> {
        let size = at.size;
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(QueueRefused::Size(size));
        }
        let entries = u64::from(size);
        let ring = |entry: u64| 4 + entry * entries + 2 * u64::from(events);
        let descriptors = part(ram, "descriptor table", at.descriptors, DESCRIPTOR_SIZE * entries, 16)?;
        let avail = part(ram, "available ring", at.driver, ring(2), 2)?;
        let used = part(ram, "used ring", at.device, ring(8), 4)?;
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
        Ok(Split {
            size,
            descriptors,
            avail,
            used,
            next_avail: 0,
            seen_avail: 0,
            next_used: 0,
            published: 0,
            taken: 0,
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// Where a position lies in its ring: sizes are powers of two.
    fn place(&self, position: u16) -> usize {
        usize::from(position & (self.size - 1))
    }

    pub(super) fn pop(
        &mut self,
        chain: &mut Chain,
        ram: &Ram,
        features: Features,
    ) -> Result<Option<Head>, Malformed> {
        if self.next_avail == self.seen_avail && !self.look()? {
            return Ok(None);
        }
        if self.taken == self.size {
            return Err(Malformed::TooManyChains { size: self.size });
        }
        let place = self.place(self.next_avail);
        let head = self.avail.ring.atomic_u16(2 * place).expect("the place is inside the ring");
        let head = u16::from_le(head.load(Ordering::Relaxed));
        chain.read_split(head, ram, self.descriptors, self.size, features)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        self.taken += 1;
        Ok(Some(Head { id: head, descriptors: 1 }))
    }

    pub(super) fn has_more(&self) -> bool {
        u16::from_le(self.avail.index.load(Ordering::Relaxed)) != self.next_avail
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

    pub(super) fn push_used(&mut self, head: &Head, written: u32) {
        let place = self.place(self.next_used);
        let word =
            |offset| self.used.ring.atomic_u32(8 * place + offset).expect("the place is inside the ring");
        word(0).store(u32::from(head.id).to_le(), Ordering::Relaxed);
        word(4).store(written.to_le(), Ordering::Relaxed);
        self.next_used = self.next_used.wrapping_add(1);
        self.taken = self.taken.saturating_sub(1);
    }

    /// Moves the used index (2.7.7.2).
    pub(super) fn publish(&mut self) -> bool {
        if self.published == self.next_used {
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

    /// No more kicks (2.7.10).
    pub(super) fn disarm(&mut self) {
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

    /// A kick with the next chain, unless it is there already.
    pub(super) fn arm(&mut self) -> Result<bool, Malformed> {
        match self.used.avail_event {
            Some(event) => event.store(self.next_avail.to_le(), Ordering::Relaxed),
            None => self.used.flags.store(0, Ordering::Relaxed),
        }
        // The wish must be visible before the index is read once more, or a chain could slip in between.
        fence(Ordering::SeqCst);
        self.look()
    }
}
