//! BARs: registers and memory of the device, where the guest sees them.

use std::ops::Range;
use std::sync::Arc;

use dma::vfio::{self, MappedArea, Region, VfioDevice};
use dma::{Domain, DomainError};
use host::PciAddress;
use memory::{DeviceMemory, Gpa, GpaRange};
use pci::{Address, BarKind, BarSpec, PciError, Services, register};

use crate::config::Snapshot;
use crate::error::AssignError;
use crate::rom::{Rom, RomImage};

/// The host's page, the unit of mapping.
const PAGE: u64 = 4096;

/// A BAR of the device: what it is, and what of it can be mapped into the guest.
#[derive(Debug)]
pub(crate) struct Bar {
    pub spec: BarSpec,
    pub content: Content,
    /// Pieces mapped into this process for the guest, with their offsets in the BAR.
    areas: Vec<(u64, MappedArea)>,
    /// The pieces that are in the guest's address space now.
    visible: Vec<DeviceMemory>,
    /// What it is called: "0000:01:00.0 BAR 0".
    name: Arc<str>,
}

/// Where what the guest reads there comes from.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// The device.
    Device(Region),
    /// A ROM in the place of the device's own.
    Image(RomImage),
}

/// Finds the BARs and ROM of a device and maps what the guest may reach directly: all but the pages in
/// `trapped` (BAR number and bytes), which hold the MSI-X table and its pending bits.
pub(crate) fn find(
    address: PciAddress,
    device: &Arc<VfioDevice>,
    config: &Snapshot,
    trapped: &[(usize, Range<u64>)],
    rom: Rom,
) -> Result<Vec<Bar>, AssignError> {
    let mut bars = Vec::new();
    let mut index = 0;
    let end = if matches!(rom, Rom::Own) { pci::ROM + 1 } else { pci::ROM };
    while index < end {
        let number = index;
        let register = config.u32(register::BAR0 + 4 * number as u16);
        index += 1;
        let region = if number == pci::ROM { vfio::ROM } else { vfio::bar(number) };
        let Some(region) = device.region(region)? else { continue };
        let kind = if number == pci::ROM { BarKind::Rom } else { kind(register) };
        if let BarKind::Memory64 { .. } = kind {
            index += 1;
        }
        let Some(spec) = BarSpec::new(number, kind, region.size) else {
            if number == pci::ROM {
                continue; // a guest can do without a ROM
            }
            return Err(AssignError::Bar { address, bar: number, size: region.size });
        };
        let holes = trapped.iter().filter(|(bar, _)| *bar == number).map(|(_, bytes)| bytes.clone());
        let mut areas = Vec::new();
        for area in mappable(&region.mappable, &holes.collect::<Vec<_>>()) {
            areas.push((area.start, MappedArea::new(device, &region, area)?));
        }
        let name =
            if number == pci::ROM { format!("{address} ROM") } else { format!("{address} BAR {number}") };
        bars.push(Bar {
            spec,
            content: Content::Device(region),
            areas,
            visible: Vec::new(),
            name: name.into(),
        });
    }
    if let Rom::Image(image) = rom {
        let spec =
            BarSpec::new(pci::ROM, BarKind::Rom, image.size()).expect("an image is no larger than a ROM");
        let name = format!("{address} ROM").into();
        bars.push(Bar { spec, content: Content::Image(image), areas: Vec::new(), visible: Vec::new(), name });
    }
    Ok(bars)
}

/// What a BAR decodes, from the low bits of its register (PCI Local Bus Specification 3.0, 6.2.5.1).
fn kind(register: u32) -> BarKind {
    let prefetchable = register & 8 != 0;
    match register & 7 {
        0b100 => BarKind::Memory64 { prefetchable },
        bits if bits & 1 != 0 => BarKind::Io,
        _ => BarKind::Memory32 { prefetchable },
    }
}

/// The whole pages of the areas that can be mapped, less those that a hole touches.
fn mappable(areas: &[Range<u64>], holes: &[Range<u64>]) -> Vec<Range<u64>> {
    let up = |at: u64| at.next_multiple_of(PAGE);
    let down = |at: u64| at / PAGE * PAGE;
    let mut holes: Vec<Range<u64>> = holes.iter().map(|hole| down(hole.start)..up(hole.end)).collect();
    holes.sort_by_key(|hole| hole.start);
    let mut pieces = Vec::new();
    for area in areas {
        let mut from = up(area.start);
        let end = down(area.end);
        for hole in &holes {
            if hole.start > from {
                pieces.push(from..hole.start.min(end));
            }
            from = from.max(hole.end);
        }
        pieces.push(from..end);
    }
    pieces.retain(|piece| piece.start < piece.end);
    pieces
}

impl Bar {
    /// Makes the mapped pieces appear in the guest, the BAR being at `base` now: all or none.
    pub fn appear(&mut self, at: Address, base: Gpa, services: &dyn Services) -> Result<(), PciError> {
        for (offset, area) in &self.areas {
            let range = GpaRange::new(Gpa(base.0 + offset), area.len() as u64);
            let range = range.expect("a BAR that decodes lies in a window of the bus");
            // SAFETY: the area stays mapped as long as the `Bar`, whose owner has it vanish before it goes.
            let memory = unsafe { DeviceMemory::new(self.name.clone(), range, area.start()) };
            match services.add_memory(at, &memory) {
                Ok(()) => self.visible.push(memory),
                Err(error) => {
                    // What could not be undone stays in `visible`, and is tried again when the BAR moves.
                    let undone = self.vanish(at, services);
                    return PciError::all([Some(error.into()), undone.err()].into_iter().flatten());
                }
            }
        }
        Ok(())
    }

    /// Tries whether devices of a domain reach the mapped pieces, if a domain asks for it. The device must decode
    /// memory.
    pub fn try_p2p(&self, domain: &Domain) -> Result<(), DomainError> {
        self.areas.iter().try_for_each(|(_, area)| domain.try_p2p(&self.name, area))
    }

    /// Takes all pieces out of the guest. Tries all, and returns all that failed; these stay known.
    pub fn vanish(&mut self, at: Address, services: &dyn Services) -> Result<(), PciError> {
        let mut errors = Vec::new();
        self.visible.retain(|memory| {
            let failed = services.remove_memory(at, memory).err();
            let stays = failed.is_some();
            errors.extend(failed);
            stays
        });
        PciError::all(errors)
    }

    /// Whether pieces of it are in the guest still; then their memory must not go.
    pub fn is_visible(&self) -> bool {
        !self.visible.is_empty()
    }

    /// Gives up the mappings without unmapping them, for a BAR that could not be made to vanish.
    pub fn leak(&mut self) {
        self.areas.drain(..).for_each(std::mem::forget);
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of areas, some of which have one")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_page_of_the_msix_table_is_left_out() {
        let whole = &[0..0x4000];
        assert_eq!(mappable(whole, &[0x2000..0x2410, 0x3000..0x3009]), [0..0x2000]);
        assert_eq!(mappable(whole, &[0x1800..0x1810]), [0..0x1000, 0x2000..0x4000]);
        assert_eq!(mappable(&[0..0x1000, 0x3000..0x4000], &[0x3000..0x3010]), [0..0x1000]);
    }

    #[test]
    fn what_is_smaller_than_a_page_is_not_mapped() {
        assert_eq!(mappable(&[0..0x100], &[]), []);
        assert_eq!(mappable(&[0x800..0x2800], &[]), [0x1000..0x2000]);
    }

    #[test]
    fn a_bar_is_what_its_low_bits_say() {
        assert_eq!(kind(0xfebf_0004), BarKind::Memory64 { prefetchable: false });
        assert_eq!(kind(0xfebf_0008), BarKind::Memory32 { prefetchable: true });
        assert_eq!(kind(0xc001), BarKind::Io);
        assert_eq!(kind(0xc005), BarKind::Io);
    }

    proptest! {
        #[test]
        fn no_piece_touches_a_page_of_a_hole_and_no_other_page_is_left_out(
            holes in prop::collection::vec((0u64..0x10000, 1u64..0x3000), 0..4),
            areas in prop::collection::vec((0u64..16, 1u64..6), 1..3),
        ) {
            let holes: Vec<_> = holes.into_iter().map(|(at, len)| at..at + len).collect();
            let mut next = 0;
            let areas: Vec<_> = areas.into_iter().map(|(gap, len)| {
                let start = next + gap * PAGE;
                next = start + len * PAGE;
                start..next
            }).collect();
            let pieces = mappable(&areas, &holes);
            for page in (0..1 << 20).step_by(PAGE as usize) {
                let inside = |range: &Range<u64>| range.start <= page && page + PAGE <= range.end;
                let holed = holes.iter().any(|hole| hole.start < page + PAGE && page < hole.end);
                let count = pieces.iter().filter(|piece| inside(piece)).count();
                prop_assert_eq!(count, usize::from(areas.iter().any(inside) && !holed));
            }
        }
    }
}
