//! An emulated configuration space: bytes, and which bits of them the guest may write.

use crate::bar::{BarKind, BarSpec, Decoded, DecodedAt, Windows};
use crate::{capability, register};

/// Who a function is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Class code: base class, subclass, programming interface, in 24 bits.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
}

/// The configuration space of a type 0 function, 4 KiB. Bits that the guest may not write keep their value;
/// BARs answer the sizing ritual by themselves.
pub struct ConfigSpace {
    bytes: Box<[u8; 4096]>,
    writable: Box<[u8; 4096]>,
    bars: Vec<BarSpec>,
    windows: Windows,
    /// Capabilities so far, by offset of their header.
    capabilities: Vec<u16>,
    free: u16,
}

impl ConfigSpace {
    /// A space with its header and BARs, all decoding nowhere yet.
    pub fn new(identity: Identity, bars: &[BarSpec], windows: &Windows) -> ConfigSpace {
        let mut space = ConfigSpace {
            bytes: Box::new([0; 4096]),
            writable: Box::new([0; 4096]),
            bars: bars.to_vec(),
            windows: windows.clone(),
            capabilities: Vec::new(),
            free: capability::FIRST,
        };
        space.set(register::VENDOR_ID, &identity.vendor.to_le_bytes());
        space.set(register::DEVICE_ID, &identity.device.to_le_bytes());
        space.set(register::REVISION, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        space.set(register::SUBSYSTEM_VENDOR_ID, &identity.subsystem_vendor.to_le_bytes());
        space.set(register::SUBSYSTEM_VENDOR_ID + 2, &identity.subsystem.to_le_bytes());
        let command = register::COMMAND_BUS_MASTER
            | register::COMMAND_PARITY
            | register::COMMAND_SERR
            | register::COMMAND_INTX_DISABLE
            | if bars.iter().any(|bar| bar.kind() == BarKind::Io) { register::COMMAND_IO } else { 0 }
            | if bars.iter().any(|bar| bar.kind() != BarKind::Io) { register::COMMAND_MEMORY } else { 0 };
        space.allow(register::COMMAND, &command.to_le_bytes());
        space.allow(register::INTERRUPT_LINE, &[0xff]);
        for bar in bars {
            let mask = !(bar.size() - 1);
            let (kind, writable) = match bar.kind() {
                BarKind::Memory32 { prefetchable } => (u64::from(prefetchable) << 3, mask as u32),
                BarKind::Memory64 { prefetchable } => (0b100 | u64::from(prefetchable) << 3, mask as u32),
                BarKind::Io => (1, mask as u32),
                BarKind::Rom => (0, mask as u32 | 1),
            };
            space.set(bar.register(), &(kind as u32).to_le_bytes());
            space.allow(bar.register(), &writable.to_le_bytes());
            if let BarKind::Memory64 { .. } = bar.kind() {
                space.allow(bar.register() + 4, &((mask >> 32) as u32).to_le_bytes());
            }
        }
        space
    }

    /// Sets bytes, whether or not the guest may write them.
    ///
    /// # Panics
    /// When they lie outside the space; a device model's mistake, never the guest's.
    pub fn set(&mut self, offset: u16, bytes: &[u8]) {
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Lets the guest write the bits that are 1 in `mask`, besides those it may write already.
    ///
    /// # Panics
    /// As [`ConfigSpace::set`].
    pub fn allow(&mut self, offset: u16, mask: &[u8]) {
        for (writable, mask) in self.writable[offset as usize..][..mask.len()].iter_mut().zip(mask) {
            *writable |= mask;
        }
    }

    /// Adds a capability at the next free place and returns its offset. `body` follows the two bytes of the
    /// header; of its bits the guest may write those in `writable` (which may be shorter).
    ///
    /// # Panics
    /// When conventional configuration space is full.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        let offset = self.free;
        self.place_capability(offset, id, body, writable);
        offset
    }

    /// Adds a capability at a given place, a multiple of 4, at the end of the list. For functions whose
    /// drivers expect it there.
    ///
    /// # Panics
    /// When it does not fit into conventional configuration space.
    pub fn place_capability(&mut self, offset: u16, id: u8, body: &[u8], writable: &[u8]) {
        let end = offset + 2 + body.len() as u16;
        assert!(offset >= capability::FIRST && end <= capability::EXTENDED_FIRST && offset.is_multiple_of(4));
        match self.capabilities.last() {
            Some(last) => self.set(last + 1, &[offset as u8]),
            None => {
                self.set(register::CAPABILITIES, &[offset as u8]);
                let status = self.u16(register::STATUS) | register::STATUS_CAPABILITIES;
                self.set(register::STATUS, &status.to_le_bytes());
            }
        }
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        self.allow(offset + 2, writable);
        self.capabilities.push(offset);
        self.free = self.free.max(end.next_multiple_of(4));
    }

    /// Reads as much as `data` holds; past the end of the space: ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset as usize + i).copied().unwrap_or(0xff);
        }
    }

    /// Writes the bits that the guest may write.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (at, new) in (offset as usize..self.bytes.len()).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | new & mask;
        }
    }

    /// The 16 bits at `offset`.
    pub fn u16(&self, offset: u16) -> u16 {
        u16::from_le_bytes([self.bytes[offset as usize], self.bytes[offset as usize + 1]])
    }

    /// The 32 bits at `offset`.
    pub fn u32(&self, offset: u16) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        self.u16(register::COMMAND)
    }

    /// The BARs as implemented.
    pub fn bars(&self) -> &[BarSpec] {
        &self.bars
    }

    /// Puts a BAR at an address, as firmware does before the guest starts.
    pub fn place_bar(&mut self, bar: BarSpec, address: u64) {
        self.write(bar.register(), &(address as u32).to_le_bytes());
        if let BarKind::Memory64 { .. } = bar.kind() {
            self.write(bar.register() + 4, &((address >> 32) as u32).to_le_bytes());
        }
    }

    /// The address in a BAR's register, wherever it points.
    pub fn bar_address(&self, bar: BarSpec) -> u64 {
        let low = u64::from(self.u32(bar.register())) & !(bar.size() - 1);
        match bar.kind() {
            BarKind::Memory64 { .. } => low & 0xffff_ffff | u64::from(self.u32(bar.register() + 4)) << 32,
            _ => low & 0xffff_ffff,
        }
    }

    /// Where the BARs decode: those that the command register enables and that lie in a window.
    pub fn decoded(&self) -> Decoded {
        let mut decoded = Decoded::default();
        let memory = self.command() & register::COMMAND_MEMORY != 0;
        let io = self.command() & register::COMMAND_IO != 0;
        for bar in &self.bars {
            let address = self.bar_address(*bar);
            decoded[bar.index()] = match bar.kind() {
                BarKind::Io if io => {
                    self.windows.io(address, bar.size()).map(|(first, count)| DecodedAt::Ports(first, count))
                }
                BarKind::Rom if memory && self.u32(bar.register()) & 1 != 0 => {
                    self.windows.memory(address, bar.size()).map(DecodedAt::Memory)
                }
                BarKind::Memory32 { .. } | BarKind::Memory64 { .. } if memory => {
                    self.windows.memory(address, bar.size()).map(DecodedAt::Memory)
                }
                _ => None,
            };
        }
        decoded
    }

    /// Back to power-on as far as decoding and DMA go: the command register is 0. BARs keep their addresses.
    pub fn reset(&mut self) {
        self.set(register::COMMAND, &[0, 0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::{Gpa, GpaRange};
    use proptest::prelude::*;

    fn space() -> ConfigSpace {
        let windows = Windows {
            memory32: GpaRange::new(Gpa(0xc000_0000), 0x2000_0000).unwrap(),
            memory64: GpaRange::new(Gpa(0x40_0000_0000), 0x10_0000_0000),
            ports: (0xc000, 0xffff),
        };
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            subsystem_vendor: 1,
            subsystem: 2,
            class: 0x01_0000,
            revision: 1,
        };
        let bars = [
            BarSpec::new(0, BarKind::Memory64 { prefetchable: false }, 0x4000).unwrap(),
            BarSpec::new(2, BarKind::Io, 32).unwrap(),
            BarSpec::new(3, BarKind::Memory32 { prefetchable: true }, 16).unwrap(),
        ];
        ConfigSpace::new(identity, &bars, &windows)
    }

    #[test]
    fn a_bar_answers_the_sizing_ritual() {
        let mut space = space();
        space.write(0x10, &[0xff; 8]);
        assert_eq!((space.u32(0x10), space.u32(0x14)), (0xffff_c004, 0xffff_ffff));
        space.write(0x18, &[0xff; 4]);
        assert_eq!(space.u32(0x18), 0xffff_ffe1);
        space.write(0x1c, &[0xff; 4]);
        assert_eq!(space.u32(0x1c), 0xffff_fff8);
        space.write(0x20, &[0xff; 4]);
        assert_eq!(space.u32(0x20), 0);
    }

    #[test]
    fn bars_decode_only_when_enabled_and_inside_a_window() {
        let mut space = space();
        let bars = space.bars().to_vec();
        space.place_bar(bars[0], 0x40_0000_4000);
        space.place_bar(bars[1], 0xc020);
        assert_eq!(space.decoded(), Decoded::default());
        space.write(4, &[3, 0]);
        let decoded = space.decoded();
        assert_eq!(decoded[0], GpaRange::new(Gpa(0x40_0000_4000), 0x4000).map(DecodedAt::Memory));
        assert_eq!(decoded[2], Some(DecodedAt::Ports(0xc020, 32)));
        assert_eq!(decoded[3], None, "address 0 is RAM");
        space.place_bar(bars[0], 0x1_0000_0000);
        assert_eq!(space.decoded()[0], None);
    }

    #[test]
    fn capabilities_form_a_list_that_the_walk_finds() {
        let mut space = space();
        let first = space.add_capability(capability::VENDOR, &[16; 14], &[]);
        space.place_capability(0x80, capability::MSIX, &[0; 10], &[0, 0xc0]);
        let found = capability::walk(|offset| {
            let mut byte = [0];
            space.read(offset, &mut byte);
            byte[0]
        });
        assert_eq!(found, [(capability::VENDOR, first), (capability::MSIX, 0x80)]);
        space.write(0x80, &[0xff; 12]);
        assert_eq!(space.u32(0x80), 0xc000_0011);
    }

    proptest! {
        #[test]
        fn no_sequence_of_writes_changes_a_bit_the_guest_may_not_write(
            writes in prop::collection::vec((0u16..4096, prop::collection::vec(any::<u8>(), 1..9)), 0..64)
        ) {
            let mut space = space();
            space.add_capability(capability::MSIX, &[0; 10], &[0, 0xc0]);
            let before = space.bytes.clone();
            for (offset, data) in &writes {
                space.write(*offset, data);
            }
            for at in 0..4096 {
                prop_assert_eq!(space.bytes[at] & !space.writable[at], before[at] & !space.writable[at]);
            }
            for decoded in space.decoded().into_iter().flatten() {
                match decoded {
                    DecodedAt::Memory(range) => prop_assert!(
                        space.windows.memory32.covers(range) || space.windows.memory64.unwrap().covers(range)),
                    DecodedAt::Ports(first, count) => prop_assert!(first >= 0xc000 && first.checked_add(count - 1).is_some()),
                }
            }
        }
    }
}
