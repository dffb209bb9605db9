//! What a description asks of DMA domains and of assigned devices, in the terms of the crates that make them.

use std::collections::HashMap;

use assign::{DomainPlan, Rom, RomImage};
use config::{Assign, DiskSource, DmaBackEnd, DomainName, P2p};
use dma::{DmaChoice, Kind, P2pWish};
use host::PciAddress;

use crate::error::{StartError, host_address};

/// The domains of a VM: those of its assigned devices, in the order in which they are named first, and the host domain
/// when skep drives controllers itself.
pub fn planned(draft: &config::Draft) -> (Vec<DomainPlan>, Vec<StartError>) {
    let kind = Kind::Guest(match draft.dma.p2p {
        P2p::Off => P2pWish::Off,
        P2p::On => P2pWish::On,
        P2p::Required => P2pWish::Required,
    });
    let (mut plans, mut errors) = (Vec::<DomainPlan>::new(), Vec::new());
    let mut put = |name: &str, kind, address| match host_address(address) {
        Ok(address) => match plans.iter_mut().find(|plan| plan.name == name) {
            Some(plan) if plan.devices.contains(&address) && kind == Kind::Host => {}
            Some(plan) => plan.devices.push(address),
            None => plans.push(DomainPlan { name: name.to_owned(), kind, devices: vec![address] }),
        },
        Err(error) => errors.push(error),
    };
    for Assign { address, domain, .. } in &draft.assigned {
        put(domain.as_str(), kind, *address);
    }
    for disk in &draft.disks {
        // Several namespaces of one controller are several disks.
        if let DiskSource::Nvme { address, .. } = &disk.source {
            put(DomainName::HOST, Kind::Host, *address);
        }
    }
    (plans, errors)
}

/// The expansion ROMs of assigned devices that are not to show their own.
pub fn roms(draft: &config::Draft) -> (HashMap<PciAddress, Rom>, Vec<StartError>) {
    let (mut roms, mut errors) = (HashMap::new(), Vec::new());
    for Assign { address, rom, .. } in &draft.assigned {
        // An address that is none is found with the domains.
        let Ok(address) = host_address(*address) else { continue };
        match rom {
            config::Rom::Own => {}
            config::Rom::Off => drop(roms.insert(address, Rom::Hidden)),
            config::Rom::File(path) => match RomImage::open(path.as_path()) {
                Ok(image) => drop(roms.insert(address, Rom::Image(image))),
                Err(error) => errors.push(error.into()),
            },
        }
    }
    (roms, errors)
}

/// What makes the domains.
pub fn choice(dma: &config::Dma) -> DmaChoice {
    match dma.back_end {
        DmaBackEnd::Auto => DmaChoice::Auto,
        DmaBackEnd::Iommufd => DmaChoice::Iommufd,
        DmaBackEnd::Type1 => DmaChoice::Type1,
    }
}
