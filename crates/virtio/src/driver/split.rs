//! The guest's side of a split queue.

use std::sync::Arc;

use memory::{Gpa, Ram};

use super::ring::Layout;
use crate::features::Features;
use crate::queue::{Piece, QueueAddresses};

/// A driver of a split queue that does as the specification says, unless it is told otherwise.
pub struct SplitDriver {
    ram: Arc<Ram>,
    at: QueueAddresses,
    events: bool,
    free: Vec<u16>,
    chains: Vec<Vec<u16>>,
    avail: u16,
    kicked: u16,
    used: u16,
}

impl SplitDriver {
    /// Puts a queue of `size` descriptors at `base`, a multiple of 16 with room for 26 bytes each and 12 more.
    pub fn new(ram: Arc<Ram>, base: Gpa, size: u16, features: Features) -> SplitDriver {
        let entries = u64::from(size);
        let driver = Gpa(base.0 + 16 * entries);
        let device = Gpa(driver.0 + 6 + 2 * entries).align_up(4).expect("low address");
        let at = QueueAddresses { size, descriptors: base, driver, device };
        ram.zero(base, device.0 - base.0 + 6 + 8 * entries).expect("the queue lies in RAM");
        SplitDriver {
            ram,
            at,
            events: features.contains(Features::EVENT_IDX),
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
            avail: 0,
            kicked: 0,
            used: 0,
        }
    }

    /// Where the queue lies.
    pub fn addresses(&self) -> QueueAddresses {
        self.at
    }

    /// Makes a chain available; returns its head, or `None` when descriptors are short.
    pub fn add(&mut self, readable: &[Piece], writable: &[Piece], layout: Layout) -> Option<u16> {
        let all: Vec<(Piece, u16)> =
            readable.iter().map(|p| (*p, 0)).chain(writable.iter().map(|p| (*p, 2))).collect();
        let chain: Vec<u16> = match layout {
            Layout::Direct => {
                let rest = self.free.len().checked_sub(all.len())?;
                self.free.split_off(rest)
            }
            Layout::Indirect(_) => vec![self.free.pop()?],
        };
        match layout {
            Layout::Direct => {
                for (i, (piece, flags)) in all.iter().enumerate() {
                    let next = chain.get(i + 1).copied();
                    self.describe(self.at.descriptors, chain[i], *piece, *flags, next);
                }
            }
            Layout::Indirect(table) => {
                for (i, (piece, flags)) in all.iter().enumerate() {
                    let next = (i + 1 < all.len()).then_some(i as u16 + 1);
                    self.describe(table, i as u16, *piece, *flags, next);
                }
                let piece = Piece { gpa: table, len: 16 * all.len() as u32 };
                self.describe(self.at.descriptors, chain[0], piece, 4, None);
            }
        }
        let head = chain[0];
        self.chains[usize::from(head)] = chain;
        self.write_u16(Gpa(self.at.driver.0 + 4 + 2 * u64::from(self.avail % self.at.size)), head);
        self.avail = self.avail.wrapping_add(1);
        self.write_u16(Gpa(self.at.driver.0 + 2), self.avail);
        Some(head)
    }

    /// Writes one descriptor, sane or not.
    pub fn describe(&self, table: Gpa, index: u16, piece: Piece, flags: u16, next: Option<u16>) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&piece.gpa.0.to_le_bytes());
        raw[8..12].copy_from_slice(&piece.len.to_le_bytes());
        raw[12..14].copy_from_slice(&(flags | u16::from(next.is_some())).to_le_bytes());
        raw[14..].copy_from_slice(&next.unwrap_or(0).to_le_bytes());
        self.ram.write(Gpa(table.0 + 16 * u64::from(index)), &raw).expect("the table lies in RAM");
    }

    /// Whether the device wants a kick for what was added since the last time this was asked.
    pub fn needs_kick(&mut self) -> bool {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let before = std::mem::replace(&mut self.kicked, self.avail);
        if self.events {
            let event = self.read_u16(Gpa(self.at.device.0 + 4 + 8 * u64::from(self.at.size)));
            self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(before)
        } else {
            before != self.avail && self.read_u16(self.at.device) & 1 == 0
        }
    }

    /// Takes the next chain that the device has given back: its head, and the bytes written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.read_u16(Gpa(self.at.device.0 + 2)) == self.used {
            return None;
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let element = Gpa(self.at.device.0 + 4 + 8 * u64::from(self.used % self.at.size));
        let [id, len]: [u32; 2] = self.ram.read_obj(element).expect("the ring lies in RAM");
        self.used = self.used.wrapping_add(1);
        let chain = std::mem::take(&mut self.chains[id as usize]);
        assert!(!chain.is_empty(), "the device gave back chain {id}, which it did not have");
        self.free.extend(chain);
        Some((id as u16, len))
    }

    /// Asks for an interrupt with the chain that is given back `later` chains from now (with EVENT_IDX).
    pub fn want_interrupt(&mut self, later: u16) {
        let event = self.used.wrapping_add(later);
        self.write_u16(Gpa(self.at.driver.0 + 4 + 2 * u64::from(self.at.size)), event);
    }

    /// Says whether interrupts are wanted (without EVENT_IDX).
    pub fn set_flags(&mut self, flags: u16) {
        self.write_u16(self.at.driver, flags);
    }

    /// Writes the available index as it is not.
    pub fn set_index(&mut self, index: u16) {
        self.avail = index;
        self.write_u16(Gpa(self.at.driver.0 + 2), index);
    }

    fn write_u16(&self, gpa: Gpa, value: u16) {
        self.ram.write_obj(gpa, &value.to_le()).expect("the ring lies in RAM");
    }

    fn read_u16(&self, gpa: Gpa) -> u16 {
        u16::from_le(self.ram.read_obj(gpa).expect("the ring lies in RAM"))
    }
}
