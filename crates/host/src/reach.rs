//! What devices can reach through the IOMMU, as sysfs shows it before VFIO is open, and whether a VM's RAM fits.
//!
//! VFIO says the same once a domain exists. This is for before: a layout that cannot work is found while nothing
//! on the host has been touched and no RAM been allocated.

use std::fmt;

use memory::{AMD_HOLE, Gpa, GpaRange};

use crate::{Host, HostError, Iommu, IommuGroup, ReservedRegion, link_name};

/// What the devices of some IOMMU groups can all reach.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// The IOMMU units that translate for them.
    pub units: Vec<Iommu>,
    /// What they cannot use, with the number of the group.
    pub reserved: Vec<(u32, ReservedRegion)>,
}

/// A piece of RAM that the devices cannot reach at its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreachable {
    /// The piece.
    pub ram: GpaRange,
    /// Why.
    pub why: Why,
    /// How much RAM fits below, in bytes.
    pub fits: u64,
}

/// Why devices cannot reach addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// They are beyond what the IOMMU translates.
    TooHigh {
        /// The unit.
        unit: Iommu,
    },
    /// They are where the devices of a group send their interrupts.
    Msi {
        /// The group.
        group: u32,
        /// The window.
        window: ReservedRegion,
    },
    /// They are in the hole below 1 TiB that AMD's IOMMUs do not translate.
    AmdHole {
        /// The group.
        group: u32,
    },
    /// The firmware keeps memory there for the devices of a group.
    Firmware {
        /// The group.
        group: u32,
        /// The memory.
        region: ReservedRegion,
    },
    /// The kernel gives another reason.
    Reserved {
        /// The group.
        group: u32,
        /// The addresses.
        region: ReservedRegion,
    },
}

impl Host {
    /// What the devices of all these groups can reach.
    pub fn reach(&self, groups: &[u32]) -> Result<Reach, HostError> {
        let all = self.iommus();
        let mut reach = Reach::default();
        for &group in groups {
            let members = IommuGroup::open(self, group)?.members;
            let behind = |unit: &&Iommu| {
                let name = |member: &crate::Member| link_name(&self.device_dir(member.address).join("iommu"));
                members.iter().filter_map(name).any(|name| name == unit.name)
            };
            let known: Vec<Iommu> = all.iter().filter(behind).cloned().collect();
            // If the kernel does not show which unit it is, it may be any.
            let units = if known.is_empty() { all.clone() } else { known };
            reach
                .units
                .extend(units.into_iter().filter(|unit| !reach.units.contains(unit)).collect::<Vec<_>>());
            let regions = self.reserved_regions(group)?.into_iter();
            reach.reserved.extend(regions.map(|region| (group, region)));
        }
        Ok(reach)
    }
}

impl Reach {
    /// Every piece of RAM that the devices cannot reach at IOVA = GPA. None when the layout works.
    pub fn check(&self, ram: &[GpaRange]) -> Vec<Unreachable> {
        let mut found = Vec::new();
        if let Some(unit) = self.units.iter().min_by_key(|unit| unit.address_width) {
            let first = 1u64.checked_shl(unit.address_width);
            let pieces = first.map(|first| over(ram, first, u64::MAX)).unwrap_or_default();
            let fits = first.map_or(u64::MAX, |first| below(ram, first));
            found.extend(pieces.into_iter().map(|ram| Unreachable {
                ram,
                why: Why::TooHigh { unit: unit.clone() },
                fits,
            }));
        }
        for (group, region) in self.unusable() {
            let why = why(group, region);
            let fits = below(ram, region.first);
            let pieces = over(ram, region.first, region.last);
            found.extend(pieces.into_iter().map(|ram| Unreachable { ram, why: why.clone(), fits }));
        }
        found
    }

    /// The reserved ranges as holes around which RAM can be laid out ([`memory::ram_ranges_around`]).
    pub fn holes(&self) -> Vec<GpaRange> {
        let range = |region: &ReservedRegion| {
            GpaRange::new(Gpa(region.first), region.last.checked_sub(region.first)?.checked_add(1)?)
        };
        self.unusable().filter_map(|(_, region)| range(region)).collect()
    }

    /// The kernel maps over what is `direct-relaxable`: what the firmware kept there is of no use once the device is
    /// a guest's.
    fn unusable(&self) -> impl Iterator<Item = (u32, &ReservedRegion)> {
        let regions = self.reserved.iter().map(|(group, region)| (*group, region));
        regions.filter(|(_, region)| region.kind != "direct-relaxable")
    }
}

fn why(group: u32, region: &ReservedRegion) -> Why {
    let region = region.clone();
    match region.kind.as_str() {
        "msi" => Why::Msi { group, window: region },
        "direct" => Why::Firmware { group, region },
        "reserved" if region.first == AMD_HOLE.start().0 => Why::AmdHole { group },
        _ => Why::Reserved { group, region },
    }
}

/// The parts of RAM between two addresses, both included.
fn over(ram: &[GpaRange], first: u64, last: u64) -> Vec<GpaRange> {
    let part = |range: &GpaRange| {
        let from = range.start().0.max(first);
        let to = (range.end().0 - 1).min(last);
        GpaRange::new(Gpa(from), to.checked_sub(from)?.checked_add(1)?)
    };
    ram.iter().filter_map(part).collect()
}

/// Bytes of RAM below an address.
fn below(ram: &[GpaRange], address: u64) -> u64 {
    let parts = address.checked_sub(1).map(|last| over(ram, 0, last)).unwrap_or_default();
    parts.iter().map(|part| part.len()).sum()
}

impl std::error::Error for Unreachable {}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unreachable { ram, why, fits } = self;
        let less = format!("at most {} MiB of memory (--memory)", fits >> 20);
        match why {
            Why::TooHigh { unit } => write!(
                f,
                "guest RAM {ram} lies above what IOMMU {} translates for assigned devices: {} bits, {} GiB. Give the \
                 VM {less}, or assign no device",
                unit.name,
                unit.address_width,
                (1u64 << unit.address_width) >> 30,
            ),
            Why::Msi { group, window } => write!(
                f,
                "guest RAM {ram} lies over {:#x}-{:#x}, where the devices of IOMMU group {group} send their \
                 interrupts (MSI). Give the VM {less}, or assign no device of this group",
                window.first, window.last
            ),
            Why::AmdHole { group } => write!(
                f,
                "guest RAM {ram} lies in the hole below 1 TiB ({AMD_HOLE}) that AMD's IOMMUs keep for HyperTransport, \
                 where the devices of IOMMU group {group} do not reach. Give the VM {less}"
            ),
            Why::Firmware { group, region } => write!(
                f,
                "guest RAM {ram} lies over {:#x}-{:#x}, memory that the firmware keeps for the devices of IOMMU group \
                 {group} (an RMRR or IVMD). Give the VM {less}, or assign no device of this group, or turn off in \
                 the firmware set-up what uses it (USB legacy support, shared memory of a graphics or management \
                 device)",
                region.first, region.last
            ),
            Why::Reserved { group, region } => write!(
                f,
                "guest RAM {ram} lies over {:#x}-{:#x}, which the kernel reserves ({}) for the devices of IOMMU group \
                 {group}. Give the VM {less}, or assign no device of this group",
                region.first, region.last, region.kind
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHost;
    use memory::{ram_ranges, ram_ranges_around};

    const INTEL_39: &str = "1c0000c40660462\n";
    const INTEL_48: &str = "00d2008c222f0686\n";
    const MSI: &str = "0x00000000fee00000 0x00000000feefffff msi\n";
    const AMD: &str = "0x000000fd00000000 0x000000ffffffffff reserved\n";

    /// A host with one device in group 9 and what is reserved for it.
    fn host(regions: &str) -> FakeHost {
        let fake = FakeHost::new();
        fake.nvme("0000:01:00.0", 9);
        fake.file("/sys/kernel/iommu_groups/9/reserved_regions", regions);
        fake
    }

    fn texts(fake: &FakeHost, ram: &[GpaRange]) -> Vec<String> {
        fake.host().reach(&[9]).unwrap().check(ram).iter().map(Unreachable::to_string).collect()
    }

    #[test]
    fn ordinary_ram_is_in_reach_of_an_ordinary_host() {
        let fake = host(&(MSI.to_owned() + "0x0 0xffffff direct-relaxable\n"));
        fake.file("/sys/class/iommu/dmar0/intel-iommu/cap", INTEL_48);
        assert!(texts(&fake, &ram_ranges(512 << 30)).is_empty());
    }

    #[test]
    fn a_39_bit_iommu_says_how_much_ram_it_reaches() {
        let fake = host(MSI);
        fake.file("/sys/class/iommu/dmar0/intel-iommu/cap", INTEL_39);
        assert!(texts(&fake, &ram_ranges(511 << 30)).is_empty());
        let found = texts(&fake, &ram_ranges(600 << 30));
        assert_eq!(
            found,
            [
                "guest RAM 0x8000000000-0x963fffffff lies above what IOMMU dmar0 translates for assigned devices: 39 \
              bits, 512 GiB. Give the VM at most 523264 MiB of memory (--memory), or assign no device"
            ]
        );
        let error = texts(&fake, &ram_ranges(511 << 30));
        assert!(error.is_empty(), "the amount proposed is not in reach: {error:?}");
    }

    #[test]
    fn only_the_unit_behind_which_a_device_is_counts() {
        let fake = host(MSI);
        fake.file("/sys/class/iommu/dmar0/intel-iommu/cap", INTEL_39);
        fake.file("/sys/class/iommu/dmar1/intel-iommu/cap", INTEL_48);
        assert_eq!(texts(&fake, &ram_ranges(600 << 30)).len(), 1);
        fake.link("/sys/devices/pci0000:00/0000:01:00.0/iommu", "/sys/class/iommu/dmar1");
        assert!(texts(&fake, &ram_ranges(600 << 30)).is_empty());
    }

    #[test]
    fn amd_s_hole_is_named_and_ram_laid_out_around_it_is_in_reach() {
        let fake = host(&(MSI.to_owned() + AMD));
        fake.file("/sys/class/iommu/ivhd0/amd-iommu/cap", "40b0f\n");
        let size = 1200 << 30;
        let found = texts(&fake, &ram_ranges(size));
        assert_eq!(found.len(), 1, "{found:?}");
        for part in ["hole below 1 TiB (0xfd00000000-0xffffffffff)", "at most 1035264 MiB", "group 9"] {
            assert!(found[0].contains(part), "{part}: {found:?}");
        }
        let holes = fake.host().reach(&[9]).unwrap().holes();
        assert!(texts(&fake, &ram_ranges_around(size, &holes)).is_empty());
        assert!(texts(&fake, &ram_ranges(1011 << 30)).is_empty());
    }

    #[test]
    fn every_reserved_region_over_ram_is_its_own_sentence() {
        let fake = host(
            "0x00000000bff00000 0x00000000c00fffff direct\n\
             0x0000000008000000 0x00000000080fffff msi\n\
             0x0000000100000000 0x0000000100000fff reserved\n\
             0x0000000000000000 0x00000000000fffff direct-relaxable\n",
        );
        let found = texts(&fake, &ram_ranges(4 << 30));
        for (found, parts) in found.iter().zip([
            ["0xbff00000-0xbfffffff", "the firmware keeps", "at most 3071 MiB"],
            ["0x8000000-0x80fffff", "interrupts (MSI)", "at most 128 MiB"],
            ["0x100000000-0x100000fff", "the kernel reserves (reserved)", "at most 3072 MiB"],
        ]) {
            parts.iter().for_each(|part| assert!(found.contains(part), "{part}: {found}"));
        }
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn regions_at_the_end_of_the_address_space_are_compared_and_not_added_up() {
        let region = |first, last| ReservedRegion { first, last, kind: "reserved".into() };
        let reach = Reach {
            units: Vec::new(),
            reserved: vec![(1, region(0, u64::MAX)), (1, region(u64::MAX, u64::MAX)), (1, region(5, 4))],
        };
        let ram = ram_ranges(1 << 30);
        let found = reach.check(&ram);
        assert_eq!((found.len(), found[0].ram, found[0].fits), (1, ram[0], 0));
        assert!(reach.holes().is_empty());
    }

    #[test]
    fn reserved_regions_that_cannot_be_read_are_an_error() {
        let fake = FakeHost::new();
        fake.nvme("0000:01:00.0", 9);
        assert!(fake.host().reach(&[9]).is_err());
    }
}
