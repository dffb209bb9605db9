//! Why a domain could not do what it was asked.

use std::io;

use memory::Gpa;

use crate::iova::{Iova, IovaRange};
use crate::ledger::Difference;
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
    /// The ledger is not the RAM map.
    #[error(transparent)]
    Difference(#[from] Difference),
    /// RAM is mapped already.
    #[error("DMA domain {domain} holds RAM already; it can be mapped once")]
    Mapped {
        /// The domain.
        domain: String,
    },
    /// The kernel takes too few mappings.
    #[error(
        "DMA domain {domain} needs {wanted} mappings but the kernel takes only {left} more. Raise \
         vfio_iommu_type1.dma_entry_limit (/sys/module/vfio_iommu_type1/parameters)"
    )]
    Mappings {
        /// The domain.
        domain: String,
        /// How many are needed.
        wanted: u64,
        /// How many there can be.
        left: u64,
    },
    /// A mapping failed; those made before it were undone, but for those in `stuck`.
    #[error(
        "DMA domain {domain}: cannot map {bytes:#x} bytes of RAM at GPA {gpa} to IOVA {iova}: {cause}. {}{}",
        map_hint(cause),
        also(stuck)
    )]
    Map {
        /// The domain.
        domain: String,
        /// First IOVA.
        iova: Iova,
        /// First guest address.
        gpa: Gpa,
        /// Length in bytes.
        bytes: u64,
        /// The kernel's answer.
        cause: io::Error,
        /// Mappings made before that could not be undone.
        stuck: Vec<Failed>,
    },
    /// Mappings that could not be taken away; devices in the domain still reach that RAM.
    #[error("DMA domain {domain}: devices still reach RAM that should be unmapped{}", also(failed))]
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
        Some(libc::EFAULT) => "The RAM could not be pinned; huge pages may have run out",
        _ => "See the kernel's log (`dmesg`)",
    }
}

fn also(failed: &[Failed]) -> String {
    let one = |failed: &Failed| format!(". Cannot unmap IOVA {}: {}", failed.iova, failed.cause);
    failed.iter().map(one).collect()
}
