//! Base address registers: what a function decodes, and where.

use memory::{Gpa, GpaRange};

/// What a BAR decodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarKind {
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes two registers.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// I/O ports.
    Io,
    /// The expansion ROM, which has a register and an enable bit of its own.
    Rom,
}

/// The index under which a function's expansion ROM goes, behind the six BARs.
pub const ROM: usize = 6;

/// A BAR as the function implements it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BarSpec {
    index: usize,
    kind: BarKind,
    size: u64,
}

impl BarSpec {
    /// `None` unless the size is a power of two that the kind can have (at least 16 bytes of memory, 4 to 256
    /// ports, 2 KiB of ROM) and the register exists (a 64-bit BAR takes two of the six).
    pub fn new(index: usize, kind: BarKind, size: u64) -> Option<BarSpec> {
        let fits = match kind {
            BarKind::Memory32 { .. } => index < 6 && (16..=1 << 31).contains(&size),
            BarKind::Memory64 { .. } => index < 5 && (16..=1 << 62).contains(&size),
            BarKind::Io => index < 6 && (4..=256).contains(&size),
            BarKind::Rom => index == ROM && (2048..=1 << 24).contains(&size),
        };
        (fits && size.is_power_of_two()).then_some(BarSpec { index, kind, size })
    }

    /// Register number, 0 to 5, or [`ROM`].
    pub fn index(self) -> usize {
        self.index
    }

    /// What it decodes.
    pub fn kind(self) -> BarKind {
        self.kind
    }

    /// Bytes (or ports), a power of two.
    pub fn size(self) -> u64 {
        self.size
    }

    /// Offset of its register in configuration space.
    pub fn register(self) -> u16 {
        if self.index == ROM {
            crate::register::ROM_BAR
        } else {
            crate::register::BAR0 + 4 * self.index as u16
        }
    }
}

/// Where a BAR decodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DecodedAt {
    /// In the guest's memory space.
    Memory(GpaRange),
    /// At I/O ports: the first and how many.
    Ports(u16, u16),
}

/// Where each of a function's BARs and its ROM decode now; `None`: nowhere.
pub type Decoded = [Option<DecodedAt>; 7];

/// The parts of the guest's address space in which BARs may decode. A BAR that the guest puts elsewhere (over
/// RAM, above what the IOMMU or the CPU can address) decodes nowhere.
#[derive(Clone, Debug)]
pub struct Windows {
    /// Below 4 GiB.
    pub memory32: GpaRange,
    /// Above RAM, for 64-bit BARs; `None` when the address width leaves no room.
    pub memory64: Option<GpaRange>,
    /// I/O ports, first and last.
    pub ports: (u16, u16),
}

impl Windows {
    /// Where a memory BAR at `start` decodes, if it lies in a window.
    pub(crate) fn memory(&self, start: u64, size: u64) -> Option<GpaRange> {
        let range = GpaRange::new(Gpa(start), size)?;
        let inside = |window: GpaRange| window.covers(range);
        (inside(self.memory32) || self.memory64.is_some_and(inside)).then_some(range)
    }

    /// Where an I/O BAR at `first` decodes, if it lies in the window.
    pub(crate) fn io(&self, first: u64, count: u64) -> Option<(u16, u16)> {
        let last = u16::try_from(first.checked_add(count - 1)?).ok()?;
        let first = u16::try_from(first).ok()?;
        (first >= self.ports.0 && last <= self.ports.1).then_some((first, count as u16))
    }
}
