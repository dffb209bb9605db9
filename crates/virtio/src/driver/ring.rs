//! The guest's side of a queue, split or packed.

use std::sync::Arc;

use memory::{Gpa, Ram};

use super::packed::PackedDriver;
use super::split::SplitDriver;
use crate::features::Features;
use crate::queue::{Piece, QueueAddresses};

/// How a chain's descriptors are laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// In the queue's own table.
    Direct,
    /// All in an indirect table at this address.
    Indirect(Gpa),
}

/// A driver that does as the specification says.
pub enum Driver {
    /// Of a split queue.
    Split(SplitDriver),
    /// Of a packed queue.
    Packed(PackedDriver),
}

impl Driver {
    /// Puts a queue of `size` descriptors at `base`, a multiple of 16 with room for 26 bytes each and 12 more. Whether
    /// it is packed, the features say.
    pub fn new(ram: Arc<Ram>, base: Gpa, size: u16, features: Features) -> Driver {
        if features.contains(Features::RING_PACKED) {
            Driver::Packed(PackedDriver::new(ram, base, size, features))
        } else {
            Driver::Split(SplitDriver::new(ram, base, size, features))
        }
    }

    /// Where the queue lies.
    pub fn addresses(&self) -> QueueAddresses {
        match self {
            Driver::Split(driver) => driver.addresses(),
            Driver::Packed(driver) => driver.addresses(),
        }
    }

    /// Makes a chain available; returns its number ([`crate::Head::id`]), or `None` when descriptors are short.
    pub fn add(&mut self, readable: &[Piece], writable: &[Piece], layout: Layout) -> Option<u16> {
        match self {
            Driver::Split(driver) => driver.add(readable, writable, layout),
            Driver::Packed(driver) => driver.add(readable, writable, layout),
        }
    }

    /// Whether the device wants a kick for what was added since the last time this was asked.
    pub fn needs_kick(&mut self) -> bool {
        match self {
            Driver::Split(driver) => driver.needs_kick(),
            Driver::Packed(driver) => driver.needs_kick(),
        }
    }

    /// Takes the next chain that the device has given back: its number, and the bytes written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        match self {
            Driver::Split(driver) => driver.take_used(),
            Driver::Packed(driver) => driver.take_used(),
        }
    }

    /// Asks for an interrupt with the chain that is given back `later` chains from now (with EVENT_IDX). In a packed
    /// queue these are chains of one descriptor.
    pub fn want_interrupt(&mut self, later: u16) {
        match self {
            Driver::Split(driver) => driver.want_interrupt(later),
            Driver::Packed(driver) => driver.want_interrupt(later),
        }
    }

    /// Asks for no interrupts (without EVENT_IDX).
    pub fn want_no_interrupts(&mut self) {
        match self {
            Driver::Split(driver) => driver.set_flags(1),
            Driver::Packed(driver) => driver.want_no_interrupts(),
        }
    }

    /// As the driver of a split queue, which it must be.
    pub fn split(&mut self) -> &mut SplitDriver {
        match self {
            Driver::Split(driver) => driver,
            Driver::Packed(_) => panic!("the queue is packed"),
        }
    }

    /// As the driver of a packed queue, which it must be.
    pub fn packed(&mut self) -> &mut PackedDriver {
        match self {
            Driver::Packed(driver) => driver,
            Driver::Split(_) => panic!("the queue is split"),
        }
    }
}
