//! The packed virtqueue (VIRTIO 1.2, 2.8): one ring of descriptors, in which the driver makes chains available and
//! the device writes over them what it has used.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use memory::{GuestSlice, Ram};

use super::chain::{Chain, DESCRIPTOR_SIZE, Malformed};
use super::{Head, MAX_QUEUE_SIZE, QueueAddresses, QueueRefused, part, passes};
use crate::features::Features;

/// Descriptor flag of a used one: its length says what the device wrote.
const WRITE: u16 = 2;
/// Descriptor flag: the driver's wrap counter when it made the descriptor available.
const AVAIL: u16 = 1 << 7;
/// Descriptor flag: the device's wrap counter when it used the descriptor.
const USED: u16 = 1 << 15;

/// Offsets in a descriptor.
mod field {
    pub const LEN: usize = 8;
    pub const ID: usize = 12;
    pub const FLAGS: usize = 14;
}

/// Bytes of an event suppression structure (2.8.14): a place, then flags, in 16 bits each.
const EVENT_SIZE: u64 = 4;
/// Event flags in the upper half: no events.
const DISABLE: u32 = 1 << 16;
/// Event flags in the upper half: an event when the place in the lower half is passed; with EVENT_IDX.
const AT_PLACE: u32 = 2 << 16;
const EVENT_FLAGS: u32 = 3 << 16;

/// A descriptor of the ring, and the lap on which it is come upon.
#[derive(Clone, Copy)]
struct Place {
    index: u16,
    /// The wrap counter (2.8.1): true on the first lap, then alternating.
    wrap: bool,
}

impl Place {
    const START: Place = Place { index: 0, wrap: true };

    /// At most one lap further.
    fn advance(&mut self, descriptors: u16, size: u16) {
        let index = u32::from(self.index) + u32::from(descriptors);
        let behind = index.checked_sub(u32::from(size));
        self.wrap ^= behind.is_some();
        self.index = behind.unwrap_or(index) as u16;
    }

    /// As event suppression structures have it: the wrap counter is the uppermost bit.
    fn packed(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    fn offset(self) -> usize {
        usize::from(self.index) * DESCRIPTOR_SIZE as usize
    }

    /// The flags with which the driver makes a descriptor here available.
    fn available(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    /// The flags that make a descriptor here used.
    fn used(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }
}

/// What was noted as used and is not shown yet. The driver looks at used descriptors in their order, so holding back
/// the flags of the first one hides all.
#[derive(Clone, Copy)]
struct Batch {
    first: Place,
    flags: u16,
    /// Descriptors of all its chains.
    descriptors: u16,
}

/// The ring, and how far the device is.
pub(super) struct Packed {
    size: u16,
    ring: GuestSlice<'static>,
    /// For which used descriptors the driver wants an interrupt.
    interrupts: &'static AtomicU32,
    /// For which available descriptors the device wants a kick.
    kicks: &'static AtomicU32,
    /// Whether both can be asked for by place.
    events: bool,
    /// Where the next chain begins.
    next: Place,
    /// Where the next used descriptor goes.
    used: Place,
    /// Descriptors of chains that were taken and not shown as used.
    taken: u16,
    batch: Option<Batch>,
}

impl Packed {
    /// `ram` stays as long as this.
    pub(super) fn new(ram: &Arc<Ram>, at: &QueueAddresses, events: bool) -> Result<Packed, QueueRefused> {
        let size = at.size;
        if size == 0 || size > MAX_QUEUE_SIZE {
            return Err(QueueRefused::PackedSize(size));
        }
        let event = |name, at| {
            let event = part(ram, name, at, EVENT_SIZE, 4)?;
            Ok(event.atomic_u32(0).expect("the part was made large enough and aligned"))
        };
        Ok(Packed {
            size,
            ring: part(ram, "descriptor ring", at.descriptors, DESCRIPTOR_SIZE * u64::from(size), 16)?,
            interrupts: event("driver's event suppression", at.driver)?,
            kicks: event("device's event suppression", at.device)?,
            events,
            next: Place::START,
            used: Place::START,
            taken: 0,
            batch: None,
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn pop(
        &mut self,
        chain: &mut Chain,
        ram: &Ram,
        features: Features,
    ) -> Result<Option<Head>, Malformed> {
        // Acquire: whatever the driver wrote before these flags is visible from here on.
        if !self.is_available(Ordering::Acquire) {
            return Ok(None);
        }
        let room = self.size - self.taken;
        if room == 0 {
            return Err(Malformed::TooManyChains { size: self.size });
        }
        let (id, descriptors) =
            chain.read_packed(self.next.index, ram, self.ring, (self.size, room), features)?;
        self.next.advance(descriptors, self.size);
        self.taken += descriptors;
        Ok(Some(Head { id, descriptors }))
    }

    pub(super) fn has_more(&self) -> bool {
        self.is_available(Ordering::Relaxed)
    }

    fn is_available(&self, ordering: Ordering) -> bool {
        u16::from_le(self.flags(self.next).load(ordering)) & (AVAIL | USED) == self.next.available()
    }

    pub(super) fn push_used(&mut self, head: &Head, written: u32) {
        let here = self.used;
        let flags = here.used() | if written > 0 { WRITE } else { 0 };
        self.word(here, field::LEN).store(written.to_le(), Ordering::Relaxed);
        match &mut self.batch {
            None => {
                self.half(here, field::ID).store(head.id.to_le(), Ordering::Relaxed);
                self.batch = Some(Batch { first: here, flags, descriptors: head.descriptors });
            }
            Some(batch) => {
                batch.descriptors += head.descriptors;
                let id_and_flags = u32::from(head.id) | u32::from(flags) << 16;
                self.word(here, field::ID).store(id_and_flags.to_le(), Ordering::Relaxed);
            }
        }
        self.used.advance(head.descriptors, self.size);
    }

    /// Writes the flags of the first descriptor that was used (2.8.6).
    pub(super) fn publish(&mut self) -> bool {
        let Some(Batch { first, flags, descriptors }) = self.batch.take() else { return false };
        self.taken -= descriptors;
        // Release: number and length of this one, and all of the others, are visible before.
        self.flags(first).store(flags.to_le(), Ordering::Release);
        // The flags must be visible before the driver's wish is read, or both sides could wait for each other.
        fence(Ordering::SeqCst);
        let wish = u32::from_le(self.interrupts.load(Ordering::Relaxed));
        match wish & EVENT_FLAGS {
            DISABLE => false,
            AT_PLACE if self.events => self.has_passed(wish as u16, descriptors),
            _ => true,
        }
    }

    /// Whether the last `descriptors` used ones passed a place.
    fn has_passed(&self, place: u16, descriptors: u16) -> bool {
        let (now, index) = (self.used.index, place & 0x7fff);
        // A place of the other lap lies behind.
        let event = if (place >> 15 == 1) == self.used.wrap { index } else { index.wrapping_sub(self.size) };
        passes(event, now.wrapping_sub(descriptors), now)
    }

    /// No more kicks. The driver reads the wish all the time, so it is only written when it changes.
    pub(super) fn disarm(&mut self) {
        if u32::from_le(self.kicks.load(Ordering::Relaxed)) != DISABLE {
            self.kicks.store(DISABLE.to_le(), Ordering::Relaxed);
        }
    }

    /// A kick with the next chain, unless it is there already.
    pub(super) fn arm(&mut self) -> bool {
        let wish = if self.events { u32::from(self.next.packed()) | AT_PLACE } else { 0 };
        self.kicks.store(wish.to_le(), Ordering::Relaxed);
        // The wish must be visible before the ring is looked at once more, or a chain could slip in between.
        fence(Ordering::SeqCst);
        self.is_available(Ordering::Acquire)
    }

    fn flags(&self, place: Place) -> &'static AtomicU16 {
        self.half(place, field::FLAGS)
    }

    fn half(&self, place: Place, field: usize) -> &'static AtomicU16 {
        self.ring.atomic_u16(place.offset() + field).expect("the place is inside the ring")
    }

    fn word(&self, place: Place, field: usize) -> &'static AtomicU32 {
        self.ring.atomic_u32(place.offset() + field).expect("the place is inside the ring")
    }
}
