//! What the host's IOMMU can do.

use std::io;

use crate::{Host, HostError, attribute, names};

/// Whose IOMMU it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IommuKind {
    /// Intel VT-d.
    Intel,
    /// AMD-Vi.
    Amd,
    /// Some other; nothing more is known of it.
    Other,
}

/// One active IOMMU unit of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iommu {
    /// The kernel's name for it: `dmar0`, `ivhd0`.
    pub name: String,
    /// Whose it is.
    pub kind: IommuKind,
    /// How many bits an IOVA can have: 39, 48 or 57 usually. Addresses of RAM and BARs above cannot be mapped.
    pub address_width: u32,
}

/// A range of IOVAs that a group's devices cannot use for DMA mappings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReservedRegion {
    /// First address.
    pub first: u64,
    /// Last address, itself reserved.
    pub last: u64,
    /// The kernel's word for why: `msi`, `direct`, `direct-relaxable`, `reserved`.
    pub kind: String,
}

/// Assumed where a unit does not say: what four-level page tables reach.
const DEFAULT_WIDTH: u32 = 48;

impl Host {
    /// The IOMMU units that are enabled; empty when there is none, or when the kernel's command line disables it.
    pub fn iommus(&self) -> Vec<Iommu> {
        let class = self.path("/sys/class/iommu");
        names(&class).into_iter().map(|name| self.iommu(&class.join(&name), name)).collect()
    }

    /// The least address width of all active units; `None` without an IOMMU.
    pub fn iommu_address_width(&self) -> Option<u32> {
        self.iommus().iter().map(|unit| unit.address_width).min()
    }

    /// The IOVAs that the devices of a group cannot use.
    pub fn reserved_regions(&self, group: u32) -> Result<Vec<ReservedRegion>, HostError> {
        let path = self.path(format!("/sys/kernel/iommu_groups/{group}/reserved_regions"));
        let fail =
            |cause| HostError::Read { what: "the group's reserved addresses", path: path.clone(), cause };
        let text = std::fs::read_to_string(&path).map_err(fail)?;
        let wrong =
            |line: &str| fail(io::Error::new(io::ErrorKind::InvalidData, format!("odd line {line:?}")));
        text.lines().map(|line| region(line).ok_or_else(|| wrong(line))).collect()
    }

    fn iommu(&self, dir: &std::path::Path, name: String) -> Iommu {
        let hex = |file| attribute(&dir.join(file)).and_then(|text| u64::from_str_radix(&text, 16).ok());
        if let Some(capabilities) = hex("intel-iommu/cap") {
            return Iommu { name, kind: IommuKind::Intel, address_width: intel_width(capabilities) };
        }
        let kind = if dir.join("amd-iommu").exists() { IommuKind::Amd } else { IommuKind::Other };
        Iommu { name, kind, address_width: DEFAULT_WIDTH }
    }
}

/// Usable width from VT-d's capability register (VT-d specification, section 11.4.2): the maximum guest
/// address width (bits 21:16, plus one), but no more than the largest page table that the unit walks
/// (SAGAW, bits 12:8: three, four or five levels).
fn intel_width(capabilities: u64) -> u32 {
    let maximum = (capabilities >> 16 & 0x3f) as u32 + 1;
    let tables = [(3, 57), (2, 48), (1, 39)].into_iter().find(|(bit, _)| capabilities >> 8 & (1 << bit) != 0);
    tables.map_or(maximum, |(_, width)| maximum.min(width))
}

fn region(line: &str) -> Option<ReservedRegion> {
    let mut words = line.split_whitespace();
    let mut address = || u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok();
    let (first, last) = (address()?, address()?);
    Some(ReservedRegion { first, last, kind: words.next()?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHost;

    #[test]
    fn the_width_is_the_lesser_of_mgaw_and_what_the_page_tables_reach() {
        assert_eq!(intel_width(0x00d2008c222f0686), 48); // SAGAW 4 levels, MGAW 48: a server
        assert_eq!(intel_width(0x1c0000c40660462), 39); // SAGAW 4 levels, MGAW 39: a client
        assert_eq!(intel_width(38 << 16 | 1 << 9), 39);
        assert_eq!(intel_width(56 << 16 | 1 << 9), 39);
    }

    #[test]
    fn units_and_their_widths_are_listed() {
        let fake = FakeHost::new();
        assert!(fake.host().iommus().is_empty());
        assert_eq!(fake.host().iommu_address_width(), None);
        fake.file("/sys/class/iommu/dmar0/intel-iommu/cap", "1c0000c40660462\n");
        fake.file("/sys/class/iommu/ivhd0/amd-iommu/cap", "40b0f\n");
        let units = fake.host().iommus();
        assert_eq!((units[0].kind, units[0].address_width), (IommuKind::Intel, 39));
        assert_eq!((units[1].kind, units[1].address_width), (IommuKind::Amd, 48));
        assert_eq!(fake.host().iommu_address_width(), Some(39));
    }

    #[test]
    fn reserved_regions_are_read_and_odd_lines_are_errors() {
        let fake = FakeHost::new();
        let path = "/sys/kernel/iommu_groups/3/reserved_regions";
        fake.file(
            path,
            "0x00000000000e0000 0x00000000000fffff direct\n0x00000000fee00000 0x00000000feefffff msi\n",
        );
        let regions = fake.host().reserved_regions(3).unwrap();
        assert_eq!(regions[1], ReservedRegion { first: 0xfee0_0000, last: 0xfeef_ffff, kind: "msi".into() });
        fake.file(path, "what\n");
        assert!(fake.host().reserved_regions(3).unwrap_err().to_string().contains("what"));
    }
}
