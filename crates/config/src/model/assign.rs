//! A device of the host for the guest alone.

use super::distinct::Identified;
use super::dma::{OnFault, OnRequest};
use crate::values::address::PciAddress;
use crate::values::count::BootIndex;
use crate::values::name::DomainName;

/// A PCI function of the host that the guest gets for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assign {
    /// Its address on the host.
    pub address: PciAddress,
    /// The domain that it translates through. Devices with the same name share one.
    pub domain: DomainName,
    /// What happens when its DMA fails; `None` for what the VM has ([`super::Dma::on_fault`]).
    pub on_fault: Option<OnFault>,
    /// What happens when this host wants it back.
    pub on_request: OnRequest,
    /// Its place among what firmware boots.
    pub boot_index: Option<BootIndex>,
}

impl Assign {
    /// The function at this address, in the common guest domain.
    pub fn new(address: PciAddress) -> Assign {
        Assign {
            address,
            domain: DomainName::default(),
            on_fault: None,
            on_request: OnRequest::default(),
            boot_index: None,
        }
    }
}

impl Identified for Assign {
    fn identity(&self) -> Option<String> {
        Some(format!("PCI device {}", self.address))
    }
}
