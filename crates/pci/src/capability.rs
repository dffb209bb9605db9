//! Numbers of capabilities (PCI Code and ID Assignment Specification) and the walk over a list of them.

/// Power management.
pub const POWER_MANAGEMENT: u8 = 0x01;
/// Vital product data.
pub const VPD: u8 = 0x03;
/// Message signalled interrupts.
pub const MSI: u8 = 0x05;
/// Vendor specific.
pub const VENDOR: u8 = 0x09;
/// PCI Express.
pub const EXPRESS: u8 = 0x10;
/// MSI-X.
pub const MSIX: u8 = 0x11;
/// Advanced features (FLR for conventional PCI).
pub const ADVANCED_FEATURES: u8 = 0x13;

/// Extended: advanced error reporting.
pub const EXT_AER: u16 = 0x0001;
/// Extended: device serial number.
pub const EXT_SERIAL_NUMBER: u16 = 0x0003;

/// First byte behind the type 0 header, where capabilities begin.
pub const FIRST: u16 = 0x40;
/// First byte of extended configuration space.
pub const EXTENDED_FIRST: u16 = 0x100;

/// The capabilities in conventional configuration space as (number, offset), in list order. `read` gives the
/// byte at an offset. A list with a cycle, or one that leaves its space, ends there: hardware may lie.
pub fn walk(mut read: impl FnMut(u16) -> u8) -> Vec<(u8, u16)> {
    let mut found: Vec<(u8, u16)> = Vec::new();
    let mut offset = u16::from(read(crate::register::CAPABILITIES) & !3);
    while (FIRST..EXTENDED_FIRST).contains(&offset) && found.iter().all(|(_, seen)| *seen != offset) {
        let id = read(offset);
        if id == 0xff {
            break;
        }
        found.push((id, offset));
        offset = u16::from(read(offset + 1) & !3);
    }
    found
}

/// The extended capabilities as (number, version, offset), in list order; `read` gives the 32 bits at an
/// offset. Ends at a cycle or nonsense as [`walk`] does.
pub fn walk_extended(mut read: impl FnMut(u16) -> u32) -> Vec<(u16, u8, u16)> {
    let mut found: Vec<(u16, u8, u16)> = Vec::new();
    let mut offset = EXTENDED_FIRST;
    while (EXTENDED_FIRST..0x1000).contains(&offset) && found.iter().all(|(_, _, seen)| *seen != offset) {
        let header = read(offset);
        if header == 0 || header == u32::MAX {
            break;
        }
        found.push((header as u16, (header >> 16 & 0xf) as u8, offset));
        offset = (header >> 20) as u16 & !3;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_bites_its_tail_ends() {
        let mut space = [0u8; 256];
        space[0x34] = 0x40;
        space[0x40..0x42].copy_from_slice(&[MSI, 0x50]);
        space[0x50..0x52].copy_from_slice(&[MSIX, 0x40]);
        assert_eq!(walk(|offset| space[offset as usize]), [(MSI, 0x40), (MSIX, 0x50)]);
    }

    #[test]
    fn an_empty_or_absent_list_is_empty() {
        assert!(walk(|_| 0).is_empty());
        assert!(walk(|_| 0xff).is_empty());
        assert!(walk_extended(|_| 0).is_empty());
        assert!(walk_extended(|_| u32::MAX).is_empty());
        assert_eq!(walk_extended(|_| 0x1001_0001), [(EXT_AER, 1, 0x100)]);
    }
}
