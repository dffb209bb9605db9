//! DMA domains: what devices reach through the IOMMU, and the VFIO devices in them.
//!
//! A [`Domain`] is a mirror of a VM's memory map ([`memory::MemoryMap`]): it maps guest RAM at IOVA = GPA, whole
//! segments at a time, and keeps a ledger of what it holds that can be printed and compared with the map at any
//! time. A guest domain ([`Kind::Guest`]) holds nothing else, but for other devices' memory when asked for; a host
//! domain ([`Kind::Host`]) holds the queues of skep's own drivers as well. Below it is a back end ([`BackEnd`]).
//!
//! The [`vfio`] part is a thin layer over the kernel's interface (linux/vfio.h) in which no call's failure is
//! swallowed.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod backend;
mod choice;
mod domain;
mod error;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod iommufd;
mod iova;
mod ledger;
mod limits;
mod members;
mod memlock;
mod own;
mod p2p;
mod reach;
#[cfg(test)]
mod tests;
mod type1;
pub mod vfio;

pub use backend::BackEnd;
pub use choice::{Chosen, Circumstances, DmaChoice, Reason};
pub use domain::{Calls, Domain, Kind, Remark};
pub use error::{DomainError, Failed};
pub use iommufd::Iommufd;
pub use iova::{Iova, IovaRange};
pub use ledger::{Mapping, Permission, Target};
pub use limits::{Limits, Misfit, Misfits};
pub use members::KvmFile;
pub use memlock::{Locked, MemlockError, check_memlock, raise_memlock};
pub use own::OwnMemory;
pub use p2p::{P2p, P2pWish};
pub use reach::Reach;
