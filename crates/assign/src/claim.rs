//! Taking devices from the host for one VM, and giving them back.

use std::collections::BTreeSet;
use std::sync::Arc;

use dma::vfio::{Cdev, Group, VfioDevice};
use dma::{Chosen, Circumstances, DmaChoice, Domain, Kind, P2pWish};
use host::{Bound, Host, IommuGroup, PciAddress, PciDevice};
use memory::{GpaRange, MemoryMap, Mirror};

use crate::assigned::Assigned;
use crate::error::{AssignError, all};

/// A domain to be made, and the devices that shall translate through it.
#[derive(Debug, Clone)]
pub struct DomainPlan {
    /// What it is called.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// Its devices.
    pub devices: Vec<PciAddress>,
}

/// Devices taken from the host for one VM, in their DMA domains.
///
/// The order is: claim, attach the domains to the VM's memory map, register [`Domain::kvm_files`] with KVM, make an
/// [`crate::Assigned`] or a host driver for each device. At the end drop those, then call [`Claim::release`]. A claim that
/// is dropped also gives its devices back, and prints what failed.
#[derive(Debug)]
pub struct Claim {
    // Dropped in this order: a device can only be given back once its group is closed.
    members: Vec<Member>,
    domains: Vec<Arc<Domain>>,
    chosen: Chosen,
    bound: Vec<Bound>,
}

/// A device and the domain it is in.
#[derive(Debug)]
struct Member {
    device: PciDevice,
    group: u32,
    domain: Arc<Domain>,
}

impl Claim {
    /// Checks all devices, and everything about them, before anything is touched; then binds them to vfio-pci and
    /// puts them into new domains, made as chosen. On failure the host is as it was.
    pub fn new(host: &Host, plans: &[DomainPlan], dma: DmaChoice) -> Result<Claim, AssignError> {
        let Examined { devices, errors, .. } = examine(host, plans);
        all(errors)?;
        let bound = devices.iter().map(|(device, _)| host.bind_to_vfio(device)).collect::<Result<_, _>>()?;
        // Not earlier: the kernel loads VFIO when a device is bound.
        let chosen = dma.resolve(Circumstances { cdevs: host.has_vfio_cdevs(), p2p: wish(plans) })?;
        let mut claim = Claim { members: Vec::new(), domains: Vec::new(), chosen, bound };
        for plan in plans {
            let mine = || devices.iter().filter(|(device, _)| plan.devices.contains(&device.address));
            let groups: BTreeSet<u32> = mine().map(|(_, group)| *group).collect();
            if groups.is_empty() {
                continue;
            }
            let domain = match &claim.chosen {
                Chosen::Type1(_) => {
                    let groups = groups.into_iter().map(Group::open).collect::<Result<_, _>>()?;
                    Domain::type1(&plan.name, plan.kind, groups)?
                }
                Chosen::Iommufd(iommufd) => {
                    let cdevs = mine().map(|(device, _)| open_cdev(host, device.address));
                    let cdevs = cdevs.collect::<Result<_, _>>()?;
                    Domain::iommufd(&plan.name, plan.kind, iommufd, cdevs)?
                }
            };
            claim.domains.push(domain.clone());
            let member = |(device, group): &(PciDevice, u32)| Member {
                device: device.clone(),
                group: *group,
                domain: domain.clone(),
            };
            claim.members.extend(mine().map(member));
        }
        Ok(claim)
    }

    /// The devices for the guest: all but those that skep itself drives, in the order of the plans.
    pub fn assigned(&self) -> impl Iterator<Item = PciAddress> {
        let guests = self.members.iter().filter(|member| member.domain.kind() != Kind::Host);
        guests.map(|member| member.device.address)
    }

    /// What the domains are made with; displayed, it says why.
    pub fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    /// The domains. Ask them for their limits before RAM is made.
    pub fn domains(&self) -> &[Arc<Domain>] {
        &self.domains
    }

    /// Brings the VM's memory into every domain and compares what they hold with the map. All or nothing.
    pub fn attach(&self, map: &MemoryMap) -> Result<(), AssignError> {
        self.domains.iter().try_for_each(|domain| Ok(map.attach(domain.clone())?))
    }

    /// Tries whether the assigned devices reach each other's memory, for domains that ask for it. The guest must not control
    /// any of them yet. If they do not, [`P2pWish::Required`] makes it an error; with [`P2pWish::On`] the domain
    /// remembers and reports it ([`Domain::tell`]).
    pub fn try_p2p(&self, assigned: &[Arc<Assigned>]) -> Result<(), AssignError> {
        let every =
            self.domains.iter().flat_map(|domain| assigned.iter().map(move |device| (domain, device)));
        all(every
            .filter_map(|(domain, device)| device.try_p2p(domain).err())
            .map(AssignError::from)
            .collect())
    }

    /// The domain of a device of the claim.
    pub fn domain_of(&self, address: PciAddress) -> Result<&Arc<Domain>, AssignError> {
        Ok(&self.member(address)?.domain)
    }

    /// Opens a device of the claim.
    pub fn open(&self, address: PciAddress) -> Result<Arc<VfioDevice>, AssignError> {
        let member = self.member(address)?;
        Ok(member.domain.open_device(member.group, &address.to_string())?)
    }

    fn member(&self, address: PciAddress) -> Result<&Member, AssignError> {
        let member = self.members.iter().find(|member| member.device.address == address);
        member.ok_or(AssignError::NotClaimed { address })
    }

    /// Removes the VM's memory from every domain, closes the groups and gives all devices back to the drivers they
    /// had. Tries all steps, and reports all failures.
    ///
    /// Devices of a domain that is still in use stay bound until this process has ended. To unbind them, a thread of this
    /// process would wait for files that this process has open, and nothing could interrupt the wait.
    pub fn release(self, map: &MemoryMap) -> Result<(), AssignError> {
        let Claim { members, domains, chosen, bound } = self;
        let inside = |domain: &Arc<Domain>| -> Vec<PciAddress> {
            let inside = members.iter().filter(|member| Arc::ptr_eq(&member.domain, domain));
            inside.map(|member| member.device.address).collect()
        };
        let inside: Vec<_> = domains.iter().map(inside).collect();
        drop(members);
        let (mut errors, mut open) = (Vec::new(), Vec::new());
        for (domain, devices) in domains.into_iter().zip(inside) {
            let mirror: Arc<dyn Mirror> = domain.clone();
            errors.extend(map.detach(&mirror).err().map(AssignError::from));
            drop(mirror);
            errors.extend(domain.unmap_all().err().map(AssignError::from));
            // The domain owns its devices' files, and the last share of it closes them.
            if !domain.devices().is_empty() || Arc::strong_count(&domain) > 1 {
                let name = domain.name().to_owned();
                errors.push(AssignError::StillOpen { domain: name, devices: devices.clone() });
                open.extend(devices);
            }
        }
        drop(chosen);
        let (stay, go): (Vec<_>, Vec<_>) =
            bound.into_iter().partition(|bound| open.contains(&bound.address()));
        stay.into_iter().for_each(Bound::leave);
        errors.extend(go.into_iter().filter_map(|bound| bound.give_back().err()).map(AssignError::from));
        all(errors)
    }
}

fn open_cdev(host: &Host, address: PciAddress) -> Result<Cdev, AssignError> {
    Ok(Cdev::open(&address.to_string(), &host.vfio_cdev(address)?)?)
}

/// The strongest wish of any domain.
fn wish(plans: &[DomainPlan]) -> P2pWish {
    let wish = |plan: &DomainPlan| match plan.kind {
        Kind::Guest(wish) => wish,
        Kind::Host => P2pWish::Off,
    };
    plans.iter().filter(|plan| !plan.devices.is_empty()).map(wish).max().unwrap_or_default()
}

/// A VM's RAM, before there is any.
#[derive(Debug, Clone, Copy, Default)]
pub struct RamPlan<'a> {
    /// Where it is to be.
    pub places: &'a [GpaRange],
    /// Whether it is locked as well, which counts beside what domains pin.
    pub locked: bool,
}

/// Everything that can be known to prevent taking these devices for a VM with such RAM and domains made as
/// `dma` says, at once, with nothing touched.
pub fn check(host: &Host, plans: &[DomainPlan], ram: RamPlan<'_>, dma: DmaChoice) -> Result<(), AssignError> {
    let Examined { devices, groups, mut errors } = examine(host, plans);
    match host.reach(&groups.into_iter().collect::<Vec<_>>()) {
        Ok(reach) => errors.extend(reach.check(ram.places).into_iter().map(AssignError::from)),
        Err(error) => errors.push(error.into()),
    }
    if !devices.is_empty() {
        let bytes = ram.places.iter().fold(0u64, |sum, range| sum.saturating_add(range.len()));
        let p2p = wish(plans);
        // This is unknown until VFIO is loaded.
        let cdevs = host.has_vfio_cdevs() || !host.has_vfio();
        let domains = plans.iter().filter(|plan| !plan.devices.is_empty()).count() as u64;
        let on = Circumstances { cdevs, p2p };
        errors.extend(devices.iter().flat_map(|(device, _)| host.cannot_take(device)).map(AssignError::from));
        let module = dma.module(on);
        if host.remaps_interrupts() == Some(false) && !host.allows_unsafe_interrupts(module) {
            errors.push(AssignError::NoRemapping { module });
        }
        let mut more = dma.locks(on, domains, bytes);
        if ram.locked {
            more.process = more.process.saturating_add(bytes);
        }
        errors.extend(dma.check(p2p).err().map(AssignError::from));
        errors.extend(dma::check_memlock(more).err().map(AssignError::from));
    }
    all(errors)
}

/// Devices with their groups, all groups, and everything that prevents taking them.
struct Examined {
    devices: Vec<(PciDevice, u32)>,
    groups: BTreeSet<u32>,
    errors: Vec<AssignError>,
}

fn examine(host: &Host, plans: &[DomainPlan]) -> Examined {
    let mut found = Examined { devices: Vec::new(), groups: BTreeSet::new(), errors: Vec::new() };
    let addresses: Vec<PciAddress> = plans.iter().flat_map(|plan| plan.devices.clone()).collect();
    for (index, address) in addresses.iter().enumerate() {
        if addresses[..index].contains(address) {
            found.errors.push(AssignError::Twice { address: *address });
            continue;
        }
        match PciDevice::open(host, *address) {
            Ok(device) => {
                let mut reasons = host.device_in_use(&device);
                // Where a disk on it belongs to the VM as well, opening the disk reports that, with both descriptions.
                reasons.retain(|reason| !reason.is_by_this_process());
                if !reasons.is_empty() {
                    found.errors.push(AssignError::InUse { address: *address, reasons });
                }
                match device.require_group(host) {
                    Ok(group) => {
                        found.groups.insert(group);
                        found.devices.push((device, group));
                    }
                    Err(error) => found.errors.push(error.into()),
                }
            }
            Err(error) => found.errors.push(error.into()),
        }
    }
    for group in &found.groups {
        match IommuGroup::open(host, *group) {
            Ok(group) => found.errors.extend(group.viable_with(&addresses).err().map(AssignError::from)),
            Err(error) => found.errors.push(error.into()),
        }
        let in_group = |plan: &DomainPlan| {
            let mut members = found.devices.iter().filter(|(_, other)| other == group);
            members.any(|(device, _)| plan.devices.contains(&device.address))
        };
        let names: Vec<String> =
            plans.iter().filter(|plan| in_group(plan)).map(|plan| plan.name.clone()).collect();
        if names.len() > 1 {
            found.errors.push(AssignError::Split { group: *group, domains: names });
        }
    }
    found
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

    fn guest(devices: &[PciAddress]) -> [DomainPlan; 1] {
        let kind = Kind::Guest(dma::P2pWish::Off);
        [DomainPlan { name: "guest".into(), kind, devices: devices.to_vec() }]
    }

    fn ram(places: &[GpaRange]) -> RamPlan<'_> {
        RamPlan { places, locked: false }
    }

    #[test]
    fn iommufd_with_required_peer_access_is_refused_before_devices_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        device(dir.path(), "0000:02:00.0", "0x010802", "nvme", Some(2));
        let [plan] = guest(&["02:00.0".parse().unwrap()]);
        let plans = [DomainPlan { kind: Kind::Guest(P2pWish::Required), ..plan }];
        let check = |dma| check(&Host::at(dir.path()), &plans, RamPlan::default(), dma);
        let text = check(DmaChoice::Iommufd).unwrap_err().to_string();
        assert!(text.contains("--p2p required"), "{text}");
        let text = check(DmaChoice::Auto).map_or_else(|error| error.to_string(), |()| String::new());
        assert!(!text.contains("--p2p"), "{text}");
    }

    #[test]
    fn devices_of_one_group_cannot_be_in_two_domains() {
        let dir = tempfile::tempdir().unwrap();
        device(dir.path(), "0000:02:00.0", "0x010802", "nvme", Some(2));
        device(dir.path(), "0000:02:00.1", "0x0c0330", "xhci_hcd", Some(2));
        let [one] = guest(&["02:00.0".parse().unwrap()]);
        let two = DomainPlan { name: "usb".into(), devices: vec!["02:00.1".parse().unwrap()], ..one.clone() };
        let text =
            check(&Host::at(dir.path()), &[one, two], ram(&[]), DmaChoice::Auto).unwrap_err().to_string();
        assert!(text.contains("IOMMU group 2") && text.contains("guest, usb"), "{text}");
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
        let text =
            Claim::new(&Host::at(dir.path()), &guest(&addresses), DmaChoice::Auto).unwrap_err().to_string();
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
    fn what_the_kernel_would_refuse_half_way_is_found_before_with_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        device(dir.path(), "0000:02:00.0", "0x010802", "nvme", Some(2));
        device(dir.path(), "0000:03:00.0", "0x010802", "nvme", Some(3));
        fs::create_dir_all(dir.path().join("proc")).unwrap();
        fs::write(dir.path().join("proc/interrupts"), "CPU0\n4: 36 IO-APIC 4-edge ttyS0\n").unwrap();
        let plans = guest(&["02:00.0", "03:00.0"].map(|text| text.parse().unwrap()));
        let found = |dma| check(&Host::at(dir.path()), &plans, ram(&[]), dma).unwrap_err().to_string();
        let text = found(DmaChoice::Type1);
        for part in [
            "cannot choose the driver of PCI device 0000:02:00.0",
            "cannot choose the driver of PCI device 0000:03:00.0",
            "load vfio_iommu_type1 with allow_unsafe_interrupts=1",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert_eq!(text.matches("interrupt remapping").count(), 1, "{text}");
        fs::write(dir.path().join("proc/cmdline"), "vfio_iommu_type1.allow_unsafe_interrupts=1").unwrap();
        assert!(!found(DmaChoice::Type1).contains("remapping"));
        assert!(found(DmaChoice::Iommufd).contains("load iommufd with"));
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
        let text = check(&host, &guest(&address), ram(&memory::ram_ranges(2 << 40)), DmaChoice::Auto)
            .unwrap_err()
            .to_string();
        for part in [
            "0000:02:00.1 (USB controller",
            "lies over 0xbff00000-0xc00fffff, memory that the firmware keeps for the devices of IOMMU group 2",
            "lies in the hole below 1 TiB (0xfd00000000-0xffffffffff)",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert!(!text.contains("MSI") && !text.contains("relaxable"), "{text}");
        let text = check(&host, &guest(&address), ram(&memory::ram_ranges(1 << 30)), DmaChoice::Auto)
            .unwrap_err()
            .to_string();
        assert!(!text.contains("guest RAM"), "{text}");
        check(&host, &[], ram(&memory::ram_ranges(2 << 40)), DmaChoice::Iommufd).unwrap();
    }
}
