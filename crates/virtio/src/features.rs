//! Feature bits that belong to virtio itself (VIRTIO 1.2, 6); devices have their own below bit 24.

use std::fmt;
use std::ops::{BitAnd, BitOr};

/// A set of feature bits.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(pub u64);

impl Features {
    /// Descriptors may point to tables of descriptors.
    pub const INDIRECT_DESC: Features = Features(1 << 28);
    /// Kicks and interrupts are asked for by index.
    pub const EVENT_IDX: Features = Features(1 << 29);
    /// The device follows version 1 of the specification; there is no other kind here.
    pub const VERSION_1: Features = Features(1 << 32);
    /// Queues are packed: one ring in place of a table and two rings.
    pub const RING_PACKED: Features = Features(1 << 34);
    /// A queue can be reset on its own.
    pub const RING_RESET: Features = Features(1 << 40);

    /// Whether all bits of `other` are in the set.
    pub fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// Bits of this set that are not in `other`.
    pub fn without(self, other: Features) -> Features {
        Features(self.0 & !other.0)
    }
}

impl BitOr for Features {
    type Output = Features;

    fn bitor(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }
}

impl BitAnd for Features {
    type Output = Features;

    fn bitand(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({:#x})", self.0)
    }
}
