//! Where things are: identity, BARs and capabilities (VIRTIO 1.2, 4.1.2 to 4.1.4).

use ::pci::{BarKind, BarSpec, ConfigSpace, Identity, MSIX_ENTRY_SIZE, capability};

use crate::device::VirtioDevice;

/// The BAR with everything of virtio; takes registers 0 and 1.
pub(super) const VIRTIO_BAR: usize = 0;
/// The BAR with the MSI-X table; takes registers 2 and 3.
pub(super) const MSIX_BAR: usize = 2;

/// Distance between doorbells in bytes.
pub(super) const NOTIFY_MULTIPLIER: u64 = 4;
/// Drivers write the queue's number to its doorbell, in 16 bits.
pub(super) const DOORBELL_WIDTH: u32 = 2;
/// "No vector" in the vector registers.
pub(super) const NO_VECTOR: u16 = 0xffff;
/// Offset of the data field in the PCI configuration access capability.
pub(super) const WINDOW_DATA: u16 = 16;

/// Each window has a page of the BAR to itself.
const PAGE: u64 = 0x1000;

/// The windows in the virtio BAR, in order, with the numbers that capabilities give them (4.1.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Window {
    Common = 1,
    Isr = 3,
    Device = 4,
    Notify = 2,
}

impl Window {
    const ALL: [Window; 4] = [Window::Common, Window::Isr, Window::Device, Window::Notify];

    /// The window at an offset in the BAR, and the offset in it.
    pub(super) fn at(offset: u64) -> Option<(Window, u64)> {
        let window = Self::ALL.get(usize::try_from(offset / PAGE).ok()?)?;
        Some((*window, offset % PAGE))
    }

    /// Offset in the BAR.
    pub(super) fn start(self) -> u64 {
        Self::ALL.iter().position(|window| *window == self).map_or(0, |index| index as u64 * PAGE)
    }
}

pub(super) fn identity(device: &dyn VirtioDevice) -> Identity {
    Identity {
        vendor: 0x1af4,
        device: 0x1040 + device.device_type(),
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
        class: device.class(),
        revision: 1,
    }
}

pub(super) fn bars(vectors: u16) -> [BarSpec; 2] {
    let memory = |index, size| {
        BarSpec::new(index, BarKind::Memory64 { prefetchable: false }, size).expect("constants that fit")
    };
    let msix = u64::from(pending_at(vectors)) + u64::from(vectors).div_ceil(64) * 8;
    [
        memory(VIRTIO_BAR, PAGE * Window::ALL.len() as u64),
        memory(MSIX_BAR, msix.next_power_of_two().max(PAGE)),
    ]
}

/// Offset of the pending bits behind a table of so many vectors.
pub(super) fn pending_at(vectors: u16) -> u32 {
    (u64::from(vectors) * MSIX_ENTRY_SIZE).next_multiple_of(2048) as u32
}

/// Adds virtio's capabilities; returns the offset of the one for access through configuration space.
pub(super) fn add_capabilities(config: &mut ConfigSpace, queues: u32) -> u16 {
    let common = body(16, Window::Common as u8, Window::Common.start(), super::common::LENGTH as u32);
    let isr = body(16, Window::Isr as u8, Window::Isr.start(), 1);
    let device = body(16, Window::Device as u8, Window::Device.start(), PAGE as u32);
    let notify_length = queues * NOTIFY_MULTIPLIER as u32;
    let mut notify = body(20, Window::Notify as u8, Window::Notify.start(), notify_length);
    notify.extend((NOTIFY_MULTIPLIER as u32).to_le_bytes());
    for body in [common, notify, isr, device] {
        config.add_capability(capability::VENDOR, &body, &[]);
    }
    // Through this one a driver reaches a BAR without mapping it: it names BAR, offset and length, and then
    // reads or writes the data field.
    let mut access = body(20, 5, 0, 0);
    access.extend([0; 4]);
    let mut writable = [0xff; 18];
    writable[..2].fill(0);
    writable[3..6].fill(0);
    config.add_capability(capability::VENDOR, &access, &writable)
}

/// A capability (struct virtio_pci_cap) behind its two bytes of header.
fn body(len: u8, kind: u8, offset: u64, length: u32) -> Vec<u8> {
    let mut body = vec![len, kind, VIRTIO_BAR as u8, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend(length.to_le_bytes());
    body
}
