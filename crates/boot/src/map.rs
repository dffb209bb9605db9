//! The memory map that a kernel is given (e820), and where this crate puts things in low memory.

use memory::{Gpa, GpaRange, Ram};

use crate::platform::Platform;

/// Where this crate writes below 1 MiB. Everything here except the tables is free for the guest once it has
/// taken over.
pub(crate) mod low {
    use memory::{Gpa, GpaRange};

    /// Segment descriptors.
    pub const GDT: Gpa = Gpa(0x1000);
    /// PVH's start info, then its module list.
    pub const START_INFO: Gpa = Gpa(0x2000);
    /// PVH's memory map.
    pub const PVH_MAP: Gpa = Gpa(0x3000);
    /// Linux's boot parameters.
    pub const ZERO_PAGE: Gpa = Gpa(0x7000);
    /// Page tables: one PML4, one PDPT, four page directories.
    pub const PAGE_TABLES: Gpa = Gpa(0x9000);
    /// The command line, up to [`CONVENTIONAL_END`].
    pub const COMMAND_LINE: Gpa = Gpa(0x2_0000);
    /// RAM below 1 MiB that a kernel may use ends here; the BIOS data area of a PC would follow.
    pub const CONVENTIONAL_END: Gpa = Gpa(0x9_fc00);
    /// Kernels and initrds lie above.
    pub const HIGH: Gpa = Gpa(0x10_0000);

    /// ACPI's firmware control structure, which must stay untouched for ever.
    pub const FACS: Gpa = Gpa(0xd_f000);

    /// RSDP first, then all other ACPI tables. Inside the area that operating systems search for the RSDP.
    pub fn acpi() -> GpaRange {
        GpaRange::new(Gpa(0xe_0000), 0x1_0000).expect("a constant")
    }

    /// SMBIOS: the entry point, then the structures. Inside the area that operating systems search for it.
    pub fn smbios() -> GpaRange {
        GpaRange::new(Gpa(0xf_0000), 0x1_0000).expect("a constant")
    }
}

/// What a range of the guest's address space is. The values are those of e820 and of PVH's memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM that the guest may use.
    Ram = 1,
    /// Not to be touched or handed out.
    Reserved = 2,
    /// ACPI tables: RAM again once the guest has read them.
    AcpiData = 3,
}

/// One range of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// The addresses.
    pub range: GpaRange,
    /// What they are.
    pub kind: MemoryKind,
}

/// A kernel is given at most this many ranges (Linux's E820_MAX_ENTRIES_ZEROPAGE).
pub const MAX_ENTRIES: usize = 128;

/// The memory map: every byte of RAM exactly once, and PCI configuration space; sorted, no overlaps.
///
/// From 0x9fc00 to 1 MiB, RAM is reserved as on a PC: the ACPI and SMBIOS tables lie there.
pub fn memory_map(platform: &Platform, ram: &Ram) -> Vec<MapEntry> {
    let acpi = low::acpi();
    let special = [
        entry(low::CONVENTIONAL_END, acpi.start(), MemoryKind::Reserved),
        entry(acpi.start(), acpi.end(), MemoryKind::AcpiData),
        entry(acpi.end(), low::HIGH, MemoryKind::Reserved),
    ];
    let mut map = Vec::new();
    for segment in ram.segments() {
        let (mut from, end) = (segment.range().start(), segment.range().end());
        for hole in special.into_iter().flatten().filter(|hole| hole.range.overlaps(segment.range())) {
            map.extend(entry(from, hole.range.start(), MemoryKind::Ram));
            from = hole.range.end().min(end);
            map.extend(entry(hole.range.start().max(segment.range().start()), from, hole.kind));
        }
        map.extend(entry(from, end, MemoryKind::Ram));
    }
    map.push(MapEntry { range: platform.pci.ecam.range(), kind: MemoryKind::Reserved });
    map.sort_by_key(|entry| entry.range.start());
    map
}

/// The range from `start` to `end`, unless it is empty.
fn entry(start: Gpa, end: Gpa, kind: MemoryKind) -> Option<MapEntry> {
    let range = GpaRange::new(start, end.0.checked_sub(start.0)?)?;
    Some(MapEntry { range, kind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::Cpus;
    use crate::platform::tests::{platform, range};
    use proptest::prelude::*;

    fn covers_ram_exactly_once(ram: &Ram) {
        let platform = platform(Cpus::new(1, 1, 1).unwrap());
        let map = memory_map(&platform, ram);
        assert!(map.windows(2).all(|pair| pair[0].range.end() <= pair[1].range.start()), "{map:?}");
        let ecam = platform.pci.ecam.range();
        let described: u64 = map.iter().map(|entry| entry.range.len()).sum();
        assert_eq!(described, ram.size() + ecam.len());
        for MapEntry { range, .. } in map.iter().filter(|entry| entry.range != ecam) {
            assert!(ram.segments().iter().any(|segment| segment.range().covers(*range)), "{range} is no RAM");
        }
    }

    proptest! {
        #[test]
        fn the_map_has_every_byte_of_ram_once_and_nothing_twice(pages in (16u64 << 8)..=(64u64 << 18)) {
            covers_ram_exactly_once(&Ram::new(&memory::ram_ranges(pages << 12)).unwrap());
        }

        #[test]
        fn so_it_does_when_ram_begins_or_ends_in_the_reserved_area(start in 0u64..300, pages in 1u64..300) {
            covers_ram_exactly_once(&Ram::new(&[range(start << 12, pages << 12)]).unwrap());
        }
    }

    #[test]
    fn the_map_of_a_small_machine_looks_like_a_pcs() {
        let ram = Ram::new(&memory::ram_ranges(256 << 20)).unwrap();
        let map = memory_map(&platform(Cpus::new(1, 1, 1).unwrap()), &ram);
        let lines: Vec<_> = map.iter().map(|entry| format!("{} {:?}", entry.range, entry.kind)).collect();
        assert_eq!(
            lines,
            [
                "0x0-0x9fbff Ram",
                "0x9fc00-0xdffff Reserved",
                "0xe0000-0xeffff AcpiData",
                "0xf0000-0xfffff Reserved",
                "0x100000-0xfffffff Ram",
                "0xe0000000-0xefffffff Reserved",
            ]
        );
    }
}
