//! The guest's side of a packed queue.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use memory::{Gpa, Ram};

use super::ring::Layout;
use crate::features::Features;
use crate::queue::{Piece, QueueAddresses};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Event flags (2.8.14).
const DISABLE: u16 = 1;
const AT_PLACE: u16 = 2;

/// A driver of a packed queue that does as the specification says, unless it is told otherwise.
pub struct PackedDriver {
    ram: Arc<Ram>,
    at: QueueAddresses,
    events: bool,
    /// Numbers for chains, the next one last, and of those under way how many descriptors they take.
    numbers: Vec<u16>,
    taken: Vec<u16>,
    free: u16,
    /// Where the next descriptor goes, counted without end; its lap is odd or even.
    next: u64,
    kicked: u64,
    used: u64,
}

impl PackedDriver {
    /// Puts a queue of `size` descriptors at `base`, a multiple of 16 with room for 16 bytes each and 8 more.
    pub fn new(ram: Arc<Ram>, base: Gpa, size: u16, features: Features) -> PackedDriver {
        let driver = Gpa(base.0 + 16 * u64::from(size));
        let at = QueueAddresses { size, descriptors: base, driver, device: Gpa(driver.0 + 4) };
        ram.zero(base, 16 * u64::from(size) + 8).expect("the queue lies in RAM");
        PackedDriver {
            ram,
            at,
            events: features.contains(Features::EVENT_IDX),
            numbers: (0..size).rev().collect(),
            taken: vec![0; usize::from(size)],
            free: size,
            next: 0,
            kicked: 0,
            used: 0,
        }
    }

    /// Where the queue lies.
    pub fn addresses(&self) -> QueueAddresses {
        self.at
    }

    /// Makes a chain available; returns its number, or `None` when descriptors are short.
    pub fn add(&mut self, readable: &[Piece], writable: &[Piece], layout: Layout) -> Option<u16> {
        let all: Vec<(Piece, u16)> =
            readable.iter().map(|p| (*p, 0)).chain(writable.iter().map(|p| (*p, WRITE))).collect();
        let chain = match layout {
            Layout::Direct => all,
            Layout::Indirect(table) => {
                for (i, (piece, flags)) in all.iter().enumerate() {
                    self.describe(table, i as u16, *piece, *flags, 0);
                }
                vec![(Piece { gpa: table, len: 16 * all.len() as u32 }, INDIRECT)]
            }
        };
        let count = chain.len() as u16;
        self.free = self.free.checked_sub(count)?;
        let number = self.numbers.pop().expect("there are as many numbers as descriptors");
        self.taken[usize::from(number)] = count;
        // The first one last: it makes the whole chain available.
        for (i, (piece, flags)) in chain.iter().enumerate().rev() {
            let place = self.next + i as u64;
            let more = if i + 1 < chain.len() { NEXT } else { 0 };
            fence(Ordering::SeqCst);
            self.describe_ring(place, *piece, flags | more, number);
        }
        self.next += u64::from(count);
        Some(number)
    }

    /// Writes a descriptor of the ring, sane or not, as available on the lap of `place`, which counts without end.
    pub fn describe_ring(&self, place: u64, piece: Piece, flags: u16, number: u16) {
        let size = u64::from(self.at.size);
        let available = if self.wrap(place) { AVAIL } else { USED };
        self.describe(self.at.descriptors, (place % size) as u16, piece, flags | available, number);
    }

    /// Writes one descriptor, sane or not; its flags last.
    pub fn describe(&self, table: Gpa, index: u16, piece: Piece, flags: u16, number: u16) {
        let at = table.0 + 16 * u64::from(index);
        let mut raw = [0; 14];
        raw[..8].copy_from_slice(&piece.gpa.0.to_le_bytes());
        raw[8..12].copy_from_slice(&piece.len.to_le_bytes());
        raw[12..].copy_from_slice(&number.to_le_bytes());
        self.ram.write(Gpa(at), &raw).expect("the table lies in RAM");
        fence(Ordering::SeqCst);
        self.write_u16(at + 14, flags);
    }

    /// Whether the device wants a kick for what was added since the last time this was asked.
    pub fn needs_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let before = std::mem::replace(&mut self.kicked, self.next);
        let (place, flags) = (self.read_u16(self.at.device.0), self.read_u16(self.at.device.0 + 2));
        match flags {
            DISABLE => false,
            AT_PLACE => {
                assert!(self.events, "a place without EVENT_IDX");
                // One of the descriptors added has this index and this lap.
                let size = u64::from(self.at.size);
                (before..self.next)
                    .any(|at| at % size == u64::from(place & 0x7fff) && self.wrap(at) == (place >> 15 == 1))
            }
            _ => before != self.next,
        }
    }

    /// Takes the next chain that the device has given back: its number, and the bytes written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let at = self.at.descriptors.0 + 16 * (self.used % u64::from(self.at.size));
        let used = if self.wrap(self.used) { AVAIL | USED } else { 0 };
        // A place that was never made available looks used on even laps.
        if self.used == self.next || self.read_u16(at + 14) & (AVAIL | USED) != used {
            return None;
        }
        fence(Ordering::SeqCst);
        let len: u32 = self.ram.read_obj(Gpa(at + 8)).expect("the ring lies in RAM");
        let written = self.read_u16(at + 14) & WRITE != 0;
        assert_eq!(written, len > 0, "the flag says whether something was written");
        let number = self.read_u16(at + 12);
        let count = std::mem::take(&mut self.taken[usize::from(number)]);
        assert!(count > 0, "the device gave back chain {number}, which it did not have");
        self.used += u64::from(count);
        self.free += count;
        self.numbers.push(number);
        Some((number, u32::from_le(len)))
    }

    /// Asks for an interrupt with the descriptor that is given back `later` places from now (with EVENT_IDX).
    pub fn want_interrupt(&mut self, later: u16) {
        let place = self.used + u64::from(later);
        let index = (place % u64::from(self.at.size)) as u16;
        self.write_u16(self.at.driver.0, index | u16::from(self.wrap(place)) << 15);
        self.write_u16(self.at.driver.0 + 2, AT_PLACE);
    }

    /// Asks for no interrupts.
    pub fn want_no_interrupts(&mut self) {
        self.write_u16(self.at.driver.0 + 2, DISABLE);
    }

    /// The wrap counter on the lap of a place.
    fn wrap(&self, place: u64) -> bool {
        (place / u64::from(self.at.size)).is_multiple_of(2)
    }

    fn write_u16(&self, at: u64, value: u16) {
        self.ram.write_obj(Gpa(at), &value.to_le()).expect("the ring lies in RAM");
    }

    fn read_u16(&self, at: u64) -> u16 {
        u16::from_le(self.ram.read_obj(Gpa(at)).expect("the ring lies in RAM"))
    }
}
