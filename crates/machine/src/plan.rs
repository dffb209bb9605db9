//! What a description asks of DMA domains and of RAM, in the terms of the crates that carry it out.

use assign::DomainPlan;
use config::{Assign, DiskSource, DmaBackEnd, DomainName, HugePages, P2p, Wire};
use dma::{DmaChoice, Kind, P2pWish};
use memory::{Node, Pages, Placement};

use crate::error::{StartError, host_address};

/// The domains of a VM: those of its assigned devices, in the order in which they are named first, and the host domain
/// when skep drives controllers itself.
pub fn domains(config: &config::Vm) -> (Vec<DomainPlan>, Vec<StartError>) {
    let kind = Kind::Guest(match config.dma.p2p {
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
    for Assign { address, domain, .. } in &config.assigned {
        put(domain.as_str(), kind, *address);
    }
    for disk in &config.disks {
        // Several namespaces of one controller are several disks.
        if let DiskSource::Nvme { address, .. } = &disk.source {
            put(DomainName::HOST, Kind::Host, *address);
        }
    }
    (plans, errors)
}

/// Where the RAM comes from.
pub fn placement(config: &config::Vm) -> Placement {
    let pages = match config.backing.hugepages {
        None => Pages::Default,
        Some(HugePages::Of2M) => Pages::Huge2M,
        Some(HugePages::Of1G) => Pages::Huge1G,
    };
    Placement { pages, node: config.backing.node.map(|node| Node(node.get().into())) }
}

/// What is done to the RAM before the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// What a guest touches while it boots comes in large pages; the rest comes when it is touched.
    Begun,
    /// All of it is present. Devices pin it, which keeps it so.
    Present,
    /// All of it is present and locked.
    Wired,
}

/// What is done to the RAM of a VM; `devices` says whether any does DMA to it.
pub fn readiness(config: &config::Vm, devices: bool) -> Readiness {
    let Placement { pages, node } = placement(config);
    // The kernel sets huge pages aside for the host as a whole: those of one node are sure only when they are there,
    // and a guest that touches one that is not ends with a signal.
    let unsure = pages.are_huge() && node.is_some();
    match config.backing.wire {
        Wire::On => Readiness::Wired,
        Wire::Auto if devices => Readiness::Present,
        Wire::Auto | Wire::Off if unsure => Readiness::Present,
        Wire::Auto | Wire::Off => Readiness::Begun,
    }
}

/// What makes the domains.
pub fn choice(config: &config::Vm) -> DmaChoice {
    match config.dma.back_end {
        DmaBackEnd::Auto => DmaChoice::Auto,
        DmaBackEnd::Iommufd => DmaChoice::Iommufd,
        DmaBackEnd::Type1 => DmaChoice::Type1,
    }
}
