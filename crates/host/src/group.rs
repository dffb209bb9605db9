//! IOMMU groups: devices that the IOMMU cannot distinguish are given to a guest together or not at all.

use std::fmt;

use crate::pci::class;
use crate::{Host, HostError, PciAddress, PciDevice, names};

/// An IOMMU group and all its members.
#[derive(Debug, Clone)]
pub struct IommuGroup {
    /// The kernel's number for it, as in `/dev/vfio/NUMBER`.
    pub number: u32,
    /// Every PCI function in it.
    pub members: Vec<Member>,
}

/// A PCI function in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where it sits.
    pub address: PciAddress,
    /// Class code.
    pub class: u32,
    /// The driver that has it, if one has.
    pub driver: Option<String>,
}

impl Member {
    /// Whether the rest of its group may go to a guest while this member is as it is.
    fn is_harmless(&self) -> bool {
        matches!(self.driver.as_deref(), None | Some("vfio-pci" | "pci-stub" | "pcieport"))
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let driver = self.driver.as_deref().unwrap_or("none");
        write!(f, "{} ({}, driver {driver})", self.address, class(self.class))
    }
}

/// A group that cannot go to a guest because the host uses some of its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotViable {
    /// The group's number.
    pub group: u32,
    /// The members that prevent it.
    pub others: Vec<Member>,
}

impl std::error::Error for NotViable {}

impl fmt::Display for NotViable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let others: Vec<String> = self.others.iter().map(Member::to_string).collect();
        write!(
            f,
            "IOMMU group {} cannot go to a guest, for the host uses other devices of it: {}. Assign these too, \
             or unbind them from their drivers; the IOMMU cannot keep them apart",
            self.group,
            others.join(", ")
        )
    }
}

impl IommuGroup {
    /// Reads group `number` of `host`.
    pub fn open(host: &Host, number: u32) -> Result<IommuGroup, HostError> {
        let dir = host.path(format!("/sys/kernel/iommu_groups/{number}/devices"));
        let addresses = names(&dir).into_iter().filter_map(|name| name.parse::<PciAddress>().ok());
        let members = addresses.map(|address| {
            let device = PciDevice::open(host, address)?;
            Ok(Member { address, class: device.class, driver: device.driver })
        });
        Ok(IommuGroup { number, members: members.collect::<Result<_, _>>()? })
    }

    /// Whether the group may go to a guest once the devices in `taken` are on vfio-pci. A member counts as free
    /// with no driver, vfio-pci, pci-stub, or as a port (pcieport).
    pub fn viable_with(&self, taken: &[PciAddress]) -> Result<(), NotViable> {
        let in_the_way = |member: &&Member| !member.is_harmless() && !taken.contains(&member.address);
        let others: Vec<Member> = self.members.iter().filter(in_the_way).cloned().collect();
        if others.is_empty() { Ok(()) } else { Err(NotViable { group: self.number, others }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeHost;

    #[test]
    fn a_group_with_a_used_neighbour_is_not_viable_and_names_it() {
        let fake = FakeHost::new();
        fake.pci("0000:00:1f.2", 0x010601, Some("ahci"), 7);
        fake.pci("0000:00:1f.3", 0x0c0500, Some("i801_smbus"), 7);
        fake.pci("0000:00:1f.0", 0x060100, None, 7);
        let group = IommuGroup::open(&fake.host(), 7).unwrap();
        assert_eq!(group.members.len(), 3);
        let error = group.viable_with(&["00:1f.2".parse().unwrap()]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("group 7") && text.contains("0000:00:1f.3 (SMBus controller, driver i801_smbus)"),
            "{text}"
        );
        assert!(!text.contains("1f.2 ") && !text.contains("1f.0 "), "{text}");
        group.viable_with(&["00:1f.2".parse().unwrap(), "00:1f.3".parse().unwrap()]).unwrap();
    }

    #[test]
    fn ports_stubs_and_vfio_do_not_stand_in_the_way() {
        let fake = FakeHost::new();
        fake.pci("0000:00:01.0", 0x060400, Some("pcieport"), 1);
        fake.pci("0000:01:00.0", 0x030000, Some("vfio-pci"), 1);
        fake.pci("0000:01:00.1", 0x040300, Some("pci-stub"), 1);
        IommuGroup::open(&fake.host(), 1).unwrap().viable_with(&[]).unwrap();
    }
}
