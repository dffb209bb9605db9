//! What the guest sees: device models. Guest data is hostile here: copied once, checked once, never asserted on.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod ahci;
mod aside;
mod durability;
mod flash;
pub mod fw_cfg;
pub mod nvme;
mod ports;
mod power;
mod rtc;
mod scratch;
mod serial;
mod serial_number;
mod stock;
pub mod tpm;
mod virtio_blk;

pub use flash::{Flash, Store};
pub use fw_cfg::FwCfg;
pub use nvme::{Namespace, Nvme, NvmeError, NvmeOptions};
pub use ports::PortDevice;
pub use power::{PmTimer, Power, PowerRequest, Press, ResetPort};
#[cfg(feature = "driver")]
pub use rtc::{Nanos, State as RtcState};
pub use rtc::{RamSizes, Rtc};
pub use serial::SerialPort;
pub use serial_number::shortened as shortened_serial_number;
pub use tpm::Tpm;
pub use virtio_blk::{InitialCache, Rings, SizeNotice, VirtioBlk, VirtioBlkError, VirtioBlkOptions};
