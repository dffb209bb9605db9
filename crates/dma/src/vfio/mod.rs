//! The kernel's VFIO interface, call by call, with every failure returned.

mod device;
mod error;
mod group;
pub(crate) mod ioctl;
mod irq;
mod region;

pub use device::{Dependent, VfioDevice};
pub use error::VfioError;
pub use group::Group;
pub use irq::{Interrupt, IrqInfo};
pub use region::{MappedArea, ROM, Region, bar};
