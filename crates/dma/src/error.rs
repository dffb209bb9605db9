//! Why a domain could not do what it was asked.

use std::io;

use memory::RamError;

use crate::iova::IovaRange;
use crate::ledger::Mapping;
use crate::limits::Misfits;
use crate::memlock::MemlockError;
use crate::vfio::VfioError;

/// A domain's refusal or failure.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// The container, a group or a device refused.
    #[error(transparent)]
    Vfio(#[from] VfioError),
    /// RAM lies where the IOMMU cannot map it. Nothing was mapped.
    #[error(transparent)]
    Misfits(#[from] Misfits),
    /// Too little may be locked. Nothing was mapped.
    #[error(transparent)]
    Memlock(#[from] MemlockError),
    /// Memory for a driver's queues could not be allocated.
    #[error(transparent)]
    Memory(#[from] RamError),
    /// There is no room for a driver's queues.
    #[error(
        "DMA domain {domain}: the IOMMU has no {bytes:#x} free addresses for {what}. Give the VM less memory (--memory)"
    )]
    NoRoom {
        /// The domain.
        domain: String,
        /// What they are for.
        what: String,
        /// How many.
        bytes: u64,
    },
    /// The kernel takes no more mappings.
    #[error(
        "DMA domain {domain}: the kernel accepts no more mappings. Raise vfio_iommu_type1.dma_entry_limit \
         (/sys/module/vfio_iommu_type1/parameters)"
    )]
    Mappings {
        /// The domain.
        domain: String,
    },
    /// iommufd was asked for, and VFIO does not work with it.
    #[error(
        "iommufd cannot make DMA domains, because this kernel's VFIO has no character devices (/dev/vfio/devices). Use \
         a kernel with CONFIG_VFIO_DEVICE_CDEV (Linux 6.6 or later), or VFIO type1 (--dma type1)"
    )]
    NoCdevs,
    /// iommufd was asked for, and that devices must reach each other's memory.
    #[error(
        "DMA domains by iommufd do not let devices reach each other's memory, which --p2p required demands. Use VFIO \
         type1 (--dma type1 or auto), or --p2p on: the VM then runs without it"
    )]
    NoP2pByIommufd,
    /// Devices must reach each other's memory, and on trial they did not.
    #[error(
        "{0}. So devices cannot reach each other's memory, which --p2p required demands. With --p2p on the VM runs without it"
    )]
    NoP2p(Box<DomainError>),
    /// A mapping failed.
    #[error("DMA domain {domain}: cannot map IOVA {} to {}: {cause}. {}", mapping.iova, mapping.target, map_hint(cause))]
    Map {
        /// The domain.
        domain: String,
        /// What was to be mapped.
        mapping: Mapping,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// Mappings that could not be removed; devices in the domain still reach this memory.
    #[error("DMA domain {domain}: devices still reach memory that should be unmapped{}", also(failed))]
    Unmap {
        /// The domain.
        domain: String,
        /// What failed.
        failed: Vec<Failed>,
    },
}

/// An unmapping that failed.
#[derive(Debug)]
pub struct Failed {
    /// The mapping.
    pub iova: IovaRange,
    /// Why; one that unmapped too few bytes says so.
    pub cause: io::Error,
}

fn map_hint(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::ENOMEM) => {
            "Either the limit on locked memory is too low (`ulimit -l`, LimitMEMLOCK= in a unit) or the host is \
             short of memory"
        }
        Some(libc::EINVAL) => "The IOMMU cannot map this address; see the group's reserved_regions in sysfs",
        Some(libc::EEXIST) => "This address is mapped already",
        Some(libc::ENOSPC) => "The kernel's limit on mappings is reached (vfio_iommu_type1.dma_entry_limit)",
        Some(libc::EFAULT) => "The memory could not be pinned; huge pages may have run out",
        _ => "See the kernel's log (`dmesg`)",
    }
}

fn also(failed: &[Failed]) -> String {
    let one = |failed: &Failed| format!(". Cannot unmap IOVA {}: {}", failed.iova, failed.cause);
    failed.iter().map(one).collect()
}
