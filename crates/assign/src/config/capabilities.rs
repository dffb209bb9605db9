//! The allow-list for conventional configuration space, capability by capability.

use pci::{capability, register};

use super::{Config, Features, Snapshot};

/// MSI in the hardware: how many messages, and whether each can be masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MsiLayout {
    pub count: u8,
    pub maskable: bool,
}

/// MSI-X in the hardware: how many vectors, and where table and pending bits lie (BAR, offset).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MsixLayout {
    pub count: u16,
    pub table: (u8, u32),
    pub pending: (u8, u32),
}

fn list(hardware: &Snapshot) -> Vec<(u8, u16)> {
    if hardware.u16(register::STATUS) & register::STATUS_CAPABILITIES == 0 {
        return Vec::new();
    }
    capability::walk(|offset| hardware.u8(offset))
}

fn find(hardware: &Snapshot, id: u8) -> Option<u16> {
    list(hardware).into_iter().find(|(other, _)| *other == id).map(|(_, at)| at)
}

/// The hardware's MSI (PCI Local Bus Specification 3.0, 6.8.1), if it has it.
pub(crate) fn msi(hardware: &Snapshot) -> Option<MsiLayout> {
    let control = hardware.u16(find(hardware, capability::MSI)? + 2);
    let count = 1u8 << (control >> 1 & 7).min(5);
    Some(MsiLayout { count, maskable: control & 1 << 8 != 0 })
}

/// The hardware's MSI-X (PCI Local Bus Specification 3.0, 6.8.2), if it has it and it names BARs that there are.
pub(crate) fn msix(hardware: &Snapshot) -> Option<MsixLayout> {
    let at = find(hardware, capability::MSIX)?;
    let count = (hardware.u16(at + 2) & 0x7ff) + 1;
    let place = |register: u32| ((register & 7) as u8, register & !7);
    let (table, pending) = (place(hardware.u32(at + 4)), place(hardware.u32(at + 8)));
    (table.0 < 6 && pending.0 < 6).then_some(MsixLayout { count, table, pending })
}

impl Config {
    /// Adds those capabilities that the guest may see, in the hardware's order and, but for MSI where it needs
    /// more room, in the hardware's places.
    pub(super) fn add_capabilities(&mut self, hardware: &Snapshot, features: &Features<'_>) {
        let list = list(hardware);
        let room = |at: u16| {
            let next = list.iter().map(|(_, other)| *other).filter(|other| *other > at).min();
            next.unwrap_or(capability::EXTENDED_FIRST) - at
        };
        for (index, (id, at)) in list.iter().enumerate() {
            // A function has one of each, but for vendors' own; if there were two, skep would have to emulate both.
            if *id != capability::VENDOR && list[..index].iter().any(|(before, _)| before == id) {
                continue;
            }
            let (at, room) = (*at, room(*at));
            match *id {
                capability::POWER_MANAGEMENT if room >= 8 => self.add_power_management(hardware, at),
                capability::EXPRESS if room >= 12 => self.add_express(hardware, features, at, room),
                capability::MSI => self.add_msi(&list, features, at, room),
                capability::MSIX if room >= 12 => {
                    if let Some((body, writable)) = features.msix {
                        self.space.place_capability(at, capability::MSIX, &body, &writable);
                        self.msix = Some(at);
                    }
                }
                capability::VPD if room >= 8 => {
                    self.space.place_capability(at, capability::VPD, &[0; 6], &[]);
                    self.live.push(at + 2..at + 8);
                    self.vpd = Some(at);
                }
                capability::VENDOR if room >= 3 => {
                    let len = u16::from(hardware.u8(at + 2)).clamp(3, room);
                    self.space.place_capability(at, capability::VENDOR, hardware.bytes(at + 2, len - 2), &[]);
                    self.live.push(at + 2..at + len);
                }
                capability::ADVANCED_FEATURES if room >= 6 => {
                    // Length 6; transactions pending and FLR, or neither; control and status read as 0.
                    let able = if features.resettable { hardware.u8(at + 3) & 3 } else { 0 };
                    self.space.place_capability(at, capability::ADVANCED_FEATURES, &[6, able, 0, 0], &[]);
                    if able & 2 != 0 {
                        self.reset_bits.push((at + 4, 1));
                    }
                }
                _ => {}
            }
        }
    }

    /// Power management (PCI Bus Power Management Interface Specification 1.2, 3.2): the states D0 and D3hot, and
    /// without effect. What the guest writes stays here, and no state is lost by it; there is no PME.
    fn add_power_management(&mut self, hardware: &Snapshot, at: u16) {
        const VERSION: u16 = 0x7;
        const NO_SOFT_RESET: u16 = 1 << 3;
        const POWER_STATE: u8 = 3;
        let mut body = [0; 6];
        body[..2].copy_from_slice(&(hardware.u16(at + 2) & VERSION).to_le_bytes());
        body[2..4].copy_from_slice(&NO_SOFT_RESET.to_le_bytes());
        self.space.place_capability(at, capability::POWER_MANAGEMENT, &body, &[0, 0, POWER_STATE]);
    }

    /// PCI Express (PCI Express Base Specification, 7.5.3). On the guest's root bus an endpoint is one that is
    /// integrated into the root complex: it has no link. Device control has no effect, except for FLR.
    fn add_express(&mut self, hardware: &Snapshot, features: &Features<'_>, at: u16, room: u16) {
        const INTEGRATED: u16 = 9 << 4;
        const FLR_CAPABLE: u32 = 1 << 28;
        /// What device capabilities the guest sees: payload, phantom functions off, extended tags, latencies,
        /// role-based errors, and FLR by `FLR_CAPABLE`.
        const DEVICE: u32 = 0x0000_8fe7;
        /// Error reporting, relaxed ordering, payload, extended tags, no snoop, read request.
        const CONTROL: [u8; 2] = 0x79ff_u16.to_le_bytes();
        const TIMEOUTS: u32 = 0x1f;

        let flags = hardware.u16(at + 2);
        let version = flags & 0xf;
        let len = if version >= 2 { 0x3c } else { 0x14 };
        let len = room.min(len);
        let mut body = vec![0; usize::from(len - 2)];
        let mut set = |offset: usize, bytes: &[u8]| {
            if let Some(place) = body.get_mut(offset - 2..offset - 2 + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        };
        set(2, &(version | INTEGRATED | flags & 0x3e00).to_le_bytes());
        let flr = if features.resettable { FLR_CAPABLE } else { 0 };
        set(4, &(hardware.u32(at + 4) & (DEVICE | flr)).to_le_bytes());
        set(8, &(hardware.u16(at + 8) & u16::from_le_bytes(CONTROL)).to_le_bytes());
        let mut writable = vec![0; usize::from(len - 2)];
        writable[6..8].copy_from_slice(&CONTROL);
        if version >= 2 && len >= 0x2a {
            set(0x24, &(hardware.u32(at + 0x24) & TIMEOUTS).to_le_bytes());
            writable[0x26] = TIMEOUTS as u8;
        }
        self.space.place_capability(at, capability::EXPRESS, &body, &writable);
        if hardware.u32(at + 4) & flr != 0 {
            self.reset_bits.push((at + 9, 0x80));
        }
    }

    /// MSI, which the guest sees with 64-bit addresses whatever the hardware has. If that needs more room than
    /// the hardware's capability, it moves to a gap. Without a gap the guest has no MSI.
    fn add_msi(&mut self, list: &[(u8, u16)], features: &Features<'_>, at: u16, room: u16) {
        let Some(msi) = features.msi else { return };
        let (body, writable) = msi.capability();
        let len = body.len() as u16 + 2;
        let place = if len <= room { Some(at) } else { gap(list, len.next_multiple_of(4)) };
        if let Some(at) = place {
            self.space.place_capability(at, capability::MSI, &body, &writable);
            self.msi = Some(at);
        }
    }
}

/// How many bytes of each capability the guest sees at most, for finding room between them. Hidden ones take
/// nothing, nor does MSI, which is the one to be moved.
fn extent(id: u8) -> u16 {
    match id {
        capability::EXPRESS => 0x3c,
        capability::MSIX => 12,
        capability::POWER_MANAGEMENT | capability::VPD | capability::ADVANCED_FEATURES => 8,
        capability::VENDOR => 0x100,
        _ => 0,
    }
}

/// A place of `len` bytes that no capability on the list uses.
fn gap(list: &[(u8, u16)], len: u16) -> Option<u16> {
    let free = |at: u16| {
        list.iter().filter(|(id, _)| extent(*id) > 0).all(|(id, other)| {
            let next = list.iter().map(|(_, offset)| *offset).filter(|offset| offset > other).min();
            let end = (other + extent(*id)).min(next.unwrap_or(capability::EXTENDED_FIRST));
            at + len <= *other || at >= end
        })
    };
    (capability::FIRST..=capability::EXTENDED_FIRST - len).step_by(4).find(|at| free(*at))
}
