//! DMA domains: what devices reach through the IOMMU, and the VFIO devices in them.
//!
//! A [`Domain`] maps guest RAM at IOVA = GPA, whole segments at a time, all or nothing, and keeps a ledger of
//! what it holds that can be printed and compared with the RAM map at any time. Below it is a back end; the one
//! there is speaks to a VFIO type1 container.
//!
//! The [`vfio`] part is a thin layer over the kernel's interface (linux/vfio.h) in which no call's failure is
//! swallowed.

mod backend;
mod domain;
mod error;
pub mod fault;
mod iova;
mod ledger;
mod limits;
mod memlock;
mod type1;
pub mod vfio;

pub use domain::Domain;
pub use error::{DomainError, Failed};
pub use iova::{Iova, IovaRange};
pub use ledger::{Difference, Mapping, Permission};
pub use limits::{Limits, Misfit, Misfits};
pub use memlock::{MemlockError, check_memlock};
