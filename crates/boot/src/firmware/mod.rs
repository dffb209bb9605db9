//! UEFI firmware instead of a kernel: the files that it is made of, and what it is told about the machine. The firmware
//! that is known is OVMF (EDK II, OvmfPkg).

mod find;
mod image;
mod kernel;
mod tables;
mod variables;
mod volume;

pub use find::{FindError, Found, Keys, find};
pub use image::{Blocks, Code, FirmwareError, Template, together};
pub use kernel::{EfiKernel, EfiKernelError, Part};
pub use tables::{ConfigFile, files};
pub use variables::{Damaged, Variable, secure_boot, variables};
