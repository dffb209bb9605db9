//! UEFI firmware instead of a kernel: the files that it is made of, and what it is told about the machine. The firmware
//! that is known is OVMF (EDK II, OvmfPkg).

mod find;
mod ftw;
mod image;
mod kernel;
mod modules;
mod tables;
mod variables;
mod volume;

pub use find::{FindError, Found, Keys, find, templates};
pub use ftw::unfinished;
pub use image::{Blocks, Code, FirmwareError, VariableStore, together};
pub use kernel::{EfiKernel, EfiKernelError, Part};
pub use tables::{ConfigFile, files};
pub use variables::{Damaged, SecureBoot, Variable, secure_boot, variables};
