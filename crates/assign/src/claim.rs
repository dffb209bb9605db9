//! Taking devices from the host for one VM, and giving them back.

use std::collections::BTreeSet;
use std::sync::Arc;

use dma::Domain;
use dma::vfio::Group;
use host::{Bound, Host, IommuGroup, PciAddress, PciDevice, ReservedRegion};
use memory::{GpaRange, Ram};

use crate::error::{AssignError, all};

/// Devices taken from the host for one VM, in one DMA domain.
///
/// The order is: claim, map the RAM, tell KVM of [`Domain::groups`], make an [`crate::Assigned`] of each device.
/// In the end drop those, then [`Claim::release`]; a claim that is dropped gives back as well and prints what
/// failed.
#[derive(Debug)]
pub struct Claim {
    devices: Vec<PciDevice>,
    // Dropped in this order: a device can only be given back once its group is closed.
    domain: Arc<Domain>,
    bound: Vec<Bound>,
}

impl Claim {
    /// Checks all devices, and everything about them, before anything is touched; then binds them to vfio-pci and
    /// puts their groups into a new domain called `name`. On failure the host is as it was.
    pub fn new(host: &Host, name: &str, addresses: &[PciAddress]) -> Result<Claim, AssignError> {
        let (devices, groups, errors) = examine(host, addresses);
        all(errors)?;
        let bound: Vec<Bound> =
            devices.iter().map(|device| host.bind_to_vfio(device)).collect::<Result<_, _>>()?;
        let groups = groups.into_iter().map(Group::open).collect::<Result<_, _>>()?;
        let domain = Domain::type1(name, groups)?;
        Ok(Claim { devices, domain, bound })
    }

    /// The devices.
    pub fn devices(&self) -> &[PciDevice] {
        &self.devices
    }

    /// The domain that the devices translate through. Ask it for its limits before RAM is made.
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// Maps all RAM for the devices, and compares the domain's ledger with it.
    pub fn map(&self, ram: &Arc<Ram>) -> Result<(), AssignError> {
        self.domain.map_ram(ram)?;
        Ok(self.domain.audit(ram)?)
    }

    /// The IOMMU group of a device of the claim.
    pub(crate) fn group_of(&self, address: PciAddress) -> Result<u32, AssignError> {
        let device = self.devices.iter().find(|device| device.address == address);
        device.and_then(|device| device.group).ok_or(AssignError::NotClaimed { address })
    }

    /// Unmaps the RAM, closes the groups and gives all devices back to the drivers they had. Tries all, and
    /// reports all that failed.
    pub fn release(self) -> Result<(), AssignError> {
        let Claim { domain, bound, .. } = self;
        let mut errors = Vec::new();
        let open = domain.devices();
        if !open.is_empty() {
            errors.push(AssignError::StillOpen { devices: open });
        }
        errors.extend(domain.unmap_all().err().map(AssignError::from));
        drop(domain);
        errors.extend(bound.into_iter().filter_map(|bound| bound.give_back().err()).map(AssignError::from));
        all(errors)
    }
}

/// Everything that can be known to stand in the way of taking these devices for a VM with its RAM at `ram`, at
/// once, with nothing touched.
pub fn check(host: &Host, addresses: &[PciAddress], ram: &[GpaRange]) -> Result<(), AssignError> {
    let (devices, groups, mut errors) = examine(host, addresses);
    for group in groups {
        match host.reserved_regions(group) {
            Ok(regions) => errors.extend(reserved(group, &regions, ram)),
            Err(error) => errors.push(error.into()),
        }
    }
    if !devices.is_empty() {
        let bytes = ram.iter().fold(0u64, |sum, range| sum.saturating_add(range.len()));
        errors.extend(dma::check_memlock(bytes).err().map(AssignError::from));
    }
    all(errors)
}

/// RAM over what is reserved for a group's devices. The kernel maps over regions that are `direct-relaxable`: what
/// the firmware kept there is of no use once the device is a guest's.
fn reserved(group: u32, regions: &[ReservedRegion], ram: &[GpaRange]) -> Vec<AssignError> {
    let mut errors = Vec::new();
    for region in regions.iter().filter(|region| region.kind != "direct-relaxable") {
        let over = |range: &&GpaRange| range.start().0 <= region.last && region.first < range.end().0;
        errors.extend(ram.iter().filter(over).map(|ram| AssignError::Reserved {
            ram: *ram,
            group,
            region: region.clone(),
        }));
    }
    errors
}

/// The devices, their groups, and everything about them that stands in the way.
fn examine(host: &Host, addresses: &[PciAddress]) -> (Vec<PciDevice>, BTreeSet<u32>, Vec<AssignError>) {
    let (mut devices, mut groups, mut errors) = (Vec::new(), BTreeSet::new(), Vec::new());
    for (index, address) in addresses.iter().enumerate() {
        if addresses[..index].contains(address) {
            errors.push(AssignError::Twice { address: *address });
            continue;
        }
        match PciDevice::open(host, *address) {
            Ok(device) => {
                let reasons = host.device_in_use(&device);
                if !reasons.is_empty() {
                    errors.push(AssignError::InUse { address: *address, reasons });
                }
                match device.require_group(host) {
                    Ok(group) => drop(groups.insert(group)),
                    Err(error) => errors.push(error.into()),
                }
                devices.push(device);
            }
            Err(error) => errors.push(error.into()),
        }
    }
    for group in &groups {
        match IommuGroup::open(host, *group) {
            Ok(group) => errors.extend(group.viable_with(addresses).err().map(AssignError::from)),
            Err(error) => errors.push(error.into()),
        }
    }
    (devices, groups, errors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn device(root: &std::path::Path, address: &str, class: &str, driver: &str, group: Option<u32>) {
        let home = root.join("sys/bus/pci/devices").join(address);
        fs::create_dir_all(&home).unwrap();
        for (name, text) in [("vendor", "0x8086"), ("device", "0x1000"), ("class", class)] {
            fs::write(home.join(name), text).unwrap();
        }
        symlink(format!("/drivers/{driver}"), home.join("driver")).unwrap();
        if let Some(group) = group {
            symlink(format!("/groups/{group}"), home.join("iommu_group")).unwrap();
            let members = root.join(format!("sys/kernel/iommu_groups/{group}/devices"));
            fs::create_dir_all(&members).unwrap();
            symlink(&home, members.join(address)).unwrap();
        }
    }

    #[test]
    fn everything_in_the_way_of_all_devices_is_reported_at_once() {
        let dir = tempfile::tempdir().unwrap();
        device(dir.path(), "0000:00:01.0", "0x060400", "pcieport", Some(1));
        device(dir.path(), "0000:02:00.0", "0x010802", "nvme", Some(2));
        device(dir.path(), "0000:02:00.1", "0x0c0330", "xhci_hcd", Some(2));
        device(dir.path(), "0000:03:00.0", "0x020000", "e1000e", None);
        let addresses =
            ["00:01.0", "02:00.0", "02:00.0", "03:00.0", "04:00.0"].map(|text| text.parse().unwrap());
        let text = Claim::new(&Host::at(dir.path()), "guest", &addresses).unwrap_err().to_string();
        for part in [
            "0000:00:01.0 is in use by this host: it is a bridge",
            "0000:02:00.0 is assigned twice",
            "0000:03:00.0 belongs to no IOMMU group",
            "no PCI device 0000:04:00.0",
            "0000:02:00.1 (USB controller, driver xhci_hcd)",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }

    #[test]
    fn ram_that_a_device_cannot_reach_is_found_with_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        device(dir.path(), "0000:02:00.0", "0x010802", "nvme", Some(2));
        device(dir.path(), "0000:02:00.1", "0x0c0330", "xhci_hcd", Some(2));
        let regions = "0x0000000000000000 0x0000000000ffffff direct-relaxable\n\
                       0x00000000bff00000 0x00000000c00fffff direct\n\
                       0x00000000fee00000 0x00000000feefffff msi\n\
                       0x000000fd00000000 0x000000ffffffffff reserved\n";
        fs::write(dir.path().join("sys/kernel/iommu_groups/2/reserved_regions"), regions).unwrap();
        let host = Host::at(dir.path());
        let address = ["02:00.0".parse().unwrap()];
        let text = check(&host, &address, &memory::ram_ranges(2 << 40)).unwrap_err().to_string();
        for part in [
            "0000:02:00.1 (USB controller",
            "lies over 0xbff00000-0xc00fffff, which is reserved (direct) for the devices of IOMMU group 2",
            "lies over 0xfd00000000-0xffffffffff, which is reserved (reserved)",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert!(!text.contains("msi") && !text.contains("relaxable"), "{text}");
        let text = check(&host, &address, &memory::ram_ranges(1 << 30)).unwrap_err().to_string();
        assert!(!text.contains("reserved"), "{text}");
        check(&host, &[], &memory::ram_ranges(2 << 40)).unwrap();
    }
}
