//! The model: what a VM is, by parts.

mod assign;
mod boot;
mod console;
mod disk;
mod distinct;
mod dma;
mod draft;
mod ram;
mod source;
mod tpm;
mod vm;
mod words;

pub use assign::{Assign, Rom};
pub use boot::{
    Boot, Firmware as BootFirmware, FirmwareChoice, FirmwareImage, FwCfgContent, FwCfgFile, Linux, Once,
};
pub use console::Console;
pub use disk::{Disk, DiskModel, ModelName, OnError, Writes};
pub use distinct::{Distinct, Identified};
pub use dma::{Dma, DmaBackEnd, HostDomain, OnFault, OnRequest, P2p};
pub use draft::Draft;
pub use ram::{Backing, HugePages, Wire};
pub use source::{Bounce, Buffers, Chain, DiskSource, FileDisk, Format, Poll};
pub use tpm::{OnTpmError, Tpm, TpmSource};
pub use vm::Vm;
