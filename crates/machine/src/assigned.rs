//! The assigned devices of a VM: taken from the host, told to KVM, put on the bus, given back.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use assign::{AssignError, Assigned, Claim, DomainPlan};
use dma::{DomainError, Kind};
use host::Host;
use kvm_bindings::{
    KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_ADD, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::{DeviceFd, VmFd};
use memory::{GpaRange, MemoryMap};
use pci::{Bus, Services};

use crate::error::StartError;
use crate::events::Events;
use crate::kvm::failed;

/// Devices that were taken from the host. Dropping gives them back; [`Claimed::give_back`] also says what failed.
pub struct Claimed {
    /// KVM's own hold on the groups. First, for it must go before they do: a group that KVM holds cannot be left.
    kvm: Option<DeviceFd>,
    claim: Claim,
}

impl Claimed {
    /// Takes devices from the host, all or none. `None` when there are none to take.
    pub fn new(host: &Host, plans: &[DomainPlan]) -> Result<Option<Claimed>, StartError> {
        if plans.iter().all(|plan| plan.devices.is_empty()) {
            return Ok(None);
        }
        Ok(Some(Claimed { claim: Claim::new(host, plans)?, kvm: None }))
    }

    /// Whether the devices can reach RAM in these places at all.
    pub fn check(&self, ram: &[GpaRange]) -> Result<(), StartError> {
        for domain in self.claim.domains() {
            let limits = domain.limits().map_err(AssignError::from)?;
            limits.check(ram.iter().copied()).map_err(DomainError::from).map_err(AssignError::from)?;
        }
        Ok(())
    }

    /// Brings all RAM into the devices' domains and compares them with the map.
    pub fn attach(&self, map: &MemoryMap) -> Result<(), StartError> {
        Ok(self.claim.attach(map)?)
    }

    /// Tells KVM of the groups, which for instance lets it snoop caches as the devices do.
    pub fn introduce(&mut self, vm: &VmFd) -> Result<(), StartError> {
        let mut device = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
        let kvm = vm.create_device(&mut device).map_err(failed("make its VFIO device"))?;
        let domains = self.claim.domains().iter().filter(|domain| domain.kind() != Kind::Host);
        for group in domains.flat_map(|domain| domain.groups()) {
            add_group(&kvm, group.number(), group.as_fd())?;
        }
        self.kvm = Some(kvm);
        Ok(())
    }

    /// Puts every device on the bus, at the first addresses that are free.
    pub fn put_on(
        &self,
        bus: &Bus,
        services: &Arc<dyn Services>,
        events: &Events,
    ) -> Result<Vec<Arc<Assigned>>, StartError> {
        let mut all = Vec::new();
        for address in self.claim.assigned() {
            let at = bus.free_address()?;
            let events = events.clone();
            // Nobody listens before the VM runs; what is said waits until then.
            let report = Arc::new(move |event: assign::Event| events.trouble(event.to_string()));
            let (windows, services) = (bus.windows(), services.clone());
            let assigned = Assigned::new(&self.claim, address, at, windows, services, report)?;
            bus.add(at, assigned.clone())?;
            bus.place_bars(at)?;
            all.push(assigned);
        }
        Ok(all)
    }

    /// Gives the devices back to the drivers they had.
    pub fn give_back(self, map: &MemoryMap) -> Result<(), AssignError> {
        let Claimed { claim, kvm } = self;
        drop(kvm);
        claim.release(map)
    }
}

fn add_group(kvm: &DeviceFd, group: u32, fd: BorrowedFd<'_>) -> Result<(), StartError> {
    let fd = fd.as_raw_fd();
    let attribute = kvm_device_attr {
        group: KVM_DEV_VFIO_GROUP,
        attr: u64::from(KVM_DEV_VFIO_GROUP_ADD),
        addr: (&raw const fd) as u64,
        flags: 0,
    };
    kvm.set_device_attr(&attribute).map_err(|cause| StartError::Group { group, cause: cause.into() })
}
