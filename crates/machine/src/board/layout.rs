//! Where everything lies in the guest's address space.
//!
//! ```text
//! 0                RAM, up to 3 GiB
//! 0xc000_0000      32-bit window: BARs below 4 GiB
//! 0xfc00_0000      ECAM: configuration space of bus 0
//! 0xfec0_0000      I/O APIC
//! 0xfed4_0000      a TPM's five localities
//! 0xfee0_0000      local APICs
//! 0xfeff_c000      4 pages that KVM needs on Intel CPUs
//! 0xff00_0000      flash memory, up to 4 GiB: as much of it as the firmware has
//! 0x1_0000_0000    RAM that did not fit below
//! above it         64-bit window, up to what the CPU and the IOMMU can address
//!
//! With firmware and no more than 2 GiB of RAM, the 32-bit window begins at 2 GiB: see `Layout::with_firmware`.
//!
//! RAM above 4 GiB and the 64-bit window leave out what assigned devices cannot reach, such as AMD's hole below
//! 1 TiB.
//! ```

use memory::{Gpa, GpaRange, HIGH_RAM_START, ram_ranges_around};
use pci::Windows;

/// Start of the page that KVM maps for real mode on Intel CPUs; three more follow for the task state.
pub const IDENTITY_MAP: u64 = 0xfeff_c000;

const MEMORY32: (u64, u64) = (0xc000_0000, 0x3c00_0000);
/// Where firmware lets the window begin if RAM ends there or below.
const MEMORY32_BELOW: Gpa = Gpa(0x8000_0000);
const ECAM: (u64, u64) = (0xfc00_0000, 1 << 20);
const PORTS: (u16, u16) = (0xc000, 0xffff);
/// The 64-bit window begins at a multiple of this, so that large BARs find aligned places.
const WINDOW_ALIGNMENT: u64 = 1 << 30;

/// More RAM than the guest's addresses have room for.
#[derive(Debug, thiserror::Error)]
#[error(
    "{ram_mib} MiB of RAM do not fit: this host's CPU and IOMMU address {address_bits} bits, and the RAM would end at {end}. \
     Give the VM less memory (--memory)."
)]
pub struct LayoutError {
    ram_mib: u64,
    address_bits: u8,
    end: Gpa,
}

/// The guest's address space.
#[derive(Debug, Clone)]
pub struct Layout {
    /// RAM, one or two ranges.
    pub ram: Vec<GpaRange>,
    /// Configuration space of bus 0.
    pub ecam: GpaRange,
    /// Where BARs may decode.
    pub windows: Windows,
    /// How many address bits the guest's CPUID shows.
    pub address_bits: u8,
}

impl Layout {
    /// Lays out `ram` bytes for a guest whose addresses have `address_bits` bits (32 to 52), around `holes` where
    /// assigned devices reach nothing.
    pub fn new(ram: u64, address_bits: u8, holes: &[GpaRange]) -> Result<Layout, LayoutError> {
        let ranges = ram_ranges_around(ram, holes);
        let limit = 1u64 << address_bits;
        let end = ranges.last().map_or(Gpa(0), |range| range.end());
        if end.0 > limit {
            return Err(LayoutError { ram_mib: ram >> 20, address_bits, end });
        }
        let memory64 = window(end.max(HIGH_RAM_START), limit, holes);
        let range = |(start, len)| GpaRange::new(Gpa(start), len).expect("a constant range");
        let windows = Windows { memory32: range(MEMORY32), memory64, ports: PORTS };
        Ok(Layout { ram: ranges, ecam: range(ECAM), windows, address_bits })
    }

    /// The same for a guest with firmware, which decides itself where the 32-bit window begins: at the power of two below 4 GiB
    /// that RAM leaves free (EDK II, OvmfPkg/Library/PlatformInitLib/MemDetect.c, Uc32Base for i440FX). It ends before ECAM.
    pub fn with_firmware(mut self) -> Layout {
        let low_end = self.ram.first().map_or(Gpa(0), |range| range.end());
        if low_end <= MEMORY32_BELOW {
            let window = GpaRange::new(MEMORY32_BELOW, self.windows.memory32.end().0 - MEMORY32_BELOW.0);
            self.windows.memory32 = window.expect("the window begins behind it");
        }
        self
    }
}

/// The largest place from `start` on and below `limit` that leaves the holes out.
fn window(start: Gpa, limit: u64, holes: &[GpaRange]) -> Option<GpaRange> {
    let behind = holes.iter().map(|hole| hole.end().max(start));
    let starts = std::iter::once(start).chain(behind).filter_map(|start| start.align_up(WINDOW_ALIGNMENT));
    let places = starts.filter_map(|start| {
        let next = holes.iter().filter(|hole| hole.end() > start).map(|hole| hole.start().0).min();
        GpaRange::new(start, next.unwrap_or(limit).min(limit).checked_sub(start.0)?)
    });
    // The first of equal ones, which is the lowest where there are no holes.
    places.max_by_key(|place| (place.len(), std::cmp::Reverse(place.start())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::AMD_HOLE;
    use proptest::prelude::*;

    #[test]
    fn the_64_bit_window_ends_where_a_39_bit_iommu_ends() {
        let layout = Layout::new(6 << 30, 39, &[]).unwrap();
        let window = layout.windows.memory64.unwrap();
        assert_eq!((window.start(), window.end()), (Gpa(7 << 30), Gpa(1 << 39)));
        assert!(Layout::new(256 << 20, 32, &[]).unwrap().windows.memory64.is_none());
    }

    #[test]
    fn with_firmware_the_32_bit_window_begins_where_firmware_lets_it_begin() {
        let start = |ram| Layout::new(ram, 39, &[]).unwrap().with_firmware().windows.memory32.start();
        assert_eq!([512 << 20, 2 << 30].map(start), [Gpa(0x8000_0000); 2]);
        assert_eq!([2050 << 20, 3 << 30, 6 << 30].map(start), [Gpa(0xc000_0000); 3]);
        let end = Layout::new(1 << 30, 39, &[]).unwrap().with_firmware().windows.memory32.end();
        assert_eq!(end, Gpa(0xfc00_0000));
    }

    #[test]
    fn ram_that_the_iommu_cannot_address_is_refused_with_the_numbers() {
        let error = Layout::new(600 << 30, 39, &[]).unwrap_err().to_string();
        assert!(error.contains("614400 MiB") && error.contains("39 bits"), "{error}");
    }

    #[test]
    fn the_window_is_the_larger_side_of_a_hole() {
        let memory64 = |bits| Layout::new(6 << 30, bits, &[AMD_HOLE]).unwrap().windows.memory64.unwrap();
        assert_eq!((memory64(48).start(), memory64(48).end()), (Gpa(1 << 40), Gpa(1 << 48)));
        assert_eq!((memory64(40).start(), memory64(40).end()), (Gpa(7 << 30), AMD_HOLE.start()));
    }

    proptest! {
        #[test]
        fn nothing_overlaps(ram in (1u64..1 << 20).prop_map(|pages| pages << 21), bits in 33u8..52, amd: bool, firmware: bool) {
            if let Ok(layout) = Layout::new(ram, bits, if amd { &[AMD_HOLE] } else { &[] }) {
                let layout = if firmware { layout.with_firmware() } else { layout };
                let mut all = layout.ram.clone();
                all.extend([layout.ecam, layout.windows.memory32]);
                all.extend(layout.windows.memory64);
                if amd {
                    prop_assert!(!all.iter().any(|range| range.overlaps(AMD_HOLE)), "{:?}", all);
                }
                all.sort_by_key(|range| range.start());
                for pair in all.windows(2) {
                    prop_assert!(!pair[0].overlaps(pair[1]), "{:?}", pair);
                }
                prop_assert!(all.last().unwrap().end().0 <= 1 << bits.max(32));
                prop_assert_eq!(layout.ram.iter().map(|range| range.len()).sum::<u64>(), ram);
            }
        }
    }
}
