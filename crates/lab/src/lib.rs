//! The lab: an emulated host with IOMMU, disks and devices, in which skep runs for real.
//!
//! QEMU's TCG emulates a machine with hardware virtualization and an IOMMU; a stock kernel boots there
//! with a small system in RAM, runs one command and ends with its exit status.

mod description;
mod spec;

pub use description::{Builder, Lab};
pub use spec::{BlockSize, Bus, Contents, Device, Disk, Iommu, IommuModel, Kernel, Size, SpecError};
