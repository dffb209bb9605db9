//! The allow-list for extended configuration space (PCI Express Base Specification, 7.6).
//!
//! Two capabilities are shown: the serial number, and error reporting without errors. Whatever else the hardware has
//! there (SR-IOV, resizable BARs, ATS, PRI, PASID, ACS, ARI, LTR …) would let the guest change what the
//! host decides, and is hidden.

use pci::{ConfigSpace, capability};

use super::Snapshot;

/// Adds what the guest may see, in the hardware's places, as a chain of its own.
pub(super) fn add(space: &mut ConfigSpace, hardware: &Snapshot) {
    if hardware.size() <= capability::EXTENDED_FIRST {
        return;
    }
    let all = capability::walk_extended(|offset| hardware.u32(offset));
    let shown: Vec<_> = all.iter().filter(|(id, _, at)| at % 4 == 0 && length(*id).is_some()).collect();
    let next = |index: usize| shown.get(index + 1).map_or(0, |(_, _, at)| u32::from(*at));

    // The chain begins at 0x100; where nothing is shown there, a null capability leads to the first that is.
    if let Some((_, _, first)) = shown.first().filter(|(_, _, at)| *at != capability::EXTENDED_FIRST) {
        space.set(capability::EXTENDED_FIRST, &(u32::from(*first) << 20).to_le_bytes());
    }
    for (index, (id, version, at)) in shown.iter().enumerate() {
        let end = all.iter().map(|(_, _, other)| *other).filter(|other| other > at).min().unwrap_or(0x1000);
        let header = u32::from(*id) | u32::from(*version) << 16 | next(index) << 20;
        space.set(*at, &header.to_le_bytes());
        let len = length(*id).unwrap_or(0).min(end - at);
        match *id {
            capability::EXT_SERIAL_NUMBER => space.set(at + 4, hardware.bytes(at + 4, len - 4)),
            capability::EXT_AER => add_aer(space, hardware, *at, len),
            _ => {}
        }
    }
}

/// Bytes of a capability that is shown; `None` for those that are not.
fn length(id: u16) -> Option<u16> {
    match id {
        capability::EXT_SERIAL_NUMBER => Some(12),
        capability::EXT_AER => Some(0x2c),
        _ => None,
    }
}

/// Advanced error reporting (7.8.4): the guest can set masks and severities, without effect. No error is ever pending, because
/// the device's errors go to the host, which signals an event to the VM.
fn add_aer(space: &mut ConfigSpace, hardware: &Snapshot, at: u16, len: u16) {
    // Uncorrectable mask, uncorrectable severity, correctable mask.
    for register in [0x08, 0x0c, 0x14] {
        if register + 4 <= len {
            space.set(at + register, hardware.bytes(at + register, 4));
            space.allow(at + register, &[0xff; 4]);
        }
    }
}
