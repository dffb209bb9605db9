//! Why a device could not be assigned.

use dma::vfio::VfioError;
use dma::{DomainError, MemlockError};
use host::{BindError, HostError, NotViable, PciAddress, Reason, Unreachable};
use memory::ChangeError;
use pci::{PciError, ServiceError};

/// Why a device could not be assigned, reset or given back.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    /// A fact about the host or device.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The device could not be taken or given back.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The host uses other devices of its group.
    #[error(transparent)]
    NotViable(#[from] NotViable),
    /// The DMA domain.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// The RAM could not be pinned.
    #[error(transparent)]
    Memlock(#[from] MemlockError),
    /// RAM where the devices do not reach it.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// A DMA domain could not take on the VM's memory, or give it up.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// A call of VFIO's.
    #[error(transparent)]
    Vfio(#[from] VfioError),
    /// The machine could not do what the device needs.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The guest's PCI bus has no room for it.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// The host uses the device.
    #[error("PCI device {address} is in use by this host: {}", reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join("; "))]
    InUse {
        /// The device.
        address: PciAddress,
        /// All reasons.
        reasons: Vec<Reason>,
    },
    /// The same device twice.
    #[error("PCI device {address} is assigned twice. Name it once")]
    Twice {
        /// The device.
        address: PciAddress,
    },
    /// It is none of the claim's devices.
    #[error("PCI device {address} is not among those claimed for this VM")]
    NotClaimed {
        /// The device.
        address: PciAddress,
    },
    /// Devices that the IOMMU cannot distinguish are described for different domains.
    #[error(
        "devices of IOMMU group {group} are in different DMA domains ({}) by the description, but the IOMMU translates all \
         of them alike. Put them into one domain (--assign ADDRESS,domain=NAME)",
        domains.join(", ")
    )]
    Split {
        /// The group.
        group: u32,
        /// The domains.
        domains: Vec<String>,
    },
    /// Nothing keeps a device from raising interrupts that are not its own.
    #[error(
        "interrupt remapping is missing, so an assigned device could raise any interrupt of the host: enable it in the \
         firmware set-up (VT-d, AMD-Vi, x2APIC). To run without that protection, load {module} with \
         allow_unsafe_interrupts=1"
    )]
    NoRemapping {
        /// The kernel's module that would refuse.
        module: &'static str,
    },
    /// The function is no endpoint.
    #[error(
        "PCI device {address} is a bridge (header type {header:#x}); only endpoints can be assigned. Assign the \
         devices behind it instead"
    )]
    NotEndpoint {
        /// The device.
        address: PciAddress,
        /// Its header type register.
        header: u8,
    },
    /// A BAR that no guest could use.
    #[error(
        "PCI device {address}: BAR {bar} has {size:#x} bytes, which is no possible size. The device is broken or switched off"
    )]
    Bar {
        /// The device.
        address: PciAddress,
        /// The BAR.
        bar: usize,
        /// Its size.
        size: u64,
    },
    /// Something of this process still uses a domain, so its devices cannot be given back before the process has ended.
    #[error(
        "DMA domain {domain} is still in use, so {} cannot be given back yet. After skep has ended, \
         `skep host give-back` or the next start of a VM gives them back",
        list(devices)
    )]
    StillOpen {
        /// The domain.
        domain: String,
        /// Its devices.
        devices: Vec<PciAddress>,
    },
    /// Several things at once.
    #[error("{}", .0.iter().map(AssignError::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<AssignError>),
}

fn list(devices: &[PciAddress]) -> String {
    devices.iter().map(PciAddress::to_string).collect::<Vec<_>>().join(", ")
}

/// Nothing, the one error, or all of them.
pub(crate) fn all(mut errors: Vec<AssignError>) -> Result<(), AssignError> {
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(AssignError::Several(errors)),
    }
}
