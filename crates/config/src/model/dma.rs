//! How the VM's devices reach memory.

use super::words::words;

/// How the VM's devices reach memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dma {
    /// What makes the domains.
    pub back_end: DmaBackEnd,
    /// What the host domain holds while devices are assigned.
    pub host_domain: HostDomain,
    /// What happens when a device's DMA fails, unless the device has its own answer ([`super::Assign::on_fault`]).
    pub on_fault: OnFault,
    /// Whether assigned devices reach each other's BARs.
    pub p2p: P2p,
}

words! {
    /// What makes the domains: a way of the kernel to map memory for devices.
    #[derive(Default)]
    pub enum DmaBackEnd, "a DMA back end" {
        /// iommufd where this host has it, VFIO type1 elsewhere.
        #[default]
        Auto = "auto",
        /// iommufd.
        Iommufd = "iommufd",
        /// VFIO type1.
        Type1 = "type1",
    }
}

words! {
    /// What the host domain holds, the one of the devices that skep itself drives.
    #[derive(Default)]
    pub enum HostDomain, "a kind of host domain" {
        /// All RAM of the guest, for the VM's whole life.
        #[default]
        Shared = "shared",
        /// For study: the guest's RAM leaves it when a device is assigned, as with bhyve until 2022. What skep's
        /// own drivers then read or write for the guest fails. A description has it only with `i-know`.
        Exclusive = "exclusive",
    }
}

words! {
    /// What happens when a device's DMA fails. It is an event of the VM in every case.
    #[derive(Default)]
    pub enum OnFault, "an answer to a fault" {
        /// Nothing more than the event.
        #[default]
        Report = "report",
        /// The VM is paused: its vCPUs stop, while devices go on with their DMA.
        Pause = "pause",
        /// The device is reset, together with the VM's others on its bus when there is no other way.
        Reset = "reset",
        /// The VM is stopped.
        Stop = "stop",
    }
}

words! {
    /// What happens when this host wants an assigned device back, beside the one event that tells of it.
    #[derive(Default)]
    pub enum OnRequest, "an answer to a request for a device" {
        /// Nothing more than the event. The host waits until the VM ends.
        #[default]
        Report = "report",
        /// The VM is stopped, and so gives the device back.
        Stop = "stop",
    }
}

words! {
    /// Whether assigned devices reach each other's BARs by DMA.
    #[derive(Default)]
    pub enum P2p, "a choice for p2p" {
        /// They do not.
        #[default]
        Off = "off",
        /// They do where this host can do it.
        On = "on",
        /// They do, and the VM does not start without it.
        Required = "required",
    }
}
