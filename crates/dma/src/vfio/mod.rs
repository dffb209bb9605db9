//! The kernel's VFIO interface, call by call, with every failure returned.

mod cdev;
mod device;
mod error;
mod group;
mod hot_reset;
pub(crate) mod ioctl;
mod irq;
mod region;

pub(crate) use cdev::BoundCdev;
pub use cdev::Cdev;
pub use device::VfioDevice;
pub use error::VfioError;
pub use group::Group;
pub use hot_reset::{Dependent, Holder};
pub use irq::{Interrupt, IrqInfo};
pub use region::{MappedArea, ROM, Region, bar};
