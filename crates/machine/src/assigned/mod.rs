//! The assigned devices of a VM: taken from the host, registered with KVM, put on the bus, given back.

pub mod alarms;
pub mod domains;
pub mod leftovers;
pub mod on_fault;

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use assign::{AssignError, Assigned, Claim, DomainPlan, Rom};
use config::HostDomain;
use disk::nvme::{NvmeController, NvmeOptions};
use dma::{Chosen, DmaChoice, Domain, DomainError, Kind, KvmFile};
use host::{Host, PciAddress};
use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::{DeviceFd, VmFd};
use memory::{GpaRange, MemoryMap, Mirror};
use pci::{Bus, DeviceNumber, Services};

use crate::error::StartError;
use crate::events::Events;
use crate::kvm::failed;

/// Devices that were taken from the host. Dropping gives them back; [`Claimed::give_back`] also says what failed.
pub struct Claimed {
    /// KVM's reference to groups or devices. First, because it must be dropped before them: what KVM holds stays open.
    kvm: Option<DeviceFd>,
    claim: Claim,
}

impl Claimed {
    /// Takes devices from the host, all or none. `None` when there are none to take.
    pub fn new(host: &Host, plans: &[DomainPlan], dma: DmaChoice) -> Result<Option<Claimed>, StartError> {
        if plans.iter().all(|plan| plan.devices.is_empty()) {
            return Ok(None);
        }
        Ok(Some(Claimed { claim: Claim::new(host, plans, dma)?, kvm: None }))
    }

    /// Whether the devices can reach RAM in these places.
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

    /// Does what the host domain's kind asks for: with [`HostDomain::Exclusive`], the RAM leaves it when there are
    /// assigned devices. Only what skep's drivers themselves own stays.
    pub fn separate(&self, map: &MemoryMap, kind: HostDomain) -> Result<(), StartError> {
        if kind == HostDomain::Shared || self.claim.assigned().next().is_none() {
            return Ok(());
        }
        for domain in self.claim.domains().iter().filter(|domain| domain.kind() == Kind::Host) {
            let mirror: Arc<dyn Mirror> = domain.clone();
            map.detach(&mirror)?;
        }
        Ok(())
    }

    /// Registers the groups or devices with KVM. This lets it snoop caches as the devices do, for example.
    pub fn introduce(&mut self, vm: &VmFd) -> Result<(), StartError> {
        let mut device = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
        let kvm = vm.create_device(&mut device).map_err(failed("make its VFIO device"))?;
        let domains = self.claim.domains().iter().filter(|domain| domain.kind() != Kind::Host);
        for file in domains.flat_map(|domain| domain.kvm_files()) {
            add_file(&kvm, file)?;
        }
        self.kvm = Some(kvm);
        Ok(())
    }

    /// Puts every device on the bus, at the first addresses that are free, with its own expansion ROM unless `roms` has another
    /// one, and tries whether they reach each other's memory, if they shall.
    pub fn put_on(
        &self,
        bus: &Bus,
        services: &Arc<dyn Services>,
        roms: &HashMap<PciAddress, Rom>,
        events: &Events,
    ) -> Result<Vec<Arc<Assigned>>, StartError> {
        let mut all = Vec::new();
        for address in self.claim.assigned() {
            let at = bus.free_address(DeviceNumber::Own)?;
            let events = events.clone();
            // Nothing reads events before the VM runs; they wait until then. Warnings come from what the guest reads
            // and writes.
            let report = Arc::new(move |event: assign::Event| match event {
                warning @ assign::Event::Warning { .. } => events.provoked(warning.to_string()),
                other => events.trouble(other.to_string()),
            });
            let (windows, services) = (bus.windows(), services.clone());
            let rom = roms.get(&address).cloned().unwrap_or_default();
            let assigned = Assigned::new(&self.claim, address, at, windows, services, rom, report)?;
            bus.add(at, assigned.clone())?;
            bus.place_bars(at)?;
            all.push(assigned);
        }
        self.claim.try_p2p(&all)?;
        Ok(all)
    }

    /// Starts to drive an NVMe controller of the host domain.
    pub fn drive_nvme(
        &self,
        address: PciAddress,
        options: NvmeOptions,
    ) -> Result<NvmeController, StartError> {
        let device = self.claim.open(address)?;
        Ok(NvmeController::new(&device, self.claim.domain_of(address)?, options)?)
    }

    /// What the domains are made with.
    pub fn chosen(&self) -> &Chosen {
        self.claim.chosen()
    }

    /// The domains.
    pub fn domains(&self) -> &[Arc<Domain>] {
        self.claim.domains()
    }

    /// Gives the devices back to the drivers they had.
    pub fn give_back(self, map: &MemoryMap) -> Result<(), AssignError> {
        let Claimed { claim, kvm } = self;
        drop(kvm);
        claim.release(map)
    }
}

fn add_file(kvm: &DeviceFd, KvmFile { name, file }: KvmFile<'_>) -> Result<(), StartError> {
    let fd = file.as_raw_fd();
    // The same numbers as KVM_DEV_VFIO_GROUP and its ADD, which is what kernels before 6.6 call them.
    let attribute = kvm_device_attr {
        group: KVM_DEV_VFIO_FILE,
        attr: u64::from(KVM_DEV_VFIO_FILE_ADD),
        addr: (&raw const fd) as u64,
        flags: 0,
    };
    kvm.set_device_attr(&attribute).map_err(|cause| StartError::Introduce { name, cause: cause.into() })
}
