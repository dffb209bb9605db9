//! The lab: an emulated host with IOMMU, disks and devices, in which skep runs for real.
//!
//! QEMU's TCG emulates a machine with hardware virtualization and an IOMMU; a stock kernel boots there
//! with a small system in RAM, runs one command and ends with its exit status. Nothing of a run is left
//! behind: disks are files without a name, and the emulator dies with whoever started it.
//!
//! ```no_run
//! use lab::{Iommu, Lab};
//!
//! let lab = Lab::builder().iommu(Iommu::intel()).cpus(2).disk("nvme:64M,serial=N".parse()?).build();
//! let outcome = lab.run(&["sh", "-c", "sha256sum /dev/nvme0n1"], |line| println!("{}", line.text))?;
//! assert!(outcome.success());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod archive;
mod clock;
mod compile;
pub mod count;
mod description;
mod error;
mod image;
mod installed;
mod kernel;
mod machine;
pub mod names;
pub mod order;
mod places;
mod process;
mod run;
mod spec;
mod system;
mod terminal;
pub mod wire;

pub use description::{Builder, Lab};
pub use error::LabError;
pub use image::Original;
pub use installed::{ESP_AT, Installed, Loader, ROOT_AT};
pub use kernel::{
    ensure_debian_kernel, has_debian_kernel, lab_kernel, lab_kernel_in, modules, newest_kernel,
};
pub use places::cache;
pub use run::{Event, Line, Outcome, Stream};
pub use spec::{BlockSize, Bus, Contents, Device, Disk, Iommu, IommuModel, Kernel, Size, SpecError};
pub use system::has_static_busybox;
pub use terminal::Terminal;
